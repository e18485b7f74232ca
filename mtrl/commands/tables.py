"""Tables for people."""

from __future__ import annotations

from rich.table import Table

from mtrl.evaluate import Scores


def scores_table(scores: Scores, title: str) -> Table:
    """A row per task by name and one for the mean, with intervals where there are several episodes."""
    table = Table(title=title)
    for column in ("task", "success", "95 % interval", "at end", "return", "steps to success", "episodes"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, task in scores.tasks.items():
        row = task.to_dict()
        steps = row["steps_to_success"]
        table.add_row(
            name, f"{row['success']:.2f}", interval(row["ci"]), f"{row['success_at_end']:.2f}",
            f"{row['return']:.1f}", "–" if steps is None else f"{steps:.0f}", str(row["episodes"]),
        )  # fmt: skip
    table.add_section()
    table.add_row("mean", f"{scores.mean_success:.3f}", interval(scores.mean_success_interval()))
    return table


def interval(bounds: list[float] | None) -> str:
    return "–" if bounds is None else f"{bounds[0]:.2f} … {bounds[1]:.2f}"
