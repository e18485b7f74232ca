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
        evidence.safetensors    of a diverged run: the last numbers and a batch
        STATUS                  RUNNING, DONE, INTERRUPTED, DIVERGED or FAILED, and why
        .lock                   held by the process that trains here
"""

from __future__ import annotations

import csv
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from mtrl.config import ConfigError
from mtrl.files import sync, write_synced
from mtrl.run.checkpoint import CheckpointError, Checkpoints


class RunFolder:
    """One run's folder.

    Args:
        path: where. It is made by :meth:`start`, and only if no run is there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.meta = self.path / "meta.json"
        self.progress = self.path / "progress.csv"
        self.evaluations = self.path / "eval.jsonl"
        self.conflicts = self.path / "conflict.jsonl"
        self.last = self.path / "policy.safetensors"
        self.best = self.path / "policy_best.safetensors"
        self.evidence = self.path / "evidence.safetensors"
        self.checkpoints = Checkpoints(self.path / "checkpoint")
        self._status = self.path / "STATUS"
        self._lock_file = self.path / ".lock"
        self._lock: IO[str] | None = None

    @property
    def exists(self) -> bool:
        return self.config.exists()

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
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            foreign = any(path.name.removesuffix(".tmp") not in ours for path in self.path.iterdir())
            if foreign and not self.exists:
                raise ConfigError(
                    f"run_dir: {self.path} exists and is no run of mtrl; choose another --run_dir"
                )
            self.lock()
            if self.exists:
                raise ConfigError(f"run_dir: {self.path} got a run of another process meanwhile")
            write_synced(self.meta, _json(meta))
            self.mark("RUNNING")
            write_synced(self.config, config.encode())
        except OSError as error:
            raise ConfigError(f"run_dir: {self.path} cannot be written ({error.strerror})") from None

    def lock(self) -> None:
        """Keep other processes out until :meth:`unlock`, or until this one ends, however it ends.

        Raises:
            ConfigError: another process works in this folder, or it cannot be written.
        """
        try:
            self._lock = self._lock_file.open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"run_dir: another process is training in {self.path}") from None
        except OSError as error:
            raise ConfigError(f"run_dir: {self.path} cannot be written ({error.strerror})") from None

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.close()

    def positions(self) -> dict[str, Any]:
        """How far every log reached, all of it on the disk: what :meth:`rewind` takes."""
        events = list(self._events())
        for path in (*self._logs(), *events):
            if path.exists():
                sync(path)
        return {
            "rows": {file.name: _count_rows(file) for file in self._logs()},
            "events": {path.name: path.stat().st_size for path in events},
        }

    def rewind(self, positions: dict[str, Any]) -> None:
        """Cut every log back to where it was at a checkpoint, so that going on doubles no row."""
        for file in self._logs():
            _keep_rows(file, positions["rows"][file.name])
        for path in self._events():
            size = positions["events"].get(path.name)
            if size is None:
                path.unlink()
            elif path.stat().st_size > size:
                os.truncate(path, size)

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
        return self.path.glob("events.out.tfevents.*")

    def note(self, key: str, value: Any) -> None:
        """Add to a list in ``meta.json``: what happened to the run after its start."""
        try:
            meta = dict(json.loads(self.meta.read_bytes()))
        except (OSError, ValueError, TypeError):
            meta = {"note": "the first meta.json was lost"}
        meta[key] = [*meta.get(key, []), value]
        write_synced(self.meta, _json(meta))

    def mark(self, status: str, reason: str = "") -> None:
        write_synced(self._status, f"{status} {reason}".strip().encode() + b"\n")

    @property
    def status(self) -> str:
        """The line in ``STATUS``; KILLED where it says RUNNING and no process holds the lock."""
        try:
            text = self._status.read_text(errors="replace").strip()
        except OSError:
            return "no status"
        if text.startswith("RUNNING") and not self._is_locked():
            return "KILLED: no process trains it any more, and the same command goes on with it"
        return text

    def _is_locked(self) -> bool:
        try:
            with self._lock_file.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def append(self, file: Path, record: dict[str, Any]) -> None:
        """One more line of a jsonl file; NaN becomes null, so that any reader can read it."""
        with file.open("a") as out:
            out.write(json.dumps(_without_nan(record)) + "\n")

    def logger(self) -> Logger:
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
            with path.open(newline="") as file:
                self.columns = next(csv.reader(file), [])

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        row = {"timesteps": step} | {
            k: v
            for k, v in key_values.items()
            if isinstance(v, (int, float)) and "csv" not in (key_excluded[k] or ())
        }
        if len(row) == 1:  # what was recorded is for TensorBoard alone
            return
        new = [k for k in row if k not in self.columns]
        if new:
            self._widen(new)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _widen(self, new: list[str]) -> None:
        rows: list[dict[str, str]] = []
        if self.columns:
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        self.columns += new
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)

    def close(self) -> None:
        pass


def _count_rows(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _keep_rows(file: Path, count: int) -> None:
    """The first ``count`` lines; a csv file keeps its header, which may have grown wider since."""
    lines = file.read_bytes().split(b"\n") if file.exists() else []
    if len(lines) > count + 1 or (len(lines) == count + 1 and lines[-1]):
        write_synced(file, b"".join(line + b"\n" for line in lines[:count]))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def describe_run(protocol: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What ``meta.json`` tells: where the code, the machine and the command stood."""
    return {
        "command": shlex.join(["mtrl", *sys.argv[1:]]),
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
    """The commit of the source tree, with ``-dirty`` behind it; None for an installed wheel."""
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
