"""The paper's runs: every preset against the published values, and that each trains; the fast preset and its twin."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import yaml

from mtrl.cli import main
from mtrl.replay import TaskReplay
from mtrl.sac import MTSAC
from mtrl.settings.files import config_names
from mtrl.settings.train import parse_train
from mtrl.train import Trainer
from mtrl.values import flat_items

# Kurin et al. 2022 (arXiv 2201.04122): the paper, its app. B and the scripts of its public code. Capacity and
# batch are totals there; here per task.
COMMON: dict[str, Any] = {
    "protocol.reward": "v1", "protocol.horizon": 150, "protocol.goals": "fixed", "protocol.goal_seed": None,
    "total_steps_per_task": 2_000_000, "warmup_steps": 1500, "warmup_updates": 1500, "updates_per_step": 1,
    "eval_every": 30_000, "eval_episodes": 1,
    "agent.task_input": "none", "agent.gamma": 0.99, "agent.tau": 0.005,
    "agent.reward_scale": "sigma", "agent.target_clip": False, "agent.precision": "fp32",
    "agent.temperature.shared": True, "agent.temperature.initial": 1.0, "agent.temperature.learning_rate": 3e-4,
    "agent.temperature.loss": "alpha", "agent.temperature.target_entropy": -4.0,
    "agent.temperature.combine": False,
    "agent.actor.log_std": "tanh", "agent.actor.log_std_min": -20.0, "agent.actor.log_std_max": 2.0,
    "agent.actor.decay": "coupled", "agent.actor.decay_on": "as_published",
    "agent.critic.weight_decay": 0.0, "agent.critic.ensemble": 2, "agent.critic.reduction": "min",
    "agent.critic.loss": "squared",
    "replay.sampling": "uniform",
    **{
        f"agent.{network}.{key}": value
        for network in ("actor", "critic")
        for key, value in {
            "hidden": [400, 400, 400], "activation": "relu", "blocks": 0, "layer_norm": False, "dropout": 0.0,
            "init": "xavier", "learning_rate": 3e-4, "max_grad_norm": None,
        }.items()
    },
}  # fmt: skip
SUITES = {
    "mt10": {"protocol.suite": "mt10", "replay.capacity": 4_000_000 / 10, "replay.batch_size": 1280 / 10},
    "mt50": {"protocol.suite": "mt50", "replay.capacity": 4_000_000 / 50, "replay.batch_size": 1280 / 50},
}
TASKS = {"mt10": 10, "mt50": 50}
WD = "agent.actor.weight_decay"
METHODS: dict[str, dict[str, Any]] = {  # published L2; RLW's stands against a sum, so T times as large a gradient
    "unitary": {"optimizer.name": "unitary", WD: 3e-4},
    "pcgrad": {"optimizer.name": "pcgrad", WD: 1e-4, "agent.temperature.combine": True},
    "mgda": {
        "optimizer.name": "mgda", WD: 0.0,
        "optimizer.options.normalize": "l2", "optimizer.options.scale": "as_published",
    },
    "graddrop": {"optimizer.name": "graddrop", WD: 1e-4, "optimizer.options.scale": "as_published"},
    "rlw_dirichlet": {"optimizer.name": "rlw", WD: "3e-4/T", "optimizer.options.distribution": "dirichlet"},
    "rlw_normal": {"optimizer.name": "rlw", WD: "3e-4/T", "optimizer.options.distribution": "normal"},
    "imtl": {"optimizer.name": "imtl_g", WD: 3e-4, "agent.target_clip": True, "optimizer.options.as_published": True},
}  # fmt: skip
MT50_IMTL = {
    WD: 0.0, "agent.target_clip": False, "agent.actor.learning_rate": 3e-5, "agent.critic.learning_rate": 3e-5,
    "agent.temperature.learning_rate": 3e-5,
}  # fmt: skip
CAGRAD = {  # Liu et al. 2021 (arXiv 2110.14048), its scripts: the mtrl baseline but for the optimizer
    "optimizer.name": "cagrad", "optimizer.options.c": 0.9, "optimizer.options.solver": "as_published",
    "optimizer.options.scale": "1+c^2", WD: 0.0, "replay.capacity": 100_000, "agent.reward_scale": "ema",
    "agent.ema_coefficient": 0.001, "agent.temperature.combine": True,
}  # fmt: skip
RUNGS: list[dict[str, Any]] = [  # from the top: what each lower rung takes away
    {},
    {WD: 0.0},
    {"agent.reward_scale": "ema", "agent.ema_coefficient": 0.001},
    {"replay.capacity": 100_000},
    {"agent.temperature.shared": False, "agent.temperature.combine": False},
]


def published() -> dict[str, dict[str, Any]]:
    """Every preset's name and the values that it must have."""
    table: dict[str, dict[str, Any]] = {}
    for suite, (method, values) in itertools.product(SUITES, METHODS.items()):
        own = {k: 3e-4 / TASKS[suite] if v == "3e-4/T" else v for k, v in values.items()}
        table[f"{suite}_{method}"] = {**COMMON, **SUITES[suite], **own}
    table["mt50_imtl"] |= MT50_IMTL
    table["mt10_cagrad"] = {**COMMON, **SUITES["mt10"], **CAGRAD}
    for method in ("unitary", "pcgrad"):
        values = table[f"mt10_{method}"]
        for rung, change in zip((5, 4, 3, 2, 1), RUNGS, strict=True):
            values = {**values, **change}
            table[f"mt10_ladder{rung}_{method}"] = values
    return table


PUBLISHED = published()


def test_the_presets_are_those_of_the_table():
    assert {name.removeprefix("paper/") for name in config_names() if name.startswith("paper/")} == set(
        PUBLISHED
    )
    assert len(PUBLISHED) == 2 * 7 + 1 + 2 * 5


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_values(name):
    found = dict(flat_items(yaml.safe_load(parse_train(["--config", f"paper/{name}"]).text)))
    expected = PUBLISHED[name]
    options = {key for key in (*found, *expected) if key.startswith("optimizer.options.")}
    for key in {*expected, *options}:
        value = expected[key]
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert found["label"] == f"paper_{name}"  # each has a folder of its own


def test_the_first_and_last_rung_differ_in_four_settings():
    first, last = (
        dict(flat_items(yaml.safe_load(parse_train(["--config", f"paper/mt10_ladder{rung}_unitary"]).text)))
        for rung in (1, 5)
    )
    assert {key for key in last if first[key] != last[key]} - {"label"} == {
        "agent.temperature.shared", "replay.capacity", "agent.reward_scale", "agent.actor.weight_decay",
    }  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_makes_twenty_updates(name, scripted):
    config = parse_train(["--config", f"paper/{name}", "--total_steps_per_task", "20"]).config
    tasks = TASKS[name[:4]]
    small = dataclasses.replace(
        config.agent,
        actor=dataclasses.replace(config.agent.actor, hidden=(8, 8)),
        critic=dataclasses.replace(config.agent.critic, hidden=(8, 8)),
    )
    envs = scripted(*[[([t + 0.5, -1.0, 2.0 * t], [False, False, True], False)] for t in range(tasks)])
    agent = MTSAC(
        1, 1, tuple(f"task-{t}" for t in range(tasks)), small,
        optimizer=config.optimizer.name, options=config.optimizer.options,
    )  # fmt: skip
    before = agent.policy.to_bytes()
    trainer = Trainer(
        agent, envs, TaskReplay(tasks, 20, 1, 1, sampling=config.replay.sampling),
        batch_size=config.replay.batch_size / 16, warmup_steps=4, warmup_updates=10, diagnostics_every=10,
    )  # fmt: skip
    trainer.learn(14 * tasks)
    assert trainer.num_updates == 20
    assert trainer.metrics["critic_finite"].all()
    assert trainer.metrics["actor_finite"].all()
    assert agent.policy.to_bytes() != before
    assert all(p.isfinite().all() for part in (agent.actor, agent.critic) for _, p in part.tensors())


def test_a_preset_trains_on_meta_world_from_the_command_line(tmp_path, capsys):
    code = main([
        "train", "--config", "paper/mt10_ladder1_pcgrad", "--run_dir", str(tmp_path / "run"), "--workers", "0",
        "--protocol.suite", "custom", "--protocol.tasks", "[reach, door-open]",
        "--total_steps_per_task", "30", "--warmup_steps", "15", "--warmup_updates", "15",
        "--agent.actor.hidden", "[16]", "--agent.critic.hidden", "[16]", "--threads", "1",
    ])  # fmt: skip
    assert code == 0
    assert "custom2-v1-h150-fixed" in capsys.readouterr().out
    assert (tmp_path / "run" / "STATUS").read_text().startswith("DONE")


def test_the_fast_presets_differ_in_the_protocol_and_in_when_they_are_evaluated():
    fixed, goals = (
        dict(flat_items(yaml.safe_load(parse_train(["--config", name]).text)))
        for name in ("mt10_fast", "mt10_fast_random")
    )
    assert {key for key in fixed if fixed[key] != goals[key]} == {
        "protocol.goals", "protocol.horizon", "eval_every", "eval_episodes", "label",
    }  # fmt: skip
    assert (fixed["protocol.horizon"], fixed["eval_episodes"]) == (200, 1)  # BRC's; one episode is exact
    assert (goals["protocol.horizon"], goals["protocol.num_goals"]) == (500, 50)  # Meta-World+'s
