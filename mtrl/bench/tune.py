"""Which precision, kernels and number of threads make an agent's update fastest on this machine."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from mtrl.bench.measure import take_turns
from mtrl.bench.settings import choices, make_agent, make_batch
from mtrl.config import AgentConfig, OptimizerConfig
from mtrl.machine import choose_kernels

NO_GAIN = 1.05  # what is slower than the fastest by less is as good, and the first listed is preferred


class Choice(NamedTuple):
    """One combination of what can be set, and the median of its update, ms."""

    threads: int
    overrides: dict[str, str]
    milliseconds: float

    @property
    def command_line(self) -> str:
        return " ".join(
            [
                f"--threads {self.threads}",
                *(f"--agent.{key} {value}" for key, value in self.overrides.items()),
            ]
        )


def time_choices(
    config: AgentConfig,
    optimizer: OptimizerConfig,
    tasks: int,
    rows: int,
    threads: Sequence[int],
    rounds: int,
    compiled: bool = False,
) -> list[Choice]:
    """Every combination, float32 and few threads first; Meta-World's observations and actions.

    Args:
        compiled: whether these kernels are among them.
    """
    there = {"onednn": choose_kernels("auto", torch.device("cpu")) == "onednn", "compiled": compiled}
    kernels = tuple(kind for kind in choices("kernels") if there.get(kind, True))
    settings = {"precision": choices("precision"), "kernels": kernels}
    batch = make_batch(tasks, rows)
    combined = [
        (n, dict(zip(settings, values, strict=True)))
        for values in itertools.product(*settings.values())
        for n in threads
    ]

    def update(count: int, overrides: dict[str, str]) -> Callable[[], Any]:
        agent = make_agent(tasks, config, optimizer.name, optimizer.options, **overrides)

        def run() -> None:
            torch.set_num_threads(count)
            agent.update(batch)

        return run

    before = torch.get_num_threads()
    functions = {str(i): update(*choice) for i, choice in enumerate(combined)}
    seconds = take_turns(functions, rounds)
    torch.set_num_threads(before)
    return [
        Choice(*choice, 1e3 * statistics.median(times))
        for choice, times in zip(combined, seconds.values(), strict=True)
    ]


def recommended(listed: Sequence[Choice]) -> Choice:
    """The first that is as good as the fastest."""
    fastest = min(choice.milliseconds for choice in listed)
    return next(choice for choice in listed if choice.milliseconds <= NO_GAIN * fastest)
