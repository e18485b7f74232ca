"""make_suite: a protocol, or one's own envs, as one VecEnv with exactly one env per task."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym

from mtrl.envs.point import POINT_TASKS
from mtrl.envs.protocol import MOST_STEPS, MOST_TASKS, Protocol, SuiteError, whole
from mtrl.envs.wrappers import TaskSpec

STEP_TIMEOUT = 600.0  # seconds

if TYPE_CHECKING:
    from mtrl.envs.vec import SuiteVecEnv


def make_suite(
    protocol: Protocol | Mapping[str, Callable[[], gym.Env[Any, Any]]],
    *,
    seed: int = 0,
    workers: int | Literal["auto"] = "auto",
    evaluation: bool = False,
    horizon: int | None = None,
    timeout: float | None = STEP_TIMEOUT,
) -> SuiteVecEnv:
    """One env per task of a protocol, or of one's own: a mapping of names to functions that make an env.

    One's own envs have 1-D observations of one size and actions of one size in bounded boxes. An env may have
    `draw_goals(num_goals, seed) -> [num_goals, ·]` and `set_goal(goal)` to take part in the choice of goals
    (50 per task), and `get_state()` and `set_state(state)` (plain data) to be saved mid-episode.

    seed: of the goals, unless the protocol has its own, and of each task's choices; the same seed gives the
        same goals and trajectories for any number of workers.
    workers: 0 steps the tasks in this process, n shares them among n processes, auto decides by cores.
    evaluation: visit each task's goals in their order instead of at random.
    horizon: control steps per episode, for a mapping only; none leaves it to the envs.
    timeout: seconds that a worker process may take for a step or a reset before it counts as dead; none waits
        for ever. Without workers nothing can interrupt an env.

    Raises `SuiteError` when the suite cannot be built as asked.
    """
    from mtrl.envs.vec import SuiteVecEnv

    seed = whole("seed", seed, 0)
    if timeout is not None and not timeout > 0:
        raise SuiteError(f"timeout: {timeout!r} is not a number of seconds above 0")
    if isinstance(protocol, Protocol):
        if horizon is not None:
            raise SuiteError("horizon: it is the protocol's; the argument is for a mapping of one's own envs")
        named, settings = protocol, protocol
        makers = {name: _maker(name, protocol) for name in protocol.task_names}
        steps: int | None = protocol.horizon
    else:
        if not isinstance(protocol, Mapping):
            raise SuiteError(f"{protocol!r} is neither a Protocol nor a mapping of task names to envs")
        named, settings = None, Protocol()
        makers = dict(protocol)
        if not 1 <= len(makers) <= MOST_TASKS:
            raise SuiteError(f"the mapping has {len(makers)} envs; a suite has from 1 to {MOST_TASKS}")
        for name, make in makers.items():
            _require_maker(name, make)
        steps = None if horizon is None else whole("horizon", horizon, 1, MOST_STEPS)
    specs = [
        TaskSpec(
            name=name,
            make=make,
            index=index,
            num_tasks=len(makers),
            horizon=steps,
            num_goals=1 if settings.goals == "fixed" else settings.num_goals,
            goal_seed=seed if settings.goal_seed is None else settings.goal_seed,
            seed=seed,
            evaluation=evaluation,
        )
        for index, (name, make) in enumerate(makers.items())
    ]
    return SuiteVecEnv(specs, protocol=named, workers=_workers(workers, makers), timeout=timeout)


def _require_maker(name: object, make: object) -> None:
    """Raise `SuiteError` unless it is a function that makes an env without being given anything."""
    if not isinstance(name, str):
        raise SuiteError(f"task {name!r}: a task's name is a string")
    if isinstance(make, gym.Env) or not callable(make):
        raise SuiteError(
            f"task {name}: {type(make).__name__} is no function that makes an env, such as lambda: MyEnv()"
        )
    try:
        signature = inspect.signature(make)
    except ValueError:  # some callables tell none
        return
    try:
        signature.bind()
    except TypeError as error:
        raise SuiteError(f"task {name}: its maker is called without arguments ({error})") from None


def _maker(name: str, protocol: Protocol) -> Callable[[], gym.Env[Any, Any]]:
    if name in POINT_TASKS:
        return POINT_TASKS[name]
    return partial(_make_metaworld, name, protocol.reward)


def _make_metaworld(name: str, reward: Literal["v1", "v2"]) -> gym.Env[Any, Any]:
    from mtrl.envs.simulator import MetaWorldTask

    return MetaWorldTask(name, reward)


def _workers(asked: int | str, makers: Mapping[str, Any]) -> int:
    """The number of worker processes, 0 for none."""
    if asked == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cheap = all(name in POINT_TASKS for name in makers)
        # Beside the learner, one more core does not make up for the pipes.
        return 0 if cheap or cores <= 2 else min(len(makers), cores - 1)
    try:
        return whole("workers", asked, 0)
    except SuiteError as error:
        raise SuiteError(f"{error}, nor 'auto'") from None
