"""The part of ``mtrl bench`` that needs environments: their step, the loop's own cost, the memory of a run.

``python -m mtrl.commands.bench_training FOLDER ARGUMENTS…`` prints a run's peak of memory.
"""

from __future__ import annotations

import contextlib
import csv
import io
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from mtrl.bench.measure import Ratio, ratio_of, take_turns
from mtrl.commands import train
from mtrl.envs import Protocol, make_suite
from mtrl.machine import choose_threads
from mtrl.run.folder import RunFolder
from mtrl.run.session import INTERRUPTED, Session
from mtrl.run.signals import Signals
from mtrl.settings.train import parse_train, settle

STEPS = 20  # of the environments in a round
LAST = 50  # steps that a run with a full replay still makes
STATUS = Path("/proc/self/status")
# the shipped run, its environments in this process, and an evaluation of one episode only
RUN = ("--config=mt10", "--workers=0", "--device=cpu", "--eval_every=0", "--eval_episodes=1")
LOOP = (*RUN, "--warmup_steps=100", "--total_steps_per_task=800", "--log_every=100")
FULL = (*RUN, "--total_steps_per_task=100000", "--replay.capacity=100000")


def training_ratios(
    rounds: int, threads: int, protocol: Protocol | None = None,
    loop: Sequence[str] = LOOP, full: Sequence[str] = FULL,
    stock: Callable[[], gym.vector.VectorEnv] | None = None, kernels: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Ratio]:  # fmt: skip
    """The environments' step, the loop's overhead and the memory of a run, by their keys.

    Args:
        rounds: of the environments' step.
        threads: of the learner.
        protocol, stock: the suite that is stepped, and what it is compared with.
        loop, full: arguments of ``mtrl train`` of the two runs.
        kernels: of the short run; the other has what a run of its length has.
        say: told what is timed next.
    """
    say("environments")
    ratios = {"env_step_over_stock": env_step_over_stock(rounds, protocol or Protocol(), stock or make_stock)}
    say("a short run")
    ratios["loop_overhead"] = loop_overhead([*loop, f"--threads={threads}", f"--agent.kernels={kernels}"])
    say("the memory of a run with a full replay")
    ratios["rss_gb_1m"] = memory_of_run([*full, f"--threads={threads}"])
    return ratios


def make_stock() -> gym.vector.VectorEnv:
    """MT10 as Meta-World gives it, with the reward and horizon of our default protocol."""
    import metaworld  # noqa: F401  registers them

    protocol = Protocol()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its one-hot's bounds
        return gym.make_vec(
            "Meta-World/MT10", vector_strategy="sync", seed=0, use_one_hot=True,
            reward_function_version=protocol.reward, max_episode_steps=protocol.horizon,
        )  # fmt: skip


def env_step_over_stock(
    rounds: int, protocol: Protocol, make_stock: Callable[[], gym.vector.VectorEnv]
) -> Ratio:
    """A vector step of all tasks in this process over the stock suite's, with the same random actions.

    A round is ``STEPS`` steps of one and of the other; the few rounds with an episode's end in them do not
    move the median.
    """
    ours, stock = make_suite(protocol, workers=0), make_stock()
    draws = np.random.default_rng(0)
    actions = draws.uniform(-1, 1, (STEPS, *stock.action_space.shape)).astype(np.float32)  # type: ignore[misc]

    def step_ours() -> None:
        for action in actions:
            ours.step(action)

    def step_stock() -> None:
        for action in actions:
            stock.step(action)

    try:
        ours.reset()
        stock.reset(seed=0)
        seconds = take_turns({"ours": step_ours, "stock": step_stock}, rounds)
    finally:
        ours.close()
        stock.close()
    per_step = {name: [t / STEPS for t in times] for name, times in seconds.items()}
    return ratio_of(per_step["ours"], per_step["stock"])


def loop_overhead(arguments: Sequence[str]) -> Ratio:
    """Wall clock of training over what environments and updates took of it, minus 1; without evaluations.

    As the run's own log tells it; a round is one interval of the log.
    """
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            code = train.main([*arguments, f"--run_dir={folder}/run"])
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code != 0:
            raise RuntimeError(f"the short run ended with code {code}")
        with open(f"{folder}/run/progress.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["time/update_ms"]]
    parts = [(float(row["time/env_ms"]) + float(row["time/update_ms"])) / 1e3 for row in rows]
    wall = [part + float(row["time/other_ms"]) / 1e3 for part, row in zip(parts, rows, strict=True)]
    ratio = ratio_of(wall, parts)  # noisy or not by the wall clock: the little above 1 would nearly always be
    low, high = ratio.spread
    return Ratio(None if ratio.value is None else ratio.value - 1, (low - 1, high - 1), ratio.parts_ms)


def memory_of_run(arguments: Sequence[str]) -> Ratio:
    """The most gigabytes resident in a process that trains, evaluates and saves with a full replay.

    The process is one of its own, with both sets of environments in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", __name__, folder, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise RuntimeError(f"the run with a full replay ended with code {done.returncode}")
    gigabytes = float(done.stdout.split()[-1])
    return Ratio(gigabytes, (gigabytes, gigabytes), None)


def peak_memory() -> float:
    """Gigabytes resident in this process at most."""
    if not STATUS.exists():  # no Linux: bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    # getrusage on Linux would count what the parent had
    kilobytes = next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / 1e9


def train_filled(folder: str, arguments: Sequence[str]) -> None:
    """The last steps of a run whose replay is full, random transitions standing for those before."""
    request = settle(parse_train([*arguments, f"--run_dir={folder}/run"]), Path(folder), "cpu")
    torch.set_num_threads(choose_threads(request.config.threads))
    trainer, envs = train.build(request.config, request.protocol, train.choose_device(request.config.device))
    replay = trainer.replay_buffer
    for column in replay.data.values():
        column.copy_(torch.rand(column.shape[1:]))
    replay.added = request.config.total_steps_per_task - LAST
    trainer.num_timesteps = replay.added * trainer.envs.num_envs
    run = RunFolder(f"{folder}/run")
    try:
        run.start(request.text, {})
        with Signals() as signals:
            code = Session(trainer, envs, request, run, signals).train([])
        if code != 0:
            sys.exit(code)
    finally:
        trainer.envs.close()
        envs.close()
        run.unlock()


if __name__ == "__main__":
    train_filled(sys.argv[1], sys.argv[2:])
    print(peak_memory())
