"""Group: some tasks of a suite, stepped one after another in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs import layers
from mtrl.envs.layers import full_name
from mtrl.envs.protocol import SuiteError
from mtrl.envs.wrappers import TaskEnv, TaskSpec

Step = tuple[
    NDArray[np.float32],
    NDArray[np.float32],
    NDArray[np.bool_],
    list[dict[str, Any]],
    dict[int, dict[str, Any]],
]


class Group:
    """n tasks of a suite. What `send` asks for, `receive` returns, here as in a worker process."""

    def __init__(
        self, specs: Sequence[TaskSpec], at: Callable[[int], object] = lambda position: None
    ) -> None:
        """at: is told the position of the task whose turn it is."""
        self.task_names = tuple(spec.name for spec in specs)
        self.envs: list[TaskEnv] = []
        self._at = at
        for i, spec in enumerate(specs):
            at(i)
            self.envs.append(TaskEnv(spec))
        self._asked: tuple[str, tuple[Any, ...]] | None = None

    def send(self, method: str, *arguments: Any) -> None:
        """Ask for `method(*arguments)` of this group."""
        self._asked = (method, arguments)

    def receive(self) -> Any:
        """The answer to the last `send`; raises what the method raised."""
        assert self._asked is not None
        method, arguments = self._asked
        self._asked = None
        return getattr(self, method)(*arguments)

    def spaces(self) -> list[tuple[Any, Any]]:
        """Per task its observation and action space."""
        return [(env.observation_space, env.action_space) for env in self.envs]

    def goals(self) -> list[int]:
        """Per task how many goals it has, 0 for an env without."""
        return [env.num_goals for env in self.envs]

    def modes(self) -> list[tuple[Any, float]]:
        """Per task its render mode, and control steps per second of the world that it shows."""
        return [(env.render_mode, float(env.metadata.get("render_fps") or 30)) for env in self.envs]

    def reset(
        self, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]
    ) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
        """Observations `[n, D + T]` and infos."""
        started = []
        for i, (seed, option) in enumerate(zip(seeds, options, strict=True)):
            self._at(i)
            started.append(self.envs[i].reset(seed=seed, options=option))
        return np.stack([observation for observation, _ in started]), [info for _, info in started]

    def step(self, actions: NDArray[np.float32]) -> Step:
        """One step of each task; a task whose episode ends is reset in the same step.

        actions: `[n, A]`. Returns observations `[n, D + T]`, rewards `[n]`, dones `[n]`, infos, and the reset
        infos of the tasks that began an episode, by their position.
        """
        observations: list[NDArray[np.float32]] = []
        rewards = np.empty(len(self.envs), np.float32)
        dones = np.empty(len(self.envs), np.bool_)
        infos: list[dict[str, Any]] = []
        begun: dict[int, dict[str, Any]] = {}
        for i, env in enumerate(self.envs):
            self._at(i)
            try:
                observation, reward, terminated, truncated, info = env.step(actions[i])
            except SystemExit as error:
                raise SuiteError(
                    f"task {env.name}: its env called sys.exit({error.code!r}) in a step"
                ) from None
            info["TimeLimit.truncated"] = truncated and not terminated
            if terminated or truncated:
                info["terminal_observation"] = observation
                observation, begun[i] = env.reset()
            observations.append(observation)
            rewards[i] = reward
            dones[i] = terminated or truncated
            infos.append(info)
        return np.stack(observations), rewards, dones, infos, begun

    def render(self) -> list[NDArray[np.uint8]]:
        """Per task its picture `[height, width, 3]`."""
        pictures = []
        for i, env in enumerate(self.envs):
            self._at(i)
            pictures.append(env.render())
        return pictures

    def savable(self) -> list[bool]:
        """Per task whether an episode of it can be saved."""
        return [layers.find(env.env, "get_state", "set_state") is not None for env in self.envs]

    def get_state(self) -> list[dict[str, Any]]:
        """Per task its state, as plain data."""
        return [env.get_state() for env in self.envs]

    def set_state(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from what `get_state` returned."""
        for env, state in zip(self.envs, states, strict=True):
            env.set_state(state)

    def get(self, name: str, positions: Sequence[int]) -> list[Any]:
        """An attribute of some of the envs."""
        return [self.envs[i].get_wrapper_attr(name) for i in positions]

    def set(self, name: str, value: Any, positions: Sequence[int]) -> None:
        """Set an attribute of some of the envs."""
        for i in positions:
            self.envs[i].set_wrapper_attr(name, value)

    def call(
        self, name: str, positions: Sequence[int], arguments: Sequence[Any], named: dict[str, Any]
    ) -> list[Any]:
        """Call a method of some of the envs."""
        return [self.envs[i].get_wrapper_attr(name)(*arguments, **named) for i in positions]

    def wrapped(self, wrapper: str, positions: Sequence[int]) -> list[bool]:
        """Whether some of the envs are wrapped in a class of this full name.

        A name, because a worker that unpickled Stable-Baselines3's own class would import torch with it.
        """
        return [
            any(
                wrapper == full_name(kind)
                for layer in layers.layers(self.envs[i])
                for kind in type(layer).__mro__
            )
            for i in positions
        ]

    def close(self) -> None:
        """Close the envs."""
        for env in self.envs:
            env.close()
