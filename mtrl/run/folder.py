"""The folder of one run: what is written where.

::

    runs/<suite>/<label>/seed<n>/
        config.yaml             the resolved config: `mtrl train --config <this file>` repeats the run
        meta.json               commit, versions, host, threads, command, protocol
        progress.csv            one row per log interval
        eval.jsonl              one line per evaluation
        conflict.jsonl          one line per conflict measurement and network
        events.out.tfevents.*   TensorBoard
        policy.safetensors      the newest checkpoint's policy;  policy_best.safetensors: the best at an evaluation
        checkpoint/             all that is needed to go on (see mtrl.run.checkpoint)
        unseen.json             once `mtrl evaluate --goals unseen` was here: success on goals that were not trained on
        evidence.safetensors    of a diverged run: the last numbers and a batch
        STATUS                  RUNNING, DONE, INTERRUPTED, DIVERGED or FAILED, and why
        .lock                   held by the process that trains here, and the mark that the folder is a run

A folder without that mark is never trained in, and of one with it only files of these names are ever deleted. None
of them may be a link.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import importlib.metadata
import io
import json
import os
import platform
import socket
import subprocess
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat
from tensorboard.summary.writer import event_file_writer

from mtrl.config import ConfigError
from mtrl.errors import CheckpointError
from mtrl.files import append, open_own, read_bounded, sync, write_synced
from mtrl.run.checkpoint import Checkpoints
from mtrl.run.paths import RunPaths
from mtrl.run.status import LOCK, STATUS, started

FORMAT = "mtrl-run-1"
MARK = FORMAT.encode()
MOST_BYTES = 2**24  # of meta.json
MOST_LOG = 2**32  # bytes of a log that are looked at
EVENTS = "events.out.tfevents."


class RunFolder(RunPaths):
    """One run's folder.

    Args:
        path: where. It is made by :meth:`start`, and only if no run is there.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.checkpoints = Checkpoints(self.path / "checkpoint")
        self._status = self.path / STATUS
        self._lock_file = self.path / LOCK
        self._lock: IO[str] | None = None

    def require_own(self) -> None:
        """Raise ConfigError unless the folder bears the mark of a run and its parts are what a run writes."""
        self._require_own_kinds()
        marked = False
        with contextlib.suppress(OSError):
            marked = read_bounded(self._lock_file, 4096).startswith(MARK)
        if not marked:
            raise ConfigError(
                f"run_dir: {self.path} exists and bears no mark of a run of this version; choose another --run_dir"
            )

    def _require_own_kinds(self) -> None:
        """Raise ConfigError where a part is a link, or a pipe, a folder or the like in a file's place."""
        checkpoints = self.checkpoints.folder
        for entry in (
            entry for folder in (self.path, checkpoints) if folder.is_dir() for entry in os.scandir(folder)
        ):
            if entry.is_symlink():
                raise ConfigError(f"run_dir: {entry.path} is a link; a run's own files are none")
        files = {
            path.name
            for path in (
                self.config,
                self.meta,
                *self._logs(),
                self.unseen,
                self.last,
                self.best,
                self.evidence,
            )
        }
        files |= {self._status.name, self._lock_file.name}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path == checkpoints and not path.is_dir():
                raise ConfigError(f"run_dir: {path} is no folder")
            named = path.name.removesuffix(".tmp") in files or path.name.startswith(EVENTS)
            if named and not path.is_file():
                raise ConfigError(f"run_dir: {path} is no regular file")

    def start(self, config: str, meta: dict[str, Any]) -> None:
        """Make the folder, lock it and write what is known before training.

        Raises:
            ConfigError: something is there already, or the folder cannot be written.
        """
        ours = {
            ".lock",
            self.meta.name,
            self._status.name,
            self.config.name,
        }  # of a start, killed or under way
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            foreign = any(path.name.removesuffix(".tmp") not in ours for path in self.path.iterdir())
            if foreign and not self.exists:
                raise ConfigError(
                    f"run_dir: {self.path} exists and is no run of mtrl; choose another --run_dir"
                )
            self._require_own_kinds()
            self.lock()
            if self.exists:
                raise ConfigError(f"run_dir: {self.path} got a run of another process meanwhile")
            write_synced(self.meta, _json(meta))
            self.mark("RUNNING")
            write_synced(self.config, config.encode())
        except OSError as error:
            with contextlib.suppress(OSError):  # a refused start leaves no folder
                for folder in made:
                    folder.rmdir()
            raise ConfigError(f"run_dir: {self.path} cannot be written ({error.strerror})") from None

    def lock(self) -> None:
        """Keep other processes out until :meth:`unlock`, or until this one ends, however it ends.

        Raises:
            ConfigError: another process works in this folder, or it cannot be written.
        """
        try:
            file = os.fdopen(open_own(self._lock_file, os.O_RDWR | os.O_CREAT), "r+")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock = file
            # never through an empty file, whose folder would bear no mark if the disk were full or the process killed
            line = f"{MARK.decode()} {os.getpid()} {started(os.getpid())} {socket.gethostname()}\n".encode()
            os.pwrite(file.fileno(), line, 0)
            os.ftruncate(file.fileno(), len(line))
            os.fsync(file.fileno())
        except BlockingIOError:
            raise ConfigError(f"run_dir: another process is training in {self.path}") from None
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
                reason = "its file system has no locks, which keep two processes apart"
            else:
                reason = str(error.strerror)
            raise ConfigError(f"run_dir: {self.path} cannot be written ({reason})") from None

    @property
    def locked(self) -> bool:
        """Whether this process works here, and others are kept out."""
        return self._lock is not None and not self._lock.closed

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None and not self._lock.closed:
            self._lock.truncate(len(MARK))  # the mark stays, the process goes; needs no room on a full disk
            self._lock.close()

    def positions(self) -> dict[str, Any]:
        """How far every log reached, all of it on the disk: what :meth:`rewind` takes."""
        events = list(self._events())
        for path in (*self._logs(), *events):
            if path.exists():
                sync(path)
        return {
            "rows": {file.name: _rows(file)[0] if file.exists() else 0 for file in self._logs()},
            "events": {path.name: path.stat().st_size for path in events},
        }

    def rewind(self, positions: dict[str, Any]) -> list[str]:
        """Cut every log back to where it was at a checkpoint, so that going on doubles no row.

        Returns:
            a line about each log that has lost what it had then.
        """
        lost = []
        for file in self._logs():
            if file.exists():
                there, end = _rows(file, most=positions["rows"][file.name])
                os.truncate(file, end)
            else:
                there = 0
            if there < (written := positions["rows"][file.name]):
                lost.append(f"{file.name} has {there} of the {written} lines that it had at the checkpoint")
        for path in self._events():
            size = positions["events"].get(path.name)
            if size is None:
                path.unlink()
            elif path.stat().st_size > size:
                os.truncate(path, size)
        lost += [f"{name} is gone" for name in positions["events"] if not (self.path / name).exists()]
        return lost

    def clear(self) -> None:
        """Remove what a run wrote that was killed before its first checkpoint.

        Raises:
            CheckpointError: it has results, so a checkpoint was there and is lost.
        """
        results = [path.name for path in (*self._logs(), self.last, self.best) if path.exists()]
        if results:
            raise CheckpointError(
                f"{self.checkpoints.folder}: there is no checkpoint to go on from, and the run has results "
                f"({', '.join(results)}); nothing was changed: choose another --seed, --label or --run_dir"
            )
        for path in self._events():
            path.unlink()

    def _logs(self) -> tuple[Path, ...]:
        return self.progress, self.evaluations, self.conflicts

    def _events(self) -> Iterator[Path]:
        return self.path.glob(f"{EVENTS}*")

    def note(self, key: str, value: Any) -> None:
        """Add to a list in ``meta.json``: what happened to the run after its start."""
        meta = self.described() or {"note": "the first meta.json was lost"}
        before = meta.get(key)
        meta[key] = [*(before if isinstance(before, list) else []), value]
        write_synced(self.meta, _json(meta))

    def described(self) -> dict[str, Any]:
        """What ``meta.json`` tells; nothing where it is lost."""
        try:
            return dict(json.loads(read_bounded(self.meta, MOST_BYTES)))
        except (OSError, ValueError, TypeError, RecursionError):
            return {}

    def restore_meta(self, now: dict[str, Any]) -> None:
        """Write what is known now where ``meta.json`` is lost or damaged: who compares runs reads it."""
        if not isinstance(self.described().get("protocol"), dict):
            write_synced(self.meta, _json({"note": "the first meta.json was lost", **now}))

    def mark(self, status: str, reason: str = "") -> None:
        write_synced(self._status, f"{status} {reason}".strip().encode() + b"\n")

    def append(self, file: Path, record: dict[str, Any]) -> None:
        """One more line of a jsonl file; NaN becomes null, so that any reader can read it."""
        append(file, json.dumps(_without_nan(record)) + "\n")

    def logger(self) -> Logger:
        stamps = [path.name.split(".")[3] for path in self._events()]
        newest = max((int(stamp) for stamp in stamps if stamp.isdecimal()), default=0)
        with _clock_after(newest):
            formats = [TensorBoardOutputFormat(str(self.path)), CsvWriter(self.progress)]
        return Logger(str(self.path), formats)


class CsvWriter(KVWriter):
    """``progress.csv``: appends, and when a new column appears rewrites the file with it.

    Stable-Baselines3's own opens the file anew, which would erase it when a run goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.columns = next(csv.reader(file), [])

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        row = {"steps_per_task": step} | {
            k: v
            for k, v in key_values.items()
            if isinstance(v, (int, float)) and "csv" not in (key_excluded[k] or ())
        }
        if len(row) == 1:  # what was recorded is for TensorBoard alone
            return
        new = [k for k in row if k not in self.columns]
        if new or not self.path.exists():  # or deleted under the run
            self._widen(new)
        line = io.StringIO()
        csv.DictWriter(line, self.columns).writerow(row)
        append(self.path, line.getvalue())

    def _widen(self, new: list[str]) -> None:
        rows: list[dict[str, str]] = []
        if self.columns and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        self.columns += new
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_synced(self.path, text.getvalue().encode())

    def close(self) -> None:
        pass


@contextlib.contextmanager
def _clock_after(stamp: int) -> Iterator[None]:
    """Have TensorBoard name its next file after ``stamp``, in seconds.

    It reads files in the order of their names, and a run that goes on may meet an earlier clock.
    """
    own = event_file_writer.time
    event_file_writer.time = types.SimpleNamespace(time=lambda: max(time.time(), stamp + 1))
    try:
        yield
    finally:
        event_file_writer.time = own


def _rows(file: Path, most: int | None = None) -> tuple[int, int]:
    """How many whole lines begin the file, counted up to ``most``, and where the last of them ends.

    Of a file of absurd size only :data:`MOST_LOG` bytes are looked at.
    """
    count = end = position = 0
    with os.fdopen(open_own(file, os.O_RDONLY), "rb") as opened:
        while position < MOST_LOG and (most is None or count < most) and (piece := opened.read(2**20)):
            found = 0
            while (most is None or count < most) and (found := piece.find(b"\n", found) + 1):
                count, end = count + 1, position + found
            position += len(piece)
    return count, end


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def describe_run(protocol: dict[str, Any], device: torch.device, command: str) -> dict[str, Any]:
    """What ``meta.json`` tells: where the code, the machine and the command stood."""
    return {
        "format": FORMAT,
        "command": command,
        "protocol": protocol,
        "commit": _commit(),
        "versions": versions(),
        "host": socket.gethostname(),
        "machine": platform.platform(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("mtrl-suite", "torch", "numpy", "metaworld", "mujoco", "gymnasium", "stable-baselines3"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str | None:
    """The commit of the source tree, with ``-dirty`` after it; None for an installed wheel."""
    source = Path(__file__).parents[2]
    if not (source / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=source, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return value
