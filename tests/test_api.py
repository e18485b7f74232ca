"""What the command line gives, from Python and for envs of one's own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stable_baselines3.common.logger import KVWriter, Logger
from tiny_runs import POINT, train, written

from mtrl import api, cli
from mtrl.config import ConfigError
from mtrl.envs import Protocol, SuiteError, make_suite
from mtrl.envs.point import PointEnv
from mtrl.replay import TaskReplay
from mtrl.sac import MTSAC
from mtrl.settings.keys import as_text
from mtrl.train import Trainer

MTRL = Path(sys.executable).with_name("mtrl")
DOCS = Path(__file__).parents[1] / "docs/see.md"
SCRIPT = re.search(r"```python\n(# my_tasks.py\n.*?)```", DOCS.read_text(), flags=re.DOTALL)[1]
TINY = """run_dir="mine", total_steps_per_task=120, warmup_steps=40, eval_every=60, eval_episodes=1, threads=1,
    agent={"actor": {"hidden": [8]}, "critic": {"hidden": [8]}}, protocol={"horizon": 30}"""
SILENT = """
import my_tasks

def make_tasks():
    return {name: lambda make=make: make().env for name, make in my_tasks.make_tasks().items()}
"""


def settings() -> dict[str, Any]:
    """Those of the tiny runs, as Python values."""
    pairs = (argument[2:].split("=", 1) for argument in POINT)
    return {key: value if key.endswith("suite") else json.loads(value) for key, value in pairs}


def mtrl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MTRL, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the documentation's script of fifteen lines, and the run that it makes with small settings."""
    folder = tmp_path_factory.mktemp("mine")
    script, replaced = re.subn(r"run_dir=.*(?=\)$)", TINY, SCRIPT, flags=re.MULTILINE)
    assert replaced == 1
    (folder / "my_tasks.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "my_tasks.py"], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1].startswith("DONE {'mean_success': ")
    return folder


def test_own_envs_in_fifteen_lines_leave_a_run_that_the_command_line_takes(mine: Path) -> None:
    assert len([line for line in SCRIPT.splitlines() if line]) <= 15
    meta = json.loads((mine / "mine/meta.json").read_text())
    assert meta["command"].startswith("mtrl train --run_dir=mine --total_steps_per_task=120")
    assert list((mine / "mine").glob("events.out.tfevents.*"))
    done = mtrl(mine, "evaluate", "mine", "--import", "my_tasks", "--json", "-", "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["tasks"]) == {"earth", "moon"}
    done = mtrl(mine, "video", "mine", "--import", "my_tasks", "--out", "a.gif")
    assert done.returncode == 0 or done.stderr.startswith("mtrl: task earth: its env cannot be drawn")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_what_ones_own_envs_are_warned_of_is_a_line_each(mine: Path, workers: str) -> None:
    (mine / "silent.py").write_text(SILENT)
    more = ["--protocol.suite=silent:make_tasks", f"--run_dir=silent{workers}", "--import=my_tasks"]
    done = mtrl(mine, "train", "--config=mine/config.yaml", *more)
    assert done.returncode == 0, done.stderr
    done = mtrl(
        mine, "evaluate", f"silent{workers}", "--import=silent", "--episodes=1", f"--workers={workers}"
    )
    assert "earth, moon never told success in an episode: no success is shown" in done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    for task, line in zip(("earth", "moon"), lines, strict=True):
        assert line.startswith(f"mtrl: warning: task {task}: the info of its step has neither success nor"), (
            line
        )


def test_envs_without_goals_have_as_many_episodes_as_one_asks_for_and_a_protocol_that_names_none(
    mine: Path,
) -> None:
    assert json.loads((mine / "mine/meta.json").read_text())["protocol"]["name"] == "my_tasks:make_tasks-h30"
    for more, episodes in (([], 10), (["--episodes=60"], 60)):
        done = mtrl(mine, "evaluate", "mine", "--import=my_tasks", "--json=-", "--workers=0", *more)
        assert done.returncode == 0, done.stderr
        assert {task["episodes"] for task in json.loads(done.stdout)["tasks"].values()} == {episodes}
    more = ["--run_dir=fixed", "--import=my_tasks", "--protocol.goals=fixed", "--eval_episodes=3"]
    done = mtrl(mine, "train", "--config=mine/config.yaml", *more)
    assert done.returncode == 0, done.stderr
    assert "2 tasks (my_tasks:make_tasks-h30-fixed)" in done.stdout
    last = json.loads((mine / "fixed/eval.jsonl").read_text().splitlines()[-1])
    assert {task["episodes"] for task in last["tasks"].values()} == {3}


def test_the_command_that_the_run_tells_trains_it_again(mine: Path) -> None:
    command = json.loads((mine / "mine/meta.json").read_text())["command"]
    assert "--protocol.suite=my_tasks:make_tasks" in command
    again = [argument.replace("run_dir=mine", "run_dir=again") for argument in shlex.split(command)[1:]]
    done = mtrl(mine, *again)
    assert done.returncode == 0, done.stderr
    assert "these envs have no get_state and set_state" in done.stdout
    first, second = ((mine / name / "policy.safetensors").read_bytes() for name in ("mine", "again"))
    assert first == second


def test_envs_that_cannot_be_saved_go_on_with_new_episodes(mine: Path) -> None:
    more = (
        "--config",
        "mine/config.yaml",
        "--run_dir",
        "mine",
        "--total_steps_per_task",
        "150",
        "--allow_changes",
        "--import",
        "my_tasks",
    )
    done = mtrl(mine, "train", *more)
    assert done.returncode == 0, done.stderr
    assert "going on from step 120 per task" in done.stdout
    assert (mine / "mine/STATUS").read_text().strip() == "DONE"


def test_a_file_does_not_run_code_that_nobody_named(mine: Path) -> None:
    (mine / "sent.safetensors").write_bytes((mine / "mine/policy.safetensors").read_bytes())
    done = mtrl(mine, "evaluate", "sent.safetensors")
    assert done.returncode == 2
    assert "add --import my_tasks to trust it" in done.stderr
    done = mtrl(mine, "evaluate", "sent.safetensors", "--import", "my_tasks", "--json", "-", "--workers=0")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("nowhere_at_all:make", "suite: 'nowhere_at_all:make': there is no module 'nowhere_at_all' in"),
        ("json:nothing", "suite: 'json:nothing': the module 'json' has no 'nothing'"),
        ("json:__doc__", "not a function"),
        ("os:getcwd", "suite: 'os:getcwd' returned"),
        ("json:dumps", "suite: 'json:dumps' raised TypeError"),
        ("../a:b", "suite: '../a:b' is not the name of a function, such as my_tasks:make_tasks"),
        (":", "suite: ':' is not the name of a function"),
    ],
)
def test_what_is_no_suite_is_refused_in_one_line(
    suite: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--protocol.suite", suite, "--print_config"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"checkpoint": "Best"}, "checkpoint: 'Best' is not valid; it must be best or last"),
        ({"checkpoint": "best", "file": True}, "checkpoint: best is not valid"),
        ({"episodes": 0}, "episodes: 0 is not valid"),
        ({"episodes": "3"}, "episodes: '3' is not valid"),
    ],
)
def test_what_evaluate_cannot_do_is_refused_from_python_too(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    run = api.run(run_dir=str(tmp_path / "run"), **settings())
    place = run.last if options.pop("file", False) else run
    with pytest.raises(ConfigError, match=re.escape(told)):
        api.evaluate(place, **options)


def test_a_resolved_config_is_what_run_takes(tmp_path: Path) -> None:
    run = api.run(run_dir=str(tmp_path / "a"), **settings())
    resolved = {**yaml.safe_load(run.config.read_text()), "run_dir": str(tmp_path / "b")}
    assert written(api.run(**resolved).path) == written(run.path)


def test_a_text_option_stays_a_text() -> None:
    assert as_text("optimizer.options", {}) == "{}"
    assert as_text("optimizer.options.scale", "3") == '"3"'
    assert as_text("label", "3") == "3"


def test_a_function_that_no_other_process_finds_is_refused() -> None:
    with pytest.raises(SuiteError, match="is not a function at the top of a module"):
        api.run(lambda: {"a": PointEnv})


def test_run_is_mtrl_train(tmp_path: Path) -> None:
    assert train(tmp_path / "a", "--agent.tau=0.01") == 0
    run = api.run(run_dir=str(tmp_path / "b"), agent={"tau": 0.01}, **settings())
    assert run.status == "DONE"
    assert written(run.path) == written(tmp_path / "a")
    with pytest.raises(ConfigError, match="is finished, and seed: 0 -> 1"):
        api.run(run_dir=str(tmp_path / "b"), seed=1, **settings())
    with pytest.raises(ConfigError, match=r"no setting 'agent.gama', did you mean 'agent.gamma'"):
        api.run(run_dir=str(tmp_path / "c"), agent={"gama": 0.9})


def test_evaluate_and_video_are_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = api.run(
        "point", run_dir=str(tmp_path / "r"), **{k: v for k, v in settings().items() if "suite" not in k}
    )
    capsys.readouterr()
    assert cli.main(["evaluate", str(run.path), "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    scores = api.evaluate(run).to_dict()
    assert scores["tasks"] == told["tasks"]
    shown = api.video(run, tmp_path / "a.gif", episodes=3)
    np.testing.assert_array_equal(shown.mean_return, api.evaluate(run).mean_return)


class Rows(KVWriter):
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append((step, dict(key_values)))

    def close(self) -> None: ...


def test_a_trainer_with_a_logger_logs_training_without_a_callback() -> None:
    rows = Rows()
    envs = make_suite(Protocol("point", horizon=10), workers=0)
    agent = MTSAC(envs.observation_dim, envs.action_dim, envs.task_names)
    replay = TaskReplay(5, 100, envs.observation_dim, envs.action_dim)
    Trainer(
        agent, envs, replay, logger=Logger(None, [rows]), batch_size=4, warmup_steps=10, log_every=20
    ).learn(40 * 5)
    assert [step for step, _ in rows.rows] == [20, 40]
    assert {"train/critic_loss", "train_q/point-reach", "rollout/success_rate", "time/fps"} <= set(
        rows.rows[0][1]
    )


def test_a_setting_may_be_a_path_or_numpys_and_what_is_none_is_refused():
    assert as_text("run_dir", Path("a/b")) == "a/b"
    assert as_text("seed", np.int64(3)) == "3"
    assert (
        as_text("agent.actor.hidden", np.array([8, 8])) == as_text("agent.actor.hidden", [8, 8]) == "[8, 8]"
    )
    with pytest.raises(ConfigError, match="seed: <object"):
        as_text("seed", object())
