"""Sentences that data support or contradict: ``configs/claims/*.yaml``, each with a test fixed beforehand.

A claim without a positive control that the data detect is inconclusive, whatever its p-value: a set-up that sees no
difference where there is one says nothing by seeing none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.stats import binom

from mtrl.config import ConfigError
from mtrl.results.compare import (
    STATISTICS,
    by_number,
    difference,
    mean_minutes,
    read_curves,
    shared_steps,
    statistics,
)
from mtrl.results.reading import Curve, read_json
from mtrl.results.statistics import (
    ALPHA,
    FEWEST,
    Difference,
    holm,
    power_equivalence,
    power_non_superiority,
    seeds_needed,
)
from mtrl.results.tables import p_value
from mtrl.settings.files import CLAIMS, read_settings, shipped

SUPPORTED, CONTRADICTED, INCONCLUSIVE, NO_DATA = "supported", "contradicted", "inconclusive", "no data"
PAIRED = ("not_better", "better", "equal", "differs")  # tests against a reference
TESTS = (*PAIRED, "above", "fails", "cost")
LOSS = "log_critic_loss"
ROOT = Path(__file__).parents[2]
TABLES, BENCH = ROOT / "docs/results/evidence", ROOT / "docs/results/speed/bench.json"


@dataclass(frozen=True)
class Claim:
    """One file of ``configs/claims``.

    Attributes:
        arms, reference: ``experiment/arm``, as run folders and tables have them.
        metric: of :data:`mtrl.results.compare.STATISTICS`, or ``log_critic_loss``; several: the sentence is of each.
        fixed: when the test was, and whether before its data.
        control: two arms whose difference has to be seen (``better``, ``worse``) in a ``metric`` (area, unless it is
            said), or a ``ratio`` of the bench.
        value: what ``above`` and ``fails`` compare runs with.
        ratios, times: of the bench, and how many times the cost is "several".
    """

    name: str
    sentence: str
    source: str
    test: str
    decision: str
    fixed: str
    control: dict[str, str]
    commands: list[str]
    arms: list[str] = field(default_factory=list)
    reference: str | None = None
    metric: str | list[str] = "area"
    margin: float = 0.0
    steps_per_task: float = 0.0
    value: float = 0.0
    ratios: list[str] = field(default_factory=list)
    times: float = 0.0

    @property
    def metrics(self) -> list[str]:
        return [self.metric] if isinstance(self.metric, str) else self.metric


@dataclass(frozen=True)
class Finding:
    """What data say of a claim, or of one of its arms, in words that end no sentence."""

    verdict: str
    numbers: str
    settle: str = ""


@dataclass(frozen=True)
class Verdict:
    """Of a claim: the verdict, why, the positive control's finding, and each arm's."""

    claim: Claim
    verdict: str
    why: str
    control: Finding
    arms: dict[str, Finding]


Arms = Mapping[str, Sequence[Curve]]


def read_claims(names: Sequence[str] = ()) -> list[Claim]:
    """The shipped claims, C1 first; or those named.

    Raises:
        ConfigError: there is no such claim, or its file is damaged.
    """
    files = {path.stem: path for name, path in shipped().items() if name.startswith(f"{CLAIMS}/")}
    order = sorted(files, key=lambda name: (name[0], int(name[1:])))
    if unknown := [name for name in names if name not in files]:
        raise ConfigError(f"claims: {unknown[0]!r:.80} is none; there are {', '.join(order)}")
    return [read_claim(files[name]) for name in order if not names or name in names]


def read_claim(path: Path) -> Claim:
    content = read_settings(path)
    try:
        claim = Claim(path.stem, **content)
    except TypeError as error:
        raise ConfigError(f"claims: {path}: {error}") from None
    known = claim.test in TESTS and set(claim.metrics) <= {*STATISTICS, LOSS}
    if not known or (claim.test in PAIRED) != (claim.reference is not None):
        raise ConfigError(
            f"claims: {path}: no test {claim.test!r} of {claim.metric!r}, or no reference for it"
        )
    return claim


def read_arms(paths: Sequence[str]) -> tuple[dict[str, list[Curve]], list[str]]:
    """Runs by ``experiment/arm`` (the last two folders above ``seed<n>``), and a line about each without evaluation.

    Raises:
        ConfigError: an arm has two runs of one seed.
    """
    curves, young = read_curves(paths)
    arms: dict[str, list[Curve]] = {}
    for curve in sorted(curves, key=lambda curve: by_number(curve.path)):
        name = curve.arm
        arm = arms.setdefault(name, [])
        twin = next((c.path for c in arm if c.seed is not None and c.seed == curve.seed), None)
        if twin is not None:
            raise ConfigError(f"claims: {name} has seed {curve.seed} twice: {twin} and {curve.path}")
        arm.append(curve)
    return arms, young


def committed_tables() -> list[str]:
    return [str(path) for path in sorted(TABLES.glob("*.csv"))]


def judge(
    claim: Claim,
    arms: Arms,
    bench: Path | None = None,
    planned: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> Verdict:
    """What runs, or the bench's figures, say of a claim.

    Args:
        planned: seeds by arm, fixed before the runs: with any of them to go, no number of the arm is computed, and no
            other seed counts.
    """
    if claim.test == "cost":
        return judge_cost(claim, bench)
    arms = {
        arm: [curve for curve in curves if arm not in planned or curve.seed in planned[arm]]
        for arm, curves in arms.items()
    }
    lacks = {arm: to_go(claim, curves, planned.get(arm, ())) for arm, curves in arms.items()}
    own = complete(claim, {arm: curves for arm, curves in arms.items() if not lacks[arm]})
    findings = {arm: Finding(NO_DATA, lacks.get(arm) or "no run") for arm in claim.arms}
    there = [arm for arm in claim.arms if arm in own]
    if claim.reference is None:
        findings |= {arm: judge_sign(claim, own[arm]) for arm in there}
    elif claim.reference in own:
        several = len(claim.metrics) > 1
        if several:
            findings = {arm: finding for arm, finding in findings.items() if arm not in own}
        for metric in claim.metrics:
            found = judge_arms(claim, metric, {arm: own[arm] for arm in there}, own[claim.reference])
            findings |= {f"{arm}, {metric}" if several else arm: f for arm, f in found.items()}
    elif there:
        findings |= {arm: Finding(NO_DATA, f"no complete run of {claim.reference}") for arm in there}
    control = judge_control(claim, own)
    verdicts = [finding.verdict for finding in findings.values()]
    if all(verdict == NO_DATA for verdict in verdicts):
        return Verdict(claim, NO_DATA, "no arm has all its runs", control, findings)
    if control.verdict == NO_DATA:
        return Verdict(claim, NO_DATA, f"the positive control has {control.numbers}", control, findings)
    if control.verdict != SUPPORTED:
        why = f"the positive control is not detected ({control.numbers})"
        return Verdict(claim, INCONCLUSIVE, why, control, findings)
    verdict, why = overall(claim, verdicts)
    return Verdict(claim, verdict, why, control, findings)


def overall(claim: Claim, verdicts: Sequence[str]) -> tuple[str, str]:
    """A claim's verdict from its arms'."""
    if all(verdict == SUPPORTED for verdict in verdicts):
        return SUPPORTED, "every arm"
    if claim.test == "differs" and SUPPORTED in verdicts:
        return SUPPORTED, "an arm"
    if len(claim.metrics) > 1 and CONTRADICTED in verdicts:
        return CONTRADICTED, "a metric"
    if claim.test in ("not_better", "equal") and CONTRADICTED in verdicts:
        return CONTRADICTED, "an arm"
    if all(verdict == CONTRADICTED for verdict in verdicts):
        return CONTRADICTED, "every arm"
    missing = sum(verdict == NO_DATA for verdict in verdicts)
    return (
        INCONCLUSIVE,
        f"{missing} of {len(verdicts)} arms have no data" if missing else "not every arm agrees",
    )


def to_go(claim: Claim, curves: Sequence[Curve], planned: Sequence[int]) -> str:
    """What an arm's runs lack; nothing where all that were begun or planned have ended, by themselves or diverged.

    A run that is marked FAILED (a full disk, a killed worker) says nothing of its method: it can go on.
    """
    ended = [
        curve for curve in curves
        if curve.diverged or (curve.status.startswith("DONE") and curve.last_step >= claim.steps_per_task)
    ]  # fmt: skip
    total = len(curves) + len(set(planned) - {curve.seed for curve in curves})
    return f"{len(ended)} of {total} runs have ended" if len(ended) < total else ""


def complete(claim: Claim, arms: Arms) -> dict[str, list[Curve]]:
    """The claim's arms, whose runs have all ended, at the evaluations up to the claim's steps.

    Raises:
        ConfigError: what cannot be compared: other tasks, another protocol, goals of other seeds, other episodes,
            evaluations at other steps, or settings that differ within an arm.
    """
    judged = [arm for arm in (*claim.arms, claim.reference or "") if arm in arms]
    own = {name: arms[name] for name in (*judged, *claim.control.values()) if name in arms}
    there = [(name, curve) for name, curves in own.items() for curve in curves]
    if all(curve.diverged for _, curve in there):
        return {}

    def looks(curve: Curve) -> list[float]:
        steps: list[float] = curve.steps[curve.steps <= claim.steps_per_task].tolist()
        return steps

    for name, curves in own.items():
        if len({curve.settings.get("config") for curve in curves} - {None}) > 1:
            raise ConfigError(
                f"claims: {claim.name}: the runs of {name} have different settings, not only seeds"
            )
    first = next(curve for _, curve in there if not curve.diverged)
    goals: dict[int | None, Any] = {}
    for name, curve in there:
        own_goals = curve.settings.get("goals")
        if name in judged and goals.setdefault(curve.seed, own_goals) != own_goals:
            raise ConfigError(
                f"claims: {claim.name}: {curve.path} has other goals than another arm's run of seed {curve.seed}"
            )
    for name, curve in there:
        alike = {
            "tasks": curve.task_names == first.task_names,
            "a protocol": curve.protocol == first.protocol or name not in judged,
            "episodes": curve.episodes in (first.episodes, None) or name not in judged,
            "steps of evaluations": curve.diverged or looks(curve) == looks(first),
        }
        if unlike := [what for what, same in alike.items() if not same]:
            raise ConfigError(
                f"claims: {claim.name}: {curve.path} has {unlike[0]} unlike those of {first.path}"
            )
    shared = shared_steps([curve for _, curve in there])
    shared = shared[shared <= claim.steps_per_task]
    if not len(shared) or shared[-1] < claim.steps_per_task:
        raise ConfigError(
            f"claims: {claim.name}: the runs have no common evaluation at {claim.steps_per_task:.0f} steps per task"
        )
    return {name: [curve.at(shared) for curve in curves] for name, curves in own.items() if curves}


def score(curve: Curve, metric: str) -> float:
    """A run's score in a claim's metric; of a loss the logarithm, NaN where none was logged."""
    if metric == LOSS:
        return math.log(curve.critic_loss) if curve.critic_loss else math.nan
    return statistics(curve)[metric]


def unfit(found: Difference, metric: str) -> str | None:
    """Why a difference decides nothing."""
    if found.runs < FEWEST:
        return f"fewer than {FEWEST} seeds"
    if not found.testable:
        return "no difference between seeds to test with, or a score that is not known"
    if metric != LOSS and found.level:
        return "both arms are nearer than 0.05 to 0, or to 1, where everything is equivalent"
    return None


def judge_arms(claim: Claim, metric: str, arms: Arms, reference: Sequence[Curve]) -> dict[str, Finding]:
    differences = {
        arm: difference(curves, reference, partial(score, metric=metric)) for arm, curves in arms.items()
    }
    found_by = list(differences.values())
    above, apart, far = (
        dict(zip(arms, holm(values, len(claim.arms)), strict=True))
        for values in (
            [d.p_above() for d in found_by],
            [d.p_apart() for d in found_by],
            [d.p_apart(claim.margin) for d in found_by],
        )
    )
    minutes = {arm: mean_minutes(curves) or 0.0 for arm, curves in arms.items()}
    found = {}
    for arm, d in differences.items():
        if reason := unfit(d, metric):
            found[arm] = Finding(INCONCLUSIVE, f"{d.mean:+.3f} over {d.runs} seeds, {reason}")
            continue
        values = {
            "better": d.p_above(), "better (Holm)": above[arm], "not better": d.p_below(claim.margin),
            "different (Holm)": apart[arm], "different by more than the margin (Holm)": far[arm],
            "equivalent": d.p_equivalent(claim.margin),
        }  # fmt: skip
        yes, no = {
            "not_better": ("not better", "better (Holm)"), "better": ("better", "not better"),
            "equal": ("equivalent", "different (Holm)"),
            "differs": ("different by more than the margin (Holm)", "equivalent"),
        }[claim.test]  # fmt: skip
        shown = [values[key] for key in (yes, no)]
        small = [value is not None and value < ALPHA for value in shown]
        if claim.test == "equal":  # "not significantly" is part of the sentence
            small[0] = small[0] and not small[1]
        verdict = SUPPORTED if small[0] else CONTRADICTED if small[1] else INCONCLUSIVE
        tests = ", ".join(f"p {key} {p_value(value)}" for key, value in zip((yes, no), shown, strict=True))
        power = power_equivalence if claim.test in ("equal", "differs") else power_non_superiority
        got = power(d.runs, d.sd, claim.margin, d.paired)
        ends = d.interval if metric != LOSS else None
        between = f" [{ends[0]:+.3f}, {ends[1]:+.3f}]" if ends else ""
        pairs = "pairs" if d.paired else "runs of each"
        numbers = f"{d.mean:+.3f}{between} over {d.runs} {pairs}, SD {d.sd:.3f}, {tests}, power {got:.2f} at the margin"
        settle = "" if verdict != INCONCLUSIVE else settled_by(power, d, claim.margin, minutes[arm])
        found[arm] = Finding(verdict, numbers, settle)
    return found


def settled_by(power: Any, found: Difference, margin: float, minutes: float) -> str:
    """How many seeds give power 0.8 if the arms are truly equal, and what they cost on one core."""
    seeds = seeds_needed(power, found.sd, margin, found.paired)
    if seeds is None:
        return "more than 1000 seeds per arm"
    if seeds <= found.runs:
        return f"the power is there at {seeds} seeds: the difference lies near the margin"
    hours = 2 * (seeds - found.runs) * minutes / 60
    return f"{seeds} seeds per arm for power 0.8, {hours:.0f} core-hours more"


def judge_sign(claim: Claim, curves: Sequence[Curve]) -> Finding:
    """Whether most runs are above a value, or fail, by the sign test: no shape of the scores is assumed."""
    (metric,) = claim.metrics
    values = np.array([score(curve, metric) for curve in curves])
    if claim.test == "above":
        hits = values > claim.value + claim.margin
        what = f"above {claim.value + claim.margin:.2f}"
    else:
        hits = np.array([curve.diverged for curve in curves]) | (values <= claim.value)
        what = "failed"
    unknown = [curve for curve, value in zip(curves, values, strict=True) if math.isnan(value)]
    if not all(curve.diverged for curve in unknown):
        return Finding(INCONCLUSIVE, f"the score of {len(unknown)} of {len(curves)} runs is not known")
    n, k = len(hits), int(hits.sum())
    p_most, p_few = float(binom.sf(k - 1, n, 0.5)), float(binom.cdf(k, n, 0.5))
    verdict = SUPPORTED if p_most < ALPHA else CONTRADICTED if p_few < ALPHA else INCONCLUSIVE
    numbers = (
        f"{k} of {n} runs {what}, mean {values.mean():.3f}, p most {p_value(p_most)}, p few {p_value(p_few)}"
    )
    if verdict != INCONCLUSIVE:
        return Finding(verdict, numbers)
    misses = min(k, n - k)
    needed = next(runs for runs in count(n + 1) if binom.cdf(misses, runs, 0.5) < ALPHA)
    return Finding(verdict, numbers, f"{needed} seeds, if all others agree with the {n - misses}")


def judge_control(claim: Claim, arms: Arms) -> Finding:
    """Whether the data see a difference that is known to be there."""
    metric = claim.control.get("metric", "area")
    better, worse = claim.control["better"], claim.control["worse"]
    if missing := [arm for arm in (better, worse) if arm not in arms]:
        return Finding(NO_DATA, f"no complete run of {' and '.join(missing)}")
    found = difference(arms[better], arms[worse], partial(score, metric=metric))
    p = found.p_above()
    numbers = f"{better} minus {worse} {found.mean:+.3f} in {metric} over {found.runs} seeds"
    if reason := unfit(found, metric):
        return Finding(INCONCLUSIVE, f"{numbers}, {reason}")
    numbers += f", p {p_value(p)}"
    return Finding(SUPPORTED if p is not None and p < ALPHA else INCONCLUSIVE, numbers)


def judge_cost(claim: Claim, bench: Path | None) -> Verdict:
    """Of the bench's ratios (their quartiles) to unitary's update."""
    if bench is None or not bench.is_file():
        nothing = {name: Finding(NO_DATA, "no bench") for name in claim.ratios}
        return Verdict(claim, NO_DATA, "no bench", Finding(NO_DATA, "no bench"), nothing)
    found = read_json(bench)
    try:
        spreads = {
            name: [float(x) for x in found["ratios"][name]["spread"]]
            for name in (*claim.ratios, claim.control["ratio"])
        }
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"bench: {bench} has not the ratios of `mtrl bench` that {claim.name} is judged by"
        ) from None
    findings = {}
    for name, (low, high) in spreads.items():
        verdict = SUPPORTED if low >= claim.times else CONTRADICTED if high < claim.times else INCONCLUSIVE
        findings[name] = Finding(verdict, f"quartiles {low:.2f} to {high:.2f} times unitary's update")
    control = findings.pop(claim.control["ratio"])
    if control.verdict != SUPPORTED:
        why = f"the positive control is not detected ({control.numbers})"
        return Verdict(claim, INCONCLUSIVE, why, control, findings)
    verdict, why = overall(claim, [finding.verdict for finding in findings.values()])
    about = found.get("machine")
    where = about.get("processor") if isinstance(about, dict) else None
    return Verdict(claim, verdict, f"{why}, on {where or 'a machine that is not told'}", control, findings)


def as_markdown(verdicts: Sequence[Verdict]) -> str:
    """``docs/claims.md``."""
    lines = [
        "# Claims, and what the data say",
        "",
        "Written by `mtrl claims --write` from `configs/claims/` and the committed tables in `docs/results/evidence/`; "
        "do not edit. A claim is inconclusive unless its positive control is detected. `mtrl claims C1 --runs runs/…` "
        "judges your own runs. An arm is judged once all its planned runs have ended; finished runs of other arms are "
        "[kept here](results/evidence/unfinished/README.md).",
        "",
        "| claim | verdict | sentence |",
        "|---|---|---|",
        *(
            f"| [{v.claim.name}](#{v.claim.name.lower()}) | **{v.verdict}** | {v.claim.sentence} |"
            for v in verdicts
        ),
    ]
    for v in verdicts:
        claim = v.claim
        against = f", against `{claim.reference}`" if claim.reference else ""
        margin = f", margin {claim.margin:g}" if claim.margin else ""
        metric = f"Metric: {' and '.join(claim.metrics)}{margin}{against}. " if claim.test != "cost" else ""
        lines += [
            "", f"## {claim.name}", "", f"“{claim.sentence}” ({claim.source})", "",
            f"**{v.verdict}** ({v.why}). {metric}Rule: {claim.decision}. Fixed: {claim.fixed}.", "",
            f"Positive control: {v.control.verdict if v.control.verdict != SUPPORTED else 'detected'} "
            f"({v.control.numbers}).", "",
            "| arm | finding | numbers | what would settle it |", "|---|---|---|---|",
            *(f"| `{arm}` | {f.verdict} | {f.numbers} | {f.settle} |" for arm, f in v.arms.items()), "",
            "Its data are made by", "", "```", *claim.commands, "```",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def as_json(verdict: Verdict) -> dict[str, Any]:
    claim = verdict.claim
    return {
        "sentence": claim.sentence, "verdict": verdict.verdict, "why": verdict.why, "metric": claim.metric,
        "margin": claim.margin, "decision": claim.decision, "control": vars(verdict.control),
        "arms": {arm: vars(finding) for arm, finding in verdict.arms.items()}, "commands": claim.commands,
    }  # fmt: skip
