"""``mtrl train`` as a process of its own, which ends with a checkpoint when whoever started it is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mtrl.files import end_of, open_own
from mtrl.run.status import read_status
from mtrl.values import printable

# `-c` puts the current folder first on the path: what lies there is not imported
CODE = (
    "import sys; sys.path[:] = filter(None, sys.path); from mtrl.sweep.child import prepare; prepare(); "
    "from mtrl.cli import main; sys.exit(main())"
)
SET_PDEATHSIG = 1  # linux/prctl.h
AUTOGROUP = Path("/proc/self/autogroup")  # man 7 sched
# sent once for each thread of the parent that ends with it; a second SIGTERM would mean "at once"
ORPHANED = signal.SIGUSR1


def command(arguments: Sequence[str], nice: int, parent: int = 0) -> list[str]:
    """What starts ``mtrl train``; with a ``parent``, it is sent :data:`ORPHANED` when the thread that starts it ends.

    So it must be started from a thread that lives as long as its process: the main one.
    """
    return [sys.executable, "-c", CODE, str(parent), str(nice), "train", *arguments]


def prepare() -> None:
    """The child's side, before it loads torch: its parent may be gone by then."""
    parent, nice = int(sys.argv.pop(1)), int(sys.argv.pop(1))
    if parent:
        end_with(parent)
    if nice:
        os.nice(nice)
        if os.getsid(0) == os.getpid():  # Linux may weigh sessions, not processes, and this one is its own
            with contextlib.suppress(OSError):
                AUTOGROUP.write_text(str(nice))


def end_with(parent: int) -> None:
    """Have the system send :data:`ORPHANED` to this process when its parent is gone, however that ended."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no Linux
        ctypes.CDLL(None).prctl(SET_PDEATHSIG, ORPHANED, 0, 0, 0)
    if os.getppid() != parent:  # it was gone already
        sys.exit(1)


def start(arguments: Sequence[str], log: Path, nice: int = 0) -> subprocess.Popen[bytes]:
    """Start ``mtrl train`` in a session of its own (a terminal's Ctrl-C is not for it), its output added to ``log``.

    Raises:
        OSError: the log cannot be written, or no process can be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_own(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as output:
        output.write(f"$ {shlex.join(['mtrl', 'train', *arguments])}\n".encode())
        output.flush()
        return subprocess.Popen(
            command(arguments, nice, os.getpid()),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def last_line(log: Path) -> str:
    """The last line of a log: an error's reason."""
    try:
        lines = end_of(log).splitlines()
    except OSError:
        return "its log cannot be read"
    text = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return printable(text).removeprefix("mtrl: ")


def verdict(code: int, folder: Path, log: Path) -> tuple[str, str]:
    """What a child's end means: a word, and the reason.

    ``done`` and ``diverged`` are results. ``again``: the same command goes on. ``busy``: another process
    trains there. ``refused``: it was not started, and would not be. ``failed``: the machine or the code did.

    An exit code of 2 alone says little (bad input, no memory, another process), so ``STATUS`` is read.
    """
    status = read_status(folder)
    if status.startswith("DONE"):
        return "done", ""
    if code == 3 or status.startswith("DIVERGED"):
        return "diverged", status
    if code == 4:
        return "again", status
    reason = last_line(log)
    if code == 2 and status.startswith("RUNNING"):
        return "busy", reason
    if code == 2 and not status.startswith("FAILED"):
        return "refused", reason
    return "failed", f"killed by {signal.Signals(-code).name}" if code < 0 else reason
