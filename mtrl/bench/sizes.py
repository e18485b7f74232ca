"""What a config's networks cost: parameters, and the FLOPs of an update's matrix products."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch.utils.flop_counter import FlopCounterMode

from mtrl.bench.settings import make_agent, make_batch
from mtrl.config import TrainConfig
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
    """Counted on an update of Meta-World's sizes, in stock torch."""
    agent = make_agent(num_tasks, replace(config.agent, precision="fp32", kernels="plain"))
    batch = make_batch(num_tasks, round(config.replay.batch_size))
    with FlopCounterMode(display=False) as counter:
        agent.update(batch)
    own = sum(p.numel() for part in (agent.actor, agent.critic) for p in part.private.values())
    return Size(count(agent.actor), count(agent.critic), own, counter.get_total_flops())


def count(parameters: Parameters) -> int:
    return sum(tensor.numel() for _, tensor in parameters.tensors())
