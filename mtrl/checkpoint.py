"""Checkpoints: everything that changes in training, written so that a crash at any moment loses nothing.

::

    checkpoint/
        manifest-<step>.json    names, sizes and checksums of the files below; written last
        state-<step>.pt         all but the replay's rows
        rows-<first>-<end>.safetensors   replay rows [first, end), counted since the start

A checkpoint is complete when its manifest is there and every file in it has its checksum. Files are
written beside their place, synced and renamed. Replay rows are written once: a checkpoint adds only
those that are new since the last. The two newest checkpoints are kept.

Nothing is unpickled beyond ``torch.load(weights_only=True)``: loading executes no code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_rows
from safetensors.torch import save as save_rows
from torch import Tensor

from mtrl.replay import TaskReplay, free_memory

KEPT = 2
MOST_SEGMENTS = 64  # then the rows are written anew as one, so that files do not pile up


class CheckpointError(ValueError):
    """No checkpoint can be used. One line: which file, and what is wrong with it."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._segments: list[dict[str, Any]] = []

    def save(self, step: int, state: dict[str, Any], replay: TaskReplay) -> int:
        """Write a complete checkpoint, then forget all but the newest two.

        Args:
            step: its number, growing.
            state: tensors, arrays, numbers, strings, None, and lists and string-keyed dicts of them.

        Returns:
            bytes written.

        Raises:
            OSError: the disk is full or cannot be written; older checkpoints are intact.
        """
        self.folder.mkdir(exist_ok=True)
        oldest = replay.added - replay.size
        segments = [segment for segment in self._segments if segment["end"] > oldest]
        if len(segments) >= MOST_SEGMENTS:
            segments = []
        written = 0
        start = segments[-1]["end"] if segments else 0
        if replay.added > start:
            first, rows = replay.rows_since(start)
            name = f"rows-{first}-{replay.added}.safetensors"
            entry = self._write(name, save_rows({k: v.cpu().contiguous() for k, v in rows.items()}))
            segments.append({**entry, "first": first, "end": replay.added})
            written += entry["bytes"]
        buffer = io.BytesIO()
        counters = {"added": replay.added, "generator": replay.generator.get_state()}
        torch.save(plain({**state, "replay": counters}), buffer)
        entry = self._write(f"state-{step}.pt", buffer.getvalue())
        manifest = {"step": step, "state": entry, "segments": segments}
        self._write(f"manifest-{step}.json", json.dumps(manifest, indent=1).encode())
        self._segments = segments
        self._forget()
        return written + int(entry["bytes"])

    def load(
        self, replay: TaskReplay, warn: Callable[[str], None] = lambda text: None
    ) -> dict[str, Any] | None:
        """The newest complete checkpoint: the replay is filled, the state returned; None without any.

        A damaged one is named to ``warn`` and the one before it is taken.

        Raises:
            CheckpointError: there are checkpoints, and none is complete.
        """
        problems = []
        for path in self._manifests():
            try:
                return self._load(path, replay)
            except (CheckpointError, OSError) as error:
                problems.append(str(error))
                warn(f"checkpoint {path.name} is not complete: {error}")
        if problems:
            raise CheckpointError(f"{self.folder}: no complete checkpoint ({problems[0]})")
        return None

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint; None without any."""
        manifests = self._manifests()
        return int(manifests[0].stem.split("-")[1]) if manifests else None

    def _load(self, path: Path, replay: TaskReplay) -> dict[str, Any]:
        try:
            manifest = json.loads(path.read_text())
            entries = [manifest["state"], *manifest["segments"]]
            names = [str(entry["name"]) for entry in entries]
            total = sum(int(entry["bytes"]) for entry in entries)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path.name} is damaged ({type(error).__name__})") from None
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{path.name} names a file outside its folder")
        found = sum((self.folder / name).stat().st_size for name in names)
        if found != total:
            raise CheckpointError(f"its files have {found} bytes, the manifest says {total}")
        if 2 * total > free_memory(torch.device("cpu")):
            raise CheckpointError(f"its {total} bytes do not fit in memory")
        for entry in entries:  # all checksums before anything is changed
            if checksum((self.folder / entry["name"]).read_bytes()) != entry["sha256"]:
                raise CheckpointError(f"{entry['name']} does not have its checksum")
        try:
            state: dict[str, Any] = torch.load(self.folder / manifest["state"]["name"], weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that is not its own
            raise CheckpointError(
                f"{manifest['state']['name']} cannot be loaded ({type(error).__name__})"
            ) from None
        counters = state.pop("replay")
        replay.added = counters["added"]
        replay.generator.set_state(counters["generator"])
        for entry in manifest["segments"]:
            rows = load_rows((self.folder / entry["name"]).read_bytes())
            skip = max(0, replay.added - replay.size - entry["first"])
            replay.load_rows(entry["first"] + skip, {name: column[:, skip:] for name, column in rows.items()})
        self._segments = manifest["segments"]
        return state

    def _manifests(self) -> list[Path]:
        """Newest first."""
        found = [path for path in self.folder.glob("manifest-*.json") if path.stem.split("-")[1].isdigit()]
        return sorted(found, key=lambda path: -int(path.stem.split("-")[1]))

    def _write(self, name: str, content: bytes) -> dict[str, Any]:
        write_synced(self.folder / name, content)
        return {"name": name, "bytes": len(content), "sha256": checksum(content)}

    def _forget(self) -> None:
        """Delete all that no kept manifest names."""
        manifests = self._manifests()[:KEPT]
        kept = {path.name for path in manifests}
        for path in manifests:
            manifest = json.loads(path.read_text())
            kept |= {entry["name"] for entry in [manifest["state"], *manifest["segments"]]}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()


def write_synced(path: Path, content: bytes) -> None:
    """The whole content or the old file: written beside, synced, renamed, the rename synced too."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def generators_state() -> dict[str, Any]:
    """The global generators of torch, numpy and python: ours draw from none, users' code may."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(), "numpy": [kind, keys, *rest], "python": [version, list(internal), gauss],
    }  # fmt: skip


def set_generators_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def plain(value: Any) -> Any:
    """What ``torch.load(weights_only=True)`` takes: arrays become tensors, tuples lists, numpy scalars numbers."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def with_arrays(value: Any) -> Any:
    """:func:`plain` undone for states that hold arrays and no tensors."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {key: with_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_arrays(item) for item in value]
    return value
