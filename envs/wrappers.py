"""TaskEnv: one task as the suite steps it. One wrapper, not a stack of them, because a step is short."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import numbers
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mtrl.envs import layers
from mtrl.envs.protocol import NotFiniteError, SuiteError, shown, whole

Env = gym.Env[Any, Any]

_IN_USE: weakref.WeakValueDictionary[int, TaskEnv] = weakref.WeakValueDictionary()
"""Innermost env, by its id, and the task that steps it."""
_LEARNING = (gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward)
_LARGEST = float(np.finfo(np.float32).max)


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


class TaskEnv(gym.Wrapper[NDArray[np.float32], NDArray[np.float32], Any, Any]):
    """One task: float32 observations that end with the task's one-hot, actions in [-1, 1], a time limit.

    Observation `[D + T]`, action `[A]`. An env that has `draw_goals(num_goals, seed) -> [num_goals, ·]` and
    `set_goal(goal)`, itself or inside wrappers, is given one of its goals before every reset: a random one, or,
    in evaluation, the next. `reset(options={"goal": k})` asks for goal k; in evaluation the order goes on from
    there. Ignored without goals.

    Info of every step: `success` (now), `is_success` (so far in this episode), `goal` (index, -1 without
    goals); of the last step of an episode: `episode` with its return `r` and its length `l`. The env tells
    success as `success`, or else as `is_success`, of any kind that is true, false, 0 or 1. Where it tells none,
    `success` is None, and `is_success` is None until a step of the episode tells one; a warning says so once.

    Raises `NotFiniteError` when the env returns a non-finite observation or reward, `SuiteError` when it returns
    anything else that it may not; both name the task, the value and the step. Making it raises `SuiteError`
    when the env is none, is another task's too, or its spaces don't fit a suite.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self.name = spec.name
        env = _make(spec)
        super().__init__(env)
        other = _IN_USE.get(id(env.unwrapped))
        if other is not None:
            raise SuiteError(
                f"task {spec.name}: its env is the same object as that of task {other.name}, whose state it would "
                "share; make an env of its own for each task, in training and in evaluation"
            )
        for layer in layers.layers(env):
            if isinstance(layer, _LEARNING) and layer.update_running_mean:
                raise SuiteError(
                    f"task {spec.name}: its wrapper {type(layer).__name__} learns as it goes, so that evaluation would "
                    "see other numbers than training; leave it out (agent.reward_scale scales rewards), or set its "
                    "update_running_mean to False"
                )
        box, actions = env.observation_space, env.action_space
        if not isinstance(box, gym.spaces.Box) or len(box.shape) != 1 or box.dtype.kind not in "fiub":
            raise SuiteError(
                f"task {spec.name}: its observation space {box} is not a 1-D Box of real numbers"
            )
        if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
            raise SuiteError(f"task {spec.name}: its action space {actions} is not a bounded 1-D Box")
        if actions.dtype.kind != "f":
            raise SuiteError(f"task {spec.name}: its action space {actions} is not of floating-point numbers")
        self._size = box.shape[0]
        self._shape = box.shape
        self._template = np.zeros(self._size + spec.num_tasks, np.float32)
        self._template[self._size + spec.index] = 1.0
        one_hot = np.zeros(spec.num_tasks), np.ones(spec.num_tasks)
        self.observation_space = gym.spaces.Box(
            np.concatenate([box.low, one_hot[0]]).astype(np.float32),
            np.concatenate([box.high, one_hot[1]]).astype(np.float32),
            dtype=np.float32,
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, actions.shape, np.float32)
        self._action_low, self._action_high = actions.low, actions.high
        self._action_half = actions.high / 2 - actions.low / 2  # the difference may be too large a number
        self._action_dtype = actions.dtype
        self._rescales = bool(np.any(actions.low != -1.0) or np.any(actions.high != 1.0))
        self._converts = self._rescales or actions.dtype != np.float32
        self._horizon = spec.horizon
        self._sequential = spec.evaluation

        tag = zlib.crc32(spec.name.encode())
        self._goals: NDArray[Any] | None = None
        self._goal_env = layers.find(env, "draw_goals", "set_goal")
        if self._goal_env is not None:
            self._goals = np.asarray(self._goal_env.draw_goals(spec.num_goals, (spec.goal_seed, tag)))
            if self._goals.ndim == 0 or len(self._goals) == 0:
                raise SuiteError(
                    f"task {spec.name}: draw_goals returned {shown(self._goals)}, which is no goals"
                )
        own = np.random.SeedSequence((spec.seed, tag, 1 + spec.evaluation))
        self._rng = np.random.default_rng(own)
        self._first_seed: int | None = int(own.generate_state(1)[0])
        self._goal = -1
        self._steps = 0
        self._return = 0.0
        self._success: bool | None = None
        self._told_silence = False
        _IN_USE[id(env.unwrapped)] = self  # now that nothing can be refused any more

    @property
    def num_goals(self) -> int:
        """How many goals the env has, 0 where it takes none."""
        return 0 if self._goals is None else len(self._goals)

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
            self._goal_env.set_goal(self._goals[self._goal].copy())
        self._steps = 0
        self._return = 0.0
        self._success = None
        started = self.env.reset(seed=seed, options=rest or None)
        if not isinstance(started, tuple) or len(started) != 2:
            raise SuiteError(
                f"task {self.name}: its reset returned {shown(started)}, not (observation, info)"
            )
        observation, info = started
        if not isinstance(info, Mapping):
            raise self._refusal("info", info, "a dict")
        return self._complete(observation), {**info, "goal": self._goal}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One control step: observation `[D + T]`, reward, terminated, truncated, info.

        The env gets the action in its own box and dtype, and may change it in place.
        """
        if self._converts:
            action = action.astype(self._action_dtype)
            if self._rescales:
                # Rounding may leave the box by a last digit.
                scaled = self._action_low + (action + 1) * self._action_half
                action = scaled.clip(self._action_low, self._action_high)
        stepped = self.env.step(action)
        self._steps += 1
        try:
            observation, reward, terminated, truncated, info = stepped
        except (TypeError, ValueError):
            raise self._refusal(
                "what step returned", stepped, "(observation, reward, terminated, truncated, info)"
            ) from None
        complete = self._complete(observation)
        reward = float(reward) if isinstance(reward, float) else self._number(reward)
        if not -_LARGEST <= reward <= _LARGEST:
            raise NotFiniteError(
                f"task {self.name}: the reward is {reward} at step {self._steps} of the episode"
            )
        self._return += reward
        if type(terminated) is not bool:
            terminated = self._truth("terminated", terminated)
        if type(truncated) is not bool:
            truncated = self._truth("truncated", truncated)
        if not isinstance(info, Mapping):
            raise self._refusal("info", info, "a dict")
        info = dict(info)
        success: bool | None = None
        if "success" in info:
            success = self._truth("success", info["success"])
        elif "is_success" in info:
            success = self._truth("is_success", info["is_success"])
        elif not self._told_silence:
            self._told_silence = True
            warnings.warn(
                f"task {self.name}: the info of its step has neither success nor is_success; "
                "where none comes in an episode, its success is not known, and not counted as 0",
                stacklevel=2,
            )
        if success is not None:
            self._success = success or bool(self._success)
        info["success"] = success
        info["is_success"] = self._success
        info["goal"] = self._goal
        truncated = truncated or self._steps == self._horizon
        if terminated or truncated:
            info["episode"] = {"r": self._return, "l": self._steps}
        return complete, reward, terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:
        """The picture `[height, width, 3]` of an env made with `render_mode="rgb_array"`.

        Raises `SuiteError` when the env draws none, whatever its reason: a library that is missing, say.
        """
        try:
            drawn = self.env.render()
        except Exception as error:
            raise SuiteError(f"task {self.name}: its env cannot be drawn ({_reason(error)})") from error
        picture = np.asarray(drawn)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            kind = f"of shape {picture.shape} and type {picture.dtype}"
            raise self._refusal("the picture", picture, "[height, width, 3] of type uint8", kind)
        return picture

    def close(self) -> None:
        """Close the env, which may then be given to another suite."""
        if _IN_USE.get(id(self.env.unwrapped)) is self:
            del _IN_USE[id(self.env.unwrapped)]
        super().close()

    def get_state(self) -> dict[str, Any]:
        """All that an episode changes, as plain data: from here on a copy goes on bit for bit.

        Numbers, strings, None, arrays, and lists and dicts of them. Wrappers around the env are saved with it.
        Raises `SuiteError` when neither the env nor a wrapper has `get_state` and `set_state`, or when a wrapper
        around it holds what cannot be saved.
        """
        with self._named():
            state, around = layers.capture(self.env)
        return {
            "task": self.name,
            "env": state,
            **({"wrappers": around} if around else {}),
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
        with self._named():
            layers.restore(self.env, state["env"], state.get("wrappers", []))
        self._rng.bit_generator.state = state["generator"]
        self._first_seed = state["first_seed"]
        self._goal = state["goal"]
        self._steps = state["steps"]
        self._return = state["return"]
        self._success = state["success"]

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except SuiteError as error:
            raise SuiteError(f"task {self.name}: {error}") from None

    def _next_goal(self, wanted: Any) -> int:
        assert self._goals is not None
        count = len(self._goals)
        if wanted is not None:
            with self._named():
                return whole("goal", wanted, 0, count - 1)
        if self._sequential:
            return (self._goal + 1) % count
        return int(self._rng.integers(count))

    def _complete(self, observation: Any) -> NDArray[np.float32]:
        """The observation `[D + T]` of the env's own `[D]`."""
        array = observation
        if type(array) is not np.ndarray:
            with contextlib.suppress(Exception):  # ragged lists, tensors of another device
                array = np.asarray(observation)
        if getattr(array, "shape", None) != self._shape or array.dtype.kind not in "fiub":
            kind = f"of shape {array.shape} and type {array.dtype}" if isinstance(array, np.ndarray) else ""
            raise self._refusal("the observation", observation, f"[{self._size}] of real numbers", kind)
        complete = self._template.copy()
        complete[: self._size] = array
        if not np.isfinite(complete).all():
            where = np.flatnonzero(~np.isfinite(complete)).tolist()
            step = f"step {self._steps} of the episode"
            raise NotFiniteError(
                f"task {self.name}: the observation is not finite at index {where} at {step}"
            )
        return complete

    def _number(self, reward: Any) -> float:
        """A reward as a float: a real number of any library, without axes."""
        scalar = _scalar(reward) if getattr(reward, "shape", ()) == () else reward
        if not isinstance(scalar, numbers.Real):
            raise self._refusal("the reward", reward, "a real number")
        try:
            return float(scalar)
        except OverflowError:
            return math.inf

    def _truth(self, key: str, value: Any) -> bool:
        """True or false of any library, or 0 or 1."""
        if type(value) is bool:
            return value
        scalar = value if type(value) is float else _scalar(value)
        if not isinstance(scalar, numbers.Real) or scalar not in (0, 1):
            raise self._refusal(key, value, "true or false, or 1 or 0")
        return bool(scalar)

    def _refusal(self, what: str, value: object, valid: str, kind: str = "") -> SuiteError:
        step = f"step {self._steps} of the episode"
        return SuiteError(
            f"task {self.name}: {what} is {shown(value)}{kind and f', {kind},'} at {step}; it must be {valid}"
        )


def _make(spec: TaskSpec) -> Env:
    """The env of a task, if what makes it does. Raises `SuiteError` else."""
    make: Any = spec.make
    takes_none = callable(make)
    if takes_none:
        with contextlib.suppress(ValueError):  # some builtins tell nothing of what they take
            try:
                inspect.signature(make).bind()
            except TypeError:
                takes_none = False
    if not takes_none:
        raise SuiteError(
            f"task {spec.name}: {shown(make)} is not a function that makes an env from no arguments"
        )
    try:
        env = make()
    except gym.error.Error as error:  # an id that there is not, a library that is missing
        raise SuiteError(f"task {spec.name}: its env cannot be made ({_reason(error)})") from error
    if not isinstance(env, gym.Env):
        raise SuiteError(f"task {spec.name}: its function made {shown(env)}, which is not a gymnasium Env")
    return env


def _reason(error: Exception) -> str:
    """What an env raised, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _scalar(value: Any) -> Any:
    """The Python number in an array or tensor of one element, of any library; anything else as it is."""
    if not isinstance(value, numbers.Number) or isinstance(value, np.generic):
        with contextlib.suppress(Exception):  # of more elements, say
            return value.item()
    return value
