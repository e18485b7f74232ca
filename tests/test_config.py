"""Settings: a bad value stops the run and names itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mtrl.config import (
    ActorConfig,
    AgentConfig,
    ConfigError,
    CriticConfig,
    NetworkConfig,
    ReplayConfig,
    TemperatureConfig,
    TrainConfig,
    nearest,
)
from mtrl.settings.train import parse_train, settle

NAN = float("nan")
BAD: list[tuple[type, str, Any]] = [
    *[
        (cls, key, value)
        for cls in (NetworkConfig, ActorConfig, CriticConfig)
        for key, value in [
            ("hidden", (64, 0)), ("hidden", (-1,)),
            ("dropout", 1.0), ("dropout", -0.1), ("dropout", NAN),
            ("learning_rate", 0.0), ("learning_rate", -1.0), ("learning_rate", NAN),
            ("weight_decay", -1e-9), ("weight_decay", NAN),
            ("max_grad_norm", 0.0), ("max_grad_norm", -1.0), ("max_grad_norm", NAN),
        ]
    ],
    (ActorConfig, "log_std_min", 2.0), (ActorConfig, "log_std_min", NAN),
    (CriticConfig, "ensemble", 0), (CriticConfig, "atoms", 1), (CriticConfig, "support", 0.0),
    (CriticConfig, "blocks", -1),
    (TemperatureConfig, "initial", 0.0), (TemperatureConfig, "initial", NAN),
    (TemperatureConfig, "learning_rate", 0.0),
    (AgentConfig, "gamma", 1.0), (AgentConfig, "gamma", -0.1),
    (AgentConfig, "gamma", NAN),
    (AgentConfig, "tau", 0.0), (AgentConfig, "tau", 1.1),
    (AgentConfig, "embedding_dim", 0),
    (AgentConfig, "ema_coefficient", 0.0), (AgentConfig, "ema_coefficient", 1.5),
    (ReplayConfig, "capacity", 0), (ReplayConfig, "batch_size", 0),
    (ReplayConfig, "batch_size", float("inf")), (CriticConfig, "support", float("inf")),
    (TemperatureConfig, "target_entropy", NAN),
    (TrainConfig, "seed", -1), (TrainConfig, "total_steps_per_task", 0),
    (TrainConfig, "warmup_steps", 0), (TrainConfig, "updates_per_step", 0),
    (TrainConfig, "eval_every", -1), (TrainConfig, "eval_episodes", 0),
    (TrainConfig, "log_every", 0), (TrainConfig, "checkpoint_every", -0.5),
    (TrainConfig, "diagnostics_every", -1),
    (TrainConfig, "threads", 0), (TrainConfig, "workers", -1),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "key", "value"), BAD, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_value_out_of_range_is_refused_by_key_and_value(cls, key, value):
    with pytest.raises(ConfigError) as error:
        cls(**{key: value})
    assert str(error.value).startswith(f"{key}: {value!r} is not valid; it must be ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (NetworkConfig, "hidden", ()), (NetworkConfig, "dropout", 0.0), (NetworkConfig, "dropout", 0.99),
        (NetworkConfig, "weight_decay", 0.0), (NetworkConfig, "max_grad_norm", None),
        (CriticConfig, "ensemble", 1), (AgentConfig, "gamma", 0.0), (AgentConfig, "tau", 1.0),
        (AgentConfig, "policy_tau", 1.0),
        (ReplayConfig, "capacity", 1), (TrainConfig, "seed", 0), (TrainConfig, "eval_every", 0),
        (TrainConfig, "diagnostics_every", 0), (TrainConfig, "checkpoint_every", 0.5),
        (TrainConfig, "threads", "auto"), (TrainConfig, "workers", 0), (TrainConfig, "warmup_steps", 1),
    ],
)  # fmt: skip
def test_a_value_at_the_edge_of_its_range_is_taken(cls, key, value):
    assert getattr(cls(**{key: value}), key) == value


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("agent.task_input", "onehot"), ("agent.precision", "fp16"), ("agent.reward_scale", "std"),
        ("agent.actor.activation", "swish"), ("agent.actor.log_std", "clamp"), ("agent.critic.init", "he"),
        ("agent.critic.decay", "l2"), ("agent.temperature.loss", "log"), ("replay.sampling", "prioritised"),
        ("device", "tpu"), ("agent.gamma", "high"), ("seed", "1.5"), ("agent.critic.hidden", "[a]"),
        ("agent.critic.layer_norm", "maybe"), ("replay.batch_size", "none"), ("threads", "many"),
    ],
)  # fmt: skip
def test_a_word_or_type_that_is_none_is_refused_by_key_and_value(option, value):
    with pytest.raises(ConfigError) as error:
        parse_train(["--config", "point", f"--{option}={value}"])
    message = str(error.value)
    assert option.rsplit(".", 1)[-1] in message
    assert value.strip("[]") in message
    assert "\n" not in message


def test_a_misspelt_key_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'agent\.gama'.*did you mean 'agent\.gamma'"):
        parse_train(["--config", "point", "--agent.gama", "0.9"])
    assert nearest("gama", ["gamma", "tau"]) == ", did you mean 'gamma'?"
    assert nearest("xyz", ["gamma", "tau"]) == ""


def test_a_list_of_widths_becomes_a_tuple_and_configs_are_frozen_values():
    assert NetworkConfig(hidden=[3, 4]).hidden == (3, 4)  # type: ignore[arg-type]
    assert TrainConfig() == TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1  # type: ignore[misc]


def test_a_setting_by_its_dotted_name_overrides_the_file_and_nothing_else():
    plain = parse_train(["--config", "point"]).config
    other = parse_train(
        ["--config", "point", "--agent.critic.hidden", "[8]", "--optimizer.name", "pcgrad"]
    ).config
    assert other.agent.critic == dataclasses.replace(plain.agent.critic, hidden=(8,))
    assert other.optimizer.name == "pcgrad"
    assert other.agent.actor == plain.agent.actor
    assert dataclasses.replace(other, agent=plain.agent, optimizer=plain.optimizer) == plain


def test_a_long_run_of_one_shape_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr("mtrl.machine.why_not_compiled", lambda: "")
    monkeypatch.setattr("mtrl.machine.bf16_is_fast", lambda: True)

    def kernels(*arguments: str) -> str:
        request = settle(parse_train(["--config=mt10_fast", *arguments]), tmp_path / "config.yaml", "cpu")
        (tmp_path / "settled").write_text(request.text)
        return request.config.agent.kernels

    assert kernels() == "compiled"
    before = (tmp_path / "settled").read_text()
    assert kernels("--warmup_steps=9", "--total_steps_per_task=20009") == "compiled"
    assert kernels("--warmup_steps=9", "--total_steps_per_task=20008") != "compiled"
    assert kernels("--warmup_steps=9", "--total_steps_per_task=20008", "--warmup_updates=1") == "compiled"
    assert kernels("--warmup_steps=9", "--total_steps_per_task=10009", "--updates_per_step=2") == "compiled"
    assert kernels("--warmup_steps=9", "--total_steps_per_task=8") != "compiled"
    assert kernels("--agent.critic.network.name=own:Network") != "compiled"  # it may be no function
    assert kernels("--replay.sampling=uniform") != "compiled"
    assert kernels("--agent.kernels=torch") == "torch"
    monkeypatch.setattr("mtrl.machine.mkl_is_fast", lambda: False)
    assert kernels("--agent.precision=fp32") != "compiled"
    assert kernels("--agent.precision=bf16") == "compiled"
    (tmp_path / "config.yaml").write_text(before)  # a run goes on with what it began with
    assert kernels("--total_steps_per_task=100") == "compiled"
    # whether this machine can is asked when it is to train: a finished run is read anywhere
    monkeypatch.setattr("mtrl.machine.why_not_compiled", lambda: "no compiler")
    assert kernels() == "compiled"
    with pytest.raises(ConfigError, match="no compiler"):
        kernels("--agent.kernels=compiled")


def test_graphs_of_one_shape_and_uniform_sampling_do_not_go_together():
    with pytest.raises(
        ConfigError, match=r"agent\.kernels: 'compiled' is not valid; .*replay.sampling balanced"
    ):
        parse_train(["--config=mt10", "--agent.kernels=compiled", "--replay.sampling=uniform"])
