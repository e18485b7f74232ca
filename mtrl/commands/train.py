"""``mtrl train``: from a config to a run folder with an evaluated policy."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from stable_baselines3.common.logger import HParam
from stable_baselines3.common.vec_env import VecEnv

from envs import Protocol, make_suite
from mtrl.callbacks import (
    ConflictCallback, Diverged, EvaluationCallback, InterruptCallback, LogCallback, ProgressCallback, TrainerCallback,
)  # fmt: skip
from mtrl.commands.parser import parse_train
from mtrl.commands.tables import scores_table
from mtrl.config import ConfigError, TrainConfig
from mtrl.conflict import Conflict
from mtrl.evaluate import Scores
from mtrl.replay import TaskReplay
from mtrl.runfolder import RunFolder, describe_run
from mtrl.sac import MTSAC
from mtrl.train import Trainer

DIVERGED, INTERRUPTED = 3, 4
LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main(arguments: list[str]) -> int:
    """Exit codes: 0 done, 3 diverged, 4 interrupted."""
    config, protocol, text = parse_train(arguments)
    run = RunFolder(config.run_dir or default_folder(config, protocol))
    device = choose_device(config.device)
    torch.set_num_threads(choose_threads(config.threads))
    trainer, evaluation_envs = build(config, protocol, device)
    run.start(text, describe_run({**protocol.to_dict(), "name": protocol.name}, device))
    print(
        f"{len(protocol.task_names)} tasks ({protocol.name}), {config.optimizer.name}, {device}, "
        f"{torch.get_num_threads()} thread(s), replay {trainer.replay_buffer.nbytes / 1e9:.2f} GB -> {run.path}"
    )
    try:
        return learn(trainer, evaluation_envs, config, protocol, run)
    except Diverged as error:
        run.mark("DIVERGED", str(error))
        print(f"mtrl: diverged: {error}", file=sys.stderr)
        return DIVERGED
    except BaseException as error:
        run.mark("FAILED", f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    finally:
        trainer.envs.close()
        evaluation_envs.close()


def build(config: TrainConfig, protocol: Protocol, device: torch.device) -> tuple[Trainer, VecEnv]:
    """The trainer of a config, and environments to evaluate on."""
    names = protocol.task_names
    # the agent and the replay first: what they refuse, they refuse before ten simulators are built
    probe = make_suite(protocol, seed=config.seed, workers=config.workers)
    obs_dim = probe.observation_space.shape[0] - len(names)
    action_dim = probe.action_space.shape[0]
    agent = MTSAC(
        obs_dim, action_dim, names, config.agent,
        optimizer=config.optimizer.name, options=config.optimizer.options,
        seed=config.seed, device=device,
        info={"protocol": protocol.to_dict(), "seed": config.seed},
    )  # fmt: skip
    replay = TaskReplay(
        len(names), min(config.replay.capacity, config.total_steps_per_task), obs_dim, action_dim,
        sampling=config.replay.sampling, seed=config.seed, device=device,
    )  # fmt: skip
    trainer = Trainer(
        agent, probe, replay, batch_size=config.replay.batch_size, warmup_steps=config.warmup_steps,
        updates_per_step=config.updates_per_step, diagnostics_every=config.diagnostics_every,
    )  # fmt: skip
    return trainer, make_suite(protocol, seed=config.seed, workers=config.workers, evaluation=True)


def learn(trainer: Trainer, envs: VecEnv, config: TrainConfig, protocol: Protocol, run: RunFolder) -> int:
    """Train with every callback; the last policy is saved whatever ends the loop."""
    trainer.logger = run.logger()

    def on_scores(steps: int, seconds: float, scores: Scores) -> None:
        run.append(run.evaluations, {"steps_per_task": steps, "seconds": round(seconds, 3), **scores.to_dict()})

    def on_conflict(steps: int, network: str, conflict: Conflict) -> None:
        record = {
            "steps_per_task": steps, "network": network, "cosines": conflict.cosines.tolist(),
            "norms": conflict.norms.tolist(), "weights": conflict.weights.tolist(), **conflict.summary(),
        }  # fmt: skip
        run.append(run.conflicts, record)

    episodes = min(config.eval_episodes, 1 if protocol.goals == "fixed" else protocol.num_goals)
    log = LogCallback(config.log_every)
    evaluation = EvaluationCallback(envs, config.eval_every, episodes, on_scores, run.best)
    interrupt = InterruptCallback()
    callbacks: list[TrainerCallback] = [
        ConflictCallback(config.log_every, config.eval_every or config.total_steps_per_task, on_conflict),
        log, evaluation, interrupt,
    ]  # fmt: skip
    console = Console()
    if console.is_terminal:
        callbacks.append(ProgressCallback(log, evaluation))
    try:
        trainer.learn(config.total_steps_per_task * len(protocol.task_names), callbacks)
    finally:
        trainer.agent.policy.save(run.last)
    assert evaluation.last is not None
    steps, scores = evaluation.last
    write_hparams(trainer, config, protocol, scores)
    trainer.logger.close()
    console.print(scores_table(scores, f"success at {steps} steps per task"))
    if interrupt.received:
        run.mark("INTERRUPTED", f"by {interrupt.received} at {steps} steps per task")
        print(f"interrupted by {interrupt.received}; the last policy is saved: {run.last}")
        return INTERRUPTED
    run.mark("DONE")
    print(f"done: mtrl evaluate {run.path}")
    return 0


def write_hparams(trainer: Trainer, config: TrainConfig, protocol: Protocol, scores: Scores) -> None:
    """One row of TensorBoard's HPARAMS table."""
    agent = asdict(config.agent)
    flat = {
        "optimizer": config.optimizer.name, "protocol": protocol.name, "seed": config.seed,
        "batch_size": config.replay.batch_size, "gamma": config.agent.gamma,
        "task_input": config.agent.task_input, "reward_scale": config.agent.reward_scale,
        **{f"{net}.{key}": str(agent[net][key]) for net in ("actor", "critic") for key in ("hidden", "layer_norm", "weight_decay", "learning_rate")},
    }  # fmt: skip
    trainer.logger.record("hparams", HParam(flat, {"eval/success_rate": scores.mean_success}), exclude=("csv",))
    trainer.logger.record("eval/success_rate", scores.mean_success, exclude=("csv",))
    trainer.dump_logs()


def default_folder(config: TrainConfig, protocol: Protocol) -> Path:
    """``runs/<suite>/<label>/seed<n>``."""
    return Path("runs") / protocol.suite / (config.label or config.optimizer.name) / f"seed{config.seed}"


def choose_device(name: str) -> torch.device:
    """``auto`` is cuda where there is one. Raises ConfigError for a device this machine lacks."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' is not available on this machine; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_threads(threads: int | str) -> int:
    """``auto``: what the environment allows the libraries, else the cores this process may run on."""
    if threads != "auto":
        return int(threads)
    limits = [int(os.environ[name]) for name in LIBRARIES if os.environ.get(name, "").isdigit()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *(limit for limit in limits if limit > 0)])
