"""A tiny multi-task suite: a point in the plane goes to a goal. No simulator; trains in seconds.

The tasks differ only in what an action does, in where "there" is and in the scale of the reward, none of
which the observation shows: only a policy that is told the task can solve them all, and their gradients pull
shared weights in opposite directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

STEP = 0.1
RADIUS = 0.1
ARENA = 1.0
PICTURE = 240


class PointEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One task: reach `sign · goal`, with the action passed through a 2×2 matrix.

    Observation `[4]`: position and goal, each x, y in [-1, 1]. Action `[2]` in [-1, 1]: moves the point by
    0.1 of its image. Reward: minus the distance that is left, times `scale`. Success: within 0.1. Never
    terminates and has no time limit of its own.

    A goal is `[4]`: where the point starts and the goal that is shown.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        matrix: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 1.0),
        sign: float = 1.0,
        scale: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-ARENA, ARENA, (4,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._matrix = tuple(STEP * entry for entry in matrix)
        self._sign = sign
        self._scale = scale
        self._goal = (0.0, 0.0, 0.0, 0.0)
        self._x = self._y = 0.0

    def draw_goals(self, num_goals: int, seed: tuple[int, ...]) -> NDArray[np.float64]:
        """`[num_goals, 4]`: starts in the arena, goals in its inner part."""
        drawn = np.random.default_rng(seed).uniform(-1.0, 1.0, (num_goals, 4))
        return np.asarray(drawn * [ARENA, ARENA, 0.8 * ARENA, 0.8 * ARENA])

    def set_goal(self, goal: NDArray[np.float64]) -> None:
        """The goal `[4]` that the next reset uses."""
        start_x, start_y, goal_x, goal_y = goal.tolist()
        self._goal = (start_x, start_y, goal_x, goal_y)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self._x, self._y = self._goal[:2]
        return self._observation(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        a, b = action.tolist()
        xx, xy, yx, yy = self._matrix
        self._x = min(max(self._x + xx * a + xy * b, -ARENA), ARENA)
        self._y = min(max(self._y + yx * a + yy * b, -ARENA), ARENA)
        distance = math.hypot(self._x - self._sign * self._goal[2], self._y - self._sign * self._goal[3])
        return self._observation(), -self._scale * distance, False, False, {"success": distance < RADIUS}

    def render(self) -> NDArray[np.uint8]:
        """The arena `[240, 240, 3]`, y upwards: the point blue, the goal shown a ring, what counts green."""
        places = np.linspace(-1.05 * ARENA, 1.05 * ARENA, PICTURE)
        x, y = places[None, :], places[::-1, None]
        picture = np.full((PICTURE, PICTURE, 3), 255, np.uint8)
        shown = np.hypot(x - self._goal[2], y - self._goal[3])
        true = np.hypot(x - self._sign * self._goal[2], y - self._sign * self._goal[3])
        picture[true < RADIUS] = (150, 210, 150)
        picture[abs(shown - RADIUS) < 0.015] = (90, 90, 90)
        picture[np.hypot(x - self._x, y - self._y) < 0.04] = (30, 80, 200)
        return picture

    def get_state(self) -> dict[str, Any]:
        """Everything that an episode changes."""
        return {"goal": list(self._goal), "x": self._x, "y": self._y}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` returned."""
        start_x, start_y, goal_x, goal_y = state["goal"]
        self._goal = (start_x, start_y, goal_x, goal_y)
        self._x, self._y = state["x"], state["y"]

    def _observation(self) -> NDArray[np.float32]:
        return np.array((self._x, self._y, self._goal[2], self._goal[3]), np.float32)


POINT_TASKS: dict[str, Callable[..., PointEnv]] = {
    "point-reach": PointEnv,
    "point-mirror": partial(PointEnv, matrix=(-1.0, 0.0, 0.0, -1.0), scale=10.0),
    "point-swap": partial(PointEnv, matrix=(0.0, 1.0, 1.0, 0.0), scale=0.1),
    "point-turn": partial(PointEnv, matrix=(0.0, -1.0, 1.0, 0.0), scale=3.0),
    "point-opposite": partial(PointEnv, sign=-1.0, scale=0.3),
}
