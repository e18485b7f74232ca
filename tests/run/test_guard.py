"""The guard: faults are injected, and it names them, marks the run, keeps the evidence and stops."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import at_step, status, train

from mtrl import cli
from mtrl.envs.point import PointEnv
from mtrl.replay import TaskReplay
from mtrl.run.guard import ZERO_MEASUREMENTS, GuardCallback
from mtrl.train import Trainer

TASKS = ("point-reach", "point-mirror", "point-swap", "point-turn", "point-opposite")


def spoil(attribute: str, value: float):
    """Set the first number of the first tensor of one of the agent's networks."""

    def act(trainer: Trainer) -> None:
        _, tensor = next(getattr(trainer.agent, attribute).tensors())
        with torch.no_grad():
            tensor.view(-1)[0] = value

    return act


@pytest.mark.parametrize(
    ("network", "word"), [("critic", "critic"), ("actor", "actor"), ("temperature", "temperature")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_parameter_that_is_not_finite_ends_the_run_within_a_log_interval(
    tmp_path, monkeypatch, capfd, network, word, value
):
    at_step(monkeypatch, 61, spoil(network, value))
    assert train(tmp_path / "run") == 3
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("mtrl: diverged: ")
    assert 61 < int(re.search(r"at step (\d+) per task", line)[1]) <= 80  # log_every is 20
    assert word in line or "critic: a loss or gradient" in line  # which spoils the others in one update
    assert status(tmp_path / "run").startswith("DIVERGED")
    assert not (tmp_path / "run" / "policy.safetensors").exists()


@pytest.mark.parametrize("network", ["critic", "actor", "temperature"])
def test_a_parameter_spoilt_just_before_a_look_is_named_by_its_network(tmp_path, monkeypatch, capfd, network):
    at_step(monkeypatch, 79, spoil(network, float("nan")))  # the look is at 80, the update was before
    assert train(tmp_path / "run") == 3
    assert f"diverged: {network}: a parameter is not finite, at step 80 per task" in capfd.readouterr().err


def test_a_learning_rate_that_explodes_is_named_with_network_tasks_and_evidence(tmp_path, capfd):
    run = tmp_path / "run"
    assert train(run, "--agent.critic.learning_rate=1e9") == 3
    line = capfd.readouterr().err.splitlines()[-1]
    assert "critic" in line
    assert "per task; evidence in" in line
    evidence = load_file(run / "evidence.safetensors")
    assert evidence["batch.rewards"].shape == (5, 8)
    assert {"critic_loss", "actor_loss", "q", "gramian_critic"} <= evidence.keys()


@pytest.mark.parametrize("by", [(1e5, 1e5), (1e5, -1e5)])  # the second leaves the mean where it was
def test_values_beyond_what_rewards_and_discount_permit_end_the_run(tmp_path, monkeypatch, capfd, by):
    def raise_values(trainer):
        parameters = dict(trainer.agent.critic.tensors())
        with torch.no_grad():
            for number, amount in enumerate(by):
                parameters[f"nets.{number}.stack.output.bias"] += amount

    at_step(monkeypatch, 61, raise_values)
    assert train(tmp_path / "run") == 3
    assert (
        f"critic: values are beyond what rewards and discount permit for {', '.join(TASKS)}"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize(("workers", "what"), [(0, "reward"), (0, "observation"), (1, "observation")])
def test_an_environment_that_returns_nan_is_named_by_task_and_ends_the_run(
    tmp_path, monkeypatch, capfd, what, workers
):
    if workers:  # a worker imports the environments afresh: there it is the state that is spoilt

        def act(trainer):
            states = trainer.envs.get_state()
            states[1]["env"]["goal"] = [0.0, 0.0, np.nan, np.nan]
            trainer.envs.set_state(states)
    else:

        def act(trainer):
            step = PointEnv.step

            def broken(self, action):
                observation, reward, *rest = step(self, action)
                if self._matrix[0] < 0:  # point-mirror's
                    reward = np.nan if what == "reward" else reward
                    observation = observation * np.inf if what == "observation" else observation
                return observation, reward, *rest

            monkeypatch.setattr(PointEnv, "step", broken)

    at_step(monkeypatch, 30, act)  # still warming up: no update has been
    assert train(tmp_path / "run", f"--workers={workers}") == 3
    line = capfd.readouterr().err.splitlines()[-1]
    assert "point-mirror" in line
    assert "not finite" in line or "the reward is nan" in line
    assert "at step 31 per task" in line or "at step 32 per task" in line
    assert status(tmp_path / "run").startswith("DIVERGED")


def test_a_diverged_run_is_not_trained_again_as_it_is_and_evaluation_shows_the_mark(
    tmp_path, monkeypatch, capfd
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 100, spoil("critic", float("nan")))
        assert train(run) == 3
    capfd.readouterr()
    assert train(run) == 2
    assert "is marked DIVERGED" in capfd.readouterr().err
    # the best policy of before is still there, and does not pass for a sound run's
    assert cli.main(["evaluate", str(run), "--checkpoint=best", "--episodes=1", "--json=-"]) == 0
    shown = capfd.readouterr()
    assert "this run is marked DIVERGED" in shown.err
    assert json.loads(shown.out)["run_status"].startswith("DIVERGED")


def test_no_checkpoint_is_ever_written_of_a_diverged_state(tmp_path, monkeypatch):
    run = tmp_path / "run"
    at_step(monkeypatch, 61, spoil("actor", float("nan")))
    assert train(run, "--checkpoint_every=1e-9", "--log_every=120") == 3
    steps = [int(path.stem.split("-")[1]) for path in (run / "checkpoint").glob("manifest-*.json")]
    assert max(steps) <= 61


def test_a_full_disk_does_not_hide_a_divergence(tmp_path, monkeypatch, capfd):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtrl.run.guard.write_synced", full)
    at_step(monkeypatch, 61, spoil("critic", float("nan")))
    assert train(tmp_path / "run") == 3
    assert "no evidence" in capfd.readouterr().err
    assert status(tmp_path / "run").startswith("DIVERGED")


def test_a_collapsed_entropy_and_a_gradient_that_stays_zero_are_warned_of_once(
    make_agent, scripted, tmp_path, capsys
):
    agent = make_agent(2, obs_dim=1, action_dim=1, actor={"log_std_min": -5.0})
    envs = scripted([([1.0] * 4, [False] * 4)], [([1.0] * 4, [False] * 4)])
    replay = TaskReplay(2, 50, 1, 1)
    guard = GuardCallback(1, tmp_path / "evidence.safetensors")
    trainer = Trainer(agent, envs, replay, batch_size=4, warmup_steps=1, diagnostics_every=1)

    def collapse(*arguments, **named):
        metrics = update(*arguments, **named)
        metrics["log_prob"] = torch.tensor([0.0, 4.0])  # -(-5 + 1.42) is 3.58 nats
        conflict = metrics["conflict_actor"]
        gramian = conflict.gramian.clone()
        gramian[0], gramian[:, 0] = 0, 0
        metrics["conflict_actor"] = conflict._replace(gramian=gramian)
        return metrics

    update, agent.update = agent.update, collapse
    trainer.learn(2 * (ZERO_MEASUREMENTS + 4), guard)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" at step")[0] for line in lines] == [
        "mtrl: warning: actor: the entropy of task-1 collapsed (-4.0 nats)",
        "mtrl: warning: actor: the gradient of task-0 is zero",
    ]


def test_a_healthy_run_is_left_alone_even_where_rewards_and_temperature_are_tiny(tmp_path, capfd):
    options = ["--agent.reward_scale=none", "--agent.temperature.initial=1e-6", "--protocol.suite=point-swap"]
    assert train(tmp_path / "run", *options) == 0
    assert "warning" not in capfd.readouterr().err


def test_a_temperature_beyond_all_rewards_is_a_divergence(tmp_path, monkeypatch, capfd):
    def explode(trainer: Trainer) -> None:
        with torch.no_grad():
            next(trainer.agent.temperature.tensors())[1].fill_(12.0)  # α = e¹² = 162,755

    at_step(monkeypatch, 61, explode)
    assert train(tmp_path / "run") == 3
    assert "temperature: α is beyond what rewards give a reason for" in capfd.readouterr().err


def test_an_entropy_that_no_policy_can_have_is_refused(tmp_path, capfd):
    # two numbers in [-1, 1]: at most 2 log 2 = 1.386 nats
    assert train(tmp_path / "run", "--agent.temperature.target_entropy=1.4") == 2
    line = capfd.readouterr().err
    assert "agent.temperature.target_entropy: 1.4 is not valid; it must be below 1.386" in line
    assert not (tmp_path / "run").exists()
