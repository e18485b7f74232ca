"""Protocol: what a run is trained and scored on, as a value that is named, recorded and compared."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import operator
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal

from mtrl.envs import process
from mtrl.envs.point import POINT_TASKS

METAWORLD_SUITES = ("mt10", "mt25", "mt50")
METAWORLD_HORIZON = 500
MOST_GOALS = 100_000
MOST_STEPS = 1_000_000
MOST_SEED = 2**63 - 1


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"goals": "fixed", "horizon": 150},
    "brc": {"goals": "fixed", "horizon": 200, "reward": "v2"},
    "metaworld_plus": {"goals": "random", "num_goals": 50, "horizon": METAWORLD_HORIZON, "reward": "v2"},
}
"""Published protocols by name, for any suite; what they leave open keeps `Protocol`'s defaults.

paper: Kurin et al. 2022 (arXiv 2201.04122), which had reward v1 (left open: the point tasks have none).
brc: Nauman et al. 2025 (arXiv 2505.23150). Both evaluate one episode per task, exact for a fixed goal.
metaworld_plus: McLean et al. 2025 (arXiv 2505.11289); the final policy meets each of the 50 goals once.
"""


class SuiteError(ValueError):
    """A suite cannot be built, stepped or restored as asked; the message is one line fit for a user."""


class NotFiniteError(SuiteError):
    """A task returned a number that is not finite."""


class WorkerDiedError(SuiteError):
    """A worker process has died with its tasks, or was ended because a task did not go on."""


@cache
def metaworld_suites() -> dict[str, tuple[str, ...]]:
    """Task names of `mt10`, `mt25` and `mt50`, in Meta-World's own order. Imports the simulator."""
    with process.safe_path():
        from mtrl.envs import physics  # noqa: F401  before Meta-World, which imports MuJoCo too

        # isort: split
        from metaworld import env_dict

    return {
        "mt10": tuple(env_dict.MT10_V3),
        "mt25": tuple(env_dict.MT25_V3),
        "mt50": tuple(env_dict.MT50_V3),
    }


class _Suites(Mapping[str, tuple[str, ...]]):
    """Suite name -> task names in order. Meta-World is imported by the first look at one of its suites."""

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if name == "point":
            return tuple(POINT_TASKS)
        if name in METAWORLD_SUITES:
            return metaworld_suites()[name]
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in (*METAWORLD_SUITES, "point")

    def __iter__(self) -> Iterator[str]:
        return iter((*METAWORLD_SUITES, "point"))

    def __len__(self) -> int:
        return len(METAWORLD_SUITES) + 1


SUITES: Mapping[str, tuple[str, ...]] = _Suites()


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The tasks, their reward, their length and their goals.

    Args:
        suite: mt10, mt25, mt50, point, one task's name, custom (then `tasks` lists names), or your module:function.
        tasks: task names in order, for suite custom only; Meta-World's `-v3` may be left out.
        reward: Meta-World's reward: v2 gives 0 to 10 per step, v1 is unbounded and very unequal between tasks.
        horizon: control steps per episode; at most 500 for Meta-World.
        goals: random: one of `num_goals` at every reset. fixed: one per task for the whole run and its evaluation.
        num_goals: goals per task, drawn once.
        goal_seed: seed of the goals; null means the run's seed.

    Raises:
        SuiteError: a value is unknown or out of range.
    """

    suite: str = "mt10"
    tasks: tuple[str, ...] | None = None
    reward: Literal["v1", "v2"] = "v2"
    horizon: int = METAWORLD_HORIZON
    goals: Literal["random", "fixed"] = "random"
    num_goals: int = 50
    goal_seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.suite, str):
            raise SuiteError(f"suite: {self.suite!r} is not a name")
        self._set("suite", str(self.suite))
        self._set("reward", _one_of("reward", self.reward, ("v1", "v2")))
        self._set("goals", _one_of("goals", self.goals, ("random", "fixed")))
        self._set("num_goals", whole("num_goals", self.num_goals, 1, MOST_GOALS))
        if self.goal_seed is not None:
            self._set("goal_seed", whole("goal_seed", self.goal_seed, 0, MOST_SEED))
        if self.suite == "custom":
            listed = isinstance(self.tasks, Iterable) and not isinstance(self.tasks, str)
            tasks = tuple(_task("tasks", name) for name in self.tasks) if listed else ()  # type: ignore[union-attr]
            if not tasks:
                raise SuiteError(
                    f"tasks: {self.tasks!r} is not a list of task names, which suite custom needs"
                )
            if repeated := sorted(name for name, times in Counter(tasks).items() if times > 1):
                raise SuiteError(f"tasks: {repeated[0]!r} is listed more than once")
            self._set("tasks", tasks)
        elif self.tasks is not None:
            raise SuiteError(f"tasks: only suite custom takes a list, and suite is {self.suite!r}")
        elif is_own(self.suite):
            own_makers(self.suite)
        elif self.suite not in SUITES:
            self._set("suite", _task("suite", self.suite))
        simulated = self.suite in METAWORLD_SUITES or (
            not is_own(self.suite) and any(name not in POINT_TASKS for name in self.task_names)
        )
        longest = METAWORLD_HORIZON if simulated else MOST_STEPS
        self._set("horizon", whole("horizon", self.horizon, 1, longest))
        if self.reward == "v1" and not simulated:
            raise SuiteError(
                f"reward: 'v1' is Meta-World's; the tasks of {self.suite!r} have one reward, under 'v2'"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the class is frozen for everyone else

    @classmethod
    def named(cls, preset: str, **fields: Any) -> Protocol:
        """A published protocol of `PRESETS`, with the fields that differ: `named("paper", suite="mt50")`.

        Raises `SuiteError` for an unknown preset.
        """
        return cls(**{**preset_fields(preset), **fields})

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks in order, in full (`reach-v3`)."""
        if self.tasks is not None:
            return self.tasks
        if is_own(self.suite):
            return tuple(own_makers(self.suite))
        return SUITES.get(self.suite, (self.suite,))

    @property
    def name(self) -> str:
        """A name that reads, without the seed: `mt10-v2-h500-random50`, `mt10-v1-h150-fixed`.

        One's own suite has one reward, and may have no goals, which are named where they were chosen:
        `my_tasks:make_tasks-h200`, `my_tasks:make_tasks-h200-fixed`.
        """
        goals = "fixed" if self.goals == "fixed" else f"random{self.num_goals}"
        if is_own(self.suite):
            chosen = (self.goals, self.num_goals) != (Protocol.goals, Protocol.num_goals)
            return f"{self.suite}-h{self.horizon}" + (f"-{goals}" if chosen else "")
        suite = self.suite if self.tasks is None else f"custom{len(self.tasks)}"
        return f"{suite}-{self.reward}-h{self.horizon}-{goals}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and YAML can hold; `from_dict` takes them back."""
        values = dataclasses.asdict(self)
        values["tasks"] = None if self.tasks is None else list(self.tasks)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """The protocol that `to_dict` wrote. Raises `SuiteError` for an unknown key or a bad value."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise SuiteError(
                    f"protocol has no setting {key!r}{_nearest(key, known)}; it has {', '.join(known)}"
                )
        return cls(**values)


_FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""Functions that make suites, by `module:function`."""


def is_own(suite: str) -> bool:
    """Whether a suite's name is that of a function, `module:function`."""
    return ":" in suite


def name_own(function: Callable[..., Any]) -> str:
    """The name `module:function` by which a suite's function is found again, from now on here too.

    What a script defines is named after the script's file, which another process imports from the same folder.
    Raises `SuiteError` for a function that no other process could import: of a notebook's cell, or inside another.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    if module == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        module = os.path.splitext(os.path.basename(file))[0] if file else None
    if not callable(function) or module is None or "<" in name:
        raise SuiteError(
            f"suite: {shown(function)} is not a function at the top of a module, where other processes find it"
        )
    suite = f"{module}:{name}"
    _FUNCTIONS[suite] = function
    return suite


def own_makers(suite: str, render_mode: str | None = None) -> dict[str, Callable[[], Any]]:
    """Task name -> function that makes an env, as the function `module:function` returns them.

    The module is imported: from the path of Python, at last from the current folder. The function takes nothing,
    or `render_mode`. Raises `SuiteError` when there is none, or it returns anything else.
    """
    function = _FUNCTIONS.get(suite) or _found(suite)
    try:
        takes = "render_mode" in inspect.signature(function).parameters
        made = function(render_mode=render_mode) if takes else function()
    except Exception as error:
        raise SuiteError(f"suite: {suite!r} raised {type(error).__name__}: {shown(str(error))}") from None
    if not isinstance(made, Mapping) or not made:
        raise SuiteError(
            f"suite: {suite!r} returned {shown(made)}, not a mapping of task names to env makers"
        )
    for name in made:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise SuiteError(
                f"suite: {suite!r} has the task name {shown(name)}, which is not a printable text"
            )
    return {str(name): make for name, make in made.items()}


def _found(suite: str) -> Callable[..., Any]:
    module, _, name = suite.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise SuiteError(f"suite: {suite!r} is not the name of a function, such as my_tasks:make_tasks")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # last: nothing in it hides a library
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise SuiteError(
                f"suite: {suite!r}: there is no module {module!r} in {folder} or on Python's path"
            ) from None
        raise SuiteError(f"suite: {suite!r}: {error}") from None
    except AttributeError:
        raise SuiteError(f"suite: {suite!r}: the module {module!r} has no {name!r}") from None
    except Exception as error:
        raise SuiteError(
            f"suite: {suite!r} cannot be imported ({type(error).__name__}: {shown(str(error))})"
        ) from None
    if not callable(found):
        raise SuiteError(f"suite: {suite!r} is {shown(found)}, not a function")
    _FUNCTIONS[suite] = found
    return found  # type: ignore[no-any-return]


def preset_fields(preset: object) -> Mapping[str, Any]:
    """What a preset sets. Raises `SuiteError` when there is none of that name, with the nearest."""
    if not isinstance(preset, str) or preset not in PRESETS:
        raise SuiteError(
            f"protocol.preset: {preset!r} is not one of {', '.join(PRESETS)}{_nearest(str(preset), PRESETS)}"
        )
    return PRESETS[preset]


def _task(key: str, name: object) -> str:
    """The full name of a task. Raises `SuiteError` with the nearest valid name when there is none."""
    name = str(name) if isinstance(name, str) else name  # numpy has a class of its own
    if isinstance(name, str) and name in POINT_TASKS:
        return name
    known = metaworld_suites()["mt50"]
    if isinstance(name, str) and name in known:
        return name
    if f"{name}-v3" in known:
        return f"{name}-v3"
    valid = [*known, *POINT_TASKS]
    if key == "suite":
        valid += [*SUITES, "custom"]
        expected = f"a suite ({', '.join((*SUITES, 'custom'))}), a task or a module:function of yours"
    else:
        expected = "a task"
    raise SuiteError(f"{key}: {name!r} is not {expected}{_nearest(str(name), valid)}")


def _nearest(name: str, valid: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def _one_of(key: str, value: object, valid: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in valid:
        near = _nearest(value, valid) if isinstance(value, str) else ""
        raise SuiteError(f"{key}: {shown(value)} is not one of {', '.join(valid)}{near}")
    return str(value)


def shown(value: object) -> str:
    """A value as a message tells it: in one line, and no longer than that."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # numbers of 5000 digits have no repr
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:79]}…"


def whole(key: str, value: Any, low: int, high: int | None = None, *, other: str = "") -> int:
    """The value as an int; whole numbers of any library are one, bools are not.

    Raises `SuiteError` with the key, the value and what is valid. other: what is valid as well.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        valid = f"a whole number {span}"
        raise SuiteError(f"{key}: {shown(value)} is {f'neither {other} nor' if other else 'not'} {valid}")
    return number
