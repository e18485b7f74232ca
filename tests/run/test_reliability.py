"""Runs that are stopped and go on: every time to the same bytes, rows and scalars as undisturbed ones."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from tiny_runs import POINT, STEPS, at_step, resumed, send, status, train, train_until, written

from mtrl import cli
from mtrl.commands import train as train_command
from mtrl.evaluate import evaluate
from mtrl.run.status import read_status
from mtrl.settings.files import dump_yaml, load_yaml
from mtrl.settings.train import changed_settings, parse_train

METAWORLD = [
    "--protocol.suite=custom", "--protocol.tasks=[reach-v3, drawer-open-v3]", "--threads=1",
    "--protocol.horizon=50", "--protocol.num_goals=2",
    "--total_steps_per_task=90", "--warmup_steps=20", "--log_every=15", "--eval_every=45", "--eval_episodes=1",
    "--diagnostics_every=15", "--replay.batch_size=8", "--agent.actor.hidden=[8]", "--agent.critic.hidden=[8]",
]  # fmt: skip


STOPS_ITSELF = """
import os, signal, sys
from mtrl import cli
from mtrl.train import Trainer
remember = Trainer._remember
def stop(self, *arguments):
    remember(self, *arguments)
    if self.num_timesteps // self.envs.num_envs == 49:
        os.kill(os.getpid(), signal.SIGTERM)
Trainer._remember = stop
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""


def kill_worker(trainer):
    os.kill(trainer.envs._groups[0].pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "optimizer", ["famo", "nash_mtl"]
)  # with states of both kinds; others: tests/optimizers
def test_n_steps_resume_n_steps_equal_2n_steps_mid_episode(tmp_path, optimizer):
    option = f"--optimizer.name={optimizer}"
    assert train(tmp_path / "whole", option) == 0
    train_until(71, tmp_path / "halves", option)
    assert train(tmp_path / "halves", option) == 0
    assert written(tmp_path / "halves") == written(tmp_path / "whole")
    assert resumed(tmp_path / "halves") == [72]


def test_resume_is_exact_with_every_other_state_there_is(tmp_path, monkeypatch):
    options = [
        "--agent.actor.dropout=0.1", "--agent.critic.dropout=0.1", "--agent.task_input=heads",
        "--agent.reward_scale=sigma", "--agent.policy_tau=0.01",
        "--replay.sampling=uniform", "--replay.capacity=50", "--updates_per_step=2", "--agent.temperature.shared=true",
    ]  # fmt: skip
    assert train(tmp_path / "whole", *options) == 0
    at_step(monkeypatch, 71, send(signal.SIGUSR1))
    assert train(tmp_path / "halves", *options) == 4
    assert train(tmp_path / "halves", *options) == 0
    assert written(tmp_path / "halves") == written(tmp_path / "whole")
    assert resumed(tmp_path / "halves") == [72]


def test_resume_of_meta_world_is_exact_mid_episode_in_process_and_in_subprocesses(tmp_path):
    assert train(tmp_path / "whole", "--workers=0", base=METAWORLD) == 0
    expected = written(tmp_path / "whole")
    for workers in ("--workers=0", "--workers=1"):
        folder = tmp_path / workers
        train_until(67, folder, workers, base=METAWORLD)
        assert train(folder, workers, base=METAWORLD) == 0
        assert written(folder) == expected
        assert resumed(folder) == [68]


def test_a_policys_bytes_do_not_depend_on_the_checkpoint_interval_or_the_place(tmp_path, undisturbed):
    assert train(tmp_path / "often", "--checkpoint_every=1e-9") == 0
    assert written(tmp_path / "often") == undisturbed


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR2"])
def test_an_interrupted_run_is_marked_has_a_policy_and_goes_on_by_resume(
    tmp_path, monkeypatch, capfd, undisturbed, name
):
    run = tmp_path / "run"
    at_step(monkeypatch, 50, send(getattr(signal, name)))
    assert train(run) == 4
    assert status(run).startswith(f"INTERRUPTED by {name} at 51 steps per task")
    assert (run / "policy.safetensors").is_file()
    assert "stopping after this step" in capfd.readouterr().err
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert written(run) == undisturbed
    assert status(run).startswith("DONE")


def test_signals_are_the_processs_own_again_after_training(tmp_path):
    ours = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.getsignal(n) for n in ours]
    assert train(tmp_path / "run", "--total_steps_per_task=2") == 0
    assert [signal.getsignal(n) for n in ours] == before


ON_A_TERMINAL = """
import os, sys, time
from pathlib import Path
import pytest
from tiny_runs import at_step, train

os.close(os.open(os.ttyname(0), os.O_RDWR))  # a session's first process that opens a terminal is its owner

def wait_for_its_end(trainer):
    os.write(1, b"in the middle")  # at once: print writes a bar after it, on a terminal that may be gone by then
    while os.isatty(1):
        time.sleep(0.01)

at_step(pytest.MonkeyPatch(), 50, wait_for_its_end)
sys.exit(train(Path(sys.argv[1])))
"""


def test_a_run_whose_terminal_is_closed_is_saved_and_marked_and_goes_on(tmp_path, undisturbed):
    run = tmp_path / "run"
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, str(run)],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"in the middle" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)
    assert child.wait(timeout=60) == 4
    assert status(run).startswith("INTERRUPTED by SIGHUP at 51 steps per task")
    assert train(run) == 0
    assert written(run) == undisturbed


def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path, monkeypatch, undisturbed):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 50, send(signal.SIGHUP))
        assert train(tmp_path / "run") == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert written(tmp_path / "run") == undisturbed


def test_ctrl_c_twice_stops_at_once_and_the_newest_checkpoint_stands(
    tmp_path, monkeypatch, capfd, undisturbed
):
    run = tmp_path / "run"

    def twice(trainer):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 50, twice)
    assert train(run) == 4
    assert "interrupted at once; the newest checkpoint is of step 0" in capfd.readouterr().err
    assert status(run).startswith("INTERRUPTED at once")
    assert train(run) == 0
    assert written(run) == undisturbed


def test_a_killed_worker_is_started_again_and_nothing_is_lost(tmp_path, monkeypatch, capfd, undisturbed):
    at_step(monkeypatch, 70, kill_worker)
    assert train(tmp_path / "run", "--workers=2", "--checkpoint_every=1e-9") == 0
    error = capfd.readouterr().err
    assert (
        "the worker process of point-reach, point-mirror, point-swap has died (exit code -9); started again"
        in error
    )
    assert written(tmp_path / "run") == undisturbed


def test_workers_that_die_again_and_again_end_the_run_which_can_go_on(
    tmp_path, monkeypatch, capfd, undisturbed
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        for step in (60, 70, 80):  # three deaths, no checkpoint in between
            at_step(patch, step, kill_worker)
        assert train(run, "--workers=1") == 1
    assert "has died (exit code -9); the newest checkpoint is of step 0 per task" in capfd.readouterr().err
    assert status(run).startswith("FAILED the worker process")
    assert train(run, "--workers=1") == 0
    assert written(run) == undisturbed


def test_a_run_killed_before_its_first_checkpoint_starts_again_from_step_0(
    tmp_path, monkeypatch, undisturbed
):
    run = tmp_path / "run"

    def no_checkpoint(*arguments):
        raise OSError("nothing can be written")

    with monkeypatch.context() as patch:
        patch.setattr("mtrl.run.checkpoint.Checkpoints.save", no_checkpoint)
        assert train(run) == 1
    assert not (run / "checkpoint").exists()
    assert train(run) == 0
    assert written(run) == undisturbed


def test_the_log_ends_with_the_last_evaluation(undisturbed):
    assert undisturbed["rows"][-1]["eval/success_rate"] != ""


def test_changed_settings_are_named_and_refused_unless_allowed_and_then_recorded(tmp_path, capfd):
    run = tmp_path / "run"
    train_until(50, run)
    capfd.readouterr()
    assert train(run, "--agent.tau=0.5") == 2
    assert "agent.tau: 0.005 -> 0.5" in capfd.readouterr().err
    assert train(run, "--agent.tau=0.5", "--allow_changes") == 0
    (resumed,) = json.loads((run / "meta.json").read_text())["resumed"]
    assert resumed["steps_per_task"] == 51
    assert resumed["changes"] == ["agent.tau: 0.005 -> 0.5"]
    assert "tau: 0.5" in (run / "config.yaml").read_text()


def test_a_setting_that_came_later_is_no_change_at_its_default_and_one_anywhere_else(tmp_path):
    run = tmp_path / "run.yaml"
    now = parse_train(["--protocol.suite=point"]).text
    settings = yaml.safe_load(now)
    del settings["video_every"], settings["agent"]["network"], settings["optimizer"]["options"]
    run.write_text(yaml.safe_dump(settings))
    assert changed_settings(run, now) == []
    for more, change in (
        ("--video_every=100", "video_every: None -> 100"),
        ("--agent.network.name=ple", "agent.network.name: None -> ple"),
        ("--agent.tau=0.5", "agent.tau: 0.005 -> 0.5"),
    ):
        assert changed_settings(run, parse_train(["--protocol.suite=point", more]).text) == [change]
    cagrad = parse_train(
        ["--protocol.suite=point", "--optimizer.name=cagrad", "--optimizer.options.c=0.4"]
    ).text
    assert changed_settings(run, cagrad) == [
        "optimizer.name: unitary -> cagrad",
        "optimizer.options.c: None -> 0.4",
    ]
    run.write_text(cagrad)
    assert "optimizer.options.c: 0.4 -> None" in changed_settings(run, now)
    # what is written down is not absent, also where it is null
    settings["video_every"], settings["label"] = None, "mine"
    run.write_text(yaml.safe_dump(settings))
    assert set(changed_settings(run, now)) == {"video_every: None -> 0", "label: mine -> None"}


def test_a_change_that_no_checkpoint_fits_is_refused_and_the_run_stays_as_it_was(
    tmp_path, capfd, undisturbed
):
    run = tmp_path / "run"
    train_until(50, run)
    assert train(run, "--agent.critic.hidden=[9]", "--allow_changes") == 2
    assert "the checkpoint does not fit this run" in capfd.readouterr().err
    assert status(run).startswith("INTERRUPTED")
    assert train(run) == 0
    assert written(run) == undisturbed


def test_a_second_process_on_a_folder_is_refused_and_disturbs_nothing(tmp_path, monkeypatch, undisturbed):
    run, second = tmp_path / "run", []

    def start_another(trainer):
        command = [sys.executable, "-m", "mtrl.cli", "train", *POINT, f"--run_dir={run}"]
        second.append(subprocess.run(command, capture_output=True, text=True, check=False))
        second.append(read_status(run))

    at_step(monkeypatch, 50, start_another)
    assert train(run) == 0
    assert second[0].returncode == 2
    assert second[0].stderr == f"mtrl: run_dir: another process is training in {run}\n"
    assert second[1] == "RUNNING"  # not KILLED: the lock still says whose it is
    assert written(run) == undisturbed


def test_of_two_commands_that_start_together_the_slower_is_refused_and_disturbs_nothing(
    tmp_path, monkeypatch, capfd, undisturbed
):
    run, build = tmp_path / "run", train_command.build

    def slowly(*arguments):
        built = build(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(train_command, "build", build)
            assert train(run) == 0
        return built

    monkeypatch.setattr(train_command, "build", slowly)
    assert train(run) == 2
    assert "got a run of another process meanwhile" in capfd.readouterr().err
    assert written(run) == undisturbed


def test_a_run_whose_checkpoint_was_lost_keeps_its_results(tmp_path, capfd):
    run = tmp_path / "run"
    train_until(70, run)
    shutil.rmtree(run / "checkpoint")
    before = {path: path.read_bytes() for path in run.iterdir() if path.name != "meta.json"}
    capfd.readouterr()
    assert train(run) == 2
    line = capfd.readouterr().err
    assert "no checkpoint to go on from, and the run has results (progress.csv, eval.jsonl" in line
    assert {path: path.read_bytes() for path in before} == before


INTO_A_PIPE = """
import os, select, signal, sys
from pathlib import Path
import pytest
from tiny_runs import at_step, train

def wait_for_its_end(trainer):
    if "before" in sys.argv[2]:
        os.kill(os.getpid(), signal.SIGINT)
    print("in the middle", flush=True)
    poll = select.poll()
    poll.register(1, 0)
    assert poll.poll(30_000)
    if "after" in sys.argv[2]:
        os.kill(os.getpid(), signal.SIGINT)

at_step(pytest.MonkeyPatch(), 50, wait_for_its_end)
sys.exit(train(Path(sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("connect", "signals_come", "mark"),
    [
        (os.pipe, "before", "by SIGINT at 51 steps per task"),
        (os.pipe, "after", "by SIGINT at 51 steps per task"),
        (os.pipe, "before and after", "at once"),
        (socket.socketpair, "after", "by SIGINT at 51 steps per task"),
    ],
)
def test_ctrl_c_that_also_ends_what_reads_the_output_saves_and_marks_the_run(
    tmp_path, undisturbed, connect, signals_come, mark
):
    run = tmp_path / "run"
    ours, theirs = (end if isinstance(end, int) else end.detach() for end in connect())
    child = subprocess.Popen(
        [sys.executable, "-c", INTO_A_PIPE, str(run), signals_come], stdout=theirs, stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"in the middle\n" not in shown:  # unbuffered, the end of the line is a write of its own
        part = os.read(ours, 4096)
        assert part, shown.decode()  # the child has ended
        shown += part
    os.close(ours)
    assert child.wait(timeout=60) == 4
    assert status(run).startswith(f"INTERRUPTED {mark}")
    assert train(run) == 0
    assert written(run) == undisturbed


def test_the_policy_of_a_run_that_failed_is_its_newest_checkpoints(tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    train_until(50, run)

    def fail(trainer):
        raise OSError("no more")

    at_step(monkeypatch, 90, fail)
    assert train(run, "--checkpoint_every=1e-9", "--allow_changes") == 1
    capfd.readouterr()
    assert cli.main(["evaluate", str(run), "--episodes=1", "--json=-"]) == 0
    assert json.loads(capfd.readouterr().out)["steps_per_task"] == 90


def test_a_stop_behind_an_evaluation_loses_none_of_its_time(tmp_path, monkeypatch):
    def slowly(*arguments):
        time.sleep(0.5)
        return evaluate(*arguments)

    monkeypatch.setattr("mtrl.run.callbacks.evaluate", slowly)
    train_until(59, tmp_path / "run")
    assert train(tmp_path / "run") == 0
    with (tmp_path / "run" / "progress.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["time/fps"]]
    assert [row["steps_per_task"] for row in rows] == [str(step) for step in range(20, 121, 20)]
    assert all(float(row["time/fps"]) > 0 and float(row["time/other_ms"]) > 0 for row in rows)
    assert float(rows[-1]["time/seconds"]) > 0.5


def test_a_checkpoint_that_the_system_does_not_let_be_read_is_not_called_unfit(
    tmp_path, monkeypatch, capfd, undisturbed
):
    run = tmp_path / "run"
    train_until(50, run)

    def fail(self, state):
        raise OSError("no more processes")

    with monkeypatch.context() as patch:
        patch.setattr("mtrl.train.Trainer.load_state_dict", fail)
        assert train(run) == 1
    assert "no more processes; the newest checkpoint is of step 51" in capfd.readouterr().err
    assert train(run) == 0
    assert written(run) == undisturbed


def test_sigterm_ends_the_command_with_exit_code_4(tmp_path):
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "mtrl.cli",
        "train",
        *POINT,
        f"--run_dir={run}",
        "--total_steps_per_task=100000",
        "--agent.kernels=torch",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(run / "progress.csv", process)
        process.terminate()
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "stopped by SIGTERM; policy and checkpoint are saved" in output
    assert "Traceback" not in errors
    assert int(newest_step(run)) > 0


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def newest_step(run: Path) -> int:
    return max(int(path.stem.split("-")[1]) for path in (run / "checkpoint").glob("manifest-*.json"))


def test_what_auto_became_is_written_down_and_a_resume_goes_on_with_it(tmp_path, monkeypatch):
    run = tmp_path / "run"
    auto = ["--agent.precision=auto", "--agent.kernels=auto", "--threads=auto"]
    monkeypatch.setattr("mtrl.machine.bf16_is_fast", lambda: True)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    at_step(monkeypatch, 60, send(signal.SIGINT))
    assert train(run, *auto) == 4
    before = yaml.safe_load((run / "config.yaml").read_text())
    assert (before["agent"]["precision"], before["threads"]) == ("bf16", 1)
    assert before["agent"]["kernels"] in ("torch", "onednn")
    # another machine, the same command
    monkeypatch.setattr("mtrl.machine.bf16_is_fast", lambda: False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert train(run, *auto) == 0
    assert yaml.safe_load((run / "config.yaml").read_text()) == before


def test_a_second_sigterm_ends_a_run_at_once_and_it_goes_on_from_its_newest_checkpoint(
    tmp_path, monkeypatch, undisturbed
):
    def twice(trainer):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    run = tmp_path / "run"
    at_step(monkeypatch, 50, twice)
    assert train(run) == 4
    assert status(run).startswith("INTERRUPTED at once")
    assert train(run) == 0
    assert written(run) == undisturbed


def test_a_run_off_the_main_thread_trains_and_says_that_signals_do_not_stop_it(tmp_path, capfd, undisturbed):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(train(tmp_path / "run")))
    thread.start()
    thread.join()
    assert codes == [0]
    assert "off the main thread: signals will not stop it with a checkpoint" in capfd.readouterr().err
    assert written(tmp_path / "run") == undisturbed


def test_a_finished_run_is_done_whatever_becomes_of_its_table(tmp_path, monkeypatch):
    def fail(table):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mtrl.run.session.show", fail)
    assert train(tmp_path / "run") == 0
    assert status(tmp_path / "run").startswith("DONE")


def test_a_stopped_run_is_interrupted_and_a_started_one_trains_where_the_output_is_full(
    tmp_path, undisturbed
):
    command = [sys.executable, "-c", STOPS_ITSELF, *POINT, f"--run_dir={tmp_path / 'run'}"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=full, timeout=100).returncode == 4
        assert status(tmp_path / "run").startswith("INTERRUPTED by SIGTERM at 50 ")
        again = [sys.executable, "-m", "mtrl.cli", "train", f"--resume={tmp_path / 'run'}"]
        assert subprocess.run(again, stdout=full, timeout=100).returncode == 0
    assert written(tmp_path / "run") == undisturbed


def test_a_log_that_is_no_terminal_tells_at_every_evaluation_where_training_stands(tmp_path, capfd):
    assert train(tmp_path / "run") == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "steps per task: success" in line]
    assert [line.split(" of ")[0] for line in lines] == ["60", "120"]
    for line in lines:
        assert re.fullmatch(
            r"\d+ of 120 steps per task: success 0\.\d{3}, return -?\d+\.\d, \d+\.\d steps/s, \d:\d\d:\d\d left",
            line,
        )


def test_a_finished_run_says_what_it_would_ignore_and_trains_on_to_more_steps_where_that_is_allowed(
    tmp_path, capfd
):
    run = tmp_path / "run"
    assert train(run, "--total_steps_per_task=60") == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capfd.readouterr()
    assert cli.main(["train", f"--resume={run}"]) == 0
    assert "finished already; nothing to do" in capfd.readouterr().out
    for change in ("--total_steps_per_task=120", "--agent.gamma=0.5"):
        assert cli.main(["train", f"--resume={run}", change]) == 2
        assert f"{change[2:].split('=')[0]}: " in capfd.readouterr().err
    assert cli.main(["train", f"--resume={run}", "--agent.gamma=0.5", "--allow_changes"]) == 2
    assert "is finished at 60 and trains on to more only" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert cli.main(["train", f"--resume={run}", "--total_steps_per_task=120", "--allow_changes"]) == 0
    evaluations = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert [line["steps_per_task"] for line in evaluations] == [60, 120]
    assert "total_steps_per_task: 60 -> 120" in (run / "meta.json").read_text()
    assert status(run).startswith("DONE")


def test_a_run_started_on_the_processor_goes_on_there_where_a_gpu_is_seen(tmp_path, monkeypatch, undisturbed):
    run = tmp_path / "run"
    train_until(50, run)
    assert yaml.safe_load((run / "config.yaml").read_text())["device"] == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_rng_state_all", list)
    assert train(run) == 0
    assert written(run) == undisturbed


def test_a_disk_that_is_full_when_a_run_is_locked_leaves_the_folder_its_mark(
    tmp_path, monkeypatch, undisturbed
):
    run = tmp_path / "run"
    train_until(50, run)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mtrl.run.folder.os.pwrite", full)
        assert train(run) == 2
    assert train(run) == 0
    assert written(run) == undisturbed


def test_a_try_that_fails_before_the_second_checkpoint_leaves_the_first_as_it_was(tmp_path):
    def fail(trainer):
        raise RuntimeError("no licence")

    found = []
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, 50, fail)
            with pytest.raises(RuntimeError, match="no licence"):
                train(tmp_path / "run")
        (manifest,) = (tmp_path / "run/checkpoint").glob("manifest-*.json")
        found.append(manifest.stat().st_mtime_ns)
    assert found[0] == found[1]


def test_a_finished_run_that_was_to_train_on_and_has_not_is_not_done(tmp_path, monkeypatch):
    run, more = tmp_path / "run", ["--allow_changes", f"--total_steps_per_task={STEPS + 20}"]
    assert train(run) == 0
    with monkeypatch.context() as patch:
        patch.setattr("mtrl.run.session.write_synced", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            cli.main(["train", f"--resume={run}", *more])
    assert not status(run).startswith("DONE")
    assert cli.main(["train", f"--resume={run}", *more]) == 0
    assert status(run).startswith("DONE")
    steps = [json.loads(line)["steps_per_task"] for line in (run / "eval.jsonl").read_text().splitlines()]
    assert steps[-1] == STEPS + 20


def test_fewer_steps_than_are_trained_and_another_folder_than_the_runs_are_refused(tmp_path, capsys):
    run = tmp_path / "run"
    train_until(90, run)
    capsys.readouterr()
    for option, words in (
        ("--total_steps_per_task=60", "total_steps_per_task: 60 is not valid; "),
        (f"--run_dir={tmp_path / 'copy'}", "does not go with --resume"),
    ):
        assert cli.main(["train", f"--resume={run}", "--allow_changes", option]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["train", f"--run_dir={tmp_path / 'copy'}", f"--resume={run}"]) == 2
    assert cli.main(["train", f"--resume={run}", f"--run_dir={run}/"]) == 0


@pytest.mark.parametrize(
    "label", ["1e-3", "1234e56", "1:30", "0x1f", "1_000", "yes", "null", "~", ".5", "07"]
)
def test_a_label_that_some_yaml_reads_as_a_number_stays_text(tmp_path, label):
    text = dump_yaml({"label": label})
    assert load_yaml(text, "it") == yaml.safe_load(text) == {"label": label}


def test_a_ctrl_c_during_the_last_table_leaves_the_run_done(tmp_path, monkeypatch):
    def interrupt(table):
        raise KeyboardInterrupt

    monkeypatch.setattr("mtrl.run.session.show", interrupt)
    assert train(tmp_path / "run") == 0
    assert status(tmp_path / "run") == "DONE\n"


def test_a_run_without_an_update_says_so(tmp_path, capsys):
    assert train(tmp_path / "run", "--warmup_steps=120") == 0
    assert "note: no update is made: warmup_steps is 120, and the run ends at 120" in capsys.readouterr().out
