"""Statistics over several runs: groups of seeds, at equal steps and equally many evaluations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student
from scipy.stats import trim_mean

from mtrl.config import ConfigError
from mtrl.results.reading import Array, Curve, NoEvaluation, read_curve, read_lines
from mtrl.run.folder import RunFolder
from mtrl.settings import path_of

CONFIDENCE = 0.95
FEWEST = 3  # runs that an interval is given for
STATISTICS = ("final", "last5", "best", "area")
Groups = Mapping[str, Sequence[Curve]]


def read_curves(paths: Sequence[str]) -> tuple[list[Curve], list[str]]:
    """The runs that have an evaluation, and a line about each that has none.

    Raises:
        ConfigError: a run is named twice, cannot be read, or none has an evaluation.
    """
    curves: list[Curve] = []
    young: list[str] = []
    seen: dict[Path, str] = {}
    for path in paths:
        place = path_of("run", path).resolve()
        if place in seen:
            raise ConfigError(f"run: {path} is named twice (also as {seen[place]}); each run counts once")
        seen[place] = path
        try:
            curves.append(read_curve(place))
        except NoEvaluation as error:
            if RunFolder(place).status.startswith(("DIVERGED", "FAILED")):
                raise ConfigError(
                    f"{error}; a failure without an evaluation cannot be scored, name it apart"
                ) from None
            young.append(f"{error}: left out")
    if not curves:
        raise ConfigError(young[0].removesuffix(": left out"))
    return curves, young


def statistics(curve: Curve) -> dict[str, float]:
    """One number per way to score a run's mean success over tasks.

    ``final``: the last evaluation; ``last5``: the mean of the last five; ``best``: the best over time,
    biased upwards by the number of looks; ``area``: mean over evaluations.
    """
    mean = curve.success.mean(axis=1)
    return {
        "final": float(mean[-1]), "last5": float(mean[-5:].mean()),
        "best": float(mean.max()), "area": float(mean.mean()),
    }  # fmt: skip


def read_conflict(path: str | Path) -> dict[str, Array]:
    """Per network, the pairwise cosines ``[T, T]`` averaged over the second half of a run's measurements.

    Raises:
        ConfigError: the run has no ``conflict.jsonl`` that can be read.
    """
    run = RunFolder(path)
    try:
        records = read_lines(run.conflicts)
        cosines = {
            network: np.array([r["cosines"] for r in records if r["network"] == network], dtype=float)
            for network in ("critic", "actor")
        }
        return {network: np.nanmean(c[len(c) // 2 :], axis=0) for network, c in cosines.items()}
    except (ValueError, KeyError, TypeError):
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
    if all(curve.failed for curve in curves):
        raise ConfigError(f"run: all of {len(curves)} runs failed: there is no step to score them at")
    shared = reduce(np.intersect1d, [curve.steps for curve in curves if not curve.failed])
    # what a failed run never reached counts as no success; what it skipped before is missing for all
    shared = np.array(
        [s for s in shared if all(s in c.steps or (c.failed and s > c.steps[-1]) for c in curves)]
    )
    if not len(shared):
        paths = ", ".join(str(curve.path) for curve in curves)
        raise ConfigError(f"run: {paths} have no evaluation at the same number of steps per task")
    return {label: [curve.at(shared) for curve in seeds] for label, seeds in by_label(curves).items()}


def by_label(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Runs by label, as they are."""
    names = labels({curve.folder for curve in curves})
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(names[curve.folder], []).append(curve)
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
    """What makes these runs hard to compare, a line each."""
    found = []

    def differ(what: str, values: Sequence[Any]) -> None:
        different = list(dict.fromkeys(str(value) for value in values))
        if len(different) > 1:
            found.append(f"the runs have different {what}: {', '.join(different)}")

    differ("protocols", [curve.protocol for curve in curves])
    differ("numbers of episodes per evaluation", [curve.episodes for curve in curves])
    differ("total steps per task", [curve.settings["total_steps_per_task"] for curve in curves])
    differ(
        "last evaluations (they are compared at common steps)",
        [f"{c.steps[-1]:.0f}" for c in curves if not c.failed],
    )
    differ("commits", [curve.settings["commit"] for curve in curves])
    differ("versions", [curve.settings["versions"] for curve in curves])
    goals = {
        label: sorted({str(curve.settings["goals"]) for curve in seeds})
        for label, seeds in by_label(curves).items()
    }
    if len({tuple(g) for g in goals.values()}) > 1:
        told = "; ".join(f"{label}: {', '.join(g)}" for label, g in goals.items())
        found.append(f"goals are fixed by the seed, and the labels have different ones ({told})")
    for curve in curves:
        if curve.failed:
            found.append(
                f"{curve.path} is marked {curve.status}: its success after {curve.steps[-1]:.0f} steps per task "
                "counts as 0"
            )
        elif not curve.status.startswith("DONE"):
            found.append(f"{curve.path} is marked {curve.status}")
        if np.isnan(curve.success).any():
            found.append(f"{curve.path} has tasks that never told success: no mean over tasks")
    return found


def interval(values: Array) -> list[float] | None:
    """95 % interval of the mean over runs ``[n]`` by Student's t, cut to [0, 1]; None below three runs.

    Over few runs a percentile bootstrap of the mean covers too little: .73, .84 and .90 at 3, 5 and 10.
    """
    if len(values) < FEWEST:
        return None
    half = student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [max(0.0, float(values.mean() - half)), min(1.0, float(values.mean() + half))]


def difference(a: Array, b: Array) -> dict[str, Any]:
    """Mean of runs ``a [n]`` minus that of ``b [m]``, with Welch's 95 % interval; None below three runs of each."""
    shift = float(a.mean() - b.mean())
    if min(len(a), len(b)) < FEWEST:
        return {"mean": shift, "ci": None}
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    if parts.sum() == 0:
        return {"mean": shift, "ci": [shift, shift]}
    freedom = parts.sum() ** 2 / (parts**2 / (np.array([len(a), len(b)]) - 1)).sum()
    half = float(student.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(parts.sum()))
    return {"mean": shift, "ci": [shift - half, shift + half]}


def interquartile_mean(curves: Sequence[Curve]) -> float:
    """Mean of the middle half of all runs' tasks, each task's mean over the last five evaluations.

    Agarwal et al. 2021 (arXiv 2108.13264): over the ``[n, T]`` scores of n runs and T tasks.
    """
    return float(trim_mean(np.array([c.success[-5:].mean(axis=0) for c in curves]).flatten(), 0.25))


def summarise(groups: Groups, reference: str | None = None) -> dict[str, Any]:
    """For each label: runs, steps, every statistic with mean and interval over runs, the interquartile mean, and
    per-task last-five success; with a reference, the difference of the area under the curve from it. JSON-able.

    Raises:
        ConfigError: no label is called as the reference.
    """
    if reference is not None and reference not in groups:
        raise ConfigError(f"reference: {reference!r} is none of the labels {', '.join(groups)}")
    scores = {
        label: {name: np.array([statistics(c)[name] for c in curves]) for name in STATISTICS}
        for label, curves in groups.items()
    }
    table: dict[str, Any] = {}
    for label, curves in groups.items():
        table[label] = {
            "runs": [str(c.path) for c in curves],
            "failed": [str(c.path) for c in curves if c.failed],
            "steps_per_task": float(curves[0].steps[-1]),
            "minutes": float(np.mean([c.minutes[-1] for c in curves])),
            "protocol": curves[0].protocol,
            **{name: {"mean": known(v.mean()), "ci": interval(v)} for name, v in scores[label].items()},
            "iqm_last5": known(interquartile_mean(curves)),
            "tasks": {
                name: known(np.mean([c.success[-5:, t].mean() for c in curves]))
                for t, name in enumerate(curves[0].task_names)
            },
        }
        if reference is not None:
            table[label]["area_minus_reference"] = difference(
                scores[label]["area"], scores[reference]["area"]
            )
    return table


def known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
