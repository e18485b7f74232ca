"""``mtrl sweep``: from a file to the policies of single runs, however often it is interrupted."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mtrl import cli
from mtrl.config import ConfigError
from mtrl.sweep import board, child, local
from mtrl.sweep.board import Board
from mtrl.sweep.grid import choose, experiment_names, find_experiment, plan, read_experiment, read_seeds

FILE = """
base: point
label: methods
common:
  protocol: {horizon: 30, num_goals: 3}
  total_steps_per_task: 150
  warmup_steps: 40
  log_every: 20
  eval_every: 75
  eval_episodes: 1
  diagnostics_every: 100
  checkpoint_every: 0.005
  agent: {actor.hidden: [8], critic.hidden: [8]}
  replay.batch_size: 8
arms:
  unitary: {optimizer.name: unitary}
  pcgrad: {optimizer.name: pcgrad}
  cagrad: {optimizer: {name: cagrad, options: {c: 0.4}}}
  rlw: {optimizer.name: rlw, seeds: [1]}
seeds: "0..1"
"""
ORDER = [
    "unitary/seed0", "pcgrad/seed0", "cagrad/seed0", "unitary/seed1", "pcgrad/seed1", "cagrad/seed1", "rlw/seed1",
]  # fmt: skip


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(FILE)
    return path


def sweep(*arguments: str | Path) -> int:
    return cli.main(["sweep", *map(str, arguments)])


def policies(root: Path) -> dict[str, bytes]:
    return {
        f"{path.parent.parent.name}/{path.parent.name}": path.read_bytes()
        for path in root.glob("methods/*/seed*/policy.safetensors")
    }


@pytest.mark.timeout(600)
def test_a_sweep_interrupted_twice_ends_by_the_same_command_with_the_bytes_of_single_runs(file, tmp_path):
    runs = tmp_path / "pieces"
    file.write_text(FILE.replace("150", "400"))  # long enough to be stopped in their middle
    arguments = [str(file), f"--runs={runs}", "--jobs=2", "--seeds=0"]
    command = [sys.executable, "-m", "mtrl.cli", "sweep", *arguments]
    for begun in (2, 5):  # of six checkpoints, two of each run
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        limit = time.monotonic() + 120
        while len(list(runs.glob("methods/*/seed*/checkpoint/manifest-*.json"))) < begun:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.02)
        process.send_signal(signal.SIGINT if begun == 2 else signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 4, output
        assert "the same command goes on" in output
        assert "SIGTERM" not in output
        assert "interrupted (stopped with the sweep at " in output
    assert sweep(*arguments) == 0
    logs = "".join(path.read_text() for path in runs.glob("methods/*/log_seed*.txt"))
    assert "going on from step" in logs
    found = policies(runs)
    assert sorted(found) == ["cagrad/seed0", "pcgrad/seed0", "unitary/seed0"]
    for run in plan(read_experiment(file), tmp_path / "single"):
        if run.name == "pcgrad/seed0":
            assert cli.main(["train", *run.arguments]) == 0
            assert found[run.name] == (run.folder / "policy.safetensors").read_bytes()
    # done runs are left alone
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert sweep(*arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_a_sweep_that_is_killed_takes_its_runs_with_it_and_they_leave_a_checkpoint(file, tmp_path):
    runs = tmp_path / "runs"
    command = [
        sys.executable, "-m", "mtrl.cli", "sweep", str(file), f"--runs={runs}", "--jobs=1", "--only", "unitary",
    ]  # fmt: skip
    file.write_text(FILE.replace("150", "19000"))  # long, but not so long that its updates are compiled first
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    folder = runs / "methods/unitary/seed0"
    wait_for(lambda: (folder / "progress.csv").exists())
    process.kill()
    process.wait()
    wait_for(lambda: (folder / "STATUS").read_text().startswith("INTERRUPTED by SIGUSR1"))
    assert newest_checkpoint(folder) > 0


def newest_checkpoint(folder: Path) -> int:
    """Its step per task."""
    return max(int(path.stem.rpartition("-")[2]) for path in folder.glob("checkpoint/manifest-*.json"))


def wait_for(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_runs_are_listed_seed_by_seed_with_state_and_steps_and_their_commands_apart(file, tmp_path, capsys):
    assert sweep(file, "--list", f"--runs={tmp_path / 'runs'}") == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == ORDER
    assert [row[0].strip() for row in rows] == [str(i) for i in range(7)]
    assert {(row[2].strip(), row[3].strip()) for row in rows} == {("waiting", "0 of 150")}
    assert not (tmp_path / "runs").exists()
    assert sweep(file, "--commands", f"--runs={tmp_path / 'runs'}") == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == len(ORDER)
    assert not (tmp_path / "runs").exists()
    words = shlex.split(commands[2])
    assert words[:2] == ["mtrl", "train"]
    assert cli.main([*words[1:], "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "name: cagrad" in printed
    assert "c: 0.4" in printed
    assert f"run_dir: {tmp_path}/runs/methods/cagrad/seed0" in printed
    assert sweep(file, "--list", "--only", "rlw", "unitary", "--seeds", "1") == 0
    listed = capsys.readouterr().out
    assert "rlw/seed1" in listed
    assert "unitary/seed1" in listed
    assert "seed0" not in listed
    assert "pcgrad" not in listed


def test_a_list_fits_a_terminal_of_80_columns(file, tmp_path, capsys):
    assert sweep(file, "--list", f"--runs={tmp_path / 'runs'}") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_without_a_terminal_a_sweep_tells_how_far_it_is_and_ever_more_rarely(
    file, tmp_path, monkeypatch, capsys
):
    runs = plan(read_experiment(file), tmp_path)
    now = [0.0]
    monkeypatch.setattr("mtrl.sweep.board.time", SimpleNamespace(monotonic=lambda: now[0]))
    board = Board(runs)
    for run in runs[:5]:
        board.tell(run, "training")
    capsys.readouterr()
    runs[0].folder.mkdir(parents=True)
    told = []
    for second in range(24 * 3600):
        now[0] = float(second)
        if second == 50:
            (runs[0].folder / "progress.csv").write_text("steps_per_task\n30\n")
            (runs[0].folder / "eval.jsonl").write_text('{"mean_success": 0.25}\n')
        board.refresh()
        if line := capsys.readouterr().out:
            told.append((second, line))
    assert told[0] == (
        60,
        "training: unitary/seed0 30 of 150 steps, success 0.250, 0:04:00 left; "
        "pcgrad/seed0 0 of 150 steps; cagrad/seed0 0 of 150 steps; unitary/seed1 0 of 150 steps; and 1 more\n",
    )
    assert len(told) < 120  # in a day
    assert told[1][0] == 120


def test_a_table_ranks_every_word_that_an_engine_has(file, tmp_path):
    with Board(plan(read_experiment(file), tmp_path)) as board:
        board.live = SimpleNamespace(console=SimpleNamespace(size=SimpleNamespace(height=40)))
        words = ("done", "lost", "failed", "busy", "refused", "again", "diverged")
        for run, word in zip(board.runs, words, strict=True):
            board.tell(run, word, "why")
        shown = [str(cell).split()[0] for cell in board.table().columns[1].cells]
        board.live = None
    assert shown == ["failed", "lost", "refused", "busy", "diverged", "again", "done"]


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("{agent.network.name: nosuch}", "arms.bad: agent.network.name: no network 'nosuch'"),
        ("{agent.network.name: moore, agent.network.options.experts: -3}", "experts: -3 is not valid"),
    ],
)
def test_a_network_that_there_is_not_is_refused_before_any_run(file, tmp_path, capsys, arm, words):
    file.write_text(FILE.replace("arms:", f"arms:\n  bad: {arm}"))
    assert sweep(file, f"--runs={tmp_path / 'runs'}") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_array_of_jobs_is_stopped_with_a_checkpoint_and_queued_again_until_its_run_is_done(file, tmp_path):
    # what docs/sweep.md's script does with SLURM_ARRAY_TASK_ID, requeue included
    script = (
        f'{sys.executable} -m mtrl.cli sweep {file} --seeds 0 --index "$SLURM_ARRAY_TASK_ID" --runs {tmp_path}/runs\n'
        'code=$?; [ $code -eq 4 ] && exec echo requeue "$SLURM_JOB_ID"; exit $code'
    )
    file.write_text(FILE.replace("150", "19000"))  # long, but not so long that its updates are compiled first
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "77"}
    element = subprocess.Popen(
        ["bash", "-c", script], env=environment, text=True, stdout=subprocess.PIPE, start_new_session=True
    )
    folder = tmp_path / "runs/methods/unitary/seed0"
    wait_for(lambda: (folder / "progress.csv").exists())
    signal_children(element.pid, signal.SIGUSR1)
    output, _ = element.communicate(timeout=60)
    assert "requeue 77" in output
    assert (folder / "STATUS").read_text().startswith("INTERRUPTED by SIGUSR1")
    assert newest_checkpoint(folder) > 0
    file.write_text(FILE)
    environment["SLURM_ARRAY_TASK_ID"] = "1"
    for _ in range(2):  # the second time there is nothing to do
        assert subprocess.run(["bash", "-c", script], env=environment, timeout=60).returncode == 0
        assert sorted(policies(tmp_path / "runs")) == ["pcgrad/seed0", "unitary/seed0"]


def signal_children(pid: int, number: int) -> None:
    """As SLURM does: to the step's processes, not to the script's shell."""
    for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(text), number)


def test_a_run_of_other_settings_in_the_folder_is_never_taken_for_a_result(file, tmp_path, capsys):
    arguments = [f"--runs={tmp_path / 'runs'}", "--only", "unitary", "--seeds", "0"]
    assert sweep(file, *arguments) == 0
    file.write_text(FILE.replace("replay.batch_size: 8", "replay.batch_size: 16"))
    capsys.readouterr()
    assert sweep(file, *arguments) == 2
    error = capsys.readouterr().err
    assert "replay.batch_size: 8 -> 16" in error
    assert error.count("\n") == 1


def test_a_finished_run_that_lacks_a_label_and_later_settings_is_a_result_still(file, tmp_path, capsys):
    arguments = [f"--runs={tmp_path / 'runs'}", "--only", "unitary", "--seeds", "0"]
    assert sweep(file, *arguments) == 0
    folder = tmp_path / "runs/methods/unitary/seed0"
    config = (folder / "config.yaml").read_text()
    lines = [line for line in config.splitlines() if not line.startswith(("label:", "video_every:"))]
    (folder / "config.yaml").write_text("\n".join([*lines, "label: null\n"]))
    capsys.readouterr()
    assert sweep(file, *arguments) == 0
    assert "1 of 1 runs are done" in capsys.readouterr().out
    (folder / "STATUS").write_text("INTERRUPTED by SIGTERM\n")
    assert sweep(file, *arguments) == 2
    assert "label: None -> unitary" in capsys.readouterr().err


def test_a_run_that_is_done_diverged_busy_or_failed_is_told_apart_by_its_status(tmp_path):
    folder, log = tmp_path / "seed0", tmp_path / "log_seed0.txt"
    folder.mkdir()
    log.write_text("a line\nmtrl: no memory: 3 GB\n\n")

    def word(code: int, status: str) -> str:
        (folder / "STATUS").write_text(status)
        return child.verdict(code, folder, log)[0]

    assert word(0, "DONE\n") == word(2, "DONE\n") == "done"
    assert word(3, "DIVERGED critic\n") == word(2, "DIVERGED critic\n") == "diverged"
    assert word(4, "INTERRUPTED by SIGUSR1") == "again"
    assert word(2, "INTERRUPTED by SIGUSR1") == "refused"
    assert word(2, "RUNNING") == "refused"  # nobody holds its lock
    assert word(2, "FAILED no memory") == word(1, "FAILED x") == word(-9, "RUNNING") == "failed"
    assert child.verdict(-9, folder, log) == ("failed", "killed by SIGKILL")
    assert child.verdict(1, folder, log) == ("failed", "no memory: 3 GB")


def test_a_run_that_fails_is_tried_three_times_without_getting_further(file, tmp_path):
    run, other = plan(read_experiment(file), tmp_path)[:2]
    tries = local.Tries()
    assert [tries.again(run, "failed") for _ in range(3)] == [True, True, False]
    assert tries.again(other, "failed")
    checkpoints = run.folder / "checkpoint"
    checkpoints.mkdir(parents=True)
    (checkpoints / "manifest-5.json").write_text("{}")
    assert tries.again(run, "failed")
    assert all(tries.again(run, "again") for _ in range(10))
    assert not any(tries.again(run, word) for word in ("done", "diverged", "refused", "busy", "interrupted"))


def test_a_failing_run_is_named_and_the_others_go_on(file, tmp_path, capsys):
    blocked = tmp_path / "runs/methods/pcgrad/seed0"
    blocked.mkdir(parents=True)
    (blocked / "somebody.txt").write_text("else's")
    code = sweep(file, f"--runs={tmp_path / 'runs'}", "--only", "pcgrad", "unitary", "--seeds", "0")
    assert code == 1
    written = capsys.readouterr()
    assert "mtrl: pcgrad/seed0: refused: run_dir:" in written.err
    assert "unitary/seed0: done (success" in written.out
    assert "1 of 2 runs are done" in written.out


def test_cores_are_divided_among_new_runs_and_an_existing_run_keeps_its_threads(file, tmp_path, monkeypatch):
    file.write_text(FILE.replace("common:", "common:\n  threads: auto"))
    monkeypatch.setattr(local, "cores", lambda: 8)
    runs = plan(read_experiment(file), tmp_path)
    assert local.share(runs, None) == (7, 1)
    assert local.share(runs, 2) == (2, 4)
    assert local.share(runs[:1], None) == (1, 8)
    assert runs[0].command(4)[-4:] == ("--threads", "4", "--workers", "3")
    assert runs[0].command(None) == runs[0].arguments
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "config.yaml").write_text("threads: 3\nworkers: auto\n")
    assert runs[0].command(4)[-2:] == ("--threads", "3")
    assert local.share(runs, None) == (2, 4)
    file.write_text(FILE)
    assert "--threads" not in plan(read_experiment(file), tmp_path)[1].command(4)  # point says 1


@pytest.mark.skipif(not child.AUTOGROUP.exists(), reason="this kernel weighs processes alone")
def test_a_nice_run_is_nice_to_other_sessions_too(monkeypatch):
    code = "; from mtrl.sweep.child import AUTOGROUP; print(AUTOGROUP.read_text(), os.nice(0))"
    monkeypatch.setattr(
        child, "CODE", f"import os, sys; from mtrl.sweep.child import prepare; prepare(){code}"
    )
    for own, group in ((True, "nice 7"), (False, child.AUTOGROUP.read_text().strip())):
        done = subprocess.run(
            child.command([], nice=7), capture_output=True, text=True, start_new_session=own
        )
        assert group in done.stdout
        assert done.stdout.split()[-1] == str(os.nice(0) + 7)


@pytest.mark.parametrize("there", ["a link", "a pipe"])
def test_a_log_that_is_no_file_of_its_own_is_not_written(tmp_path, there):
    log, precious = tmp_path / "log_seed0.txt", tmp_path / "precious"
    precious.write_text("mine")
    log.symlink_to(precious) if there == "a link" else os.mkfifo(log)
    with pytest.raises(OSError, match="log_seed0"):
        child.start(["--help"], log)
    assert precious.read_text() == "mine"


def test_a_folder_that_only_says_it_is_done_is_no_finished_run(file, tmp_path):
    run = plan(read_experiment(file), tmp_path)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "STATUS").write_text("DONE\n")
    assert board.state_of(run) == "waiting"
    (run.folder / "config.yaml").write_text("seed: 0\n")
    assert board.state_of(run) == "done"


@pytest.mark.parametrize(
    "line", ['{"mean_success": 1' + "0" * 400 + "}", '{"mean_success": true}', "[" * 10**5, "{}", "x"]
)
def test_a_damaged_log_has_no_steps_and_no_success(file, tmp_path, line):
    run = plan(read_experiment(file), tmp_path)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "eval.jsonl").write_text(line + "\n")
    (run.folder / "progress.csv").write_text("9" * 5000 + "\n")
    assert (board.success_of(run), board.steps_of(run)) == (None, 0)


def test_cores_are_shared_by_threads_and_workers(file, tmp_path, monkeypatch):
    file.write_text(FILE.replace("common:", "common:\n  threads: 1\n  workers: 3"))
    monkeypatch.setattr(local, "cores", lambda: 8)
    assert local.share(plan(read_experiment(file), tmp_path), None) == (2, 4)


def test_a_run_imports_nothing_from_the_folder_it_is_started_in(tmp_path):
    (tmp_path / "torch.py").write_text("print('imported from here')")
    done = subprocess.run(
        child.command(["--help"], nice=0), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "imported from here" not in done.stdout


BAD = {
    "no such base": (FILE.replace("base: point", "base: pont"), "did you mean 'point'"),
    "a key of the file": (FILE.replace("arms:", "arm:"), "did you mean 'arms'"),
    "no seeds": (FILE.replace('seeds: "0..1"', ""), "'seeds' is missing"),
    "a setting": (FILE.replace("log_every", "log_evry"), "did you mean 'log_every'"),
    "a setting of an arm": (FILE.replace("{optimizer.name: rlw,", "{optimiser.name: rlw,"), "arms.rlw"),
    "a method": (FILE.replace("name: rlw", "name: rlx"), "arms.rlw: optimizer.name"),
    "an option": (FILE.replace("c: 0.4", "d: 0.4"), "arms.cagrad: optimizer.options.d"),
    "a value": (FILE.replace("eval_every: 75", "eval_every: -1"), "eval_every: -1"),
    "equal arms": (FILE.replace("name: rlw", "name: unitary"), "unitary and rlw have equal settings"),
    "a seed as a setting": (FILE.replace("log_every: 20", "seed: 3"), "tells the runs apart"),
    "a folder as a setting": (FILE.replace("log_every: 20", "run_dir: x"), "tells the runs apart"),
    "a setting twice": (FILE.replace("log_every: 20", "replay: {batch_size: 9}"), "comes twice"),
    "an arm's seed beyond": (FILE.replace("seeds: [1]", "seeds: [2]"), "none of the experiment's seeds"),
    "an arm that is no folder": (FILE.replace("  rlw:", "  a/b:"), "a folder's name"),
    "a label that is none": (FILE.replace("label: methods", "label: ../x"), "a folder's name"),
    "arms that are a list": (FILE[: FILE.index("arms:")] + "arms: [a]\nseeds: [1]", "mapping"),
    "an arm that is text": (FILE.replace("{optimizer.name: unitary}", "unitary"), "mapping"),
    "a variable in an arm's name": (FILE.replace("  rlw:", "  $HOME:"), "without / and $"),
    "a module of a name of ours": (
        FILE.replace("{optimizer.name: pcgrad}", "{agent.network.name: 'unitary:X'}"),
        "arms.pcgrad: agent.network.name: 'unitary:X' needs the module unitary, which no file may import",
    ),
    "a suite that ends the process": (
        FILE.replace("log_every: 20", "protocol.suite: sys:exit"),
        "no file may import",
    ),
    "a base of absurd length": (FILE.replace("base: point", f"base: {'a' * 300}"), "base: 'aaa"),
    "a date": (FILE.replace("c: 0.4", "c: 2020-01-01"), "no command line can say it"),
    "no YAML": ("arms: [", "cannot be read as YAML"),
    **{
        f"seeds {text}": (FILE.replace('"0..1"', text), "seeds")
        for text in (
            "3",
            "[]",
            "[1.5]",
            "[true]",
            "[-1]",
            '"4..0"',
            '"1.."',
            "[1, 1]",
            '"0..99999999"',
            "{a: 1}",
        )
    },
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_line_and_nothing_starts(name, tmp_path, capsys):
    text, told = BAD[name]
    (tmp_path / "bad.yaml").write_text(text)
    assert sweep(tmp_path / "bad.yaml", f"--runs={tmp_path / 'runs'}", "--list") == 2
    error = capsys.readouterr().err
    assert error.startswith("mtrl: ")
    assert error.count("\n") == 1
    assert told in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "pcgard"], "did you mean 'pcgrad'"),
        (["--only", "rlw", "--seeds", "0"], "no arm that was chosen has a seed"),
        (["--seeds", "7"], "'7' is not there"),
        (["--seeds", "x"], "seeds: 'x' is not valid"),
        (["--index", "7"], "from 0 to 6"),
        (["--index", "-1"], "from 0 to 6"),
        (["--jobs", "0"], "jobs: '0' is not valid"),
        (["--nice", "20"], "from 0 to 19"),
        (["--engine", "slurm"], "engine"),
        (["--address", "auto"], "add --engine ray"),
        (["--index", "0", "--jobs", "2"], "not for --index"),
        (["--index", "0", "--engine", "ray"], "not on Ray"),
        (["--runs", ""], "runs: '' is not valid"),
    ],
)
def test_a_bad_option_gets_one_line_and_nothing_starts(file, arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep(file, *arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == ["experiment.yaml"]


def test_an_experiment_that_there_is_not_is_answered_with_the_nearest(capsys):
    assert sweep("point_method") == 2
    assert "did you mean 'point_methods'" in capsys.readouterr().err


def test_experiments_are_listed_and_are_no_configs(capsys):
    assert cli.main(["list", "experiments"]) == 0
    assert "point_methods" in capsys.readouterr().out
    assert cli.main(["list", "configs"]) == 0
    assert "point_methods" not in capsys.readouterr().out
    assert cli.main(["train", "--config", "experiments/point_methods", "--print_config"]) == 2


def test_every_shipped_experiment_can_be_planned(tmp_path):
    runs = {name: plan(read_experiment(find_experiment(name)), tmp_path) for name in experiment_names()}
    assert all(runs.values())
    runs = runs["point_methods"]
    assert len(runs) == 20
    assert len({run.folder for run in runs}) == 20
    assert choose(runs, [], [], 5) == [runs[5]]


def test_seeds_are_ranges_lists_and_both():
    assert read_seeds("200..203", "seeds") == (200, 201, 202, 203)
    assert read_seeds("0..1, 7", "seeds") == (0, 1, 7)
    assert read_seeds([3, 1], "seeds") == (3, 1)
    with pytest.raises(ConfigError, match="comes twice"):
        read_seeds("0..3,2", "seeds")
