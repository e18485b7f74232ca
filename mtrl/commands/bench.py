"""``mtrl bench optimizers``: what each multi-task optimizer costs on this machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mtrl.commands.parser import Parser
from mtrl.config import ActorConfig, AgentConfig, ConfigError, CriticConfig
from mtrl.machine import choose_threads
from mtrl.optimizers import OPTIMIZERS, GramianMethod, MultiTaskOptimizer, RowMethod, make_optimizer
from mtrl.replay import Batch
from mtrl.runfolder import versions
from mtrl.sac import MTSAC

TASKS, ROWS, OBSERVATION, ACTION, HIDDEN = 10, 128, 39, 4, (400, 400, 400)
COLUMNS = 100_000  # of the Jacobian that a method on rows is timed with


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl bench", description=__doc__)
    parser.add_argument("what", choices=["optimizers"], help="what to time")
    parser.add_argument("--json", type=str, help="write the figures to this file, or - for standard output")
    parser.add_argument("--rounds", type=int, default=10, help="timed updates per method, taken in turn")
    parser.add_argument("--threads", type=str, default="auto")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        raise ConfigError(f"rounds: {args.rounds} is not valid; it must be >= 1")
    if args.threads != "auto" and not (args.threads.isdigit() and int(args.threads) >= 1):
        raise ConfigError(f"threads: {args.threads!r} is not valid; it must be >= 1, or auto")
    torch.set_num_threads(choose_threads(args.threads if args.threads == "auto" else int(args.threads)))
    torch.manual_seed(0)
    result = {
        "machine": {"threads": torch.get_num_threads(), **versions()},
        "setting": {"tasks": TASKS, "rows": ROWS, "hidden": list(HIDDEN), "rounds": args.rounds},
        "optimizers": time_optimizers(args.rounds),
    }
    if args.json and args.json != "-":
        try:
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise ConfigError(f"json: {args.json} cannot be written ({error.strerror})") from None
    if args.json == "-":
        print(json.dumps(result, indent=1))
        return 0
    table = Table(
        "method", "solver T=10, ms", "solver T=50, ms", "update, ms", "over unitary",
        title=f"T = {TASKS}, {ROWS} rows per task, 3 × {HIDDEN[0]}, {torch.get_num_threads()} thread(s), medians",
    )  # fmt: skip
    for name, row in result["optimizers"].items():
        solvers = ["–" if row[key] is None else f"{row[key]:.2f}" for key in ("solver_ms_10", "solver_ms_50")]
        table.add_row(name, *solvers, f"{row['update_ms']:.1f}", f"{row['over_unitary']:.2f}")
    Console().print(table)
    return 0


def time_optimizers(rounds: int) -> dict[str, dict[str, Any]]:
    """Per method: median solver time at T = 10 and 50, the whole update's, and its ratio to unitary's, taken
    round by round so that a change of the machine's speed meets all alike.
    """
    agents = {name: make_agent(name) for name in OPTIMIZERS}
    batch = Batch(
        torch.randn(TASKS, ROWS, OBSERVATION), torch.rand(TASKS, ROWS, ACTION) * 2 - 1,
        torch.randn(TASKS, ROWS), torch.randn(TASKS, ROWS, OBSERVATION), torch.zeros(TASKS, ROWS),
    )  # fmt: skip
    for agent in agents.values():
        agent.update(batch)
    seconds: dict[str, list[float]] = {name: [] for name in agents}
    for _ in range(rounds):
        for name, agent in agents.items():
            seconds[name].append(timed(lambda agent=agent: agent.update(batch)))  # type: ignore[misc]
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


def make_agent(optimizer: str) -> MTSAC:
    config = AgentConfig(
        actor=ActorConfig(hidden=HIDDEN), critic=CriticConfig(hidden=HIDDEN, layer_norm=False)
    )
    return MTSAC(OBSERVATION, ACTION, tuple(f"task{t}" for t in range(TASKS)), config, optimizer=optimizer)


def time_solver(method: MultiTaskOptimizer, tasks: int, repeats: int = 30) -> float | None:
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
    return 1e3 * statistics.median(timed(solve) for _ in range(repeats))


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
