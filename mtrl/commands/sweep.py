"""``mtrl sweep``: the runs of an experiment's file, on this machine, in a job array, or on a Ray cluster.

A run is one ``mtrl train`` process in <runs>/<experiment>/<arm>/seed<n>; what is done is left alone, and the same
command goes on with the rest. Its output is in log_seed<n>.txt next to that folder. Exit codes: 0 all done,
4 interrupted, 1 a run failed or was refused, 3 a run diverged and the others are done.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType

from mtrl.commands.train import check_optimizer, networks_without_memory, started_on
from mtrl.config import ConfigError
from mtrl.results.tables import make_table, show
from mtrl.run.folder import RunFolder
from mtrl.run.status import read_status
from mtrl.settings.files import path_of
from mtrl.settings.parser import Parser, whole_number
from mtrl.settings.train import changed_settings, parse_train, settle
from mtrl.sweep import local
from mtrl.sweep.board import Board, state_of, steps_of, success_of
from mtrl.sweep.child import command
from mtrl.sweep.grid import Run, choose, find_experiment, plan, read_experiment, read_seeds

FAILED, DIVERGED, INTERRUPTED = 1, 3, 4
UNDONE = ("failed", "lost", "refused", "busy")


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl sweep", description=__doc__)
    parser.add_argument("file", help="an experiment: a shipped one by name, or a YAML file")
    parser.add_argument("--runs", default="runs", help="the folder above all experiments' runs (runs)")
    parser.add_argument("--list", action="store_true", help="print every run, its state, steps and success")
    parser.add_argument("--commands", action="store_true", help="print every run's `mtrl train`, a line each")
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="these arms")
    parser.add_argument("--seeds", help="these seeds: 0..4, or 0,2,7")
    parser.add_argument("--index", type=int, help="the one run of this number in the list, in this process")
    parser.add_argument("--jobs", default="auto", help="runs at once; auto is as many as cores allow")
    parser.add_argument("--nice", type=int, default=0, help="lower their priority by this much, up to 19")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="what runs them (local)")
    parser.add_argument("--address", help="of the Ray cluster: auto, or host:port; without it one is started")
    parser.add_import()
    args = parser.parse_args(arguments)
    jobs = None if args.jobs == "auto" else whole_number("jobs", args.jobs, 1, 1024)
    if not 0 <= args.nice <= 19:
        raise ConfigError(f"nice: {args.nice} is not valid; it must be from 0 to 19")
    if args.address is not None and args.engine != "ray":
        raise ConfigError("address: it is of a Ray cluster; add --engine ray")
    if jobs is not None and (args.index is not None or args.engine == "ray"):
        raise ConfigError("jobs: it is for many runs on this machine, not for --index or --engine ray")
    if args.index is not None and args.engine == "ray":
        raise ConfigError("index: it runs one run in this process, not on Ray")
    experiment = read_experiment(find_experiment(args.file))
    everything = plan(experiment, path_of("runs", args.runs), args.modules or ())
    for run in everything:
        check(run)
    seeds = () if args.seeds is None else read_seeds(args.seeds, "seeds")
    runs = choose(everything, args.only, seeds, args.index)
    if args.list:
        print_list(runs, args.index or 0)
    if args.commands:
        for run in runs:
            print(shlex.join(["mtrl", "train", *run.command(None)]))
    if args.list or args.commands:
        return 0
    for run in runs:
        check_folder(run)
    if args.index is not None:
        return run_here(runs[0], args.nice)
    with Board(runs) as board:
        if args.engine == "ray":
            on_ray().run_all(runs, args.address, args.nice, board)
        else:
            pending = [run for run in runs if state_of(run) not in ("done", "diverged")]
            together, cores_each = local.share(pending, jobs)
            local.run_all(runs, together, cores_each, args.nice, board)
    return finish(board)


def on_ray() -> ModuleType:
    """The engine. Raises ConfigError where Ray is not installed."""
    try:
        return importlib.import_module("mtrl.sweep.ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError("engine: Ray is not installed; pip install 'mtrl-suite[ray]'") from None


def check(run: Run) -> None:
    """Refuse a method, a network or an option that there is not, before anything starts.

    Raises:
        ConfigError: naming the arm and the key.
    """
    try:
        tasks = len(run.request.protocol.task_names)
        check_optimizer(run.request.config, tasks)
        networks_without_memory(run.request.config.agent, 1, 1, tasks)
    except ConfigError as error:
        raise ConfigError(f"arms.{run.arm}: {error}") from None


def check_folder(run: Run) -> None:
    """Refuse a folder with a run of other settings: it would be taken for this one's result.

    Raises:
        ConfigError: it names the settings that differ, or says that it is no run's folder.
    """
    folder = RunFolder(run.folder)
    if not folder.exists:
        return
    folder.require_own()
    request = parse_train(run.command(None))
    device = started_on(folder.config) if request.config.device == "auto" else request.config.device
    request = settle(request, folder.config, "cuda" if device == "cuda" else "cpu")
    changes = changed_settings(folder.config, request.text)
    if state_of(run) == "done":  # no number of it depends on its label
        changes = [change for change in changes if not change.startswith("label: ")]
    if changes:
        raise ConfigError(
            f"run_dir: {run.folder} holds a run of other settings ({'; '.join(changes)}); rename the arm or the "
            "experiment, or choose another --runs"
        )


def print_list(chosen: Sequence[Run], first: int) -> None:
    """Every run that was chosen, numbered from ``first`` as ``--index`` counts them."""
    table = make_table("index", "run", "state", "steps per task", "success")
    for index, run in enumerate(chosen, first):
        success = success_of(run)
        status = read_status(run.folder)
        table.add_row(
            str(index), run.name, "waiting" if status == "no status" else status, f"{steps_of(run)} of {run.steps}",
            "–" if success is None else f"{success:.3f}",
        )  # fmt: skip
    show(table)


def run_here(run: Run, nice: int) -> int:
    """Become the run's ``mtrl train``: its signals, output and exit code are this process's."""
    state = state_of(run)
    if state in ("done", "diverged"):
        print(f"{run.folder} is {read_status(run.folder)}; nothing to do")
        return DIVERGED if state == "diverged" else 0
    sys.stdout.flush()
    arguments = command(run.command(None), nice)
    os.execv(arguments[0], arguments)


def finish(board: Board) -> int:
    """Name what is not done; the exit code."""
    words = [word for word, _ in board.states.values()]
    for run in board.runs:
        word, reason = board.states[run.folder]
        if word in (*UNDONE, "diverged"):
            print(
                f"mtrl: {run.name}: {word}: {reason or read_status(run.folder)} ({run.log})", file=sys.stderr
            )
    with contextlib.suppress(OSError, ValueError):
        print(f"{words.count('done')} of {len(words)} runs are done")
    if set(UNDONE) & set(words):
        return FAILED
    if {"interrupted", "waiting", "again"} & set(words):
        print("mtrl: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return DIVERGED if "diverged" in words else 0
