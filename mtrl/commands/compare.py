"""``mtrl compare``: several runs' success, with intervals over seeds, as a table, JSON and figures."""

from __future__ import annotations

import sys
from typing import Any

from mtrl.results.compare import FEWEST, STATISTICS, group, mean_conflict, read_curves, summarise, warnings
from mtrl.results.figures import cosine_figure, curves_figure, save_figure, tasks_figure
from mtrl.results.tables import interval, make_table, report_json, require_writable, show
from mtrl.settings import Parser


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl compare", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=str, help="run folders; those beside each other are seeds of one label"
    )
    parser.add_argument(
        "--json", type=str, help="write the statistics to this file, or - for standard output"
    )
    parser.add_argument("--figure", type=str, help="draw mean success to this file (.png, .pdf, .svg)")
    parser.add_argument("--tasks_figure", type=str, help="draw every task's success to this file")
    parser.add_argument("--conflict_figure", type=str, help="draw how tasks' gradients conflict to this file")
    parser.add_argument(
        "--against", choices=["steps", "minutes"], default="steps", help="the figure's x axis"
    )
    parser.add_argument(
        "--reference", type=str, help="a label; the others' areas are given as differences from it"
    )
    args = parser.parse_args(arguments)
    require_writable(args.json)
    curves, young = read_curves(args.runs)
    groups = group(curves)
    summary = summarise(groups, args.reference)
    for text in (*young, *warnings(curves)):
        print(f"mtrl: warning: {text}", file=sys.stderr)
    if args.figure:
        save_figure(curves_figure(groups, args.against), args.figure, dpi=130, bbox_inches="tight")
    if args.tasks_figure:
        save_figure(tasks_figure(groups), args.tasks_figure, dpi=110)
    if args.conflict_figure:
        panels = {
            f"{label}, {network}": cosines
            for label, seeds in groups.items()
            for network, cosines in mean_conflict([curve.path for curve in seeds]).items()
        }
        names = curves[0].task_names
        save_figure(cosine_figure(panels, names), args.conflict_figure, dpi=100, bbox_inches="tight")
    if report_json(summary, args.json):
        return 0
    steps = next(iter(groups.values()))[0].steps
    table = make_table(
        "label",
        "seeds",
        *STATISTICS,
        *([f"area minus {args.reference}"] if args.reference else []),
        title=f"mean success over tasks, {len(steps)} evaluations up to {steps[-1]:.0f} steps per task",
        caption=f"95 % intervals of the mean over seeds by Student's t, from {FEWEST} seeds on",
    )
    for label, row in summary.items():
        cells = [with_interval(row[name]) for name in STATISTICS]
        if args.reference:
            cells.append(
                "" if label == args.reference else with_interval(row["area_minus_reference"], "+.3f")
            )
        table.add_row(label, str(len(row["runs"])), *cells)
    show(table)
    return 0


def with_interval(number: dict[str, Any], form: str = ".3f") -> str:
    """A mean and its interval, as far as they are known."""
    if number["mean"] is None:
        return "–"
    return f"{number['mean']:{form}}" + (f" ({interval(number['ci'])})" if number["ci"] else "")
