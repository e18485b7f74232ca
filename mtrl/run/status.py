"""What became of a run, read from its folder; loads nothing of training."""

from __future__ import annotations

import socket
from pathlib import Path

from mtrl.files import read_bounded

STATUS, LOCK = "STATUS", ".lock"


def read_status(folder: Path) -> str:
    """The line in ``STATUS``; KILLED where it says RUNNING and no process holds the lock; or ``no status``."""
    try:
        text = read_bounded(folder / STATUS, 4096).decode(errors="replace").strip()
    except OSError:
        return "no status"
    text = "".join(c if c.isprintable() else "?" for c in text)
    if text.startswith("RUNNING") and not is_locked(folder):
        return "KILLED: no process trains it any more, and the same command goes on with it"
    return text


def is_locked(folder: Path) -> bool:
    """Whether the process that wrote the lock is alive: read, not tried, since a try can keep a start out.

    Of a process on another host that cannot be told, and it counts as alive.
    """
    try:
        _, number, start, host = read_bounded(folder / LOCK, 4096).decode().split()
        pid = int(number)
    except (OSError, ValueError):
        return False
    return host != socket.gethostname() or (started(pid) == start != "gone")


def started(pid: int) -> str:
    """When a process was started, as the system counts; ``gone`` without one, ``unknown`` where none can tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return "gone" if Path("/proc/self/stat").exists() else "unknown"
    except OSError:
        return "gone"
    state, *fields = text.rpartition(")")[2].split()
    return "gone" if state == "Z" else fields[18]
