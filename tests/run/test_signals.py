"""Signals that come while a run starts: it always ends marked, and the same command goes on."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from tiny_runs import status, train, train_until, written

from mtrl.commands import train as train_command
from mtrl.envs.vec import SuiteVecEnv
from mtrl.run.signals import Signals
from mtrl.run.status import read_status

OURS = (str(Path(train_command.__file__).parents[1] / "run"), train_command.__file__)
MOMENTS = 3


class Watch:
    """Counts first calls and returns of a run's own functions, from the taking of signals to the first step.

    Args:
        moment: at which the process is sent the signals; 0 is never.
    """

    def __init__(self, moment: int = 0, signals: tuple[int, ...] = ()) -> None:
        self.moment, self.signals = moment, signals
        self.seen: set[tuple[CodeType, str]] = set()
        self.on = False

    def train(self, folder: Path) -> int:
        sys.setprofile(self)
        try:
            return train(folder)
        finally:
            sys.setprofile(None)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code is Signals.__enter__.__code__ and event == "return":
            self.on = True
        if frame.f_code in (SuiteVecEnv.step_async.__code__, Signals.__exit__.__code__):
            self.on = False
        if self.on and frame.f_code.co_filename.startswith(OURS) and event in ("call", "return"):
            before = len(self.seen)
            self.seen.add((frame.f_code, event))
            if before < len(self.seen) == self.moment:
                for number in self.signals:
                    os.kill(os.getpid(), number)


@pytest.fixture(params=["no run", "a run that was killed"])
def make_before(request, tmp_path) -> Callable[[Path], None]:
    """Makes what lies in the folder before the start."""

    def make(run: Path) -> None:
        if request.param == "a run that was killed":
            shutil.copytree(killed, run)

    killed = tmp_path / "killed"
    if request.param == "a run that was killed":
        train_until(50, killed)
        (killed / "STATUS").write_text("RUNNING\n")
        assert read_status(killed).startswith("KILLED")
    return make


def starts(tmp_path: Path, make_before: Callable[[Path], None], *signals: int) -> Iterator[tuple[Path, int]]:
    """Runs that were sent signals at moments spread over their start, with their exit codes."""
    make_before(tmp_path / "whole")
    watch = Watch()
    assert watch.train(tmp_path / "whole") == 0
    assert len(watch.seen) > 50
    for i in range(MOMENTS):
        run = tmp_path / str(i)
        make_before(run)
        yield run, Watch(1 + i * (len(watch.seen) - 1) // (MOMENTS - 1), signals).train(run)


def test_a_sigterm_at_any_moment_of_the_start_ends_it_marked_and_the_same_command_goes_on(
    tmp_path, make_before, undisturbed
):
    for run, code in starts(tmp_path, make_before, signal.SIGTERM):
        assert code == 4
        assert not run.exists() or status(run).startswith("INTERRUPTED by SIGTERM")
        assert train(run) == 0
        assert written(run) == undisturbed


def test_two_signals_at_any_moment_of_the_start_end_it_at_once_and_marked(tmp_path, make_before):
    for run, code in starts(tmp_path, make_before, signal.SIGTERM, signal.SIGINT):
        assert code in (1, 4)
        locked = run.name != "0" and (run / ".lock").exists()
        assert not locked or status(run).startswith("INTERRUPTED at once")


def test_the_first_signal_is_remembered_and_those_of_before_are_given_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with Signals() as signals:
        assert signals.received is None
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)  # as a killed parent of several threads has the system send it
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == "SIGUSR1"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
