"""What a sweep shows while it goes: a live table in a terminal, elsewhere a line per event and now and then one of
how far the runs are.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.live import Live
from rich.table import Table

from mtrl.files import end_of
from mtrl.results.tables import make_console, make_table
from mtrl.run.outputs import report
from mtrl.run.status import read_status
from mtrl.sweep.grid import Run

EVERY = 2.0  # seconds between looks at the run folders
FIRST, SHARE, MOST = 60.0, 0.05, 4  # of such lines: seconds to the first, rarer as time goes; runs in each


class Board:
    """The state of every run of a sweep, told as it changes. Use as a context.

    Args:
        runs: in the order of the table.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.states = {run.folder: (state_of(run), "") for run in runs}
        self.began: dict[Path, tuple[float, int]] = {}  # when this sweep started it, and at which step
        self.looked = 0.0
        self.started = self.told = time.monotonic()
        self.live = Live(console=make_console(), auto_refresh=False) if sys.stdout.isatty() else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.refresh(0.0)
            self.live.stop()

    def tell(self, run: Run, state: str, reason: str = "") -> None:
        """A run's new state."""
        self.states[run.folder] = state, reason
        if state == "training":
            self.began[run.folder] = time.monotonic(), steps_of(run)
        if self.live is None:
            success = success_of(run) if state == "done" else None
            more = reason or ("" if success is None else f"success {success:.3f}")
            counts = Counter(state for state, _ in self.states.values())
            report(
                f"{run.name}: {state}{f' ({more})' if more else ''}; {counts['done']} of {len(self.runs)} done"
            )

    def refresh(self, every: float = EVERY) -> None:
        """Draw the table, at most once in so many seconds; without a terminal :meth:`tell_progress`."""
        now = time.monotonic()
        if self.live is None:
            if now - self.told >= max(FIRST, SHARE * (now - self.started)):
                self.told = now
                self.tell_progress()
            return
        if now - self.looked < every:
            return
        self.looked = now
        with contextlib.suppress(OSError):
            self.live.update(self.table(), refresh=True)

    def tell_progress(self) -> None:
        """A line: how far those are that train."""
        training = [run for run in self.runs if self.states[run.folder][0] == "training"]
        parts = []
        for run in training[:MOST]:
            success, left = success_of(run), self.left(run)
            told = [f"{run.name} {steps_of(run)} of {run.steps} steps"]
            told += [] if success is None else [f"success {success:.3f}"]
            parts.append(", ".join([*told, *([] if left == "–" else [f"{left} left"])]))
        if len(training) > MOST:
            parts.append(f"and {len(training) - MOST} more")
        if parts:
            report(f"training: {'; '.join(parts)}")

    def table(self) -> Table:
        """As many rows as the terminal has: what trains first, then what failed, waits and is done."""
        counts = Counter(state for state, _ in self.states.values())
        table = make_table(
            "run", "state", "steps per task", "success", "left",
            title=", ".join(f"{number} {state}" for state, number in counts.items()),
        )  # fmt: skip
        order = (
            "training",
            "failed",
            "lost",
            "refused",
            "busy",
            "diverged",
            "again",
            "interrupted",
            "waiting",
            "done",
        )
        ranked = sorted(self.runs, key=lambda run: order.index(self.states[run.folder][0]))
        assert self.live is not None
        room = max(self.live.console.size.height - 7, 3)
        for run in ranked[:room]:
            state, reason = self.states[run.folder]
            success = success_of(run)
            table.add_row(
                run.name, f"{state} {reason}".strip(), f"{steps_of(run)} of {run.steps}",
                "–" if success is None else f"{success:.3f}", self.left(run) if state == "training" else "",
            )  # fmt: skip
        if len(ranked) > room:
            table.add_row(f"… and {len(ranked) - room} more")
        return table

    def left(self, run: Run) -> str:
        """How long it will go on at the pace it had since this sweep started it."""
        start, before = self.began[run.folder]
        made = steps_of(run) - before
        if made <= 0:
            return "–"
        seconds = (time.monotonic() - start) / made * (run.steps - before - made)
        return str(datetime.timedelta(seconds=round(seconds)))


def state_of(run: Run) -> str:
    """A run's state in a sweep's words, before it is started: waiting, done, diverged or again."""
    if not (run.folder / "config.yaml").is_file():
        return "waiting"
    status = read_status(run.folder)
    return next((word for word in ("done", "diverged") if status.startswith(word.upper())), "again")


def steps_of(run: Run) -> int:
    """How far its log says it is, in steps per task."""
    first = tail(run.folder / "progress.csv").partition(",")[0]
    return int(first) if first.isdecimal() and len(first) < 20 else 0


def success_of(run: Run) -> float | None:
    """At its last evaluation, the mean over tasks; None before it, or where success is never told."""
    try:
        value = json.loads(tail(run.folder / "eval.jsonl"))["mean_success"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else None


def tail(path: Path) -> str:
    """A file's last whole line; empty without one."""
    try:
        lines = end_of(path).split("\n")
    except OSError:
        return ""
    return lines[-2] if len(lines) > 1 else ""
