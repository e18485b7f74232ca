"""Statistics over several runs: groups of seeds, at equal steps and equally many evaluations."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu, trim_mean

from mtrl.config import ConfigError
from mtrl.run.folder import RunFolder

Array = npt.NDArray[np.float64]
CONFIDENCE = 0.95
RESAMPLES = 10_000
STATISTICS = ("final", "last5", "best", "area")


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, n of them.

    Attributes:
        steps: ``[n]`` environment steps per task.
        minutes: ``[n]`` of training, evaluations included.
        success: ``[n, T]`` by task.
    """

    path: Path
    protocol: str
    status: str
    task_names: tuple[str, ...]
    steps: Array
    minutes: Array
    success: Array

    @property
    def folder(self) -> Path:
        """Where the seeds of one label lie: the folder above ``seed<n>``, or the run's own."""
        path = self.path.resolve()
        return path.parent if path.name.startswith("seed") else path

    def at(self, steps: Array) -> Curve:
        """The evaluations at these steps per task."""
        kept = np.isin(self.steps, steps)
        return replace(self, steps=self.steps[kept], minutes=self.minutes[kept], success=self.success[kept])

    def statistics(self) -> dict[str, float]:
        """One number per way to score a run's mean success over tasks.

        ``final``: the last evaluation; ``last5``: the mean of the last five; ``best``: the best over time,
        biased upwards by the number of looks; ``area``: mean over evaluations.
        """
        mean = self.success.mean(axis=1)
        return {
            "final": float(mean[-1]), "last5": float(mean[-5:].mean()),
            "best": float(mean.max()), "area": float(mean.mean()),
        }  # fmt: skip


def read_curve(path: str | Path) -> Curve:
    """A run folder's ``eval.jsonl``.

    Raises:
        ConfigError: no run, or one without an evaluation.
    """
    run = RunFolder(path)
    try:
        meta = json.loads(run.meta.read_text())
        lines = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
        tasks = tuple(lines[0]["tasks"])
        return Curve(
            path=run.path,
            protocol=meta["protocol"]["name"],
            status=run.status,
            task_names=tasks,
            steps=np.array([line["steps_per_task"] for line in lines], dtype=float),
            minutes=np.array([line["seconds"] / 60 for line in lines]),
            success=np.array([[line["tasks"][name]["success"] for name in tasks] for line in lines]),
        )
    except OSError as error:
        if run.exists and not run.evaluations.exists():
            raise ConfigError(f"run: {path} has no evaluation yet (it is {run.status})") from None
        raise ConfigError(f"run: {path} is no run's folder ({error.strerror}: {error.filename})") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise ConfigError(f"run: {path} has no evaluation that can be read") from None


def read_conflict(path: str | Path) -> dict[str, Array]:
    """Per network, the pairwise cosines ``[T, T]`` averaged over the second half of a run's measurements.

    Raises:
        ConfigError: the run has no ``conflict.jsonl`` that can be read.
    """
    run = RunFolder(path)
    try:
        records = [json.loads(line) for line in run.conflicts.read_text().splitlines()]
        cosines = {
            network: np.array([r["cosines"] for r in records if r["network"] == network], dtype=float)
            for network in ("critic", "actor")
        }
        return {network: np.nanmean(c[len(c) // 2 :], axis=0) for network, c in cosines.items()}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"run: {path} has no conflict measurement that can be read") from None


def mean_conflict(paths: Sequence[str | Path]) -> dict[str, Array]:
    """:func:`read_conflict` of several runs, averaged."""
    found = [read_conflict(path) for path in paths]
    return {network: np.nanmean([one[network] for one in found], axis=0) for network in found[0]}


def group(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Runs by label, each with the evaluations at the steps that all have: as many looks for all.

    A label is the name of the folder that seeds lie in, with as much of its path before it as tells it from
    the others.

    Raises:
        ConfigError: runs of different tasks, or without a common step.
    """
    first, *others = curves
    for other in others:
        if other.task_names != first.task_names:
            raise ConfigError(f"run: {other.path} has other tasks than {first.path}")
    shared = reduce(np.intersect1d, [curve.steps for curve in curves])
    if not len(shared):
        paths = ", ".join(str(curve.path) for curve in curves)
        raise ConfigError(f"run: {paths} have no evaluation at the same number of steps per task")
    names = labels({curve.folder for curve in curves})
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(names[curve.folder], []).append(curve.at(shared))
    return groups


def labels(folders: Collection[Path]) -> dict[Path, str]:
    """The shortest ends of the paths that differ, of equal length."""
    longest = max(len(folder.parts) for folder in folders)
    for length in range(1, longest + 1):
        names = {folder: str(Path(*folder.parts[-length:])) for folder in folders}
        if len(set(names.values())) == len(names):
            break
    return names


def warnings(curves: Sequence[Curve]) -> list[str]:
    """What makes these runs hard to compare."""
    found = []
    if len(protocols := sorted({curve.protocol for curve in curves})) > 1:
        found.append(f"the runs follow different protocols: {', '.join(protocols)}")
    found += [f"{c.path} is marked {c.status}" for c in curves if not c.status.startswith("DONE")]
    return found


def interquartile_mean(values: Array) -> float:
    """Mean of the middle half (Agarwal et al. 2021, arXiv 2108.13264)."""
    return float(trim_mean(values, 0.25))


def bootstrap_interval(values: Array, seed: int = 0) -> list[float] | None:
    """95 % percentile bootstrap of the mean over runs ``[n]``; None for a single run."""
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(seed).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    return [float(q) for q in np.quantile(drawn, [tail, 1 - tail])]


def probability_of_improvement(a: Array, b: Array) -> float:
    """P(a run of ``a`` scores above a run of ``b``), ties half: Mann–Whitney's U over the pairs."""
    return float(mannwhitneyu(a, b).statistic / (len(a) * len(b)))


def summarise(groups: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
    """For each group: seeds, steps, every statistic with mean, IQM and interval, per-task last-five success,
    and the probability of improvement over the first group. JSON-able.
    """
    table: dict[str, Any] = {}
    first: Array | None = None
    for label, curves in groups.items():
        scores = {name: np.array([c.statistics()[name] for c in curves]) for name in STATISTICS}
        first = scores["last5"] if first is None else first
        table[label] = {
            "runs": [str(c.path) for c in curves],
            "steps_per_task": float(curves[0].steps[-1]),
            "minutes": float(np.mean([c.minutes[-1] for c in curves])),
            "protocol": curves[0].protocol,
            **{
                name: {"mean": float(v.mean()), "iqm": interquartile_mean(v), "ci": bootstrap_interval(v)}
                for name, v in scores.items()
            },
            "improvement_over_first": probability_of_improvement(scores["last5"], first),
            "tasks": {
                name: float(np.mean([c.success[-5:, t].mean() for c in curves]))
                for t, name in enumerate(curves[0].task_names)
            },
        }
    return table
