"""Checkpoints on the disk: whole or not there, incremental, two kept, nothing foreign loaded."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as to_bytes

import mtrl.run.checkpoint
from mtrl.errors import CheckpointError
from mtrl.files import write_synced
from mtrl.replay import TaskReplay
from mtrl.run.checkpoint import MOST_SEGMENTS, Checkpoints, pack, unpack

T, CAPACITY = 2, 10


def replay_of(rows: int, capacity: int = CAPACITY) -> TaskReplay:
    """Row n holds the number n."""
    replay = TaskReplay(T, capacity, 3, 1)
    more(replay, rows)
    return replay


def more(replay: TaskReplay, rows: int) -> None:
    for _ in range(rows):
        n = float(replay.added)
        replay.add(
            torch.full((T, 3), n),
            torch.full((T, 1), n),
            torch.full((T,), n),
            torch.full((T, 3), n),
            torch.zeros(T),
        )


def names(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoint")


def test_what_is_packed_comes_back_with_its_types_and_bits(tmp_path):
    state = {
        "tensor": torch.arange(6.0).view(2, 3).T, "bool": torch.tensor([True]), "scalar": torch.tensor(3), "none": None,
        "numbers": [1, 2**100, 0.1, float("inf"), True], "text": "é", 7: {"key": -1},
        "array": np.array([2**32 - 1], np.uint32),
        "numpy": np.float64(0.1), "tuple": (1, (2,)), "empty": {}, "shared": [torch.ones(2)] * 2,
    }  # fmt: skip
    (tmp_path / "state").write_bytes(pack(state))
    back = unpack(tmp_path / "state")
    assert back.keys() == state.keys()
    assert back["tensor"].equal(state["tensor"])
    assert back["bool"].dtype == torch.bool
    assert back["scalar"].shape == ()
    assert (back["numbers"], back["text"], back[7], back["none"]) == (
        state["numbers"],
        "é",
        {"key": -1},
        None,
    )
    assert back["array"].numpy().tolist() == [2**32 - 1]
    assert (back["numpy"], back["tuple"], back["empty"]) == (0.1, [1, [2]], {})


def test_what_is_unpacked_begins_where_arrays_of_this_process_do(tmp_path):
    # products round by where their operands begin: numpy and torch give at least every 16th byte, a file every 4th
    sizes = [1, 2, 3, 5, 7, 9]
    (tmp_path / "state").write_bytes(pack([torch.zeros(size) for size in sizes]))
    assert [tensor.data_ptr() % 16 for tensor in unpack(tmp_path / "state")] == [0] * len(sizes)


def test_what_cannot_be_kept_is_refused_when_it_is_packed():
    with pytest.raises(TypeError, match="object"):
        pack({"something": object()})


@pytest.mark.parametrize("rows", [[4], [4, 3], [10, 5], [3, 25], [7, 0, 9, 2]])
def test_the_replay_comes_back_row_for_row_also_around_its_end(checkpoints, rows):
    replay = TaskReplay(T, CAPACITY, 3, 1, seed=5)
    for count in rows:
        more(replay, count)
        checkpoints.save(replay.added, {}, replay)
    replay.sample(4)
    checkpoints.save(replay.added, {}, replay)
    back = TaskReplay(T, CAPACITY, 3, 1)
    assert Checkpoints(checkpoints.folder).load(back) == {}
    assert back.added == replay.added
    (_, rows), (_, again) = replay.rows_since(0), back.rows_since(0)
    for name, column in rows.items():
        assert again[name].equal(column)
    assert back.sample(4).rewards.equal(replay.sample(4).rewards)


def test_a_checkpoint_writes_only_the_new_rows(checkpoints):
    replay = replay_of(1000, capacity=5000)
    first = checkpoints.save(1, {}, replay)
    more(replay, 10)
    second = checkpoints.save(2, {}, replay)
    assert first > 1000 * T * 9 * 4
    assert second < first / 10
    assert names(checkpoints.folder, "rows*") == ["rows-0-1000.safetensors", "rows-1000-1010.safetensors"]


def test_rows_are_cut_into_files_of_bounded_size(checkpoints, monkeypatch):
    monkeypatch.setattr(mtrl.run.checkpoint, "SEGMENT_BYTES", 3 * T * 9 * 4)
    checkpoints.save(1, {}, replay_of(8))
    assert names(checkpoints.folder, "rows*") == [
        f"rows-{a}-{b}.safetensors" for a, b in ((0, 3), (3, 6), (6, 8))
    ]
    back = replay_of(0)
    checkpoints.load(back)
    assert back.data["rewards"][0, :8, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_many_small_files_of_rows_are_made_one_again(checkpoints):
    replay = replay_of(0, capacity=1000)
    for step in range(MOST_SEGMENTS + 3):
        more(replay, 1)
        checkpoints.save(step, {}, replay)
        assert len(names(checkpoints.folder, "rows*")) <= MOST_SEGMENTS + 1
    back = replay_of(0, capacity=1000)
    checkpoints.load(back)
    assert back.rows_since(0)[1]["rewards"].equal(replay.rows_since(0)[1]["rewards"])


def test_the_newest_two_are_kept_and_nothing_else(checkpoints):
    replay = replay_of(0)
    for step in (1, 2, 3, 4):
        more(replay, 1)
        if step > 1:
            (checkpoints.folder / "rows-0-1.safetensors.tmp").write_text("of a kill")
            (checkpoints.folder / "mine.bin").write_text("another's")
        checkpoints.save(step, {"step": step}, replay)
    assert names(checkpoints.folder, "manifest*") == ["manifest-3.json", "manifest-4.json"]
    assert len(names(checkpoints.folder, "state*")) == 2
    assert names(checkpoints.folder, "*.tmp") == []
    assert names(checkpoints.folder, "mine*") == ["mine.bin"]
    checkpoints.save(4, {"step": "4 again"}, replay)
    assert names(checkpoints.folder, "manifest*") == ["manifest-3.json", "manifest-4.json"]
    assert len(names(checkpoints.folder, "state*")) == 2
    (checkpoints.folder / "manifest-4.json").unlink()
    assert Checkpoints(checkpoints.folder).load(replay_of(0)) == {"step": 3}


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken_and_then_kept(checkpoints):
    replay = replay_of(3)
    checkpoints.save(1, {"step": 1}, replay)
    more(replay, 2)
    checkpoints.save(2, {"step": 2}, replay)
    (checkpoints.folder / "manifest-2.json").write_text("{")
    again, back, told = Checkpoints(checkpoints.folder), replay_of(0), []
    assert again.load(back, told.append) == {"step": 1}
    assert back.added == 3
    assert len(told) == 1
    assert "manifest-2.json is not complete" in told[0]
    more(back, 1)
    again.save(5, {"step": 5}, back)
    assert names(checkpoints.folder, "manifest*") == ["manifest-1.json", "manifest-5.json"]
    (checkpoints.folder / "manifest-5.json").unlink()
    assert Checkpoints(checkpoints.folder).load(replay_of(0)) == {"step": 1}


def test_without_any_there_is_nothing_to_load(checkpoints):
    assert checkpoints.load(replay_of(0)) is None
    assert checkpoints.newest_step() is None


@pytest.mark.parametrize("fails", range(4))
def test_a_full_disk_at_any_write_leaves_the_older_checkpoint_whole(checkpoints, monkeypatch, fails):
    replay = replay_of(3)
    checkpoints.save(1, {"step": 1}, replay)
    more(replay, 2)
    calls = []

    def fsync(handle):
        calls.append(handle)
        if len(calls) == 2 * fails + 1:  # of a file; every other one is of the folder
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        if fails < 3:  # rows, state, manifest
            with pytest.raises(OSError, match="No space left"):
                checkpoints.save(2, {"step": 2}, replay)
        else:
            checkpoints.save(2, {"step": 2}, replay)
    assert names(checkpoints.folder, "*.tmp") == []
    back = replay_of(0)
    expected = {"step": 2} if fails == 3 else {"step": 1}
    assert Checkpoints(checkpoints.folder).load(back) == expected
    more(replay, 1)
    checkpoints.save(3, {"step": 3}, replay)  # and when there is room again it goes on
    assert Checkpoints(checkpoints.folder).load(back) == {"step": 3}
    assert back.added == 6


def test_saving_a_step_again_never_touches_the_files_of_its_older_checkpoint(checkpoints, monkeypatch):
    replay = replay_of(3)
    checkpoints.save(1, {"a": 1}, replay)

    def all_but_the_manifest(path, content):
        if "manifest" in path.name:
            raise OSError(28, "No space left on device")
        write_synced(path, content)

    monkeypatch.setattr(mtrl.run.checkpoint, "write_synced", all_but_the_manifest)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(1, {"a": 2}, replay)
    assert Checkpoints(checkpoints.folder).load(replay_of(0)) == {"a": 1}


def test_a_larger_replay_than_the_rows_that_were_kept_is_refused(checkpoints):
    checkpoints.save(1, {}, replay_of(25))
    with pytest.raises(CheckpointError, match="begins at row 15; a capacity of 20 needs row 5"):
        checkpoints.load(replay_of(0, capacity=20))
    smaller = replay_of(0, capacity=4)
    checkpoints.load(smaller)
    assert sorted(smaller.data["rewards"][0, :, 0].tolist()) == [21, 22, 23, 24]


def rewrite(folder: Path, change) -> None:
    """Change the only manifest, as somebody would who can compute checksums."""
    (path,) = folder.glob("manifest-*.json")
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace(folder: Path, entry: dict, content: bytes) -> None:
    (folder / entry["name"]).write_bytes(content)
    entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit flipped in the state": (lambda f, m: flip(f / m["state"]["name"]), "does not have its checksum"),
    "a bit flipped in the rows": (lambda f, m: flip(f / m["segments"][0]["name"]), "does not have its checksum"),
    "a truncated state": (lambda f, m: os.truncate(f / m["state"]["name"], 10), "has 10 bytes, the manifest says"),
    "a missing file of rows": (lambda f, m: (f / m["segments"][0]["name"]).unlink(), "is missing"),
    "an absurd size": (lambda f, m: m["state"].update(bytes=10**18), "the manifest says 1000000000000000000"),
    "a file outside the folder": (lambda f, m: m["state"].update(name="../../etc/passwd"), "outside its folder"),
    "a folder in place of a file": (lambda f, m: m["state"].update(name="."), "outside its folder|is missing"),
    "another format": (lambda f, m: m.update(format="9"), "format '9', this version reads"),
    "no format": (lambda f, m: m.pop("format"), "damaged .KeyError"),
    "segments that are no list": (lambda f, m: m.update(segments=3), "damaged .TypeError"),
    "rows left out": (lambda f, m: m.update(segments=[]), "rows up to 0 of 3"),
    "rows that begin late": (lambda f, m: m["segments"][0].update(first=1), "begins at row 1"),
    "fewer rows than named": (
        lambda f, m: replace(f, m["segments"][0], to_bytes({"rewards": torch.zeros(T, 2, 1)})), "has 2 rows"
    ),
    "a column too few": (
        lambda f, m: replace(f, m["segments"][0], to_bytes({"rewards": torch.zeros(T, 3, 1)})),
        "damaged .KeyError",
    ),
    "a pickle in place of the state": (lambda f, m: replace(f, m["state"], PICKLE), "damaged .SafetensorError"),
    "a tree that names no tensor of the file": (
        lambda f, m: replace(f, m["state"], to_bytes({}, {"state": '{"dict": [["replay", {"tensor": "0"}]]}'})),
        "damaged .SafetensorError",
    ),
    "a tree too deep": (
        lambda f, m: replace(f, m["state"], to_bytes({}, {"state": "[" * 10**5 + "]" * 10**5})), "RecursionError"
    ),
}  # fmt: skip
PICKLE = b"cos\nsystem\n(S'touch executed'\ntR."


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_hostile_checkpoint_is_refused_by_name(checkpoints, monkeypatch, tmp_path, damage):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(1, {"step": 1}, replay_of(3))
    change, words = DAMAGE[damage]
    rewrite(checkpoints.folder, lambda manifest: change(checkpoints.folder, manifest))
    with pytest.raises(CheckpointError, match=words) as caught:
        Checkpoints(checkpoints.folder).load(replay_of(0))
    assert "\n" not in str(caught.value)
    assert "manifest-1.json" in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_synced(path, b"old")

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_synced(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]
