"""TaskEnv: one task as the suite steps it. One wrapper, not a stack of them, because a step is short."""

from __future__ import annotations

import dataclasses
import math
import numbers
import weakref
import zlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mtrl.envs.layers import find, get_state, set_state
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

    An action outside of [-1, 1] is clipped, and what reaches the env lies in its own box.

    Observation `[D + T]`, action `[A]`. An env that has `draw_goals(num_goals, seed) -> [num_goals, ·]` and
    `set_goal(goal)`, itself or inside wrappers, is given one of its goals before every reset: a random one, or, in
    evaluation, the next. `reset(options={"goal": k})` asks for goal k; in evaluation the order goes on from there.
    Ignored without goals.

    Info of every step: `success` (now; none where the env tells none), `is_success` (so far in this episode; none
    until the env tells one), `goal` (index, -1 without goals); of the last step of an episode: `episode` with its
    return `r` and its length `l`. An env tells its success as `success`, or `is_success`: a bool, 0 or 1 of any
    library.

    Raises `NotFiniteError` when the env returns a non-finite observation or reward, `SuiteError` when it returns what
    is no observation of its space, no reward, no success, or no step at all.
    """

    def __init__(self, spec: TaskSpec) -> None:
        env = spec.make()
        if not isinstance(env, gym.Env):
            raise SuiteError(
                f"task {spec.name}: its maker returned {type(env).__name__}, not a gymnasium env"
            )
        super().__init__(env)
        self.name = spec.name
        owner = _OWNERS.get(id(env.unwrapped))
        if owner is not None and owner.unwrapped is env.unwrapped:
            raise SuiteError(
                f"task {spec.name}: its env object is in use by task {owner.name} already; a maker makes a new "
                "env at every call"
            )
        _OWNERS[id(env.unwrapped)] = self
        box, actions = env.observation_space, env.action_space
        if not isinstance(box, gym.spaces.Box) or len(box.shape) != 1:
            raise SuiteError(f"task {spec.name}: its observation space {box} is not a 1-D Box")
        if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
            raise SuiteError(f"task {spec.name}: its action space {actions} is not a bounded 1-D Box")
        if not np.issubdtype(actions.dtype, np.floating):
            raise SuiteError(
                f"task {spec.name}: its action space {actions} holds whole numbers, not real ones"
            )
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
        self._shape = box.shape
        self._action_low, self._action_high = actions.low, actions.high
        self._action_half = (actions.high.astype(np.float64) - actions.low) / 2
        self._rescales = bool(np.any(actions.low != -1.0) or np.any(actions.high != 1.0))
        self._horizon = spec.horizon
        self._sequential = spec.evaluation

        tag = zlib.crc32(spec.name.encode())
        self._goals: NDArray[np.float64] | None = None
        draw_goals, self._set_goal = find(env, "draw_goals"), find(env, "set_goal")
        if draw_goals is not None and self._set_goal is not None:
            self._goals = draw_goals(spec.num_goals, (spec.goal_seed, tag))
        own = np.random.SeedSequence((spec.seed, tag, 1 + spec.evaluation))
        self._rng = np.random.default_rng(own)
        self._first_seed: int | None = int(own.generate_state(1)[0])
        self._goal = -1
        self._steps = 0
        self._return = 0.0
        self._success: bool | None = None

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
            self._set_goal(self._goals[self._goal])
        started = self.env.reset(seed=seed, options=rest or None)
        if not isinstance(started, tuple) or len(started) != 2 or not isinstance(started[1], dict):
            raise SuiteError(f"task {self.name}: a reset returns an observation and an info, as gymnasium's")
        self._steps = 0
        self._return = 0.0
        self._success = None
        return self._complete(started[0]), {**started[1], "goal": self._goal}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One control step: observation `[D + T]`, reward, terminated, truncated, info."""
        action = action.clip(-1.0, 1.0)  # a copy: what the env does to it is its own affair
        if self._rescales:
            own = self._action_low + (action + 1.0) * self._action_half
            action = own.astype(self._action_low.dtype).clip(self._action_low, self._action_high)
        stepped = self.env.step(action)
        self._steps += 1
        if not isinstance(stepped, tuple) or len(stepped) != 5 or not isinstance(stepped[4], dict):
            raise SuiteError(
                f"task {self.name}: a step returns an observation, a reward, terminated, truncated and an info, "
                "as gymnasium's"
            )
        observation, reward, terminated, truncated, info = stepped
        complete = self._complete(observation)
        reward = self._number(reward)
        self._return += reward
        info = dict(info)
        success = None
        if "success" in info or "is_success" in info:
            success = self._told(info["success"] if "success" in info else info["is_success"])
            self._success = success or bool(self._success)
        info["success"] = success
        info["is_success"] = self._success
        info["goal"] = self._goal
        truncated = bool(truncated) or self._steps == self._horizon
        if terminated or truncated:
            info["episode"] = {"r": self._return, "l": self._steps}
        return complete, reward, bool(terminated), truncated, info

    def close(self) -> None:
        """Close the env, which may then serve another task."""
        _OWNERS.pop(id(self.unwrapped), None)
        super().close()

    def get_state(self) -> dict[str, Any]:
        """All that an episode changes, as plain data: from here on a copy goes on bit for bit.

        Numbers, strings, None, arrays, and lists and dicts of them. Raises `SuiteError` when the env has no
        `get_state` and `set_state`, itself or inside wrappers, or a wrapper's own state is no plain data.
        """
        return {
            "task": self.name,
            "env": get_state(self.env, self.name),
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
        set_state(self.env, self.name, state["env"])
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
        observation = np.asarray(observation)
        if observation.shape != self._shape or observation.dtype.kind not in "fiub":
            raise SuiteError(
                f"task {self.name}: an observation of shape {observation.shape} and type {observation.dtype} at step "
                f"{self._steps} of the episode; its space has {self._shape[0]} real numbers"
            )
        complete = self._template.copy()
        complete[: self._size] = observation
        if not np.isfinite(complete).all():
            where = np.flatnonzero(~np.isfinite(complete)).tolist()
            step = f"step {self._steps} of the episode"
            raise NotFiniteError(
                f"task {self.name}: the observation is not finite at index {where} at {step}"
            )
        return complete

    def _number(self, reward: Any) -> float:
        """A reward as a float."""
        if type(reward) is not float:
            value = _scalar(reward)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise SuiteError(
                    f"task {self.name}: the reward is {reward!r} at step {self._steps} of the episode, not a number"
                )
            reward = float(value)
        if not math.isfinite(reward):
            raise NotFiniteError(
                f"task {self.name}: the reward is {reward} at step {self._steps} of the episode"
            )
        return float(reward)

    def _told(self, success: Any) -> bool:
        """What an env tells as its success, as a bool."""
        if type(success) is bool:
            return success
        value = _scalar(success)
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise SuiteError(
                f"task {self.name}: success is {success!r} at step {self._steps} of the episode; it must be a bool, "
                "0 or 1"
            )
        return bool(value)


_OWNERS: weakref.WeakValueDictionary[int, TaskEnv] = weakref.WeakValueDictionary()
"""By the id of an env without its wrappers the task that it is in use for."""


def _scalar(value: Any) -> Any:
    """The Python number in a number, array or tensor of one element, of any library; anything else as it is."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (TypeError, ValueError, RuntimeError):
        return value
