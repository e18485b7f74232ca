"""Statistics over several runs: groups of seeds, at equal steps and equally many evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.config import ConfigError
from mtrl.results.export import read_table
from mtrl.results.reading import (
    NETWORKS,
    Array,
    Curve,
    NoEvaluation,
    diverged_curve,
    read_curve,
)
from mtrl.results.statistics import (
    FEWEST,
    Difference,
    as_json,
    holm,
    improvement,
    iqm,
    iqm_interval,
    known,
    mean_interval,
    paired_difference,
    power_equivalence,
    power_non_superiority,
    seeds_needed,
    welch_difference,
    why_no_interval,
)
from mtrl.run.paths import RunPaths
from mtrl.settings.files import path_of

STATISTICS = ("final", "last3", "last5", "best", "area", "worst3", "unseen")
METRIC = "area"  # what arms are compared by, unless said otherwise
WORST = 3  # tasks
COUNTS = ("measured", "fallbacks")
Groups = Mapping[str, Sequence[Curve]]


def default_margin(metric: str) -> float:
    """A difference that does not matter: success at the end swings more than its mean over time."""
    return 0.05 if metric == "area" else 0.1


def read_curves(paths: Sequence[str]) -> tuple[list[Curve], list[str]]:
    """The runs that can be scored, from folders, folders of runs and tables, and a line about each that cannot.

    A run that diverged before its first evaluation has no success at any step.

    Raises:
        ConfigError: a run is named twice, cannot be read, or none has an evaluation.
    """
    curves: list[Curve] = []
    young: list[str] = []
    lost: list[Path] = []
    seen: dict[Path, str] = {}
    for path in paths:
        place = path_of("run", path).resolve()
        if place in seen:
            raise ConfigError(f"run: {path} is named twice (also as {seen[place]}); each run counts once")
        seen[place] = path
        if place.is_file():
            curves += read_table(place)
            continue
        for run in runs_in(place):
            if run != place and run in seen:
                raise ConfigError(f"run: {run} is named twice (also as {seen[run]}); each run counts once")
            seen.setdefault(run, path)
            try:
                curves.append(read_curve(run))
            except NoEvaluation as error:
                if RunPaths(run).status.startswith("DIVERGED"):
                    lost.append(run)
                else:
                    young.append(f"{error}: left out")
    if not curves:
        raise ConfigError(
            young[0].removesuffix(": left out") if young else f"run: all of {len(lost)} runs diverged"
        )
    others = tuple(curves)
    for run in lost:
        try:
            curves.append(diverged_curve(run, others))
        except NoEvaluation as error:
            young.append(f"{error}: left out")
    places = [curve.path for curve in curves]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise ConfigError(f"run: {twice} comes twice; each run counts once")
    return curves, young


def runs_in(folder: Path) -> list[Path]:
    """The run folder itself, or the runs in a folder of runs (``<label>/seed<n>`` and the like)."""
    if not folder.is_dir() or any(
        (folder / name).exists() for name in ("eval.jsonl", "config.yaml", "meta.json")
    ):
        return [folder]
    found = [path.parent for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/config.yaml")]
    return sorted(found, key=by_number) or [folder]


def by_number(path: Path) -> tuple[str, int, str]:
    """Order of runs: by folder, seed10 after seed9."""
    digits = path.name.removeprefix("seed")
    return str(path.parent), int(digits) if digits.isdecimal() else -1, path.name


def statistics(curve: Curve) -> dict[str, float]:
    """One number per way to score a run's success over tasks.

    ``final``: the last evaluation; ``last3``, ``last5``: the mean of the last three and five; ``best``: the best over
    time, biased upwards by the number of looks; ``area``: mean over evaluations; ``worst3``: of the run's three worst
    tasks over the last five evaluations; ``unseen``: on goals that were not trained on, 0 for a diverged run, NaN where
    it was not measured.
    """
    mean, tasks = curve.success.mean(axis=1), last_five(curve)
    worst = np.sort(tasks)[:WORST].mean() if np.isfinite(tasks).all() else np.nan
    unseen = (
        0.0 if curve.diverged else math.nan if curve.unseen is None else float(np.mean(curve.unseen.success))
    )
    return {
        "final": float(mean[-1]), "last3": float(mean[-3:].mean()), "last5": float(mean[-5:].mean()),
        "best": float(mean.max()), "area": float(mean.mean()),
        "worst3": float(worst), "unseen": unseen,
    }  # fmt: skip


def last_five(curve: Curve) -> Array:
    """``[T]`` success by task, mean over the last five evaluations."""
    return np.asarray(curve.success[-5:].mean(axis=0))


def dead_tasks(curve: Curve) -> list[str]:
    """Tasks without one success in the last five evaluations."""
    return [name for name, score in zip(curve.task_names, last_five(curve), strict=True) if score == 0]


def mean_conflict(curves: Sequence[Curve]) -> dict[str, Array]:
    """Per network, the pairwise cosines ``[T, T]`` of the runs that have them, averaged.

    Raises:
        ConfigError: no run has a conflict measurement.
    """
    measured = [curve for curve in curves if curve.cosines]
    if not measured:
        raise ConfigError(f"run: {curves[0].path} has no conflict measurement that can be read")
    return {
        network: np.nanmean([curve.cosines[network] for curve in measured], axis=0)
        for network in measured[0].cosines
        if all(network in curve.cosines for curve in measured)
    }


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
    if all(curve.diverged for curve in curves):
        raise ConfigError(f"run: all of {len(curves)} runs diverged: there is no step to score them at")
    shared = shared_steps(curves)
    if not len(shared):
        paths = ", ".join(str(curve.path) for curve in curves)
        raise ConfigError(f"run: {paths} have no evaluation at the same number of steps per task")
    return {label: [curve.at(shared) for curve in seeds] for label, seeds in by_label(curves).items()}


def shared_steps(curves: Sequence[Curve]) -> Array:
    """The evaluations that all runs have, one of which did not diverge.

    What a diverged run never reached counts as no success; what it skipped before is missing for all.
    """
    shared = reduce(np.intersect1d, [curve.steps for curve in curves if not curve.diverged])
    return np.array(
        [s for s in shared if all(s in c.steps or (c.diverged and s > c.last_step) for c in curves)]
    )


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
    differ("numbers of episodes per evaluation", [curve.episodes for curve in curves if len(curve.steps)])
    differ("total steps per task", [curve.settings.get("total_steps_per_task") for curve in curves])
    ends = {curve.path: curve.steps[-1] for curve in curves if not curve.diverged and len(curve.steps)}
    if len(set(ends.values())) > 1:
        first = min(ends, key=lambda path: ends[path])
        found.append(
            f"runs end at {min(ends.values()):.0f} to {max(ends.values()):.0f} steps per task: all are compared up to "
            f"the end of {first}"
        )
    differ("commits", [curve.settings.get("commit") for curve in curves])
    differ("versions", [curve.settings.get("versions") for curve in curves])
    goals = {
        label: sorted({str(curve.settings.get("goals")) for curve in seeds})
        for label, seeds in by_label(curves).items()
    }
    if len({tuple(g) for g in goals.values()}) > 1:
        told = "; ".join(f"{label}: {', '.join(g)}" for label, g in goals.items())
        found.append(f"the labels have goals of different seeds ({told})")
    for label, seeds in by_label(curves).items():
        if len({curve.settings.get("config") for curve in seeds} - {None}) > 1:
            found.append(f"the runs of {label} have different settings, not only seeds")
    for curve in curves:
        if curve.diverged:
            found.append(
                f"{curve.path} is marked {curve.status}: its success after {curve.last_step:.0f} steps per task "
                "counts as 0"
            )
        if np.isnan(curve.success).any():
            found.append(f"{curve.path} has tasks that never told success: no mean over tasks")
    unfinished: dict[str, list[Path]] = {}
    for curve in curves:
        if not curve.diverged and not curve.status.startswith("DONE"):
            unfinished.setdefault(curve.status, []).append(curve.path)
    for status, paths in unfinished.items():
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        found.append(f"not finished: {paths[0]}{others} ({status})")
    return found


def difference(a: Sequence[Curve], b: Sequence[Curve], score: Callable[[Curve], float]) -> Difference:
    """Of two arms' runs in a score: paired where at least three seeds are in both, else Welch's."""
    one, two = ({c.seed: score(c) for c in curves if c.seed is not None} for curves in (a, b))
    shared = sorted(one.keys() & two.keys())
    if len(shared) >= FEWEST and len(one) == len(a) and len(two) == len(b):
        return paired_difference(np.array([one[s] for s in shared]), np.array([two[s] for s in shared]))
    return welch_difference(*(np.array([score(c) for c in curves]) for curves in (a, b)))


def against(a: Sequence[Curve], b: Sequence[Curve], metric: str, margin: float) -> dict[str, Any]:
    """What an arm's difference from the reference ``b`` shows; p-values are one-sided. JSON-able.

    ``left_out``: runs without a pair; ``p_better``: above the reference; ``p_not_better``: less than ``margin`` above
    it; ``p_equivalent``: within ``±margin``; powers and needed seeds are for truly equal arms of the found SD.
    """
    found = difference(a, b, lambda curve: statistics(curve)[metric])
    sure = found.testable and not found.level
    powers: dict[str, Any] = {}
    for name, power in (("not_better", power_non_superiority), ("equivalent", power_equivalence)):
        powers[f"power_{name}"] = power(found.runs, found.sd, margin, found.paired) if sure else None
        powers[f"seeds_{name}"] = seeds_needed(power, found.sd, margin, found.paired) if sure else None
    shared = {curve.seed for curve in a} & {curve.seed for curve in b}
    alone = [curve for curve in (*a, *b) if found.paired and curve.seed not in shared]
    scores = [np.array([last_five(curve) for curve in curves]) for curves in (a, b)]
    chance, bounds = improvement(*scores)
    return {
        "mean": known(found.mean), "ci": as_json(found.interval), "paired": found.paired, "runs": found.runs,
        "sd": known(found.sd), "metric": metric, "margin": margin,
        "left_out": [f"{curve.path} ({curve.status})" for curve in alone],
        "p_better": found.p_above() if sure else None,
        "p_not_better": found.p_below(margin) if sure else None,
        "p_equivalent": found.p_equivalent(margin) if sure else None, **powers,
        "improvement": {"mean": known(chance), "ci": as_json(bounds)},
    }  # fmt: skip


def summarise(
    groups: Groups, reference: str | None = None, metric: str = METRIC, margin: float | None = None
) -> dict[str, Any]:
    """For each label: runs, steps, every statistic with mean, SD and interval over runs, the interquartile mean, what
    the method did to the gradient, dead and per-task last-five success; with a reference, the difference from it.
    JSON-able.

    Raises:
        ConfigError: no label is called as the reference.
    """
    if reference is not None and reference not in groups:
        raise ConfigError(f"reference: {reference!r} is none of the labels {', '.join(groups)}")
    table: dict[str, Any] = {}
    measured = any(curve.unseen for curves in groups.values() for curve in curves)
    for label, curves in groups.items():
        scores = {name: np.array([statistics(c)[name] for c in curves]) for name in STATISTICS}
        if not measured:  # not even for a diverged run
            scores["unseen"] = np.full(len(curves), math.nan)
        tasks = np.array([last_five(curve) for curve in curves])
        table[label] = {
            "runs": [str(c.path) for c in curves],
            "seeds": [c.seed for c in curves],
            "diverged": [str(c.path) for c in curves if c.diverged],
            "steps_per_task": float(curves[0].steps[-1]),
            "minutes": mean_minutes(curves),
            "protocol": curves[0].protocol,
            **{name: described(values) for name, values in scores.items()},
            "training_success": in_training(curves),
            "iqm_last5": {"mean": known(iqm(tasks)), "ci": as_json(iqm_interval(tasks))},
            "tasks": dict(zip(curves[0].task_names, map(known, tasks.mean(axis=0)), strict=True)),
            "dead_tasks": [dead_tasks(curve) for curve in curves],
            "acting": mean_acting(curves),
        }
    if reference is not None:
        others = [label for label in groups if label != reference]
        for label in others:
            table[label]["against"] = against(
                groups[label], groups[reference], metric, default_margin(metric) if margin is None else margin
            )
        corrected = holm([table[label]["against"]["p_better"] for label in others])
        for label, value in zip(others, corrected, strict=True):
            table[label]["against"]["p_better_holm"] = value
    return table


def mean_minutes(curves: Sequence[Curve]) -> float | None:
    """To the last evaluation, of the runs that reached it."""
    known_minutes = [minutes for curve in curves if not math.isnan(minutes := curve.minutes[-1])]
    return float(np.mean(known_minutes)) if known_minutes else None


def described(values: Array) -> dict[str, Any]:
    """Mean, SD and interval of runs' scores ``[n]``, and why there is none."""
    sd = known(values.std(ddof=1)) if len(values) > 1 else None
    return {
        "mean": known(values.mean()), "sd": sd, "ci": as_json(mean_interval(values)),
        "no_ci": why_no_interval(values),
    }  # fmt: skip


def in_training(curves: Sequence[Curve]) -> dict[str, Any]:
    """Success in training, of the runs of which it is known, then 0 for a diverged one: their number is told."""
    told = [c.training_success for c in curves if not c.diverged and c.training_success is not None]
    lost = [0.0 for curve in curves if curve.diverged]
    values = np.array([*told, *lost] if told else [])
    return {**(described(values) if len(values) else {"mean": None}), "runs": len(values)}


def mean_acting(curves: Sequence[Curve]) -> dict[str, dict[str, float]]:
    """:func:`mtrl.results.reading.acting_of`, mean over the runs that have it; counts are added."""
    found: dict[str, dict[str, float]] = {}
    for network in NETWORKS:
        own = [curve.acting[network] for curve in curves if network in curve.acting]
        for key in dict.fromkeys(key for one in own for key in one):
            values = [one[key] for one in own if key in one]
            merged = np.sum(values) if key in COUNTS else np.mean(values)
            found.setdefault(network, {})[key] = float(merged)
    return found
