"""What each multi-task optimizer costs: its solver alone, and a whole update with it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from mtrl.bench.measure import take_turns, timed
from mtrl.bench.settings import Setting, agent_config, make_agent, make_batch
from mtrl.optimizers import OPTIMIZERS, GramianMethod, MultiTaskOptimizer, RowMethod, make_optimizer

COLUMNS = 100_000  # of the Jacobian that a method on rows is timed with


def time_optimizers(setting: Setting, rounds: int) -> dict[str, dict[str, Any]]:
    """Per method: median solver time at T = 10 and 50, the whole update's in fp32, and its ratio to unitary's."""
    batch, config = make_batch(setting.tasks, setting.rows), agent_config(setting)
    agents = {name: make_agent(setting.tasks, config, name, precision="fp32") for name in OPTIMIZERS}
    seconds = take_turns(
        {name: lambda agent=agent: agent.update(batch) for name, agent in agents.items()},  # type: ignore[misc]
        rounds,
    )
    return {
        name: {
            "solver_ms_10": time_solver(make_optimizer(name, 10), 10),
            "solver_ms_50": time_solver(make_optimizer(name, 50), 50),
            "update_ms": 1e3 * statistics.median(seconds[name]),
            "over_unitary": statistics.median(
                a / b for a, b in zip(seconds[name], seconds["unitary"], strict=True)
            ),
        }
        for name in agents
    }


def time_solver(method: MultiTaskOptimizer, tasks: int) -> float | None:
    """Median ms from what the method sees to what it gives; None where there is nothing to solve."""
    # few columns and unequal norms: gradients that do conflict, a solver's hard case
    rows = torch.randn(tasks, COLUMNS if isinstance(method, RowMethod) else tasks + 5)
    rows *= torch.logspace(-1, 1, tasks).unsqueeze(1)
    if isinstance(method, GramianMethod):
        gramian = rows @ rows.T
        solve: Callable[[], Any] = lambda: method.weights(gramian)  # noqa: E731
    elif isinstance(method, RowMethod):
        solve = lambda: method.combine_rows(rows)  # noqa: E731
    else:
        return None
    solve()
    return 1e3 * statistics.median(timed(solve) for _ in range(30))
