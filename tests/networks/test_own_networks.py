"""A network of one's own, from the command line: by ``module:Class`` in the current folder, and by nobody else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtrl import cli

DOCS = Path(__file__).parents[2] / "docs/networks.md"
METHOD = """
from torch import Tensor
from mtrl.optimizers import GramianMethod

class First(GramianMethod):
    paper, formula = "mine", "the first task's gradient"

    def weights(self, gramian: Tensor, tasks: Tensor | None = None) -> Tensor:
        weights = gramian.new_zeros(len(gramian))
        weights[0] = 1
        return weights
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The documentation's example next to an optimizer."""
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert len(code) == 1
    assert len(code[0].splitlines()) <= 24
    (tmp_path / "my_networks.py").write_text(code[0])
    (tmp_path / "my_methods.py").write_text(METHOD)
    return tmp_path


def mtrl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.path = [p for p in sys.path if p]; from mtrl.cli import main; sys.exit(main())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=250,
    )  # fmt: skip


TRAIN = (
    "train",
    "--config",
    "point",
    "--total_steps_per_task",
    "310",
    "--eval_every",
    "0",
    "--eval_episodes",
    "1",
)


@pytest.mark.parametrize("method", ["unitary", "my_methods:First"])
def test_the_example_trains_and_its_policy_evaluates(folder, method):
    named = ("--agent.network.name", "my_networks:Mixture", "--agent.network.options.experts", "2")
    run = mtrl(folder, *TRAIN, *named, "--optimizer.name", method, "--run_dir", "run")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("note: this network is written for one task alone") == 1
    assert "\ndone: mtrl evaluate run --import my_networks\n" in run.stdout
    refused = mtrl(folder, "evaluate", "run", "--episodes", "1")
    assert refused.returncode == 2
    assert "--import my_networks" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    evaluated = mtrl(folder, "evaluate", "run", "--episodes", "1", "--import", "my_networks")
    assert evaluated.returncode == 0, evaluated.stderr


def test_a_config_imports_nothing_unless_the_command_line_says_so(folder):
    (folder / "evil.py").write_text("open('ran', 'w').close()\n")
    for section in (
        "agent: {network: {name: 'evil:Net'}}",
        "protocol: {suite: 'evil:Net'}",
        "optimizer: {name: 'evil:Net'}",
    ):
        (folder / "mine.yaml").write_text(f"base: point\n{section}\n")
        refused = mtrl(folder, "train", "--config", "mine.yaml", "--run_dir", "run")
        assert refused.returncode == 2
        assert "--import evil" in refused.stderr
        assert not (folder / "ran").exists()
        assert not (folder / "run").exists()
    allowed = mtrl(folder, "train", "--config", "mine.yaml", "--run_dir", "run", "--import", "evil")
    assert allowed.returncode == 2
    assert "evil has no MultiTaskOptimizer called 'Net'" in allowed.stderr


def test_an_experiment_imports_nothing_unless_the_command_line_says_so(folder):
    (folder / "evil.py").write_text("open('ran', 'w').close()\n")
    (folder / "grid.yaml").write_text("base: point\narms: {a: {optimizer.name: 'evil:X'}}\nseeds: '0..0'\n")
    refused = mtrl(folder, "sweep", "grid.yaml", "--list")
    assert refused.returncode == 2
    assert "--import evil" in refused.stderr
    assert not (folder / "ran").exists()
    (folder / "grid.yaml").write_text(
        "base: point\narms: {a: {optimizer.name: 'my_methods:First'}}\nseeds: '0..0'\n"
    )
    assert mtrl(folder, "sweep", "grid.yaml", "--list", "--import", "my_methods").returncode == 0


def test_a_card_names_the_modules_that_its_commands_need_and_they_work(folder):
    pytest.importorskip("huggingface_hub")
    named = ("--agent.network.name", "my_networks:Mixture", "--optimizer.name", "my_methods:First")
    assert mtrl(folder, *TRAIN, *named, "--run_dir", "run").returncode == 0
    made = mtrl(folder, "card", "run", "card", "--import", "my_networks")
    assert made.returncode == 0, made.stderr
    text = (folder / "card/README.md").read_text()
    assert "import my_networks  # the network's\n\nfrom mtrl.policy import load_policy" in text
    for line in (
        re.search(r"`mtrl (train --config config.yaml.*?)`", text)[1] + " --print_config",
        re.search(r"^mtrl (evaluate \. .*?) *#", text, re.MULTILINE)[1] + " --episodes 1",
    ):
        command = line.replace("config.yaml", "card/config.yaml").replace(" . ", " card ").split()
        assert mtrl(folder, *command).returncode == 0, command


def test_sizes_of_a_config_that_names_a_network_of_ones_own(folder):
    (folder / "mine.yaml").write_text("base: point\nagent: {network: {name: 'my_networks:Mixture'}}\n")
    done = mtrl(folder, "list", "networks", "--sizes", "mine.yaml", "--import", "my_networks")
    assert done.returncode == 0, done.stderr
    assert "my_networks:Mixture" in done.stdout


def test_a_sweep_tells_its_runs_what_a_file_may_import(folder):
    (folder / "mine.yaml").write_text("base: point\nagent: {network: {name: 'my_networks:Mixture'}}\n")
    (folder / "grid.yaml").write_text(
        "base: mine.yaml\ncommon: {total_steps_per_task: 40, warmup_steps: 30, eval_every: 0, eval_episodes: 1}\n"
        "arms: {a: {optimizer.name: 'my_methods:First'}}\nseeds: '0'\n"
    )
    done = mtrl(folder, "sweep", "grid.yaml", "--import", "my_methods", "--import", "my_networks")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs are done" in done.stdout


def test_a_module_that_ends_the_process_when_imported_is_bad_input(tmp_path, monkeypatch, capsys):
    (tmp_path / "quits_at_once.py").write_text("import sys; sys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--config=point", "--agent.network.name=quits_at_once:Net", "--run_dir=r"]) == 2
    assert "the module quits_at_once cannot be imported" in capsys.readouterr().err
