"""Statistics over runs: intervals, tests, power. A run is what is drawn; its tasks share one network and are not.

Scores are in [0, 1]. Student's t covers .95 of normal scores at any number of runs, but not where scores crowd at an
end: ten tasks that each succeed in .95 of the runs are covered in .75 / .92 of draws at 3 / 5 runs, and three runs at
1.0 would give an interval without width. No interval over so few runs is both right there and of use. So none is
given (None) below :data:`FEWEST` runs, where all runs are equal, and where a mean is nearer than :data:`EDGE` to 0 or
1. What is given holds .95 of draws of normal, beta and binomial scores, and is wrong in at most .07 of all draws
(tests/results/test_statistics.py). It does not hold for arms of which a run in ten collapses: few runs do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit  # Student's t, without the checks of scipy.stats
from scipy.stats import chi2, nct, norm, trim_mean

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]

CONFIDENCE = 0.95
ALPHA = 0.05  # of a one-sided test
POWER = 0.8
FEWEST = 3
EDGE = 0.05
FEWEST_IMPROVEMENT = 5  # runs of each arm for the interval of a probability of improvement
FEWEST_IQM = 5
MOST_RUNS = 1000  # that a power is looked up for
NO_SPREAD = 1e-9  # a standard deviation that is rounding


def inside(mean: float) -> bool:
    """Whether scores of this mean are far enough from both ends for Student's t."""
    return EDGE <= mean <= 1 - EDGE


def why_no_interval(values: Array) -> str | None:
    """Why :func:`mean_interval` gives none for runs ``[n]``, in a few words; None where it gives one."""
    if len(values) < FEWEST:
        return f"fewer than {FEWEST} seeds"
    if not np.isfinite(values).all():
        return "a score is not known"
    if values.std(ddof=1) < NO_SPREAD:
        return "all seeds are equal"
    if not inside(float(values.mean())):
        return f"the mean is nearer than {EDGE:g} to 0 or 1"
    return None


def mean_interval(values: Array) -> Interval | None:
    """95 % interval of the mean of scores ``[n]`` of n runs by Student's t, cut to [0, 1]."""
    if why_no_interval(values):
        return None
    half = quantile(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return cut(float(values.mean()), float(half))


def quantile(freedom: float) -> float:
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def cut(middle: float, half: float) -> Interval:
    return max(0.0, middle - half), min(1.0, middle + half)


# --- differences between two arms ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The mean of one arm's runs minus another's.

    Attributes:
        mean: the difference.
        error: its standard error; NaN where it cannot be told.
        freedom: degrees of freedom of Student's t.
        sd: of paired differences over seeds, or pooled over the runs of an arm.
        runs: pairs, or runs of the smaller arm.
        paired: whether runs of the same seed were subtracted.
        near_end: whether an arm's mean is nearer than :data:`EDGE` to 0 or 1: no interval is right there.
        level: whether both are, at the same end: everything is equivalent there.
    """

    mean: float
    error: float
    freedom: float
    sd: float
    runs: int
    paired: bool
    near_end: bool
    level: bool

    @property
    def testable(self) -> bool:
        return self.runs >= FEWEST and self.sd >= NO_SPREAD and math.isfinite(self.error)

    @property
    def interval(self) -> Interval | None:
        """95 % by Student's t; None where :attr:`testable` is false, or near an end."""
        if not self.testable or self.near_end:
            return None
        half = quantile(self.freedom) * self.error
        return self.mean - half, self.mean + half

    def p_above(self, bound: float = 0.0) -> float | None:
        """One-sided p-value of "the difference is at most ``bound``"; small means above it."""
        return float(stdtr(self.freedom, (bound - self.mean) / self.error)) if self.testable else None

    def p_below(self, bound: float = 0.0) -> float | None:
        """One-sided p-value of "the difference is at least ``bound``"; small means below it."""
        return float(stdtr(self.freedom, (self.mean - bound) / self.error)) if self.testable else None

    def p_apart(self, margin: float = 0.0) -> float | None:
        """Two-sided p-value of "the difference is within ``±margin``"; small means beyond it, on either side."""
        above, below = self.p_above(margin), self.p_below(-margin)
        return None if above is None or below is None else min(1.0, 2 * min(above, below))

    def p_equivalent(self, margin: float) -> float | None:
        """p-value of the two one-sided tests (TOST): small means within ``±margin``."""
        below, above = self.p_below(margin), self.p_above(-margin)
        return None if below is None or above is None else max(below, above)


def paired_difference(a: Array, b: Array) -> Difference:
    """Of runs ``a [n]`` and ``b [n]`` that share their seeds, in the same order."""
    differences = a - b
    sd = float(differences.std(ddof=1)) if len(differences) > 1 else math.nan
    return Difference(
        float(differences.mean()), sd / math.sqrt(len(differences)), len(differences) - 1, sd,
        len(differences), True, *ends(a, b),
    )  # fmt: skip


def welch_difference(a: Array, b: Array) -> Difference:
    """Of independent runs ``a [n]`` and ``b [m]``, whose variances may differ (Welch 1947)."""
    mean, runs = float(a.mean() - b.mean()), min(len(a), len(b))
    if runs < 2:
        return Difference(mean, math.nan, math.nan, math.nan, runs, False, *ends(a, b))
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    below = (parts**2 / (np.array([len(a), len(b)]) - 1)).sum()
    freedom = float(parts.sum() ** 2 / below) if below > 0 else math.nan
    sd = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    return Difference(mean, float(np.sqrt(parts.sum())), freedom, sd, runs, False, *ends(a, b))


def ends(a: Array, b: Array) -> tuple[bool, bool]:
    """Whether a mean is near 0 or 1, and whether both are near the same of them."""
    means = float(a.mean()), float(b.mean())
    near = not all(map(inside, means))
    return near, max(means) < EDGE or min(means) > 1 - EDGE


def holm(values: Sequence[float | None], tests: int = 0) -> list[float | None]:
    """p-values corrected for their number (Holm 1979), in the given order; None stays None and is not counted.

    Args:
        tests: how many there are to be, if more than are known: what is still to come counts as 1, so that what is
            found now is found then.
    """
    known = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, value * (max(tests, len(known)) - rank)))
        corrected[place] = largest
    return corrected


# --- power, where both arms are truly equal ------------------------------------------------------------------


def spread(runs: int, paired: bool) -> tuple[float, int]:
    """Standard error of a difference in units of the SD, and its degrees of freedom, for ``runs`` per arm."""
    return (math.sqrt(1 / runs), runs - 1) if paired else (math.sqrt(2 / runs), 2 * runs - 2)


def power_non_superiority(runs: int, sd: float, margin: float, paired: bool) -> float:
    """Chance to show "not better by ``margin``" at :data:`ALPHA` one-sided, by the noncentral t.

    Args:
        runs: of each arm.
        sd: of paired differences, or of the runs of an arm (then with equal variances: Welch's test has a little
            less over three runs).
    """
    error, freedom = spread(runs, paired)
    return float(nct.sf(stdtrit(freedom, 1 - ALPHA), freedom, margin / (sd * error)))


def power_equivalence(runs: int, sd: float, margin: float, paired: bool) -> float:
    """Chance to show "within ``±margin``" by two one-sided tests at :data:`ALPHA`; as above.

    The chance given the estimated SD, averaged over that estimate's distribution.
    """
    error, freedom = spread(runs, paired)
    estimates = np.sqrt(chi2.ppf((np.arange(1000) + 0.5) / 1000, freedom) / freedom)
    room = margin / (sd * error) - stdtrit(freedom, 1 - ALPHA) * estimates
    return float(np.maximum(0, 2 * norm.cdf(room) - 1).mean())


def seeds_needed(
    power: Callable[[int, float, float, bool], float], sd: float, margin: float, paired: bool
) -> int | None:
    """Fewest runs per arm that give :data:`POWER`; None above :data:`MOST_RUNS`."""
    low, high = FEWEST, MOST_RUNS
    if power(high, sd, margin, paired) < POWER:
        return None
    while low < high:  # power grows with the runs
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, sd, margin, paired) >= POWER else (middle + 1, high)
    return low


# --- over runs and tasks -------------------------------------------------------------------------------------


def iqm(scores: Array) -> float:
    """Mean of the middle half of all ``[n, T]`` scores of n runs and T tasks (Agarwal et al. 2021, 2108.13264)."""
    return float(trim_mean(scores.ravel(), 0.25)) if np.isfinite(scores).all() else math.nan


def iqm_interval(scores: Array) -> Interval | None:
    """95 % interval of :func:`iqm`: its standard error by leaving out whole runs, Student's t on the arcsine scale.

    rliable resamples (run, task) cells, which takes the tasks of a run for independent; percentiles over few runs
    cover too little. None below :data:`FEWEST_IQM` runs, for one task, without spread, or near an end.
    """
    runs, tasks = scores.shape
    middle = iqm(scores)
    if runs < FEWEST_IQM or tasks == 1 or not inside(middle):
        return None
    others = np.array([np.delete(scores, run, axis=0).ravel() for run in range(runs)])
    error = float(trim_mean(others, 0.25, axis=1).std()) * math.sqrt(runs - 1)  # the jackknife's
    return on_arcsine(middle, error, runs - 1) if error >= NO_SPREAD else None


def on_arcsine(middle: float, error: float, freedom: float) -> Interval:
    """95 % by Student's t on the scale ``arcsin √x``, where a share's spread does not change with its size.

    On the scale of the scores it covers too little towards an end, where the spread goes with the score.
    """
    centre = math.asin(math.sqrt(middle))
    half = quantile(freedom) * error / (2 * math.sqrt(middle * (1 - middle)))
    return math.sin(max(0.0, centre - half)) ** 2, math.sin(min(math.pi / 2, centre + half)) ** 2


def improvement(a: Array, b: Array) -> tuple[float, Interval | None]:
    """Probability that a run of ``a [n, T]`` beats one of ``b [m, T]`` on a task, ties a half, mean over tasks.

    Agarwal et al. 2021; the standard error and Welch's degrees of freedom are those of a two-sample U-statistic of
    whole runs (as Brunner and Munzel 2000), the interval is on the arcsine scale. None below
    :data:`FEWEST_IMPROVEMENT` runs, without spread, or near an end; NaN where a score is not known.
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan, None
    wins = ((a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])).mean(axis=2)
    middle = float(wins.mean())
    if min(wins.shape) < FEWEST_IMPROVEMENT or not inside(middle):
        return middle, None
    difference = welch_difference(wins.mean(axis=1), -wins.mean(axis=0))
    if not difference.testable:
        return middle, None
    return middle, on_arcsine(middle, difference.error, difference.freedom)


def as_json(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def known(value: Any) -> float | None:
    """A number for JSON; None where it is NaN."""
    return None if math.isnan(value) else float(value)
