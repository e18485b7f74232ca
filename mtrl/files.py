"""Files that are whole or not there, and never somebody else's through a link."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

TAIL = 2**18  # bytes of a file's end that are read

# not through a link, and without waiting for the other end of a pipe
SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_own(path: Path, flags: int) -> int:
    """A file descriptor of a regular file that is no link.

    Raises:
        OSError: it is a link, a folder, a pipe or a device; or cannot be opened.
    """
    handle = os.open(path, flags | SAFELY, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return handle


def end_of(path: Path) -> str:
    """The last 256 KB at most of a regular file, as text.

    Raises:
        OSError: it is no regular file, or cannot be read.
    """
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        return file.read(TAIL).decode(errors="replace")


def read_bounded(path: Path, most: int) -> bytes:
    """A regular file's content.

    Raises:
        OSError: it has more than ``most`` bytes, is no regular file, or cannot be read.
    """
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
        return file.read(most)


def append(path: Path, content: str) -> None:
    """Add to a file's end, or begin it.

    Raises:
        OSError: it cannot be written, or is no regular file.
    """
    with os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "w", encoding="utf-8") as file:
        file.write(content)


def write_synced(path: Path, content: bytes) -> None:
    """The whole content or the old file: written next to it, synced, renamed, the rename synced too.

    Raises:
        OSError: it could not be written; the old file is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()  # what was left of another start, or a link that somebody laid
        with os.fdopen(open_own(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the system put a file, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
