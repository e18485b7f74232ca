"""``mtrl compare``: runs by arm, with intervals and tests over seeds, as tables, JSON, CSV, LaTeX and figures."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from mtrl.config import ConfigError, nearest
from mtrl.results.baselines import Baseline, read_baseline
from mtrl.results.compare import (
    METRIC,
    STATISTICS,
    Groups,
    default_margin,
    group,
    mean_conflict,
    read_curves,
    summarise,
    warnings,
)
from mtrl.results.papers import csv_text, latex_text
from mtrl.results.statistics import CONFIDENCE, FEWEST, POWER
from mtrl.results.tables import interval, make_table, p_value, put, rate, report_json, require_writable, show
from mtrl.settings.parser import Parser

SHOWN = ("final", "last3", "last5", "best", "area", "worst3")
FIGURES = ("figure", "tasks_figure", "conflict_figure", "conflict_curves")


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    for key in ("json", "csv", "latex", *FIGURES):
        require_writable(getattr(args, key), key)
    curves, young = read_curves(args.runs)
    groups, renamed = in_order(group(curves), args.names)
    reference = renamed.get(args.reference, args.reference)
    summary = summarise(groups, reference, args.metric, args.margin)
    suite = curves[0].protocol.partition("-")[0]
    baselines = [read_baseline(name, curves[0].task_names, suite) for name in args.baseline]
    most = next(iter(groups.values()))[0].last_step
    others = {label: row for baseline in baselines for label, row in baseline.rows(most).items()}
    told = [*young, *warnings(curves), *about(baselines, {curve.protocol for curve in curves})]
    for label, row in summary.items():
        if alone := row.get("against", {}).get("left_out"):
            told.append(
                f"the difference of {label} from {reference} is over the {row['against']['runs']} seeds that both "
                f"have, without {', '.join(alone)}"
            )
    for text in told:
        print(f"mtrl: warning: {text}", file=sys.stderr)
    draw(args, groups, baselines)
    for key, writer in (("csv", csv_text), ("latex", latex_text)):
        if where := getattr(args, key):
            put(writer(summary, others, reference), where, key)
    if report_json({**summary, **others}, args.json) or "-" in (args.csv, args.latex):
        return 0
    print_tables(summary, others, groups, reference, args)
    return 0


def parse(arguments: list[str]) -> Any:
    parser = Parser(prog="mtrl compare", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=str, help="run folders (those in one folder are seeds of one arm), folders of "
        "runs, tables of `mtrl export`")  # fmt: skip
    add(
        "--reference",
        type=str,
        help="an arm; the others are compared with it, by seed where they share seeds",
    )
    add(
        "--metric",
        choices=STATISTICS,
        default=METRIC,
        help="by what; area under the curve unless said otherwise",
    )
    add(
        "--margin",
        type=float,
        help="a difference that does not matter, fixed beforehand; 0.05 of the area, 0.1 of others",
    )
    add("--names", type=str, help="order and names of arms: unitary=Unitary,pcgrad=PCGrad")
    add(
        "--baseline",
        type=str,
        action="append",
        default=[],
        help="others' results as well: brc, kurin2022 or metaworld_plus; may be given more than once",
    )
    add("--json", type=str, help="write the statistics to this file, or - for standard output")
    add("--csv", type=str, help="the same as a flat table")
    add("--latex", type=str, help="a table for a paper (with booktabs)")
    add("--figure", type=str, help="draw mean success to this file (.png, .pdf, .svg)")
    add("--tasks_figure", type=str, help="draw every task's success to this file")
    add("--conflict_figure", type=str, help="draw how tasks' gradients conflict to this file")
    add(
        "--conflict_curves", type=str, help="draw how many pairs of tasks conflict over training to this file"
    )
    add("--against", choices=["steps", "minutes"], default="steps", help="the figure's x axis")
    add("--size", type=str, help="of a figure in inches: 3.3x2.6 for a column")
    args = parser.parse_args(arguments)
    args.margin = default_margin(args.metric) if args.margin is None else args.margin
    if not 0 < args.margin < 1:
        raise ConfigError(f"margin: {args.margin} is not valid; it must be between 0 and 1")
    args.size = size_of(args.size)
    if args.baseline and args.against == "minutes":
        raise ConfigError("baseline: nobody published minutes; leave out --against minutes")
    return args


def size_of(text: str | None) -> tuple[float, float] | None:
    """``3.3x2.6`` as inches.

    Raises:
        ConfigError: it is none, or no figure's.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)", text, re.ASCII)
    size = tuple(map(float, match.groups())) if match else (0.0, 0.0)
    if not all(1 <= inches <= 50 for inches in size):
        raise ConfigError(f"size: {text!r:.80} is not valid; it must be WIDTHxHEIGHT in inches, from 1 to 50")
    return size[0], size[1]


def in_order(groups: Groups, text: str | None) -> tuple[Groups, dict[str, str]]:
    """The arms in the order and under the names that ``--names`` gives, the others after them.

    Raises:
        ConfigError: an arm that there is not, or two of one name.
    """
    if text is None:
        return groups, {}
    renamed: dict[str, str] = {}
    for part in text.split(","):
        label, _, name = part.partition("=")
        if label not in groups:
            raise ConfigError(
                f"names: {label!r} is none of the arms{nearest(label, groups)}; there are {', '.join(groups)}"
            )
        if label in renamed:
            raise ConfigError(f"names: {label!r} comes twice")
        renamed[label] = name or label
    order = {**renamed, **{label: label for label in groups if label not in renamed}}
    if len(set(order.values())) < len(order):
        raise ConfigError(f"names: {text!r} gives two arms one name")
    return {name: groups[label] for label, name in order.items()}, renamed


def about(baselines: list[Baseline], protocols: set[str]) -> list[str]:
    """What to know of the baselines, a line each."""
    told = []
    for baseline in baselines:
        told.append(f"baseline {baseline.name}: {baseline.note} ({baseline.source})")
        if unlike := baseline.unlike(protocols):
            told.append(unlike)
    return told


def draw(args: Any, groups: Groups, baselines: list[Baseline]) -> None:
    """What figures were asked for."""
    if not any(getattr(args, key) for key in FIGURES):
        return
    from mtrl.results.figures import (
        conflict_curves,
        cosine_figure,
        curves_figure,
        save_figure,
        tasks_figure,
        type_for,
    )

    with type_for(args.size):
        if args.figure:
            figure = curves_figure(groups, args.against, args.size or (7, 4.2), baselines)
            save_figure(figure, args.figure, dpi=200)
        if args.tasks_figure:
            save_figure(tasks_figure(groups, args.size), args.tasks_figure, dpi=150)
        if args.conflict_curves:
            save_figure(conflict_curves(groups, args.size or (8, 3.4)), args.conflict_curves, dpi=150)
    if args.conflict_figure:
        panels = {
            f"{label}, {network}": cosines
            for label, seeds in groups.items()
            for network, cosines in mean_conflict(seeds).items()
        }
        names = next(iter(groups.values()))[0].task_names
        save_figure(cosine_figure(panels, names), args.conflict_figure, dpi=100, bbox_inches="tight")


def print_tables(
    summary: Mapping[str, Any], others: Mapping[str, Any], groups: Groups, reference: str | None, args: Any
) -> None:
    steps = next(iter(groups.values()))[0].steps
    caption = (
        f"in brackets {CONFIDENCE:.0%} intervals of the mean over seeds by Student's t, from {FEWEST} seeds on; "
        "none where all seeds are equal or the mean is nearer than 0.05 to 0 or 1, where none is right"
    )
    unseen = any(row["unseen"]["mean"] is not None for row in summary.values())
    shown = (*SHOWN, "unseen") if unseen else SHOWN
    looks = f"{len(steps)} evaluation{'s' * (len(steps) > 1)}"
    table = make_table(
        "arm", "seeds", *shown, "IQM", "diverged", "dead tasks per seed",
        title=f"mean success over tasks, {looks} up to {steps[-1]:.0f} steps per task",
        caption=caption,
    )  # fmt: skip
    for label, row in summary.items():
        dead = "/".join(str(len(tasks)) for tasks in row["dead_tasks"])
        table.add_row(
            label, str(len(row["runs"])), *(with_interval(row[name]) for name in shown),
            with_interval(row["iqm_last5"]), str(len(row["diverged"])), dead,
        )  # fmt: skip
    show(table)
    if reference is not None:
        show(difference_table(summary, reference, args.metric, args.margin))
    if any(row["acting"] for row in summary.values()):
        show(acting_table(summary))
    if others:
        table = make_table("baseline", "seeds", "success", "what", "protocol", title="published by others")
        for label, row in others.items():
            what = f"{row['statistic']} at {row['steps_per_task']:.0f} steps per task"
            table.add_row(label, str(row["seeds"] or "–"), with_interval(row), what, row["protocol"])
        show(table)


def difference_table(summary: Mapping[str, Any], reference: str, metric: str, margin: float) -> Any:
    table = make_table(
        "arm", f"{metric} minus {reference}", "seeds", "p better (Holm)", "p not better", "p equivalent",
        f"power, seeds for {POWER:g}: not better", "equivalent", "P(improvement), last5",
        title=f"differences in {metric} from {reference}; margin {margin:g}",
        caption="one-sided p-values. better: above the reference; not better: less than the margin above it; "
        "equivalent: within the margin on both sides. Powers are for equal arms. No test where both arms are near 0, "
        "or both near 1.",
    )  # fmt: skip
    for label, row in summary.items():
        if "against" not in row:
            continue
        found = row["against"]
        table.add_row(
            label, with_interval(found, "+.3f"),
            f"{found['runs']} {'paired' if found['paired'] else 'unpaired'}",
            *(p_value(found[key]) for key in ("p_better_holm", "p_not_better", "p_equivalent")),
            *(f"{rate(found[f'power_{k}'])}, {seeds(found[f'seeds_{k}'], found[f'power_{k}'])}"
              for k in ("not_better", "equivalent")),
            with_interval(found["improvement"], ".2f"),
        )  # fmt: skip
    return table


def acting_table(summary: Mapping[str, Any]) -> Any:
    table = make_table(
        "arm", "network", "cosine", "norm ratio", "unchanged", "pairs in conflict", "measured updates",
        "solver fallbacks",
        title="what the method did: the applied direction and the mean gradient",
        caption="unchanged: share of the measured updates whose direction is the mean's, as far as bf16 tells. "
        "Fallbacks: in all updates, added over seeds; – where a method solves nothing, or its solver is a library's",
    )  # fmt: skip
    for label, row in summary.items():
        for network, found in row["acting"].items():
            table.add_row(
                label, network,
                *(f"{found[key]:{form}}" if key in found else "–" for key, form in (
                    ("cosine", ".3f"), ("norm_ratio", ".3f"), ("unchanged", ".0%"), ("conflict", ".0%"),
                    ("measured", ".0f"), ("fallbacks", ".0f"),
                )),
            )  # fmt: skip
    return table


def with_interval(number: Mapping[str, Any], form: str = ".3f") -> str:
    """A mean and its interval, as far as they are known."""
    if number["mean"] is None:
        return "–"
    mean, ends = f"{number['mean']:{form}}", number["ci"]
    if not ends:
        return mean
    return f"{mean} ({ends[0]:+.3f} … {ends[1]:+.3f})" if "+" in form else f"{mean} ({interval(ends)})"


def seeds(needed: int | None, power: float | None) -> str:
    return "–" if power is None else "> 1000 seeds" if needed is None else f"{needed} seeds"
