"""What others published, as data: curves by task and seed, or single numbers. See ``baselines/``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.config import ConfigError, nearest
from mtrl.results.export import read_table
from mtrl.results.reading import Curve
from mtrl.results.statistics import as_json, mean_interval
from mtrl.settings.files import read_settings

# in a wheel they lie inside the package, in a checkout next to it
FOLDERS = (Path(__file__).parents[1] / "baselines", Path(__file__).parents[2] / "baselines")


@dataclass(frozen=True)
class Baseline:
    """One publication's results on some tasks.

    Attributes:
        protocol: as a run's is called, without the suite.
        note: what makes it unlike a run here; said wherever it is shown.
        curves: by label, a curve per seed; empty where only numbers are published.
        numbers: by label, the mean and, where it is published, the low and high end of its 95 % interval.
        statistic, steps: what the numbers are, and at how many steps per task.
    """

    name: str
    title: str
    source: str
    note: str
    protocol: str
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    statistic: str = "final"
    steps: float = 0.0

    def unlike(self, protocols: set[str]) -> str | None:
        """A line where runs' protocols are not this one's."""
        others = sorted(p for p in protocols if not p.endswith(f"-{self.protocol}"))
        if not others:
            return None
        return f"baseline {self.name} is {self.protocol}, the runs are {', '.join(others)}: other protocols"

    def rows(self, most_steps: float) -> dict[str, dict[str, Any]]:
        """By label, success at the last of its steps that is not beyond ``most_steps``, or the number. JSON-able.

        Areas are left out: its evaluations are at other steps than the runs'.
        """
        told = {"baseline": self.name, "protocol": self.protocol, "source": self.source, "note": self.note}
        found: dict[str, dict[str, Any]] = {}
        for label, curves in self.curves.items():
            steps = curves[0].steps
            place = int(np.searchsorted(steps, most_steps, side="right")) - 1
            if place < 0:
                raise ConfigError(
                    f"baseline: {self.name} begins at {steps[0]:.0f} steps per task, the runs end at {most_steps:.0f}"
                )
            values = np.array([curve.success[place].mean() for curve in curves])
            score = {"mean": float(values.mean()), "ci": as_json(mean_interval(values))}
            at = float(steps[place])
            found[label] = {**told, "seeds": len(curves), "statistic": "final", "steps_per_task": at, **score}
        for label, (mean, *ci) in self.numbers.items():
            score = {"mean": mean, "ci": ci or None}
            found[label] = {
                **told, "seeds": None, "statistic": self.statistic, "steps_per_task": self.steps, **score
            }  # fmt: skip
        return found


def names() -> dict[str, Path]:
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_baseline(name: str, task_names: tuple[str, ...], suite: str) -> Baseline:
    """A shipped baseline on some tasks; single numbers are of a whole suite.

    Raises:
        ConfigError: there is none of this name, or it has not these tasks, or not this suite.
    """
    shipped = names()
    if name not in shipped:
        raise ConfigError(
            f"baseline: {name!r} is none{nearest(name, shipped)}; there are {', '.join(shipped)}"
        )
    content = read_settings(shipped[name])
    told = {key: content[key] for key in ("title", "source", "note", "protocol")}
    if "table" in content:
        curves: dict[str, list[Curve]] = {}
        for curve in read_table(shipped[name].with_name(content["table"])):
            if lacking := sorted(set(task_names) - set(curve.task_names)):
                raise ConfigError(f"baseline: {name} has no {lacking[0]}")
            curves.setdefault(curve.folder.name, []).append(curve.of_tasks(task_names))
        return Baseline(name, **told, curves=curves)
    if suite not in content["suites"]:
        raise ConfigError(f"baseline: {name} has numbers of {' and '.join(content['suites'])} only")
    scores = content["suites"][suite]
    numbers = {f"{content['title']}, {label}": [float(x) for x in row] for label, row in scores.items()}
    return Baseline(
        name, **told, numbers=numbers, statistic=content["statistic"], steps=float(content["steps_per_task"])
    )
