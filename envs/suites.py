"""make_suite: a protocol, or one's own envs, as one VecEnv with exactly one env per task."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym

from mtrl.envs import process, screen
from mtrl.envs.point import POINT_TASKS
from mtrl.envs.protocol import (
    MOST_SEED,
    MOST_STEPS,
    Protocol,
    SuiteError,
    is_own,
    own_makers,
    shown,
    whole,
)  # fmt: skip
from mtrl.envs.wrappers import TaskSpec

if TYPE_CHECKING:
    from mtrl.envs.vec import SuiteVecEnv


def make_suite(
    protocol: Protocol | Mapping[str, Callable[[], gym.Env[Any, Any]]],
    *,
    seed: int = 0,
    workers: int | Literal["auto"] = "auto",
    evaluation: bool = False,
    horizon: int | None = None,
    step_timeout: float = 600.0,
    render_mode: Literal["rgb_array"] | None = None,
) -> SuiteVecEnv:
    """One env per task of a protocol, or of one's own: a mapping of names to functions that make an env.

    One's own envs have 1-D observations of one size and actions of one size in bounded boxes, and are objects of
    their own: one env for two tasks, or for training and evaluation, is refused. An env may have
    `draw_goals(num_goals, seed) -> [num_goals, ·]` and `set_goal(goal)` to take part in the choice of goals
    (50 per task), and `get_state()` and `set_state(state)` (plain data) to be saved mid-episode; all four are
    found through gymnasium's wrappers, whose own state is saved too.

    seed: of the goals, unless the protocol has its own, and of each task's choices; the same seed gives the
        same goals and trajectories for any number of workers.
    workers: 0 steps the tasks in this process, n shares them among n processes, auto decides by cores.
    evaluation: visit each task's goals in their order instead of at random.
    horizon: control steps per episode, for a mapping only; none leaves it to the envs.
    step_timeout: seconds that a worker process may take for an answer (to build its tasks, to reset, to step);
        then it is ended and the task named. Tasks that are stepped in this process have none.
    render_mode: rgb_array for a suite that is asked for pictures (`get_images`, `render`). The simulator then
        steps in worker processes whatever `workers` says, since only these may load an OpenGL. One's own envs
        are made with a mode of their own, which has to be this one.

    Raises `SuiteError` when the suite cannot be built as asked.
    """
    from mtrl.envs.vec import SuiteVecEnv

    seed = whole("seed", seed, 0, MOST_SEED)
    if not isinstance(evaluation, bool):
        raise SuiteError(f"evaluation: {shown(evaluation)} is neither True nor False")
    if not isinstance(step_timeout, int | float) or isinstance(step_timeout, bool) or not step_timeout > 0:
        raise SuiteError(f"step_timeout: {shown(step_timeout)} is not a number of seconds above 0")
    if render_mode not in (None, "rgb_array"):
        raise SuiteError(f"render_mode: {shown(render_mode)} is neither 'rgb_array' nor None")
    if isinstance(protocol, Protocol):
        if horizon is not None:
            raise SuiteError("horizon: it is the protocol's; the argument is for a mapping of one's own envs")
        named, settings = protocol, protocol
        if is_own(protocol.suite):
            makers = own_makers(protocol.suite, render_mode)
        else:
            makers = {name: _maker(name, protocol, render_mode) for name in protocol.task_names}
        steps: int | None = protocol.horizon
    else:
        if not isinstance(protocol, Mapping):
            raise SuiteError(f"{shown(protocol)} is neither a Protocol nor a mapping of task names to envs")
        named, settings = None, Protocol()
        makers = _own(protocol)
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
    processes = _workers(workers, makers)
    variables: dict[str, str] = {}
    if render_mode is not None and any(_simulates(spec.make) for spec in specs):
        processes, variables = max(processes, _cores()), screen.drawing()
    envs = SuiteVecEnv(
        specs, protocol=named, workers=processes, step_timeout=float(step_timeout), variables=variables
    )
    if render_mode is not None and envs.render_mode != render_mode:
        envs.close()
        raise SuiteError(
            f"task {specs[0].name}: its env was made with render_mode {shown(envs.render_mode)}; "
            f"make it with {render_mode!r} to see it"
        )
    return envs


def _own(
    mapping: Mapping[str, Callable[[], gym.Env[Any, Any]]],
) -> dict[str, Callable[[], gym.Env[Any, Any]]]:
    """A mapping of one's own envs. Raises `SuiteError` when it is empty or has a key that is no name."""
    if not mapping:
        raise SuiteError("the mapping of envs is empty")
    makers = {}
    for name, make in mapping.items():
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise SuiteError(f"task name {shown(name)} is not a printable text")
        makers[str(name)] = make  # numpy has a class of its own
    return makers


def _maker(name: str, protocol: Protocol, render_mode: str | None) -> Callable[[], gym.Env[Any, Any]]:
    if name in POINT_TASKS:
        return partial(POINT_TASKS[name], render_mode=render_mode)
    return partial(_make_metaworld, name, protocol.reward, render_mode)


def _simulates(make: Callable[[], gym.Env[Any, Any]]) -> bool:
    return isinstance(make, partial) and make.func is _make_metaworld


def _make_metaworld(
    name: str, reward: Literal["v1", "v2"], render_mode: str | None = None
) -> gym.Env[Any, Any]:
    with process.safe_path():
        from mtrl.envs.simulator import MetaWorldTask

    return MetaWorldTask(name, reward, render_mode)


def _workers(asked: int | str, makers: Mapping[str, Any]) -> int:
    """The number of worker processes, 0 for none."""
    if isinstance(asked, str) and asked == "auto":
        cores = _cores()
        cheap = all(name in POINT_TASKS for name in makers)
        # Beside the learner, one more core does not make up for the pipes.
        return 0 if cheap or cores <= 2 else min(len(makers), cores - 1)
    return whole("workers", asked, 0, other="'auto'")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
