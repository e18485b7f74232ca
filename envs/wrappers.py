"""TaskEnv: one task as the suite steps it. One wrapper, not a stack of them, because a step is short."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mtrl.envs.protocol import NotFiniteError, SuiteError

Env = gym.Env[Any, Any]


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Everything that builds one task of a suite, here or in a worker process."""

    name: str
    make: Callable[[], Env]
    index: int
    num_tasks: int
    horizon: int | None
    num_goals: int
    goal_seed: int
    seed: int
    evaluation: bool

    def build(self) -> TaskEnv:
        """The env. Raises `SuiteError` when its spaces are not 1-D boxes or its actions are unbounded."""
        return TaskEnv(self)


class TaskEnv(gym.Wrapper[NDArray[np.float32], NDArray[np.float32], Any, Any]):
    """One task: float32 observations that end with the task's one-hot, actions in [-1, 1], a time limit.

    Observation `[D + T]`, action `[A]`. An env that has `draw_goals(num_goals, seed) -> [num_goals, ·]` and
    `set_goal(goal)` is given one of its goals before every reset: a random one, or, in evaluation, the next.
    `reset(options={"goal": k})` asks for goal k; in evaluation the order goes on from there. Ignored without
    goals.

    Info of every step: `success` (now), `is_success` (so far in this episode), `goal` (index, -1 without
    goals); of the last step of an episode: `episode` with its return `r` and its length `l`.

    Raises `NotFiniteError` when the env returns a non-finite observation or reward.
    """

    def __init__(self, spec: TaskSpec) -> None:
        env = spec.make()
        super().__init__(env)
        self.name = spec.name
        box, actions = env.observation_space, env.action_space
        if not isinstance(box, gym.spaces.Box) or len(box.shape) != 1:
            raise SuiteError(f"task {spec.name}: its observation space {box} is not a 1-D Box")
        if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
            raise SuiteError(f"task {spec.name}: its action space {actions} is not a bounded 1-D Box")
        self._size = box.shape[0]
        self._template = np.zeros(self._size + spec.num_tasks, np.float32)
        self._template[self._size + spec.index] = 1.0
        one_hot = np.zeros(spec.num_tasks), np.ones(spec.num_tasks)
        self.observation_space = gym.spaces.Box(
            np.concatenate([box.low, one_hot[0]]).astype(np.float32),
            np.concatenate([box.high, one_hot[1]]).astype(np.float32),
            dtype=np.float32,
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, actions.shape, np.float32)
        self._action_low, self._action_half = actions.low, (actions.high - actions.low) / 2
        self._rescales = bool(np.any(actions.low != -1.0) or np.any(actions.high != 1.0))
        self._horizon = spec.horizon
        self._sequential = spec.evaluation

        tag = zlib.crc32(spec.name.encode())
        self._goals: NDArray[np.float64] | None = None
        if hasattr(env, "draw_goals"):
            self._goals = env.draw_goals(spec.num_goals, (spec.goal_seed, tag))
        own = np.random.SeedSequence((spec.seed, tag, 1 + spec.evaluation))
        self._rng = np.random.default_rng(own)
        self._first_seed: int | None = int(own.generate_state(1)[0])
        self._goal = -1
        self._steps = 0
        self._return = 0.0
        self._success = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode: observation `[D + T]` and info. A seed also starts the order of goals anew."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
            self._goal = -1
        else:
            seed = self._first_seed
        self._first_seed = None
        rest = dict(options or {})
        wanted = rest.pop("goal", None)
        if self._goals is not None:
            self._goal = self._next_goal(wanted)
            self.env.set_goal(self._goals[self._goal])  # type: ignore[attr-defined]
        observation, info = self.env.reset(seed=seed, options=rest or None)
        self._steps = 0
        self._return = 0.0
        self._success = False
        return self._complete(observation), {**info, "goal": self._goal}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One control step: observation `[D + T]`, reward, terminated, truncated, info."""
        if self._rescales:
            action = (self._action_low + (action + 1) * self._action_half).astype(np.float32)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        complete = self._complete(observation)
        reward = float(reward)
        if not math.isfinite(reward):
            raise NotFiniteError(
                f"task {self.name}: the reward is {reward} at step {self._steps} of the episode"
            )
        self._return += reward
        info = dict(info)
        success = bool(info.get("success", info.get("is_success", False)))
        self._success = self._success or success
        info["success"] = success
        info["is_success"] = self._success
        info["goal"] = self._goal
        truncated = bool(truncated) or self._steps == self._horizon
        if terminated or truncated:
            info["episode"] = {"r": self._return, "l": self._steps}
        return complete, reward, bool(terminated), truncated, info

    def get_state(self) -> dict[str, Any]:
        """All that an episode changes, as plain data: from here on a copy goes on bit for bit.

        Numbers, strings, None, arrays, and lists and dicts of them. Raises `SuiteError` when the env has no
        `get_state` and `set_state` of its own.
        """
        if not hasattr(self.env, "get_state") or not hasattr(self.env, "set_state"):
            raise SuiteError(
                f"task {self.name}: its env has no get_state and set_state, so it cannot be saved"
            )
        return {
            "task": self.name,
            "env": self.env.get_state(),
            "generator": self._rng.bit_generator.state,
            "first_seed": self._first_seed,
            "goal": self._goal,
            "steps": self._steps,
            "return": self._return,
            "success": self._success,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` of the same task returned. Raises `SuiteError` for another task's."""
        if state["task"] != self.name:
            raise SuiteError(f"task {self.name}: the state is of task {state['task']}")
        self.env.set_state(state["env"])  # type: ignore[attr-defined]
        self._rng.bit_generator.state = state["generator"]
        self._first_seed = state["first_seed"]
        self._goal = state["goal"]
        self._steps = state["steps"]
        self._return = state["return"]
        self._success = state["success"]

    def _next_goal(self, wanted: object) -> int:
        assert self._goals is not None
        count = len(self._goals)
        if wanted is not None:
            if not isinstance(wanted, (int, np.integer)) or not 0 <= wanted < count:
                raise SuiteError(f"task {self.name}: goal {wanted!r} is not one of 0 to {count - 1}")
            return int(wanted)
        if self._sequential:
            return (self._goal + 1) % count
        return int(self._rng.integers(count))

    def _complete(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        """The observation `[D + T]` of the env's own `[D]`."""
        complete = self._template.copy()
        complete[: self._size] = observation
        if not np.isfinite(complete).all():
            where = np.flatnonzero(~np.isfinite(complete)).tolist()
            step = f"step {self._steps} of the episode"
            raise NotFiniteError(
                f"task {self.name}: the observation is not finite at index {where} at {step}"
            )
        return complete
