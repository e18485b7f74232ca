"""What a run folder says, read and checked; imports nothing of training."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from mtrl.config import ConfigError
from mtrl.files import read_bounded
from mtrl.run.folder import RunFolder

Array = npt.NDArray[np.float64]
MOST = 1e15  # of any number
MOST_BYTES = 2**25  # of a file that is read whole


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, n of them.

    Attributes:
        steps: ``[n]`` environment steps per task, increasing.
        minutes: ``[n]`` of training, evaluations included.
        success: ``[n, T]`` by task; NaN where a task never told it.
        episodes: per task in an evaluation; None where they differ.
        settings: what makes runs alike or not, by name; see :func:`read_curve`.
    """

    path: Path
    protocol: str
    status: str
    task_names: tuple[str, ...]
    steps: Array
    minutes: Array
    success: Array
    episodes: int | None
    settings: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the seeds of one label lie: the folder above ``seed<n>``, or the run's own."""
        return self.path.parent if self.path.name.startswith("seed") else self.path

    @property
    def failed(self) -> bool:
        """Whether it ended before its time, by itself."""
        return self.status.startswith(("DIVERGED", "FAILED"))

    def at(self, steps: Array) -> Curve:
        """The evaluations at these steps per task; those that a failed run never reached count as no success."""
        kept = np.isin(self.steps, steps)
        curve = replace(self, steps=self.steps[kept], minutes=self.minutes[kept], success=self.success[kept])
        missing = steps[steps > self.steps[-1]] if self.failed else steps[:0]
        if not len(missing):
            return curve
        return replace(
            curve,
            steps=np.append(curve.steps, missing),
            minutes=np.append(curve.minutes, np.full(len(missing), self.minutes[-1])),
            success=np.vstack((curve.success, np.zeros((len(missing), len(self.task_names))))),
        )


class NoEvaluation(ConfigError):
    """A run that was not evaluated yet."""


def read_curve(path: str | Path) -> Curve:
    """A run folder's ``eval.jsonl``, with what ``meta.json`` and ``config.yaml`` say of the run.

    Raises:
        NoEvaluation: the run has none yet.
        ConfigError: no run, or a file that no run of ours writes; it names the file and the line.
    """
    run = RunFolder(Path(path).resolve())
    if run.exists and not run.evaluations.exists():
        raise NoEvaluation(f"run: {path} has no evaluation yet (it is {run.status})")
    if not run.meta.exists() or not run.evaluations.exists():
        raise ConfigError(f"run: {path} is no run's folder (it has no meta.json and eval.jsonl)")
    meta = mapping(read_json(run.meta), run.meta)
    protocol = mapping(meta.get("protocol"), run.meta)
    if not isinstance(protocol.get("name"), str):
        raise ConfigError(f"run: {run.meta} names no protocol")
    records = read_lines(run.evaluations)
    if not records:
        raise NoEvaluation(f"run: {path} has no evaluation yet (it is {run.status})")
    tasks = tuple(mapping(records[0].get("tasks"), f"{run.evaluations} line 1"))
    if not tasks:
        raise ConfigError(f"run: {run.evaluations} line 1 has no tasks")
    steps, minutes, success, episodes = [], [], [], set()
    for number, record in enumerate(records, 1):
        where = f"{run.evaluations} line {number}"
        by_task = mapping(record.get("tasks"), where)
        if tuple(by_task) != tasks:
            raise ConfigError(f"run: {where} has other tasks than line 1")
        steps.append(real(record, "steps_per_task", where, low=0))
        minutes.append(real(record, "seconds", where, low=0) / 60)
        if number > 1 and steps[-1] <= steps[-2]:
            raise ConfigError(
                f"run: {where} is at {steps[-1]:g} steps per task, the line before at {steps[-2]:g}"
            )
        scores = [mapping(by_task[name], f"{where}, {name}") for name in tasks]
        success.append(
            [
                math.nan if s.get("success") is None else real(s, "success", f"{where}, {name}", 0, 1)
                for name, s in zip(tasks, scores, strict=True)
            ]
        )
        episodes |= {int(real(s, "episodes", where, 1)) for s in scores if s.get("episodes") is not None}
    return Curve(
        path=run.path, protocol=protocol["name"], status=run.status, task_names=tasks, steps=np.array(steps),
        minutes=np.array(minutes), success=np.array(success),
        episodes=episodes.pop() if len(episodes) == 1 else None, settings=settings_of(run, meta, protocol),
    )  # fmt: skip


def settings_of(run: RunFolder, meta: dict[str, Any], protocol: dict[str, Any]) -> dict[str, Any]:
    """``goals`` (their seed, where they are fixed), ``total_steps_per_task``, ``commit`` and ``versions``."""
    try:
        config = yaml.safe_load(read_text(run.config)) if run.config.exists() else {}
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(f"run: {run.config} is no YAML") from None
    config = config if isinstance(config, dict) else {}
    seed = config.get("seed") if protocol.get("goal_seed") is None else protocol["goal_seed"]
    return {
        "goals": seed if protocol.get("goals") == "fixed" else None,
        "total_steps_per_task": config.get("total_steps_per_task"),
        "commit": meta.get("commit"),
        "versions": meta.get("versions"),
    }


def read_text(path: Path) -> str:
    """A regular file of no absurd size, as text."""
    try:
        return read_bounded(path, MOST_BYTES).decode()
    except OSError as error:
        raise ConfigError(f"run: {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"run: {path} is no text") from None


def read_json(path: Path) -> Any:
    return parsed(read_text(path), path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A jsonl file of mappings."""
    lines = read_text(path).splitlines()
    return [mapping(parsed(text, f"{path} line {i}"), f"{path} line {i}") for i, text in enumerate(lines, 1)]


def parsed(text: str, where: object) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"run: {where} is no JSON") from None


def mapping(value: Any, where: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"run: {where} is not what a run writes (a mapping was expected)")
    return value


def real(record: dict[str, Any], key: str, where: str, low: float, high: float = MOST) -> float:
    """A number in a record, within bounds."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"run: {where}: {key} is {value!r}, which no run writes")
    return float(value)
