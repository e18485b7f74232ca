"""A run's folder: locks, marks, logs that are cut back, and what happens when the disk fails under it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from tiny_runs import at_step, scalars, train, train_until, written

from mtrl import cli
from mtrl.config import ConfigError
from mtrl.run.folder import CsvWriter, RunFolder


@pytest.fixture
def disk(tmp_path):
    """A file system of 3 MB of its own; ``mount(options)`` changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this needs a user who may mount")
    yield folder
    # open files of a run that failed keep it busy
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def read_only(folder: Path) -> None:
    """Lay a read-only view of the folder over it; what is open stays as it is."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb") as file:
        for size in (2**16, 2**10, 1):
            try:
                while True:
                    file.write(b"x" * size)
                    file.flush()
            except OSError:
                pass


def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_old_one_and_the_run_can_go_on(
    disk, monkeypatch, capfd, undisturbed
):
    run = disk / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 70, lambda trainer: fill(disk))
        assert train(run, "--checkpoint_every=1e-9", "--log_every=120", "--diagnostics_every=0") == 1
    error = capfd.readouterr().err
    assert "No space left on device" in error
    assert "the newest checkpoint is of step 70 per task: the same command goes on from it" in error
    assert "Traceback" not in error
    assert cli.main(["evaluate", str(run), "--json=-"]) == 0
    assert json.loads(capfd.readouterr().out)["steps_per_task"] == 70
    (disk / "filler").unlink()
    assert train(run, "--checkpoint_every=1e-9", "--log_every=120", "--diagnostics_every=0") == 0
    assert (run / "policy.safetensors").read_bytes() == undisturbed["policy"]


def test_a_disk_that_is_full_at_a_log_ends_the_run_in_a_line_and_it_can_go_on(
    disk, monkeypatch, capfd, undisturbed
):
    run = disk / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 70, lambda trainer: fill(disk))
        assert train(run) == 1
    error = capfd.readouterr().err
    assert "No space left on device; the newest checkpoint is of step 0 per task" in error
    assert "Traceback" not in error
    (disk / "filler").unlink()
    assert RunFolder(run).status.startswith(("FAILED", "KILLED"))
    assert train(run) == 0
    assert written(run) == undisturbed


def test_a_folder_that_becomes_read_only_ends_the_run_in_a_line_and_it_can_go_on(
    disk, monkeypatch, capfd, undisturbed
):
    run = disk / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 70, lambda trainer: read_only(disk))
        assert train(run, "--checkpoint_every=1e-9") == 1
    assert "Read-only file system" in capfd.readouterr().err
    assert train(run, "--checkpoint_every=1e-9") == 2
    assert f"run_dir: {run} cannot be written (Read-only file system)" in capfd.readouterr().err
    assert train(disk / "another") == 2
    assert "another cannot be written (Read-only file system)" in capfd.readouterr().err
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    assert train(run, "--checkpoint_every=1e-9") == 0
    assert written(run) == undisturbed


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch, undisturbed):
    run, now = tmp_path / "run", [2e9]

    def backwards() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    train_until(70, run, "--checkpoint_every=1e-9")
    assert train(run, "--checkpoint_every=1e-9") == 0
    assert written(run) == undisturbed


def test_tensorboards_files_may_be_deleted_under_a_run(tmp_path, monkeypatch, undisturbed):
    run = tmp_path / "run"

    def delete(trainer):
        for path in run.glob("events.*"):
            path.unlink()

    with monkeypatch.context() as patch:
        at_step(patch, 50, delete)
        train_until(70, run)
    assert train(run) == 0
    result = written(run)
    del result["scalars"]
    assert result == {key: value for key, value in undisturbed.items() if key != "scalars"}
    assert {step for step, _ in scalars(run)["train/critic_loss"]} == {60, 80, 100, 120}  # what came after


def test_logs_are_cut_back_to_a_checkpoint_with_half_a_row_at_their_end(tmp_path):
    run = RunFolder(tmp_path)
    csv = CsvWriter(run.progress)
    csv.write({"a": 1.0}, {"a": ()}, 1)
    run.append(run.evaluations, {"n": 1, "nan": float("nan")})
    positions = run.positions()
    csv.write({"a": 2.0, "b": 3.0}, {"a": (), "b": ()}, 2)
    run.append(run.evaluations, {"n": 2})
    with run.evaluations.open("a") as file:
        file.write('{"n": 3, "half')
    (tmp_path / "events.out.tfevents.later").write_text("of after the checkpoint")
    run.rewind(positions)
    assert run.progress.read_bytes() == b"steps_per_task,a,b\r\n1,1.0,\r\n"
    assert run.evaluations.read_text() == '{"n": 1, "nan": null}\n'
    assert not list(tmp_path.glob("events*"))
    CsvWriter(run.progress).write({"b": 4.0}, {"b": ()}, 2)
    assert run.progress.read_text().splitlines()[1:] == ["1,1.0,", "2,,4.0"]


def test_half_a_row_directly_behind_the_checkpoint_is_cut_too(tmp_path):
    run = RunFolder(tmp_path)
    run.append(run.conflicts, {"n": 1})
    positions = run.positions()
    with run.conflicts.open("a") as file:
        file.write('{"n"')
    run.rewind(positions)
    assert run.conflicts.read_text() == '{"n": 1}\n'


def test_a_lock_keeps_others_out_until_it_is_given_back(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.lock()
    with pytest.raises(ConfigError, match="another process is training in"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path, capfd):
    (tmp_path / "notes.txt").write_text("mine")
    assert train(tmp_path) == 2
    assert "exists and is no run of mtrl" in capfd.readouterr().err
    assert os.listdir(tmp_path) == ["notes.txt"]
    assert train(tmp_path / "notes.txt") == 2
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_start_that_was_killed_before_its_config_was_written_can_be_made_again(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "meta.json").write_text("{}")
    (tmp_path / "STATUS.tmp").write_text("RUN")
    (tmp_path / "config.yaml.tmp").write_text("see")
    run.start("seed: 0\n", {"command": "mtrl"})
    assert json.loads(run.meta.read_text()) == {"command": "mtrl"}
    run.unlock()


def test_a_lost_meta_file_does_not_lose_the_run(tmp_path):
    run = RunFolder(tmp_path)
    run.meta.write_text("{")
    run.note("resumed", {"steps_per_task": 5})
    assert json.loads(run.meta.read_text())["resumed"] == [{"steps_per_task": 5}]
