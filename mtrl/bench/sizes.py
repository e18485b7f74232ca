"""What networks cost: parameters, and the FLOPs of an update's matrix products."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch.utils.flop_counter import FlopCounterMode

from mtrl.bench.settings import make_agent, make_batch
from mtrl.config import AgentConfig, TrainConfig
from mtrl.parameters import Parameters


class Size(NamedTuple):
    """Of one config.

    Attributes:
        actor, critic: parameters; the critic's are of the whole ensemble, those of every task counted.
        own: how many of both are single tasks' own.
        flops: of one unitary update, all tasks' rows.
    """

    actor: int
    critic: int
    own: int
    flops: int


def size_of(config: TrainConfig, num_tasks: int) -> Size:
    """At Meta-World's sizes."""
    agent = make_agent(num_tasks, replace(config.agent, kernels="plain"))
    own = sum(p.numel() for part in (agent.actor, agent.critic) for p in part.private.values())
    flops = flops_of(config.agent, num_tasks, round(config.replay.batch_size))
    return Size(count(agent.actor), count(agent.critic), own, flops)


def flops_of(config: AgentConfig, tasks: int, rows: int) -> int:
    """Of one unitary update's matrix products, as torch's counter finds them in stock torch.

    Args:
        tasks, rows: T, and B rows of each.
    """
    agent = make_agent(tasks, replace(config, precision="fp32", kernels="plain"))
    batch = make_batch(tasks, rows)
    with FlopCounterMode(display=False) as counter:
        agent.update(batch)
    flops: int = counter.get_total_flops()
    return flops


def count(parameters: Parameters) -> int:
    return sum(tensor.numel() for _, tensor in parameters.tensors())
