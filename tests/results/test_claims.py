"""Verdicts on made-up runs whose truth is known, and that the shipped claims and their page are whole."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from mtrl import cli
from mtrl.commands import claims as command
from mtrl.commands.claims import planned_seeds
from mtrl.config import ConfigError
from mtrl.results.claims import (
    CONTRADICTED,
    INCONCLUSIVE,
    NO_DATA,
    SUPPORTED,
    complete,
    judge,
    read_arms,
    read_claims,
)
from mtrl.results.export import read_table
from mtrl.results.reading import Curve, Unseen, settings_of
from mtrl.settings.files import config_names
from mtrl.sweep.grid import find_experiment, plan, read_experiment

ROOT = Path(__file__).parents[2]
TASKS = ("a", "b")
CLAIMS = {claim.name: claim for claim in read_claims()}
ONE = replace(CLAIMS["C1"], arms=["evidence_tier1/pcgrad"])
ARMS = ("evidence_tier1/unitary", "evidence_tier1/pcgrad", "evidence_tier2/bare_unitary")


def runs(arm, scores, status="DONE", losses=None):
    """A run per score ``[n]``, its success at every evaluation."""
    steps = np.arange(1, 6) * 20_000.0
    made = []
    for seed, score in enumerate(scores):
        success = np.full((5, 2), score)
        made.append(
            Curve(
                Path(arm) / f"seed{seed}", "p", status, TASKS, steps, steps / 1000, success, success, success, 1,
                seed=seed, critic_loss=None if losses is None else losses[seed],
            )
        )  # fmt: skip
    return made


def grid(seed=0, pcgrad=0.0, bare=-0.2, n=10, level=0.5, sd=0.03):
    generator = np.random.default_rng(seed)
    luck = generator.normal(level, 0.08, n)
    shifts = dict(zip(ARMS, (0.0, pcgrad, bare), strict=True))
    return {arm: runs(arm, luck + s + generator.normal(0, sd, n)) for arm, s in shifts.items()}


def test_a_method_that_is_equal_supports_a_better_one_contradicts_and_few_noisy_seeds_leave_open():
    assert judge(ONE, grid()).verdict == SUPPORTED
    found = judge(ONE, grid(pcgrad=0.15))
    assert (found.verdict, found.control.verdict) == (CONTRADICTED, SUPPORTED)
    noisy = judge(ONE, grid(n=5, pcgrad=0.1, sd=0.1, bare=-0.4))
    assert noisy.verdict == INCONCLUSIVE
    assert "seeds per arm for power 0.8" in noisy.arms[ARMS[1]].settle


def test_at_the_margin_the_claim_is_wrongly_supported_in_5_of_100_draws():
    verdicts = [judge(ONE, grid(seed, pcgrad=0.05)).verdict for seed in range(600)]
    assert np.mean([v == SUPPORTED for v in verdicts]) == pytest.approx(0.05, abs=0.025)


def test_runs_without_a_seed_all_count():
    claim = replace(CLAIMS["C1"], test="fails", arms=[ARMS[1]], reference=None, value=0.3)
    nameless = {
        arm: [replace(curve, seed=None, path=Path(f"{arm}/run{curve.seed}")) for curve in curves]
        for arm, curves in {**grid(), ARMS[1]: runs(ARMS[1], [0.9, 0.9, 0.9, 0.9, 0.1])}.items()
    }
    assert judge(claim, nameless).arms[ARMS[1]].numbers.startswith("1 of 5 runs failed, mean 0.740")
    assert judge(ONE, nameless).arms[ARMS[1]].verdict != NO_DATA


def test_what_a_diverged_run_skipped_is_missing_for_all_and_what_it_never_reached_is_no_success():
    arms = grid()
    (failed, *others) = arms[ARMS[1]]
    kept = np.array([0, 2])  # at 20,000 and 60,000 of five
    rows = {
        name: getattr(failed, name)[kept] for name in ("steps", "minutes", "success", "at_end", "returns")
    }
    arms[ARMS[1]] = [replace(failed, status="DIVERGED x", **rows), *others]
    found = complete(ONE, arms)
    assert {tuple(curve.steps) for curves in found.values() for curve in curves} == {
        (20_000, 60_000, 80_000, 100_000)
    }
    assert found[ARMS[1]][0].success[2:].max() == 0


def test_two_runs_of_one_seed_in_an_arm_are_refused(tmp_path):
    table = ROOT / "docs/results/mt10_fast/runs.csv"
    copy = tmp_path / table.name
    copy.write_bytes(table.read_bytes())
    with pytest.raises(ConfigError, match=r"has seed \d+ twice: "):
        read_arms([str(table), str(copy)])


def test_without_a_detected_positive_control_a_claim_is_inconclusive_whatever_its_p_value():
    undetected = judge(ONE, grid(bare=0.0))
    assert undetected.arms[ARMS[1]].verdict == SUPPORTED
    assert undetected.verdict == INCONCLUSIVE
    assert "the positive control is not detected" in undetected.why
    lacking = grid()
    del lacking[ARMS[2]]
    found = judge(ONE, lacking)
    assert (found.verdict, found.arms[ARMS[1]].verdict) == (NO_DATA, SUPPORTED)
    assert found.why == "the positive control has no complete run of evidence_tier2/bare_unitary"


def test_a_control_at_the_floor_detects_nothing():
    fails = replace(CLAIMS["C8"], arms=[ARMS[1]])
    nobody = {
        ARMS[0]: [0.006, 0.007, 0.005, 0.008, 0.006],
        ARMS[1]: [0.0] * 5,
        ARMS[2]: [0, 0.001, 0, 0.001, 0],
    }
    found = judge(fails, {arm: runs(arm, scores) for arm, scores in nobody.items()})
    assert (found.arms[ARMS[1]].verdict, found.verdict) == (SUPPORTED, INCONCLUSIVE)
    assert "where everything is equivalent" in found.why


@pytest.mark.parametrize("name", ["C8", "C9"])
def test_a_score_that_is_not_known_is_neither_above_nor_below_a_value(name):
    claim = replace(CLAIMS[name], arms=[ARMS[1]])
    unknown = judge(claim, {**grid(), ARMS[1]: runs(ARMS[1], [np.nan] * 2 + [0.9] * 8)})
    assert unknown.arms[ARMS[1]].verdict == INCONCLUSIVE
    assert unknown.arms[ARMS[1]].numbers == "the score of 2 of 10 runs is not known"


def test_the_sign_test_says_how_many_more_seeds_would_decide_it():
    claim = replace(CLAIMS["C9"], arms=[ARMS[1]])
    found = judge(claim, {**grid(), ARMS[1]: runs(ARMS[1], [0.3] * 2 + [0.9] * 8)}).arms[ARMS[1]]
    assert found.verdict == INCONCLUSIVE  # 8 of 10 heads or more come in 0.0547 of draws, 9 of 11 in 0.0327
    assert found.settle == "11 seeds, if all others agree with the 8"


def test_at_the_ceiling_nothing_is_decided():
    arms = {arm: runs(arm, np.random.default_rng(n).uniform(0.96, 1, 10)) for n, arm in enumerate(ARMS[:2])}
    arms[ARMS[2]] = runs(ARMS[2], np.linspace(0.3, 0.5, 10))
    found = judge(ONE, arms)
    assert found.verdict == INCONCLUSIVE
    assert "where everything is equivalent" in found.arms[ARMS[1]].numbers


def test_an_arm_at_the_floor_or_the_ceiling_is_told_from_one_that_is_not():
    """A method that collapses is not better; only where both are at one end is everything equivalent."""
    low = {**grid(level=0.6), ARMS[1]: runs(ARMS[1], [0.01, 0.0] * 5, status="DIVERGED")}
    assert judge(ONE, low).arms[ARMS[1]].verdict == SUPPORTED
    high = {**grid(level=0.6), ARMS[1]: runs(ARMS[1], [0.97, 0.98] * 5)}
    assert judge(ONE, high).arms[ARMS[1]].verdict == CONTRADICTED


def test_no_number_is_computed_of_an_arm_before_all_that_was_planned_or_begun_has_ended():
    whole, plan = grid(), {ARMS[1]: range(10)}
    assert judge(ONE, whole, planned=plan).verdict == SUPPORTED
    for begun in (
        whole[ARMS[1]][:4],
        [*whole[ARMS[1]][:4], *(replace(c, status="RUNNING") for c in whole[ARMS[1]][4:])],
    ):
        for planned in (plan,) if len(begun) == 4 else (plan, {}):
            found = judge(ONE, {**whole, ARMS[1]: begun}, planned=planned)
            assert (found.verdict, found.arms[ARMS[1]].numbers) == (NO_DATA, "4 of 10 runs have ended")
    few = {arm: curves[:5] for arm, curves in whole.items()}
    assert judge(ONE, few).verdict != NO_DATA  # runs of one's own, without a plan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task_names": ("a", "c")}, "tasks"),
        ({"protocol": "q"}, "a protocol"),
        ({"steps": np.arange(1, 6) * 20_001.0}, "steps of evaluations"),
        ({"episodes": 7}, "episodes"),
    ],
)
def test_runs_that_are_unlike_are_never_judged(change, words):
    arms = grid()
    arms[ARMS[1]] = [*arms[ARMS[1]][:9], replace(arms[ARMS[1]][9], **change)]
    with pytest.raises(
        ConfigError, match=f"claims: C1: evidence_tier1/pcgrad/seed9 has {words} unlike those of "
    ):
        judge(ONE, arms)


def test_runs_of_one_seed_on_other_goals_are_never_compared():
    arms = grid()
    arms[ARMS[1]] = [*arms[ARMS[1]][:9], replace(arms[ARMS[1]][9], settings={"goals": 999})]
    with pytest.raises(ConfigError, match="has other goals than another arm's run of seed 9"):
        judge(ONE, arms)


def test_the_loss_of_a_longer_or_of_a_failed_run_is_not_that_of_the_claims_steps():
    curve = runs(ARMS[0], [0.5], losses=[2.0])[0]
    assert curve.at(curve.steps).critic_loss == 2.0
    assert curve.at(curve.steps[:3]).critic_loss is None
    assert replace(curve, status="DIVERGED").at(curve.steps).critic_loss is None


def test_the_seeds_of_the_shipped_experiments_are_what_was_planned():
    planned = planned_seeds([*ARMS, "somewhere/else"])
    assert planned["evidence_tier1/pcgrad"] == tuple(range(200, 210))
    assert planned["evidence_tier2/bare_unitary"] == tuple(range(200, 205))
    assert "somewhere/else" not in planned


def test_what_is_not_there_or_not_through_is_no_data():
    assert judge(ONE, {}).verdict == NO_DATA
    arms = grid()
    arms[ARMS[1]] = [replace(curve, status="RUNNING") for curve in arms[ARMS[1]]]
    assert judge(ONE, arms).verdict == NO_DATA
    assert judge(CLAIMS["C1"], grid()).verdict == INCONCLUSIVE  # six methods are missing
    assert judge(CLAIMS["C1"], grid()).arms["evidence_tier3/mgda"].verdict == NO_DATA


def test_a_method_is_better_among_all_that_a_claim_names_whether_they_have_run_or_not():
    arms = grid(pcgrad=0.08, sd=0.07, seed=1)
    alone, among_seven = (judge(claim, arms).arms[ARMS[1]] for claim in (ONE, CLAIMS["C1"]))
    assert (alone.verdict, among_seven.verdict) == (CONTRADICTED, INCONCLUSIVE)
    p, p_of_seven = (float(f.numbers.split("(Holm) ")[1].split(",")[0]) for f in (alone, among_seven))
    assert p_of_seven == pytest.approx(7 * p, abs=0.005)


def test_slightly_above_and_not_significantly_is_neither_far_below_nor_significant():
    claim = replace(CLAIMS["C3"], arms=[ARMS[1]], reference=ARMS[0], control=ONE.control)
    assert judge(claim, grid()).verdict == SUPPORTED
    assert judge(claim, grid(pcgrad=-0.25)).verdict == CONTRADICTED
    assert (
        judge(claim, grid(pcgrad=0.02, sd=0.002)).verdict == CONTRADICTED
    )  # equivalent, and yet significant
    assert judge(claim, grid(n=5, sd=0.1, bare=-0.5)).verdict == INCONCLUSIVE


def test_very_sensitive_means_a_difference_beyond_the_margin_on_either_side():
    claim = replace(CLAIMS["C6"], arms=[ARMS[1]], reference=ARMS[0])
    assert judge(claim, grid(pcgrad=0.02, sd=0.002)).verdict == CONTRADICTED
    assert judge(claim, grid(pcgrad=0.1, sd=0.002)).verdict == SUPPORTED
    assert judge(claim, grid(pcgrad=-0.1, sd=0.002)).verdict == SUPPORTED


def test_mgda_is_best_without_l2_only_if_it_is_better_without():
    claim = CLAIMS["C7"]
    (without,) = claim.arms
    for shift, verdict in ((0.15, SUPPORTED), (0.0, CONTRADICTED), (-0.15, CONTRADICTED)):
        arms = grid(pcgrad=shift)
        judged = {**arms, without: arms[ARMS[1]], claim.reference: arms[ARMS[0]]}
        assert judge(claim, judged).verdict == verdict


def test_a_run_that_the_machine_ended_is_to_go_and_one_that_diverged_is_a_result():
    arms = grid()
    *others, last = arms[ARMS[1]]
    full = replace(last, status="FAILED [Errno 28] No space left on device")
    found = judge(ONE, {**arms, ARMS[1]: [*others, full]})
    assert (found.verdict, found.arms[ARMS[1]].numbers) == (NO_DATA, "9 of 10 runs have ended")
    diverged = replace(last, status="DIVERGED critic")
    assert judge(ONE, {**arms, ARMS[1]: [*others, diverged]}).verdict == SUPPORTED


def test_seeds_that_were_not_planned_count_nowhere():
    arms = grid(n=10)
    plan = {ARMS[1]: tuple(range(5))}
    lucky = {**arms, ARMS[1]: [*arms[ARMS[1]][:5], *runs(ARMS[1], [0.9] * 10)[5:]]}
    assert "over 5 pairs" in judge(ONE, lucky, planned=plan).arms[ARMS[1]].numbers
    assert judge(ONE, lucky, planned=plan).arms == judge(ONE, arms, planned=plan).arms


def test_runs_of_different_settings_are_no_arm():
    arms = grid()
    first, *others = arms[ARMS[1]]
    mixed = [
        replace(first, settings={"config": "x"}),
        *(replace(c, settings={"config": "y"}) for c in others),
    ]
    with pytest.raises(ConfigError, match="the runs of evidence_tier1/pcgrad have different settings"):
        judge(ONE, {**arms, ARMS[1]: mixed})


def test_claims_of_an_effect_of_a_constant_of_failure_and_of_loss():
    arms = grid()
    l2 = replace(CLAIMS["C4"], arms=[ARMS[1]], reference=ARMS[0])
    assert judge(l2, grid(pcgrad=0.15)).verdict == SUPPORTED
    assert judge(l2, arms).verdict == CONTRADICTED
    differs = replace(CLAIMS["C6"], arms=[ARMS[1]], reference=ARMS[0])
    assert judge(differs, grid(pcgrad=-0.15)).verdict == SUPPORTED
    assert judge(differs, arms).verdict == CONTRADICTED
    assert judge(CLAIMS["C9"], grid(level=0.9)).verdict == SUPPORTED
    assert judge(CLAIMS["C9"], grid(level=0.3)).verdict == CONTRADICTED
    fails = replace(CLAIMS["C8"], arms=[ARMS[1]])
    assert judge(fails, arms).verdict == CONTRADICTED
    diverged = [replace(curve, status="DIVERGED critic") for curve in arms[ARMS[1]]]
    assert judge(fails, {**arms, ARMS[1]: diverged}).verdict == SUPPORTED
    loss = replace(CLAIMS["C10"], arms=[ARMS[1]])
    for factor, verdict in ((1.5, SUPPORTED), (1.0, CONTRADICTED)):
        losses = {ARMS[0]: 1.0, ARMS[1]: factor, ARMS[2]: 1.0}
        drawn = {
            arm: [
                replace(c, critic_loss=losses[arm] * (1 + 0.01 * (n * len(arm) % 5)))
                for n, c in enumerate(curves)
            ]
            for arm, curves in arms.items()
        }
        assert judge(loss, drawn).verdict == verdict
    assert judge(loss, arms).verdict == INCONCLUSIVE  # none was logged


def unseen(small, big, one_goal, n=5, sd=0.02):
    """Runs of ``generalise``, whose success on trained goals is the other way round."""
    generator = np.random.default_rng(0)
    luck = generator.normal(0, 0.05, n)
    levels = {"generalise/width_32": small, "generalise/width_256": big, "generalise/one_goal": one_goal}
    arms = {}
    for arm, level in levels.items():
        scores = level + luck + generator.normal(0, sd, n)
        arms[arm] = [
            replace(curve, unseen=Unseen(1_000_203, 50, (score, score)))
            for curve, score in zip(runs(arm, 1 - scores), scores, strict=True)
        ]
    return arms


def test_generalisation_is_judged_on_goals_that_were_not_trained_on():
    claim = CLAIMS["S1"]
    assert judge(claim, unseen(0.6, 0.4, 0.2)).verdict == SUPPORTED
    assert judge(claim, unseen(0.4, 0.5, 0.2)).verdict == CONTRADICTED
    assert judge(claim, unseen(0.42, 0.45, 0.1, sd=0.05)).verdict == INCONCLUSIVE
    blind = judge(claim, unseen(0.6, 0.4, 0.4))
    assert (blind.verdict, blind.control.verdict) == (INCONCLUSIVE, INCONCLUSIVE)
    measured = unseen(0.6, 0.4, 0.2)
    forgotten = {arm: [replace(curve, unseen=None) for curve in curves] for arm, curves in measured.items()}
    assert judge(claim, forgotten).verdict == INCONCLUSIVE


@pytest.mark.parametrize(
    ("mean", "worst", "verdict"),
    [(0.2, 0.2, SUPPORTED), (0.2, -0.1, CONTRADICTED), (-0.1, -0.1, CONTRADICTED), (0.2, 0.04, INCONCLUSIVE)],
)
def test_a_claim_of_two_metrics_has_to_hold_in_both(mean, worst, verdict):
    generator = np.random.default_rng(3)
    small, big = "evidence_tier5/width_32_unitary", "evidence_tier1/unitary"
    arms = grid(n=5, bare=-0.3)
    for arm, (middle, low) in {small: (0.0, 0.0), big: (mean, worst)}.items():
        # four tasks: the three worst, and one that makes up the mean
        third = 0.3 + low + generator.normal(0, 0.03, 5)
        total = 0.4 + middle + generator.normal(0, 0.03, 5)
        arms[arm] = []
        for curve, t, m in zip(runs(arm, total), third, total, strict=True):
            scores = np.tile([t, t, t, 4 * m - 3 * t], (5, 1))
            parts = dict.fromkeys(("success", "at_end", "returns"), scores)
            arms[arm].append(replace(curve, task_names=tuple("abcd"), **parts))
    arms[ARMS[2]] = [
        replace(curve, task_names=tuple("abcd"), success=np.tile(curve.success, 2), at_end=np.tile(curve.at_end, 2),
                returns=np.tile(curve.returns, 2)) for curve in arms[ARMS[2]]
    ]  # fmt: skip
    found = judge(replace(CLAIMS["S3"], margin=0.05), arms)
    assert list(found.arms) == [f"{big}, last5", f"{big}, worst3"]
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("batched", "loop", "verdict"),
    [
        ([1.0, 1.1], [4.0, 5.0], CONTRADICTED), ([3.0, 4.0], [4.0, 5.0], SUPPORTED),
        ([1.8, 2.2], [4.0, 5.0], INCONCLUSIVE), ([1.0, 1.1], [1.0, 1.1], INCONCLUSIVE),
    ],
)  # fmt: skip
def test_cost_is_judged_by_the_bench(tmp_path, batched, loop, verdict):
    claim = CLAIMS["C2"]
    spreads = {**dict.fromkeys(claim.ratios, batched), claim.control["ratio"]: loop}
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"ratios": {name: {"spread": spread} for name, spread in spreads.items()}}))
    assert judge(claim, {}, bench).verdict == verdict
    assert judge(claim, {}, tmp_path / "none").verdict == NO_DATA


def test_every_claim_is_shipped_is_no_config_and_its_page_is_that_of_the_data(tmp_path, monkeypatch):
    assert list(CLAIMS) == [*(f"C{n}" for n in range(1, 11)), "S1", "S2", "S3"]
    assert not any(name.startswith("claims") for name in config_names())
    for claim in CLAIMS.values():
        assert claim.commands, claim.name
        assert claim.decision, claim.name
    page = tmp_path / "claims.md"
    monkeypatch.setattr(command, "PAGE", page)
    assert cli.main(["claims", "--write"]) == 0
    assert (ROOT / "docs/claims.md").read_text() == page.read_text(), "run `mtrl claims --write`"


def test_a_claims_commands_make_the_data_of_all_its_arms_and_of_its_positive_control():
    @cache
    def seeds_and_steps(name):
        experiment = read_experiment(find_experiment(name))
        runs = [(f"{experiment.name}/{run.arm}", run) for run in plan(experiment, Path("runs"))]
        return [(arm, run.seed, run.request.config.total_steps_per_task) for arm, run in runs]

    for claim in CLAIMS.values():
        if claim.test == "cost":
            continue
        made = {}
        for line in claim.commands:
            for arm, seed, steps in seeds_and_steps(line.split()[2]) if "mtrl sweep " in line else ():
                made.setdefault(arm, set()).add(seed)
                assert steps == claim.steps_per_task, (claim.name, arm)
        needed = {*claim.arms, claim.reference, claim.control["better"], claim.control["worse"]} - {None}
        assert needed <= set(made), claim.name
        assert len(set.intersection(*(made[arm] for arm in needed))) >= 3, claim.name  # seeds, to pair by


EVIDENCE = sorted((ROOT / "docs/results/evidence").rglob("evidence_*.csv"))


@pytest.mark.parametrize("table", EVIDENCE, ids=lambda table: table.stem)
def test_every_committed_run_has_the_settings_of_its_arm_today(table):
    """A default that changes would make another arm of the same name: what is run next could not be compared."""
    arms = {run.arm: run for run in plan(read_experiment(find_experiment(table.stem)), Path("runs"))}
    for curve in read_table(table):
        config = yaml.safe_load(arms[curve.arm.rpartition("/")[2]].request.text)
        assert curve.settings["config"] == settings_of(config, {}, {})["config"], curve.path


def test_the_command_judges_ones_own_runs_and_refuses_an_unknown_claim(capsys):
    assert cli.main(["claims", "C77"]) == 2
    assert "claims: 'C77' is none; there are C1, C2," in capsys.readouterr().err
    assert cli.main(["claims", "C2", "--json=-"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["C2"]
    assert cli.main(["claims", "C1", "--write"]) == 2


def test_where_there_are_no_committed_tables_that_is_said_and_a_bench_that_is_not_there_is_refused(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "TABLES", tmp_path / "none")
    assert cli.main(["claims", "C1"]) == 0
    assert "this installation is no checkout" in capsys.readouterr().err
    assert cli.main(["claims", "C2", f"--bench={tmp_path / 'none.json'}"]) == 2
    assert "none.json does not exist" in capsys.readouterr().err
