"""What a run says: lines on standard output and error, which may be gone before the run is."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys


def tell(text: str) -> None:
    """A line on standard error, if anybody is there to read it."""
    leave_lost_outputs()
    with contextlib.suppress(OSError):
        print(f"mtrl: {text}", file=sys.stderr)


def report(text: str) -> None:
    """A line on standard output; a run does not fail because nobody can be told."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


def leave_lost_outputs(hung_up: bool = False) -> None:
    """Send standard output and error nowhere where nobody is behind them: a write would fail and end the run.

    Args:
        hung_up: whether terminals are gone; of a pipe or a socket it is known.
    """
    for standard in (1, 2):
        with contextlib.suppress(OSError):  # closed from the start, say
            if stat.S_ISCHR(os.fstat(standard).st_mode):
                lost = hung_up
            else:
                poll = select.poll()
                poll.register(standard, 0)
                lost = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
            if lost:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, standard)
                os.close(null)
