"""Intervals cover, tests have their size and power, by simulation; formulas against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

from mtrl.results.statistics import (
    holm,
    improvement,
    iqm,
    iqm_interval,
    mean_interval,
    paired_difference,
    power_equivalence,
    power_non_superiority,
    seeds_needed,
    welch_difference,
    why_no_interval,
)

DRAWS = 1500
A, B = np.array([0.4, 0.6, 0.5, 0.7]), np.array([0.1, 0.3, 0.5, 0.2])


def beta(generator, mean, sd, size):
    strength = mean * (1 - mean) / sd**2 - 1
    return generator.beta(mean * strength, (1 - mean) * strength, size)


POPULATIONS = {
    "normal": (lambda g, size: g.normal(0.5, 0.07, size), 0.5),
    "beta .3": (lambda g, size: beta(g, 0.3, 0.1, size), 0.3),
    "beta .7": (lambda g, size: beta(g, 0.7, 0.1, size), 0.7),
    "ten tasks at .8": (lambda g, size: g.binomial(10, 0.8, size) / 10, 0.8),
    "beta .92": (lambda g, size: beta(g, 0.92, 0.07, size), 0.92),
    "beta .95": (lambda g, size: beta(g, 0.95, 0.04, size), 0.95),
    "beta .97": (lambda g, size: beta(g, 0.97, 0.03, size), 0.97),
    "ten tasks at .95": (lambda g, size: g.binomial(10, 0.95, size) / 10, 0.95),
    "ten tasks at .98": (lambda g, size: g.binomial(10, 0.98, size) / 10, 0.98),
    "always": (lambda g, size: np.ones(size), 1.0),
    "near 0": (lambda g, size: beta(g, 0.05, 0.04, size), 0.05),
}


@pytest.mark.parametrize("runs", [3, 5, 10])
@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_over_runs_cover_95_of_100_and_near_an_end_none_is_given_sooner_than_a_wrong_one(
    name, runs
):
    draw, mean = POPULATIONS[name]
    found = [mean_interval(values) for values in draw(np.random.default_rng(0), (DRAWS, runs))]
    given = [low <= mean <= high for low, high in filter(None, found)]
    assert np.sum(np.logical_not(given)) / DRAWS <= 0.075  # wrong ones, of all draws
    if len(given) > DRAWS / 2:
        assert np.mean(given) >= 0.925
    if list(POPULATIONS).index(name) < 3:  # far from the ends
        assert np.mean(given) == pytest.approx(0.95, abs=0.02)
        assert len(given) == DRAWS


def test_where_no_interval_is_given_it_is_said_why():
    assert why_no_interval(np.array([0.2, 0.4])) == "fewer than 3 seeds"
    assert why_no_interval(np.array([1.0, 1.0, 1.0])) == "all seeds are equal"
    assert why_no_interval(np.array([0.5] * 4)) == "all seeds are equal"
    assert why_no_interval(np.array([0.9, 1.0, 1.0])) == "the mean is nearer than 0.05 to 0 or 1"
    assert why_no_interval(np.array([0.5, np.nan, 0.6])) == "a score is not known"
    assert why_no_interval(A) is None


def test_the_interval_of_a_mean_and_of_differences_are_scipys():
    theirs = ttest_1samp(A, 0).confidence_interval(0.95)
    assert mean_interval(A) == pytest.approx((theirs.low, theirs.high))
    theirs = ttest_rel(A, B).confidence_interval(0.95)
    assert paired_difference(A, B).interval == pytest.approx((theirs.low, theirs.high))
    theirs = ttest_ind(A, B[:3], equal_var=False).confidence_interval(0.95)
    assert welch_difference(A, B[:3]).interval == pytest.approx((theirs.low, theirs.high))


def test_one_sided_tests_are_scipys():
    for found, theirs in (
        (paired_difference(A, B), lambda bound, side: ttest_rel(A, B + bound, alternative=side)),
        (
            welch_difference(A, B),
            lambda bound, side: ttest_ind(A, B + bound, equal_var=False, alternative=side),
        ),
    ):
        assert found.p_above(0.1) == pytest.approx(theirs(0.1, "greater").pvalue)
        assert found.p_below(0.5) == pytest.approx(theirs(0.5, "less").pvalue)
        assert found.p_equivalent(0.5) == pytest.approx(
            max(theirs(0.5, "less").pvalue, theirs(-0.5, "greater").pvalue)
        )


@pytest.mark.parametrize("values", [(A, A + 0.1), (A[:2], B[:2]), (np.ones(5), np.ones(5))])
def test_equal_differences_and_two_runs_are_not_tested(values):
    found = paired_difference(*values)
    assert found.p_above() is found.p_equivalent(0.05) is found.interval is None


def test_holms_correction_is_that_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.02]) == [0.5, None, 0.04]


@pytest.mark.parametrize("runs", [3, 5, 10])
@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_differences_cover_and_tests_have_their_size_and_power(runs, paired):
    generator = np.random.default_rng(1)
    margin, sd, seed_sd = 0.1, 0.05, 0.08
    difference = paired_difference if paired else welch_difference
    covered, better, superior, within = [], [], [], []
    for _ in range(DRAWS):
        shared = generator.normal(0.5, seed_sd, runs) if paired else 0.5
        a, b = (shared + generator.normal(0, sd, runs) for _ in "ab")
        low, high = difference(a, b).interval
        covered.append(low <= 0 <= high)
        better.append(difference(a, b).p_above() < 0.05)  # size at equal arms
        superior.append(difference(a + margin, b).p_below(margin) < 0.05)  # size at the margin
        within.append(difference(a, b).p_equivalent(margin) < 0.05)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
    assert np.mean(better) == pytest.approx(0.05, abs=0.02)
    assert np.mean(superior) == pytest.approx(0.05, abs=0.02)
    spread = sd * np.sqrt(2) if paired else sd
    # Welch's degrees of freedom are fewer than the formula's at three runs
    slack = 0.03 if paired or runs > 3 else 0.08
    assert np.mean(within) == pytest.approx(power_equivalence(runs, spread, margin, paired), abs=slack)


@pytest.mark.parametrize("paired", [True, False])
def test_the_power_of_non_superiority_is_that_by_simulation(paired):
    generator = np.random.default_rng(2)
    a, b = generator.normal(0.5, 0.07, (2, DRAWS, 8))
    difference = paired_difference if paired else welch_difference
    shown = np.mean([difference(x, y).p_below(0.06) < 0.05 for x, y in zip(a, b, strict=True)])
    spread = 0.07 * np.sqrt(2) if paired else 0.07
    assert shown == pytest.approx(power_non_superiority(8, spread, 0.06, paired), abs=0.03)


def test_the_seeds_needed_are_the_known_ones():
    def needed(power, sd, margin):
        return seeds_needed(power, sd, margin, paired=False)

    assert needed(power_equivalence, 0.066, 0.05) == 31
    assert needed(power_non_superiority, 0.066, 0.05) == 23
    assert needed(power_equivalence, 0.066, 0.1) == 9
    assert needed(power_non_superiority, 0.066, 0.1) == 7
    assert needed(power_equivalence, 0.045, 0.05) == 15
    assert needed(power_equivalence, 5.0, 0.05) is None
    assert needed(power_non_superiority, 0.005, 0.05) == 3  # no test is made of fewer


def test_the_interquartile_mean_is_over_runs_and_tasks():
    assert iqm(np.array([[0, 1], [0.2, 0.6]])) == pytest.approx(0.4)  # the middle two of four


def test_a_probability_of_improvement_counts_wins_and_half_of_ties_by_task():
    a, b = np.array([[1, 0.5], [0, 0.5]]), np.array([[0.5, 0.5]])
    assert improvement(a, b) == (0.5, None)  # a win, a loss, two ties
    assert improvement(np.ones((6, 3)), np.zeros((6, 3))) == (1.0, None)
    assert np.isnan(improvement(np.full((6, 3), np.nan), np.zeros((6, 3)))[0])


def scores(generator, runs, mean, trials=None):
    """``[runs, T]`` of tasks that share a run's luck, of several difficulties."""
    z = np.linspace(-1, 1, 10) + mean + 0.5 * generator.normal(size=(runs, 1))
    success = 1 / (1 + np.exp(-2 * (z + 0.5 * generator.normal(size=z.shape))))
    return success if trials is None else generator.binomial(trials, success) / trials


@pytest.mark.parametrize(("mean", "trials"), [(0.0, None), (0.7, 5), (0.9, None)])
@pytest.mark.parametrize("runs", [5, 10])
def test_the_interquartile_means_interval_covers_95_of_100(runs, mean, trials):
    generator = np.random.default_rng(3)
    middle = iqm(scores(generator, 100_000, mean, trials))
    found = [iqm_interval(scores(generator, runs, mean, trials)) for _ in range(DRAWS)]
    given = [low <= middle <= high for low, high in filter(None, found)]
    assert len(given) > 0.97 * DRAWS
    assert np.mean(given) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("mean", "trials", "gap"),
    [(0.0, None, 0.0), (0.0, None, 0.6), (0.0, 5, 0.3), (0.7, 5, 1.0), (0.5, 20, 0.8)],
)
@pytest.mark.parametrize("runs", [5, 10])
def test_the_interval_of_a_probability_of_improvement_covers_95_of_100(runs, mean, trials, gap):
    generator = np.random.default_rng(3)
    better = scores(generator, 4000, mean, trials), scores(generator, 4000, mean + gap, trials)
    chance = np.mean([beaten(b, a) for a, b in zip(better[0].T, better[1].T, strict=True)])
    pairs = [
        (scores(generator, runs, mean, trials), scores(generator, runs, mean + gap, trials))
        for _ in range(DRAWS)
    ]
    given = [low <= chance <= high for low, high in filter(None, (improvement(b, a)[1] for a, b in pairs))]
    assert len(given) > 0.97 * DRAWS
    assert np.mean(given) == pytest.approx(0.95, abs=0.02)


def beaten(x, y):
    """How many of all pairs x wins, ties a half."""
    ordered = np.sort(y)
    below, upto = (np.searchsorted(ordered, x, side).mean() for side in ("left", "right"))
    return (below + upto) / 2 / len(y)


def test_towards_an_end_intervals_are_too_wide_rather_than_too_narrow():
    generator = np.random.default_rng(4)
    middle = iqm(scores(generator, 100_000, 1.2, 5))
    quartile = [iqm_interval(scores(generator, 5, 1.2, 5)) for _ in range(DRAWS)]
    a, b = (scores(generator, 4000, m) for m in (0.0, 1.0))
    chance = np.mean([beaten(x, y) for x, y in zip(b.T, a.T, strict=True)])
    win = [improvement(scores(generator, 5, 1.0), scores(generator, 5, 0.0))[1] for _ in range(DRAWS)]
    assert middle > 0.9
    assert chance > 0.8
    for truth, found in ((middle, quartile), (chance, win)):
        given = [low <= truth <= high for low, high in filter(None, found)]
        assert len(given) > DRAWS / 2
        assert np.mean(given) >= 0.95


def test_few_runs_and_one_task_have_no_interval_over_runs_and_tasks():
    many = scores(np.random.default_rng(5), 8, 0.0)
    assert iqm_interval(many) is not None
    assert iqm_interval(many[:4]) is iqm_interval(many[:, :1]) is None
    assert improvement(many[:4], many[4:])[1] is None
