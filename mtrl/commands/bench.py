"""``mtrl bench``: the speed of this machine and suite as ratios.

Without an argument every ratio is measured, environments and a run's memory included; ``optimizers`` tells
instead what each multi-task optimizer costs. ``--tune`` looks for the fastest settings.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from mtrl.bench.measure import MOST_SPREAD
from mtrl.bench.optimizers import time_optimizers
from mtrl.bench.peak import find_peak
from mtrl.bench.settings import SETTINGS
from mtrl.bench.tune import recommended, time_choices
from mtrl.bench.updates import DTYPES, update_ratios
from mtrl.commands.bench_training import training_ratios
from mtrl.config import ConfigError
from mtrl.machine import bf16_is_fast, choose_threads, of_processor
from mtrl.results.tables import make_table, report_json, require_writable, show
from mtrl.run.folder import versions
from mtrl.settings.parser import Parser, whole_number
from mtrl.settings.train import parse_train, settle

COMPILES = " (a run of this length compiles its updates; time them, too, with --compiled)"


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["optimizers"], help="only this")
    parser.add_argument("--quick", action="store_true", help="only the ratios that need no environment")
    parser.add_argument("--tune", action="store_true", help="recommend precision, kernels and threads")
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="time compiled updates, with --tune too; a quarter of an hour of compilation before",
    )
    parser.add_argument("--config", type=str, help="whose agent to tune, a config; without it the default's")
    parser.add_argument("--json", type=str, help="write the figures to this file, or - for standard output")
    parser.add_argument(
        "--rounds", type=int, help="times that each update is timed, in turns: 30, with --quick 20"
    )
    parser.add_argument("--threads", type=str, default="auto")
    args = parser.parse_args(arguments)
    args.rounds = (20 if args.quick else 30) if args.rounds is None else args.rounds
    check(args)
    threads = choose_threads(args.threads if args.threads == "auto" else int(args.threads))
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if args.tune:
        result, table = tune(args.config, args.threads, args.rounds, args.compiled)
    elif args.what == "optimizers":
        result, table = optimizers(args.rounds)
    else:
        result, table = report(args.rounds, args.quick, "compiled" if args.compiled else "auto")
    if report_json(result, args.json):
        return 0
    show(table)
    if args.tune:
        print(f"recommended: {result['recommended']}{result['note']}")
    return 0


def check(args: Any) -> None:
    """Raise ConfigError for what cannot be asked for together, or written: now, not after minutes."""
    if args.rounds < 1:
        raise ConfigError(f"rounds: {args.rounds} is not valid; it must be >= 1")
    if args.threads != "auto":
        whole_number("threads", args.threads, 1, 1024)
    if len([wanted for wanted in (args.what, args.quick, args.tune) if wanted]) > 1:
        raise ConfigError("optimizers, --quick and --tune are three things; choose one")
    if args.config and not args.tune:
        raise ConfigError(f"config: {args.config!r} is only for --tune; the other sizes are fixed")
    require_writable(args.json)


def say(text: str) -> None:
    """What is timed next, on standard error."""
    print(f"mtrl: timing {text}", file=sys.stderr)


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "processor": of_processor("model name").strip() or platform.machine(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "bf16_is_fast": bf16_is_fast(),
        "load": round(os.getloadavg()[0], 2), "versions": versions(),
    }  # fmt: skip


def report(rounds: int, quick: bool, kernels: str) -> tuple[dict[str, Any], Table]:
    """Every ratio, or without the environments', as JSON and as a table."""
    about = machine()
    say("matrix products")
    peaks = {precision: find_peak(dtype) for precision, dtype in DTYPES.items()}
    about["peak_gflops"] = {precision: peak.gflops for precision, peak in peaks.items()}
    about["peak_kernel"] = {
        precision: f"{product.kernel} {'×'.join(map(str, product.shape))}"
        for precision, (_, product) in peaks.items()
    }
    ratios = update_ratios(rounds, peaks, kernels=kernels, say=say)
    if not quick:
        ratios |= training_ratios(rounds, torch.get_num_threads(), kernels=kernels, say=say)
    speeds = ", ".join(f"{gflops:.0f} GFLOP/s {name}" for name, gflops in about["peak_gflops"].items())
    table = make_table(
        "ratio", "value", "quartiles", "ms / ms",
        title=f"{about['processor']}, {about['threads']} thread(s), {speeds}, load {about['load']}",
        caption=f"noisy: quartiles apart by more than {MOST_SPREAD:.0%} of the value"
        + ("" if bf16_is_fast() else "; bf16 is emulated on this processor"),
    )  # fmt: skip
    for key, ratio in ratios.items():
        value = "noisy" if ratio.value is None else short(ratio.value)
        parts = " / ".join(f"{ms:.3g}" if ms < 100 else f"{ms:.0f}" for ms in ratio.parts_ms or ())
        table.add_row(key, value, "–".join(map(short, ratio.spread)), parts)
    return {
        "machine": about,
        "settings": {letter: vars(setting) for letter, setting in SETTINGS.items()},
        "rounds": rounds,
        "kernels": kernels,
        "ratios": {key: ratio.to_dict() for key, ratio in ratios.items()},
    }, table


def short(number: float) -> str:
    return f"{number:.3f}" if number < 1 else f"{number:.2f}"


def optimizers(rounds: int) -> tuple[dict[str, Any], Table]:
    """Every optimizer's solver and whole update."""
    setting = SETTINGS["S"]
    result = {
        "machine": machine(),
        "setting": {**vars(setting), "rounds": rounds},
        "optimizers": time_optimizers(setting, rounds),
    }
    table = make_table(
        "method", "solver T=10, ms", "solver T=50, ms", "update, ms", "over unitary",
        title=f"T = {setting.tasks}, {setting.rows} rows per task, 3 × {setting.hidden[0]}, "
        f"{torch.get_num_threads()} thread(s), medians",
    )  # fmt: skip
    for name, row in result["optimizers"].items():
        solvers = ["–" if row[key] is None else f"{row[key]:.2f}" for key in ("solver_ms_10", "solver_ms_50")]
        table.add_row(name, *solvers, f"{row['update_ms']:.1f}", f"{row['over_unitary']:.2f}")
    return result, table


def tune(name: str | None, threads: str, rounds: int, compiled: bool) -> tuple[dict[str, Any], Table]:
    """Every combination of what can be set, and the one to put on the command line; changes nothing."""
    request = parse_train([f"--config={name}"] if name else [])
    config, tasks = request.config, len(request.protocol.task_names)
    rows = max(1, round(config.replay.batch_size))
    most = torch.get_num_threads()
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < most] + [most] if threads == "auto" else [most]
    listed = time_choices(config.agent, config.optimizer, tasks, rows, counts, rounds, compiled)
    table = make_table(
        "overrides", "update, ms",
        title=f"{config.optimizer.name}, T = {tasks}, {rows} rows per task, medians of {rounds}",
    )  # fmt: skip
    for choice in sorted(listed, key=lambda choice: choice.milliseconds):
        table.add_row(choice.command_line, f"{choice.milliseconds:.2f}")
    best = recommended(listed)
    settled = settle(request, Path("no run"), "cpu").config.agent.kernels
    left_out = settled == "compiled" and not compiled
    if left_out:  # not one of those that were timed
        best = best._replace(overrides={k: v for k, v in best.overrides.items() if k != "kernels"})
    result = {
        "machine": machine(),
        "choices": {choice.command_line: choice.milliseconds for choice in listed},
        "recommended": best.command_line,
        "note": COMPILES if left_out else "",
    }
    return result, table
