"""Checkpoints: everything that changes in training, written so that a crash at any moment loses nothing.

::

    checkpoint/
        manifest-<step>.json                    names, sizes and checksums of the files below; written last
        state-<step>-<checksum>.safetensors     all but the replay's rows
        rows-<first>-<end>.safetensors          replay rows [first, end), counted since the start

A checkpoint is complete when its manifest is there and every file in it has its checksum. Files are
written next to their place, synced and renamed. Replay rows are written once: a checkpoint adds only
those that are new since the last. The two newest checkpoints are kept.

Every file is safetensors or JSON: loading executes no code. Sizes are compared before anything is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from mtrl.errors import CheckpointError
from mtrl.files import open_own, read_bounded, write_synced
from mtrl.replay import TaskReplay, free_memory

FORMAT = "mtrl-checkpoint-1"
KEPT = 2
MOST_SEGMENTS = 64  # then the rows are written anew, so that files do not pile up
SEGMENT_BYTES = 2**26  # of one file of rows: what writing and loading need in memory on top of the replay
MANIFEST_BYTES = 2**22
# of these names files are written, and no other is ever deleted
OURS = re.compile(r"(manifest-\d+\.json|(state|rows)-\d+-\w+\.safetensors)(\.tmp)?")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._segments: list[dict[str, Any]] = []
        self._complete: list[set[str]] = []  # the files of the newest complete ones, oldest first

    def save(self, step: int, state: dict[str, Any], replay: TaskReplay) -> int:
        """Write a complete checkpoint, then forget all but it and the one before.

        Args:
            step: its number.
            state: see :func:`pack`.

        Returns:
            bytes written.

        Raises:
            OSError: the disk is full or cannot be written; older checkpoints are intact.
        """
        self.folder.mkdir(exist_ok=True)
        oldest = replay.added - replay.size
        segments = [
            self._sound(segment, replay, oldest) for segment in self._segments if segment["end"] > oldest
        ]
        if len(segments) >= MOST_SEGMENTS + replay.nbytes // SEGMENT_BYTES:
            segments = []
        old = len(segments)
        most = max(1, SEGMENT_BYTES * replay.capacity // replay.nbytes)
        first = segments[-1]["end"] if segments else oldest
        while first < replay.added:
            end = min(first + most, replay.added)
            _, rows = replay.rows_since(first, end)
            entry = self._write(
                f"rows-{first}-{end}.safetensors", save({k: v.cpu() for k, v in rows.items()})
            )
            segments.append({**entry, "first": first, "end": end})
            first = end
        counters = {"added": replay.added, "generator": replay.generator.get_state()}
        content = pack({**state, "replay": counters})
        # with its checksum in the name no file of an older manifest of this step is ever overwritten
        entry = self._write(f"state-{step}-{hashlib.sha256(content).hexdigest()[:8]}.safetensors", content)
        manifest = {"format": FORMAT, "step": step, "state": entry, "segments": segments}
        text = json.dumps(manifest, indent=1).encode()
        self._write(f"manifest-{step}.json", text)
        self._segments = segments
        self._forget_all_but(f"manifest-{step}.json", manifest)
        return sum(int(e["bytes"]) for e in [entry, *segments[old:]]) + len(text)

    def _sound(self, segment: dict[str, Any], replay: TaskReplay, oldest: int) -> dict[str, Any]:
        """A segment whose file is as it was written; one that is lost or damaged is written anew from memory."""
        try:
            if file_checksum(self.folder / segment["name"]) == segment["sha256"]:
                return segment
        except OSError:
            pass
        first, end = max(segment["first"], oldest), segment["end"]
        _, rows = replay.rows_since(first, end)
        content = save({k: v.cpu() for k, v in rows.items()})
        return {**self._write(f"rows-{first}-{end}.safetensors", content), "first": first, "end": end}

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
                state = self._load(path, replay)
            except (CheckpointError, OSError) as error:
                problems.append(f"{path.name} is not complete: {error}")
            else:
                for problem in problems:
                    warn(f"checkpoint {problem}")
                return state
        if problems:
            raise CheckpointError(f"{self.folder}: no checkpoint can be used ({problems[0]})")
        return None

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint; None without any."""
        manifests = self._manifests()
        return _step(manifests[0]) if manifests else None

    def _load(self, path: Path, replay: TaskReplay) -> dict[str, Any]:
        try:
            content = read_bounded(path, MANIFEST_BYTES)
        except OSError as error:
            raise CheckpointError(f"it is no manifest ({error.strerror})") from None
        try:
            manifest = json.loads(content)
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']!r}, this version reads {FORMAT!r}")
            entries = [manifest["state"], *manifest["segments"]]
            sizes = [int(entry["bytes"]) for entry in entries]
            for entry, size in zip(entries, sizes, strict=True):
                self._check_size(str(entry["name"]), size)
            # a replay's memory is the system's until rows are written to it: what is there already is not taken again
            rows = max(0, sum(sizes[1:]) - replay.nbytes * replay.size // replay.capacity)
            needed = 3 * sizes[0] + rows + 2 * max(sizes[1:], default=0)
            free = free_memory(torch.device("cpu"))
            if needed > free:
                raise CheckpointError(f"its {sum(sizes)} bytes do not fit in memory ({free} are free)")
            for entry in entries:  # all checksums before anything is changed
                if file_checksum(self.folder / entry["name"]) != entry["sha256"]:
                    raise CheckpointError(f"{entry['name']} does not have its checksum")
            state: dict[str, Any] = unpack(self.folder / manifest["state"]["name"])
            self._fill(replay, state.pop("replay"), manifest["segments"])
        except (CheckpointError, OSError):
            raise
        except Exception as error:  # whatever a foreign content makes of being read
            reason = (str(error).splitlines() or [""])[0]
            raise CheckpointError(f"it is damaged ({type(error).__name__}: {reason})") from None
        self._segments = manifest["segments"]
        self._complete = [_files(path.name, manifest)]
        return state

    def _check_size(self, name: str, size: int) -> None:
        path = self.folder / name
        if path.name != name:
            raise CheckpointError(f"it names a file outside its folder ({name!r})")
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{name} is missing, or no regular file")
        if path.stat().st_size != size:
            raise CheckpointError(f"{name} has {path.stat().st_size} bytes, the manifest says {size}")

    def _fill(self, replay: TaskReplay, counters: dict[str, Any], segments: list[dict[str, Any]]) -> None:
        added = int(counters["added"])
        oldest = max(0, added - replay.capacity)
        reached = segments[0]["first"] if segments else 0
        if reached > oldest:
            raise CheckpointError(
                f"its replay begins at row {reached}; a capacity of {replay.capacity} needs row {oldest}"
            )
        for segment in segments:
            if segment["first"] != reached:
                raise CheckpointError(f"its replay lacks rows from {reached} on")
            reached = segment["end"]
        if reached != added:
            raise CheckpointError(f"its replay has rows up to {reached} of {added}")
        for segment in segments:
            rows = load_file(self.folder / segment["name"])
            first, end = segment["first"], segment["end"]
            if rows["rewards"].shape[1] != end - first:
                raise CheckpointError(f"{segment['name']} has {rows['rewards'].shape[1]} rows")
            skip = max(0, oldest - first)
            replay.load_rows(first + skip, {name: column[:, skip:] for name, column in rows.items()})
        replay.added = added
        replay.generator.set_state(counters["generator"])

    def _manifests(self) -> list[Path]:
        """Newest first."""
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:  # it is there, and what is in it cannot be told
            raise CheckpointError(f"{self.folder}: it cannot be read ({error.strerror})") from None
        found = [self.folder / name for name in names if re.fullmatch(r"manifest-[0-9]{1,18}\.json", name)]
        return sorted(found, key=_step, reverse=True)

    def _write(self, name: str, content: bytes) -> dict[str, Any]:
        write_synced(self.folder / name, content)
        return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def _forget_all_but(self, name: str, manifest: dict[str, Any]) -> None:
        """Delete what neither this checkpoint nor the complete one before it has."""
        before = [files for files in self._complete if name not in files]  # one of the same step is replaced
        self._complete = [*before, _files(name, manifest)][-KEPT:]
        kept = set().union(*self._complete)
        for path in self.folder.iterdir():
            if path.name not in kept and OURS.fullmatch(path.name):
                path.unlink()


def _step(manifest: Path) -> int:
    return int(manifest.stem.split("-")[1])


def _files(name: str, manifest: dict[str, Any]) -> set[str]:
    return {name, *(entry["name"] for entry in [manifest["state"], *manifest["segments"]])}


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def pack(state: Any) -> bytes:
    """A state as one safetensors file: its tensors, and as JSON the tree that holds them.

    Args:
        state: tensors, arrays, numbers, strings, None, and lists and dicts of them. Arrays come back
            as tensors and tuples as lists.

    Raises:
        TypeError: something else is in it.
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.array(value))
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": name}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, dict):
            return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            return [encode(item) for item in value]
        return value  # json refuses what is left and unknown

    tree = json.dumps(encode(state))
    content: bytes = save(tensors, {"state": tree})
    return content


def unpack(path: Path) -> Any:
    """What :func:`pack` wrote."""
    with safe_open(path, framework="pt") as file:
        tree = json.loads(file.metadata()["state"])

        def decode(value: Any) -> Any:
            if isinstance(value, dict):
                if "tensor" in value:
                    # in the file's own memory it may begin at any fourth byte, and products then round otherwise
                    return file.get_tensor(value["tensor"]).clone()
                return {key: decode(item) for key, item in value["dict"]}
            return [decode(item) for item in value] if isinstance(value, list) else value

        return decode(tree)


def generators_state() -> dict[str, Any]:
    """The global generators of torch, numpy and python: ours draw from none, users' code may."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(), "numpy": [kind, keys, *rest], "python": [version, list(internal), gauss],
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }  # fmt: skip


def set_generators_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def with_arrays(value: Any) -> Any:
    """The tensors of a state as arrays: for states that held arrays and no tensors."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {key: with_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_arrays(item) for item in value]
    return value
