"""What a command prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtrl.config import ConfigError
from mtrl.files import write_synced
from mtrl.settings.files import path_of

if TYPE_CHECKING:
    from mtrl.evaluate import Scores


WIDEST = 10_000  # of a line where there is no terminal


def make_console() -> Console:
    """Standard output: as wide as the terminal, or as lines need to be; text is printed as it is."""
    return Console(
        width=None if sys.stdout.isatty() else WIDEST,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
    )


def make_table(*columns: str, title: str = "", caption: str = "") -> Table:
    """A table that a terminal may wrap, in every column but the first: that one has names, which are never cut."""
    table = Table(title=Text(title), caption=Text(caption) if caption else None)
    for number, name in enumerate(columns):
        table.add_column(Text(name), overflow="fold", no_wrap=number == 0)
    return table


def show(table: Table) -> None:
    """Print a table with its names whole."""
    first = table.columns[0]
    cells = [*first.cells, first.header]
    first.min_width = max(len(cell.plain if isinstance(cell, Text) else str(cell)) for cell in cells)
    make_console().print(table)


def report_json(result: Any, where: str | None) -> bool:
    """Write a result to the file that ``--json`` names, or print it for ``-``; whether that was so."""
    if where:
        put(json.dumps(result, indent=1) + "\n", where, "json")
    return where == "-"


def put(text: str, where: str, key: str) -> None:
    """Write a text to the file that an option names, or print it for ``-``.

    Raises:
        ConfigError: the file cannot be written.
    """
    if where == "-":
        print(text, end="")
        return
    try:
        write_synced(path_of(key, where), text.encode())
    except OSError as error:
        raise ConfigError(f"{key}: {where} cannot be written ({error.strerror})") from None


def require_writable(where: str | None, key: str = "json") -> None:
    """Raise now, not after an hour, when the file of ``--json`` (or of another ``key``) cannot be written; nothing is
    left there.

    Raises:
        ConfigError: its folder is missing or may not be written, or a folder lies there.
    """
    if where is not None and key.endswith(("figure", "curves")) and not os.path.splitext(where)[1]:
        raise ConfigError(
            f"{key}: {where!r} is not valid; it must be a file whose ending names its format (.png, .pdf, .svg)"
        )
    if where is None or where == "-":
        return
    path = path_of(key, where)
    reason = None
    if path.is_dir():
        reason = "it is a folder"
    elif not path.parent.is_dir():
        reason = "No such file or directory"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "Permission denied"
    if reason:
        raise ConfigError(f"{key}: {where} cannot be written ({reason})")


def scores_table(scores: Scores, title: str) -> Table:
    """A row per task by name and one for the mean, with intervals where there are several episodes."""
    table = make_table(
        "task", "success", "95 % interval", "at end", "return", "steps to success", "episodes", title=title
    )
    for column in table.columns[1:]:
        column.justify = "right"
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


def p_value(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(bounds: list[float] | None) -> str:
    return "–" if bounds is None else f"{bounds[0]:.2f} … {bounds[1]:.2f}"
