"""The commands as a user types them, on real Meta-World."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

import mtrl
from mtrl.cli import main
from mtrl.envs import Protocol
from mtrl.optimizers import OPTIMIZERS
from mtrl.results.tables import make_table, show

ROOT = Path(__file__).parents[1]
MTRL = Path(sys.executable).with_name("mtrl")
TASKS = {"reach-v3", "drawer-close-v3", "button-press-topdown-v3"}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke config, by the installed command, in a folder that is not the project's."""
    folder = tmp_path_factory.mktemp("somewhere")
    done = subprocess.run(
        [MTRL, "train", "--config", "smoke"], cwd=folder, capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "runs/custom/smoke/seed0"


def test_the_smoke_config_leaves_a_complete_run(smoke: Path) -> None:
    for name in (
        "config.yaml",
        "meta.json",
        "progress.csv",
        "eval.jsonl",
        "conflict.jsonl",
        "policy.safetensors",
    ):
        assert (smoke / name).stat().st_size > 0, name
    assert list(smoke.glob("events.out.tfevents.*"))
    assert (smoke / "STATUS").read_text().strip() == "DONE"
    meta = json.loads((smoke / "meta.json").read_text())
    assert meta["protocol"]["name"] == "custom3-v2-h100-random50"
    assert meta["command"] == "mtrl train --config smoke"
    steps = [json.loads(line)["steps_per_task"] for line in (smoke / "eval.jsonl").read_text().splitlines()]
    assert steps == [1000, 2000]


def test_a_run_is_evaluated_on_every_goal_once_by_default(
    smoke: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(smoke), "--json", "-"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores["tasks"]) == TASKS
    for task in scores["tasks"].values():
        assert set(task) == {"success", "success_at_end", "ci", "return", "steps_to_success", "episodes"}
        assert task["episodes"] == 50
        assert task["ci"][0] <= task["success"] <= task["ci"][1]
    low, high = scores["mean_success_ci"]
    assert low <= scores["mean_success"] <= high
    assert scores["protocol"]["horizon"] == 100


def test_another_seed_draws_other_goals(smoke: Path, capsys: pytest.CaptureFixture[str]) -> None:
    returns = []
    for seed in ([], ["--seed", "0"], ["--seed", "7"]):
        assert main(["evaluate", str(smoke), "--episodes", "3", "--json", "-", *seed]) == 0
        tasks = json.loads(capsys.readouterr().out)["tasks"]
        returns.append([task["return"] for task in tasks.values()])
    assert returns[0] == returns[1]
    assert returns[0] != returns[2]


def test_runs_are_compared_by_label(smoke: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    figure = tmp_path / "curves.png"
    assert main(["compare", str(smoke), "--json", "-", "--figure", str(figure)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert list(summary) == ["smoke"]
    assert summary["smoke"]["steps_per_task"] == 2000
    assert figure.stat().st_size > 1000


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mtrl {mtrl.__version__}\n"


def test_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "metaworld  ok" in report
    assert "GFLOP/s bf16" in report


def test_the_readme_s_python_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "policy.safetensors").exists()


def test_training_imports_no_compiler_that_it_does_not_use(tmp_path: Path) -> None:
    code = """
import sys
from mtrl.cli import main
assert main(sys.argv[1:]) == 0
assert "torch" in sys.modules
assert "torch._dynamo" not in sys.modules  # a second of every start
"""
    settings = ["--total_steps_per_task=60", "--warmup_steps=40", "--eval_every=60", "--eval_episodes=1"]
    command = ["train", "--protocol.suite=point", "--protocol.horizon=30", *settings, "--run_dir=run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_s_tree_is_the_tree() -> None:
    readme = (ROOT / "README.md").read_text()
    for folder in ("mtrl", "envs"):
        for path in (ROOT / folder).glob("*.py"):
            if path.name != "__init__.py":
                assert path.name in readme, f"{folder}/{path.name} is not in the README"


@pytest.mark.parametrize("width", ["40", "80"])
def test_names_are_never_cut_in_a_pipe_or_on_a_narrow_screen(width: str) -> None:
    command = [sys.executable, "-m", "mtrl.cli", "list", "optimizers"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "COLUMNS": width}
    )
    assert "…" not in done.stdout
    for name in OPTIMIZERS:
        assert f" {name} " in done.stdout


def test_a_table_of_mt50_has_every_name_on_a_terminal_of_40_columns(monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        "mtrl.results.tables.make_console", lambda: Console(width=40, markup=False, highlight=False)
    )
    table = make_table("task", *["a number with a long name"] * 6, title="[/b] is no markup")
    for name in Protocol("mt50").task_names:
        table.add_row(name, *["0.50"] * 6)
    show(table)
    printed = capsys.readouterr().out
    assert all(name in printed for name in Protocol("mt50").task_names)
    assert "[/b] is no markup" in printed


@pytest.mark.parametrize("arguments", ["list", "--help", "evaluate"])
def test_a_full_disk_behind_the_output_is_one_line(arguments: str, smoke: Path) -> None:
    command = [sys.executable, "-m", "mtrl.cli", *arguments.split()]
    if arguments == "evaluate":
        command += [str(smoke), "--episodes=1"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["mtrl: No space left on device"]


def test_the_command_runs_off_the_main_thread(capsys) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["list", "suites"])))
    thread.start()
    thread.join()
    assert codes == [0]
