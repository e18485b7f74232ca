"""What a command prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from mtrl.config import ConfigError
from mtrl.evaluate import Scores


def report_json(result: Any, where: str | None) -> bool:
    """Write a result to the file that ``--json`` names, or print it for ``-``.

    Returns:
        whether standard output is taken by it.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = json.dumps(result, indent=1)
    if where == "-":
        print(text)
    elif where:
        try:
            Path(where).write_text(text + "\n")
        except OSError as error:
            raise ConfigError(f"cannot be written: {error}") from None
    return where == "-"


def scores_table(scores: Scores, title: str) -> Table:
    """A row per task by name and one for the mean, with intervals where there are several episodes."""
    table = Table(title=title)
    for column in ("task", "success", "95 % interval", "at end", "return", "steps to success", "episodes"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, task in scores.tasks.items():
        row = task.to_dict()
        steps = row["steps_to_success"]
        table.add_row(
            name, rate(row["success"]), interval(row["ci"]), rate(row["success_at_end"]),
            f"{row['return']:.1f}", "–" if steps is None else f"{steps:.0f}", str(row["episodes"]),
        )  # fmt: skip
    table.add_section()
    table.add_row(
        "mean",
        "–" if scores.silent else f"{scores.mean_success:.3f}",
        interval(scores.mean_success_interval()),
    )
    return table


def rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def interval(bounds: list[float] | None) -> str:
    return "–" if bounds is None else f"{bounds[0]:.2f} … {bounds[1]:.2f}"
