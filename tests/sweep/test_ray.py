"""The Ray engine, where Ray is installed; benchmarks/kill_ray.py kills nodes."""

from __future__ import annotations

import sys

import pytest

from mtrl import cli
from mtrl.config import ConfigError

FILE = """
base: point
common:
  protocol.horizon: 30
  agent.actor.hidden: [8]
  total_steps_per_task: 150
  warmup_steps: 40
  eval_every: 75
  eval_episodes: 1
arms:
  unitary: {optimizer.name: unitary}
  none_like_it: {optimizer.name: pcgrad, replay.capacity: 100}
seeds: [3]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(FILE)
    return path


def test_without_ray_one_line_says_how_to_install_it(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "mtrl.sweep.ray", raising=False)
    assert cli.main(["sweep", str(file), "--engine", "ray", f"--runs={tmp_path / 'runs'}"]) == 2
    assert capsys.readouterr().err == "mtrl: engine: Ray is not installed; pip install 'mtrl-suite[ray]'\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.timeout(300)
def test_runs_on_ray_leave_the_bytes_of_runs_without_it(file, tmp_path):
    pytest.importorskip("ray")
    for engine in ("local", "ray"):
        assert cli.main(["sweep", str(file), f"--engine={engine}", f"--runs={tmp_path / engine}"]) == 0
    found = {path.relative_to(tmp_path / "local") for path in tmp_path.glob("local/*/*/*/policy.safetensors")}
    assert len(found) == 2
    for path in found:
        assert (tmp_path / "ray" / path).read_bytes() == (tmp_path / "local" / path).read_bytes()
    assert not list(tmp_path.glob("ray/experiment/.sweep*"))


def test_an_address_without_a_cluster_gets_one_line(file, tmp_path, capsys):
    pytest.importorskip("ray")
    command = ["sweep", str(file), "--engine=ray", "--address=127.0.0.1:1", f"--runs={tmp_path / 'runs'}"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("mtrl: address: no Ray cluster at 127.0.0.1:1")
    assert not (tmp_path / "runs").exists()


def test_a_node_that_does_not_see_the_run_folders_trains_nothing(tmp_path):
    pytest.importorskip("ray")
    from mtrl.sweep.ray import Job, train

    job = Job((), tmp_path / "seed0", tmp_path / "log_seed0.txt", 0, tmp_path / ".sweep-x")
    with pytest.raises(ConfigError, match="does not see"):
        train(job)
    assert not list(tmp_path.iterdir())
