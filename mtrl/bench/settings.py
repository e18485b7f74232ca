"""The sizes that are timed, and agents and batches of a size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints

import torch

from mtrl.config import ActorConfig, AgentConfig, CriticConfig, TemperatureConfig
from mtrl.replay import Batch
from mtrl.sac import MTSAC
from mtrl.settings.train import parse_train

OBSERVATION, ACTION = 39, 4  # Meta-World's D, without the one-hot, and A

METHODS = ("pcgrad", "cagrad", "mgda", "imtl_g")


@dataclass(frozen=True)
class Setting:
    """Sizes of an update.

    Attributes:
        tasks, rows: T, and B rows of each.
        hidden: widths of actor and twin critics.
        config: a shipped config whose agent it is, all of it, networks too.
        threads: None is the command's.
    """

    tasks: int = 10
    rows: int = 128
    hidden: tuple[int, ...] = (400, 400, 400)
    layer_norm: bool = False
    config: str | None = None
    threads: int | None = None


def of_config(name: str, threads: int) -> Setting:
    """The sizes of a shipped config, and its agent."""
    request = parse_train([f"--config={name}"])
    critic, rows = request.config.agent.critic, round(request.config.replay.batch_size)
    return Setting(len(request.protocol.task_names), rows, critic.hidden, critic.layer_norm, name, threads)


SETTINGS = {
    "S": Setting(),
    "L": Setting(layer_norm=True),
    "F": Setting(tasks=50, rows=26),
    "R": of_config("mt10_fast", threads=1),
}


def choices(key: str) -> tuple[str, ...]:
    """The values that AgentConfig takes for ``precision`` or ``kernels``, but for ``auto``."""
    return tuple(value for value in get_args(get_type_hints(AgentConfig)[key]) if value != "auto")


def agent_config(setting: Setting) -> AgentConfig:
    """A config's agent; or the networks of a setting, and raw rewards: the textbook agent."""
    if setting.config is not None:
        return parse_train([f"--config={setting.config}"]).config.agent
    return AgentConfig(
        actor=ActorConfig(hidden=setting.hidden, layer_norm=setting.layer_norm),
        critic=CriticConfig(hidden=setting.hidden, layer_norm=setting.layer_norm),
        temperature=TemperatureConfig(initial=1.0), reward_scale="none",
    )  # fmt: skip


def make_agent(
    tasks: int, config: AgentConfig, optimizer: str = "unitary", options: dict[str, Any] | None = None,
    **chosen: str,
) -> MTSAC:  # fmt: skip
    """An agent for T tasks; ``chosen`` is its precision and kernels, where they differ from the config's."""
    names = tuple(f"task{t}" for t in range(tasks))
    config = replace(config, **chosen)  # type: ignore[arg-type]
    return MTSAC(OBSERVATION, ACTION, names, config, optimizer=optimizer, options=options)


def make_batch(tasks: int, rows: int) -> Batch:
    """Random rows ``[T, B, ·]``; nothing terminates."""
    obs, next_obs = torch.randn(2, tasks, rows, OBSERVATION)
    actions = torch.rand(tasks, rows, ACTION) * 2 - 1
    return Batch(obs, actions, torch.randn(tasks, rows), next_obs, torch.zeros(tasks, rows))
