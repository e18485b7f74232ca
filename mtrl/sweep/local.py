"""The runs of a sweep on this machine: a few processes at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from types import FrameType

from mtrl.machine import cores
from mtrl.run.signals import TAKEN
from mtrl.sweep.board import Board
from mtrl.sweep.child import start, verdict
from mtrl.sweep.grid import Run

TRIES = 3  # of a run that fails without getting further
PAUSE = 0.1  # seconds between looks at the processes


def share(runs: Sequence[Run], jobs: int | None) -> tuple[int, int]:
    """How many runs at once, and how many cores each has for itself.

    Args:
        jobs: as asked for; None is as many as the cores allow by the threads and workers that runs have already.
    """
    taken = [[n for key in ("threads", "workers") if (n := run.recorded(key)) != "auto"] for run in runs]
    largest = max(map(sum, taken), default=1)
    together = jobs or max(1, min(cores() // max(largest, 1), len(runs)))
    return together, max(1, cores() // together)


class Stop:
    """Signals for the sweep, handed on to its children: the first to stop with a checkpoint, the second at once."""

    def __init__(self) -> None:
        self.received = 0
        self.children: list[subprocess.Popen[bytes]] = []

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Signals mean this inside."""
        ours = [n for n in TAKEN if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in ours}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and number not in (signal.SIGINT, signal.SIGTERM):
            return  # only those mean at once
        self.received += 1
        if self.received <= 2:  # a child that has had two is ending
            for child in list(self.children):
                child.terminate()
        if self.received == 1:
            with contextlib.suppress(OSError):  # not print: a handler may run in the middle of one
                os.write(2, b"\nmtrl: stopping, with checkpoints; once more stops at once\n")


class Tries:
    """Whether a run is to be started again."""

    def __init__(self) -> None:
        self._failed: Counter[tuple[Run, float]] = Counter()

    def again(self, run: Run, word: str) -> bool:
        """After it ended with this word: if it was interrupted, or failed and has not done so too often since its
        newest checkpoint.
        """
        if word == "failed":
            self._failed[run, newest(run)] += 1
            return self._failed[run, newest(run)] < TRIES
        return word == "again"


def run_all(runs: Sequence[Run], jobs: int, cores_each: int, nice: int, board: Board) -> None:
    """Run what is not done or diverged, ``jobs`` at a time, in order; the board has what became of each.

    A run that was interrupted by others goes on; one that fails is tried again after the others, up to
    ``TRIES`` times without getting further; one that is refused, or that another process trains, is left.
    """
    waiting = deque(run for run in runs if board.states[run.folder][0] not in ("done", "diverged"))
    tries = Tries()
    training: dict[Run, subprocess.Popen[bytes]] = {}
    stop = Stop()
    with stop.taken():
        while training or (waiting and not stop.received):
            while waiting and len(training) < jobs and not stop.received:
                run = waiting.popleft()
                try:
                    training[run] = start(run.command(cores_each), run.log, nice)
                except OSError as error:
                    board.tell(run, "failed", f"it cannot be started: {error.strerror}")
                    continue
                stop.children.append(training[run])
                if stop.received:  # between the look and the start
                    training[run].terminate()
                board.tell(run, "training")
            for run, child in list(training.items()):
                if child.poll() is None:
                    continue
                stop.children.remove(training.pop(run))
                word, reason = verdict(child.returncode, run.folder, run.log)
                if stop.received and word in ("again", "failed"):
                    board.tell(run, "interrupted", stopped(reason))
                    continue
                board.tell(run, word, reason)
                if tries.again(run, word):
                    waiting.append(run)
            board.refresh()
            time.sleep(PAUSE)


def stopped(reason: str) -> str:
    """Why a run ended that the sweep has stopped: SIGTERM is what the sweep sent, whatever it was sent itself."""
    return reason.replace("INTERRUPTED by SIGTERM", "stopped with the sweep")


def newest(run: Run) -> float:
    """When its newest checkpoint was written."""
    times = [0.0]
    for path in (run.folder / "checkpoint").glob("manifest-*.json"):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)
