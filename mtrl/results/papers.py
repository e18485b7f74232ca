"""The statistics of `mtrl compare` as a flat table and as LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from mtrl.results.compare import STATISTICS

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
Rows = Mapping[str, Mapping[str, Any]]


def csv_text(summary: Rows, others: Rows, reference: str | None) -> str:
    """A row per arm and number: ``arm, statistic, mean, low, high, seeds``; nothing stands where nothing is known."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("arm", "statistic", "mean", "low", "high", "seeds"))

    def row(arm: str, statistic: str, found: Mapping[str, Any], seeds: int | None) -> None:
        lines.writerow((arm, statistic, found["mean"], *(found.get("ci") or ("", "")), seeds))

    for arm, found in summary.items():
        count = len(found["runs"])
        for name in (*STATISTICS, "iqm_last5"):
            row(arm, name, found[name], count)
        row(arm, "diverged", {"mean": len(found["diverged"])}, count)
        for task, mean in found["tasks"].items():
            row(arm, f"last5 of {task}", {"mean": mean}, count)
        if "against" in found:
            test = found["against"]
            row(arm, f"{test['metric']} minus {reference}", test, test["runs"])
            row(arm, f"probability of improvement over {reference}, last5", test["improvement"], count)
            for key in (
                "p_better_holm",
                "p_not_better",
                "p_equivalent",
                "power_not_better",
                "power_equivalent",
            ):
                row(arm, key, {"mean": test[key]}, test["runs"])
        for network, acting in found["acting"].items():
            for key, value in acting.items():
                row(arm, f"{network} {key}", {"mean": value}, None)
    for arm, found in others.items():
        row(
            arm,
            f"{found['statistic']} at {found['steps_per_task']:.0f} steps per task",
            found,
            found["seeds"],
        )
    return text.getvalue()


def latex_text(summary: Rows, others: Rows, reference: str | None) -> str:
    """A ``tabular`` for booktabs: means with intervals in small type; with a reference, differences and p-values."""
    heads = ["arm", "seeds", "area", "final", "last five", "worst three", "IQM"]
    if reference is not None:
        metric = next((row["against"]["metric"] for row in summary.values() if "against" in row), "area")
        heads += [f"{metric} $-$ {escaped(reference)}", "$n$", "$p$ better (Holm)", "$p$ not better"]
    tests = [row["against"] for row in summary.values() if "against" in row]
    margin = f"; differences over $n$ seeds, margin {tests[0]['margin']:g}" if tests else ""
    lines = [
        f"% needs \\usepackage{{booktabs}}; 95 % intervals over seeds{margin}",
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", "\\toprule", line(heads), "\\midrule",
    ]  # fmt: skip
    for arm, found in summary.items():
        cells = [escaped(arm), str(len(found["runs"]))]
        cells += [cell(found[name]) for name in ("area", "final", "last5", "worst3", "iqm_last5")]
        if reference is not None:
            test = found.get("against")
            cells += [""] * 4 if test is None else [
                cell(test, "+.3f"), str(test["runs"]), p_cell(test["p_better_holm"]), p_cell(test["p_not_better"])
            ]  # fmt: skip
        lines.append(line(cells))
    if others:
        lines.append("\\midrule")
    for arm, found in others.items():
        what = f"{arm} ({found['statistic']} at {found['steps_per_task'] / 1000:.0f}k steps)"
        over_all = f"\\multicolumn{{{len(heads) - 2}}}{{l}}{{{cell(found)}}}"
        lines.append(line([escaped(what), str(found["seeds"] or "--"), over_all]))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def escaped(text: str) -> str:
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def cell(found: Mapping[str, Any], form: str = ".3f") -> str:
    if found["mean"] is None:
        return "--"
    mean = f"${found['mean']:{form}}$"
    return (
        f"{mean} {{\\scriptsize [{', '.join(f'{end:{form}}' for end in found['ci'])}]}}"
        if found["ci"]
        else mean
    )


def p_cell(value: float | None) -> str:
    return "--" if value is None else "$<.001$" if value < 0.001 else f"${value:.3f}$"
