"""One Meta-World task with its goal visible: goals drawn without simulating, and its whole state.

With `envs.fast` the only module that imports Meta-World's environments.
"""

from __future__ import annotations

import weakref
from typing import Any, Literal

from mtrl.envs.physics import mujoco  # before Meta-World, which imports it too

# isort: split
import gymnasium as gym
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from numpy.typing import NDArray

from mtrl.envs import state as codec
from mtrl.envs.fast import fast

PICTURE = 320
"""Height and width of a picture."""
_GOALS: dict[tuple[str, tuple[int, ...], int], NDArray[np.float64]] = {}


class MetaWorldTask(gym.Wrapper[NDArray[np.float64], NDArray[np.float32], Any, Any]):
    """A Meta-World env of the multi-task kind: the goal is part of the observation `[39]`, actions `[4]`.

    `reward`: v1 or v2, Meta-World's reward function. `render_mode`: rgb_array for an env that is asked for
    pictures, in a process whose OpenGL needs no display (see screen.py).
    """

    def __init__(self, name: str, reward: Literal["v1", "v2"], render_mode: str | None = None) -> None:
        raw = fast(ALL_V3_ENVIRONMENTS[name])(reward_function_version=reward)
        raw._partially_observable = False
        # The space was made and cached while the goal was still hidden, and a step clips by it.
        del raw.sawyer_observation_space
        raw._set_task_called = True
        super().__init__(raw)
        raw.render_mode = render_mode
        self._renderer: mujoco.Renderer | None = None
        self.raw: Any = raw
        self.name = name
        # A reset observation is not clipped to Meta-World's bounds, so they do not hold.
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, raw.observation_space.shape, np.float64)

    def draw_goals(self, num_goals: int, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """`[num_goals, ·]`: the vectors that `num_goals` resets draw, kept by (task, seed, number).

        The env is left as it was found.
        """
        key = (self.name, seed, num_goals)
        if key not in _GOALS:
            before = self.get_state()
            raw = self.raw
            raw._np_random = np.random.default_rng(seed)
            raw.seeded_rand_vec = True
            raw._freeze_rand_vec = False
            drawn = []
            for _ in range(num_goals):
                self._leave_hand()
                raw.reset_model()
                drawn.append(raw._last_rand_vec.copy())
            self.set_state(before)
            _GOALS[key] = np.array(drawn)
        return _GOALS[key]

    def set_goal(self, goal: NDArray[np.float64]) -> None:
        """The vector that the next reset uses."""
        self.raw._last_rand_vec = goal.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Meta-World's reset, bit for bit, in half its time. The seed is ignored: the goal decides."""
        # It runs the whole reset twice and clears the simulator in between.
        self._leave_hand()
        observation, info = self.env.reset()
        return observation, info

    def render(self) -> NDArray[np.uint8]:
        """The table and the arm as they are now: `[320, 320, 3]`. Nothing of the simulation changes.

        Each env has a renderer of its own, which makes its context current before it draws; Gymnasium's does
        not, and of several envs in one process shows the wrong one. Meta-World's own cameras hang upside down.
        """
        if self._renderer is None:
            raw = self.raw
            raw.model.vis.global_.offwidth = raw.model.vis.global_.offheight = PICTURE
            raw.model.vis.quality.shadowsize = 1024  # a quarter of Meta-World's, in half the time
            self._renderer = mujoco.Renderer(raw.model, PICTURE, PICTURE)
            weakref.finalize(self, self._renderer.close)
        self._renderer.update_scene(self.raw.data, _camera())
        picture: NDArray[np.uint8] = self._renderer.render()
        return picture

    def get_state(self) -> dict[str, Any]:
        """The integration state with its warm start, what resets change in the model, and all attributes."""
        return codec.capture(self.raw)

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` returned."""
        codec.restore(self.raw, state)

    def _leave_hand(self) -> None:
        """Make the next homing of the hand a mere note of where it is.

        Homing is nearly all of a reset's time, and neither the draw of a goal nor the first of a reset's two
        passes depends on it.
        """
        raw = self.raw

        def note(steps: int = 50) -> None:
            del raw._reset_hand
            raw.init_tcp = raw.tcp_center

        raw._reset_hand = note


def _camera() -> mujoco.MjvCamera:
    """From behind the table's far corner, the whole of it in sight."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = (0.0, 0.62, 0.15)
    camera.distance, camera.azimuth, camera.elevation = 1.45, -145.0, -32.0
    return camera
