"""Run folders that somebody else made, damaged or laid links into: what is not ours is neither written nor deleted."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from tiny_runs import POINT, at_step, status, train, train_until, written

from mtrl import cli
from mtrl.envs.point import PointEnv
from mtrl.replay import TaskReplay, free_memory
from mtrl.run.checkpoint import Checkpoints
from mtrl.run.folder import RunFolder


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("stopped") / "run"
    train_until(50, run)
    return run


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    """A run that was stopped in its middle."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def contents(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(
    "name",
    [".lock", "STATUS", "STATUS.tmp", "meta.json", "meta.json.tmp", "config.yaml", "policy.safetensors",
     "policy.safetensors.tmp", "progress.csv", "eval.jsonl", "conflict.jsonl", "events.out.tfevents.9.x", "checkpoint",
     "checkpoint/rows-0-1.safetensors"],
)  # fmt: skip
def test_a_part_that_is_a_link_is_refused_and_what_it_points_to_is_left(stopped, tmp_path, capfd, name):
    victim = tmp_path / "victim"
    victim.mkdir()
    place = stopped / name
    precious = place.read_bytes() if name == "config.yaml" else b"precious"
    (victim / "file").write_bytes(precious)
    target = victim if name == "checkpoint" else victim / "file"
    if name == "checkpoint":
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(target)
    for arguments in (["train", *POINT, f"--run_dir={stopped}"], ["train", f"--resume={stopped}"]):
        before = contents(stopped)
        capfd.readouterr()
        code = cli.main(arguments)
        (line,) = capfd.readouterr().err.splitlines()
        assert code == 2, line
        line = line.replace(str(tmp_path), "")  # whose name has the test's
        assert (
            "link" in line
            or "cannot be read" in line
            or "no regular file" in line
            or "no run's folder" in line
        )
        assert contents(stopped) == before
    assert contents(victim) == {"file": precious}


def test_a_run_in_a_folder_that_is_reached_by_a_link_goes_on(stopped, tmp_path, undisturbed):
    (tmp_path / "link").symlink_to(stopped)
    assert train(tmp_path / "link") == 0
    assert written(stopped) == undisturbed


def test_another_programs_folder_is_left_as_it_is_whatever_is_allowed(tmp_path, capfd):
    own = tmp_path / "own"
    (own / "checkpoint").mkdir(parents=True)
    (own / "config.yaml").write_text("seed: 3\n")
    (own / "meta.json").write_text('{"protocol": {}}')
    (own / "checkpoint" / "model.bin").write_text("mine")
    (own / "checkpoint" / "manifest-1.json").write_text("{}")
    (own / "events.out.tfevents.1.mine").write_text("mine")
    before = contents(own)
    for more in ([], ["--allow_changes"]):
        for arguments in (["train", *POINT, f"--run_dir={own}", *more], ["train", f"--resume={own}", *more]):
            assert cli.main(arguments) == 2
            assert "bears no mark of a run" in capfd.readouterr().err
            assert contents(own) == before


def test_a_pipe_or_a_huge_file_in_place_of_a_status_or_log_blocks_and_fills_nothing(stopped, capfd):
    (stopped / "STATUS").unlink()
    os.mkfifo(stopped / "STATUS")
    assert RunFolder(stopped).status == "no status"
    (stopped / "STATUS").unlink()
    (stopped / "STATUS").touch()
    os.truncate(stopped / "STATUS", 2**32)
    assert RunFolder(stopped).status == "no status"
    (stopped / "STATUS").write_text("DONE\n")
    (stopped / "eval.jsonl").touch()
    os.truncate(stopped / "eval.jsonl", 2**32)
    capfd.readouterr()
    assert cli.main(["compare", str(stopped)]) == 2
    assert "eval.jsonl cannot be read (it has more than" in capfd.readouterr().err


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize(
    "name",
    [
        "progress.csv",
        "eval.jsonl",
        "conflict.jsonl",
        "events.out.tfevents.9.x",
        "meta.json",
        "STATUS",
        "STATUS.tmp",
    ],
)
def test_a_pipe_or_a_folder_in_a_files_place_is_refused_before_anything_is_changed(
    stopped, capfd, name, make
):
    (stopped / name).unlink(missing_ok=True)
    make(stopped / name)
    before = contents(stopped)
    capfd.readouterr()
    assert cli.main(["train", f"--resume={stopped}"]) == 2
    assert capfd.readouterr().err == f"mtrl: run_dir: {stopped / name} is no regular file\n"
    assert contents(stopped) == before


def test_a_log_that_was_made_huge_is_cut_back_without_being_read_into_memory(stopped, undisturbed):
    for name in ("progress.csv", "eval.jsonl", "conflict.jsonl"):
        (stopped / name).touch()
        os.truncate(stopped / name, 2**40)  # more than any memory, and hours of reading
    assert cli.main(["train", f"--resume={stopped}"]) == 0
    assert written(stopped) == undisturbed


def test_a_log_that_is_nothing_but_a_hole_is_named_and_cut(stopped, monkeypatch, capfd):
    monkeypatch.setattr("mtrl.run.folder.MOST_LOG", 2**22)
    (stopped / "progress.csv").write_text("")
    os.truncate(stopped / "progress.csv", 2**40)
    assert cli.main(["train", f"--resume={stopped}"]) == 0
    assert "progress.csv has 0 of the 3 lines" in capfd.readouterr().err
    assert (stopped / "progress.csv").stat().st_size < 2**20


@pytest.mark.parametrize("number", ["abc", "²", "9" * 3000])
def test_a_lock_that_names_no_process_is_nobodys(stopped, number):
    (stopped / "STATUS").write_text("RUNNING\n")
    (stopped / ".lock").write_text(f"mtrl-run-1 {number} 1 {socket.gethostname()}\n")
    assert RunFolder(stopped).status.startswith("KILLED")


def test_rows_that_are_lost_or_flipped_while_a_run_goes_on_are_written_anew(tmp_path):
    checkpoints, replay = Checkpoints(tmp_path / "checkpoint"), TaskReplay(2, 50, 3, 1)

    def more(count: int) -> None:
        for i in range(count):
            value = torch.full((2, 3), float(replay.added + i))
            replay.add(value, value[:, :1], value[:, 0], value, torch.zeros(2))

    more(10)
    checkpoints.save(1, {}, replay)
    (old,) = checkpoints.folder.glob("rows*")
    raw = old.read_bytes()
    for damage in (raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:], raw[:50], None):
        old.unlink()
        if damage is not None:
            old.write_bytes(damage)
        more(5)
        checkpoints.save(replay.added, {}, replay)
        assert old.read_bytes() == raw
    back = TaskReplay(2, 50, 3, 1)
    Checkpoints(checkpoints.folder).load(back, warn=lambda text: pytest.fail(text))
    assert back.rows_since(0)[1]["obs"].equal(replay.rows_since(0)[1]["obs"])


def test_rows_that_are_lost_after_the_ring_went_round_are_written_as_far_as_they_are_kept(tmp_path):
    checkpoints, replay = Checkpoints(tmp_path / "checkpoint"), TaskReplay(1, 8, 1, 1)
    for step in range(12):
        one = torch.full((1, 1), float(step))
        replay.add(one, one, one[:, 0], one, torch.zeros(1))
        if step in (5, 11):
            for path in checkpoints.folder.glob("rows*"):
                path.write_bytes(b"")
            checkpoints.save(step, {}, replay)
    back = TaskReplay(1, 8, 1, 1)
    Checkpoints(checkpoints.folder).load(back, warn=lambda text: pytest.fail(text))
    assert back.rows_since(0)[1]["obs"].flatten().tolist() == list(range(4, 12))


def test_a_resume_needs_the_memory_of_the_replay_once(tmp_path, monkeypatch):
    checkpoints, replay = Checkpoints(tmp_path / "checkpoint"), TaskReplay(1, 1000, 50, 4)
    for _ in range(1000):
        replay.add(torch.ones(1, 50), torch.ones(1, 4), torch.ones(1), torch.ones(1, 50), torch.zeros(1))
    monkeypatch.setattr("mtrl.run.checkpoint.SEGMENT_BYTES", replay.nbytes // 50)
    checkpoints.save(1, {}, replay)
    # a new process: the buffer's pages are not taken yet. The same process: they are
    for back, free in ((TaskReplay(1, 1000, 50, 4), 1.3 * replay.nbytes), (replay, 0.3 * replay.nbytes)):
        monkeypatch.setattr("mtrl.run.checkpoint.free_memory", lambda device, free=free: free)
        assert Checkpoints(checkpoints.folder).load(back) == {}


def test_an_empty_replay_takes_no_memory_before_rows_are_written(tmp_path):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    replay = TaskReplay(10, 50_000, 100, 4)
    assert replay.nbytes > 4e8
    assert resident() - before < 5e7


def test_logs_that_are_shorter_than_the_checkpoint_says_are_named(stopped, capfd):
    (stopped / "progress.csv").write_text("")
    capfd.readouterr()
    assert train(stopped) == 0
    error = capfd.readouterr().err
    assert "warning: progress.csv has 0 of the 3 lines that it had at the checkpoint" in error
    rows = (stopped / "progress.csv").read_text().splitlines()
    assert rows[0].startswith("steps_per_task")
    assert len(rows) > 1 + 3


def test_a_log_that_is_deleted_under_a_run_begins_again_with_its_header(tmp_path, monkeypatch):
    run = tmp_path / "run"
    at_step(monkeypatch, 70, lambda trainer: (run / "progress.csv").unlink())
    assert train(run) == 0
    rows = (run / "progress.csv").read_text().splitlines()
    assert rows[0].startswith("steps_per_task")
    assert len(rows) > 1
    assert not any(row.startswith("steps_per_task") for row in rows[1:])


def test_a_damaged_meta_file_is_made_anew_by_a_resume(stopped, capfd):
    (stopped / "meta.json").write_text("{")
    assert train(stopped) == 0
    assert json.loads((stopped / "meta.json").read_text())["protocol"]["name"].startswith("point-")
    assert cli.main(["compare", str(stopped)]) == 0


def test_a_meta_file_of_other_types_does_not_keep_a_run_from_going_on(stopped):
    (stopped / "meta.json").write_text('{"protocol": {}, "resumed": 3}')
    assert cli.main(["train", f"--resume={stopped}"]) == 0
    assert len(json.loads((stopped / "meta.json").read_text())["resumed"]) == 1


def test_tensorboards_files_are_in_order_whatever_the_clock_says(stopped, monkeypatch, undisturbed):
    (first,) = stopped.glob("events*")
    stamp = int(first.name.split(".")[3])
    monkeypatch.setattr("time.time", lambda: 1_000_000_000.0)
    assert train(stopped) == 0
    first, *others = sorted(stopped.glob("events*"))
    assert int(first.name.split(".")[3]) == stamp
    assert others
    assert written(stopped) == undisturbed


def test_an_env_that_exits_fails_the_run_by_its_tasks_name(tmp_path, monkeypatch, capfd):
    def leave(self, action):
        raise SystemExit(0)

    monkeypatch.setattr(PointEnv, "step", leave)
    assert train(tmp_path / "run", "--workers=0") == 1
    assert "task point-reach: its env called sys.exit(0)" in capfd.readouterr().err
    assert status(tmp_path / "run").startswith("FAILED task point-reach")


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (
            {"cgroup": "0::/\n", "sys/memory.max": "1000", "sys/memory.current": "300",
             "sys/memory.stat": "inactive_file 50"},
            750,
        ),
        (
            {"cgroup": "0::/a/b\n", "sys/a/memory.max": "500", "sys/a/memory.current": "100",
             "sys/a/memory.stat": "inactive_file 0", "sys/a/b/memory.max": "max", "sys/a/b/memory.current": "90",
             "sys/a/b/memory.stat": "inactive_file 0"},
            400,
        ),
        (
            {"cgroup": "5:cpu:/x\n4:memory:/x\n", "sys/memory/x/memory.limit_in_bytes": "700",
             "sys/memory/x/memory.usage_in_bytes": "600", "sys/memory/x/memory.stat": "total_inactive_file 30"},
            130,
        ),
        ({"cgroup": "4:memory:/docker/abc\n", "sys/memory/memory.limit_in_bytes": "700",
          "sys/memory/memory.usage_in_bytes": "650", "sys/memory/memory.stat": "total_inactive_file 0"}, 50),
    ],
)  # fmt: skip
def test_memory_limits_of_control_groups_count_at_every_level_and_in_both_versions(
    tmp_path, monkeypatch, files, free
):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("mtrl.replay.CGROUP", tmp_path / "sys")
    monkeypatch.setattr("mtrl.replay.MEMBERSHIP", tmp_path / "cgroup")
    assert free_memory(torch.device("cpu")) == free


def test_reading_a_status_keeps_no_start_out(stopped):
    run = RunFolder(stopped)
    run.lock()
    assert "RUNNING" not in RunFolder(stopped).status
    run.mark("RUNNING")
    assert RunFolder(stopped).status == "RUNNING"
    run.unlock()
    assert RunFolder(stopped).status.startswith("KILLED")
    run.mark("DONE")
    assert RunFolder(stopped).status == "DONE"
