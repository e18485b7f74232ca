"""``mtrl train``: from a config to a run folder with an evaluated policy."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch
import yaml
from rich.console import Console
from stable_baselines3.common.logger import HParam, TensorBoardOutputFormat

from envs import Protocol, SuiteError, make_suite
from envs.vec import SuiteVecEnv
from mtrl.callbacks import (
    CheckpointCallback,
    ConflictCallback,
    EvaluationCallback,
    LogCallback,
    ProgressCallback,
    TrainerCallback,
)  # fmt: skip
from mtrl.checkpoint import CheckpointError, generators_state, set_generators_state, with_arrays, write_synced
from mtrl.commands.parser import Request, changed_settings, flat_items, one_line, parse_train
from mtrl.commands.tables import scores_table
from mtrl.config import ConfigError, TrainConfig
from mtrl.conflict import Conflict
from mtrl.evaluate import Scores
from mtrl.guard import Diverged, GuardCallback
from mtrl.optimizers import make_optimizer
from mtrl.replay import TaskReplay
from mtrl.runfolder import RunFolder, describe_run
from mtrl.sac import MTSAC
from mtrl.train import Trainer

FAILED, DIVERGED, INTERRUPTED = 1, 3, 4
LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main(arguments: list[str]) -> int:
    """Exit codes: 0 done, 1 failed, 3 diverged, 4 interrupted with a checkpoint."""
    request = parse_train(arguments)
    config, protocol = request.config, request.protocol
    run = RunFolder(request.resume or config.run_dir or default_folder(config, protocol))
    changes: list[str] = []
    if run.exists:
        run.lock()
        if run.status.startswith("DONE") and request.resume:
            print(f"{run.path} is finished already; nothing to do")
            return 0
        changes = check_resumable(run, request)
    device = choose_device(config.device)
    torch.set_num_threads(choose_threads(config.threads))
    trainer, envs = build(config, protocol, device)
    try:
        if not run.exists:
            run.start(request.text, describe_run({**protocol.to_dict(), "name": protocol.name}, device))
            run.lock()
        return Session(trainer, envs, request, run).train(changes)
    finally:
        trainer.envs.close()
        envs.close()


def check_resumable(run: RunFolder, request: Request) -> list[str]:
    """The settings that changed since the run began, where that is allowed.

    Raises:
        ConfigError: the run is finished or diverged, or settings changed without ``--allow_changes``.
    """
    choices = "choose another --seed, --label or --run_dir"
    if run.status.startswith("DONE"):
        raise ConfigError(f"run_dir: {run.path} holds a finished run; nothing was changed: {choices}")
    changes = changed_settings(run.config.read_text(), request.text)
    if changes and not request.allow_changes:
        raise ConfigError(
            f"run_dir: {run.path} holds an unfinished run of other settings ({'; '.join(changes)}); "
            f"add --allow_changes to go on with the new ones, or {choices}"
        )
    if run.status.startswith("DIVERGED") and not changes:
        raise ConfigError(f"run_dir: {run.path} is marked {run.status}; it would diverge again: {choices}")
    return changes


def build(config: TrainConfig, protocol: Protocol, device: torch.device) -> tuple[Trainer, SuiteVecEnv]:
    """The trainer of a config, and environments to evaluate on."""
    names = protocol.task_names
    # refuses a bad name or option before ten simulators are built
    make_optimizer(config.optimizer.name, num_tasks=len(names), **config.optimizer.options)
    envs = make_suite(protocol, seed=config.seed, workers=config.workers)
    obs_dim, action_dim = envs.observation_dim, envs.action_dim
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
        agent, envs, replay, batch_size=config.replay.batch_size, warmup_steps=config.warmup_steps,
        updates_per_step=config.updates_per_step, diagnostics_every=config.diagnostics_every,
        warmup_updates=config.warmup_updates,
    )  # fmt: skip
    return trainer, make_suite(protocol, seed=config.seed, workers=config.workers, evaluation=True)


class Session:
    """One process's share of a run: callbacks, checkpoints, marks.

    Args:
        trainer, envs: made by :func:`build`.
        request: what was asked for.
        run: its folder, locked.
    """

    def __init__(self, trainer: Trainer, envs: SuiteVecEnv, request: Request, run: RunFolder) -> None:
        self.trainer, self.envs, self.run = trainer, envs, run
        self.config, self.protocol = config, protocol = request.config, request.protocol
        self.request = request
        self.console = Console()
        episodes = min(config.eval_episodes, 1 if protocol.goals == "fixed" else protocol.num_goals)
        log = LogCallback(config.log_every)
        self.guard = GuardCallback(config.log_every, run.evidence)
        self.evaluation = EvaluationCallback(envs, config.eval_every, episodes, self._on_scores, run.best)
        self.checkpoint = CheckpointCallback(config.checkpoint_every, self.save)
        trainer.between_updates = self.checkpoint.due  # a burst is long: it stops and saves between updates
        self.callbacks: dict[str, TrainerCallback] = {
            "guard": self.guard,
            "conflict": ConflictCallback(
                config.log_every, config.eval_every or config.total_steps_per_task, self._on_conflict
            ),
            "log": log,
            "evaluation": self.evaluation,
            "checkpoint": self.checkpoint,  # last, so that it saves what the others have done
        }
        if self.console.is_terminal:
            self.callbacks["progress"] = ProgressCallback(log, self.evaluation)

    def train(self, changes: list[str]) -> int:
        """Train to the end or until stopped; returns the exit code. The last policy is always saved."""
        run, names = self.run, self.protocol.task_names
        try:
            self._restore(changes)
            self.trainer.logger = run.logger()
            replay = self.trainer.replay_buffer.nbytes / 1e9
            print(
                f"{len(names)} tasks ({self.protocol.name}), {self.config.optimizer.name}, "
                f"{self.trainer.agent.device}, "
                f"{torch.get_num_threads()} thread(s), replay up to {replay:.2f} GB -> {run.path}",
                flush=True,
            )
            self.trainer.learn(self.config.total_steps_per_task * len(names), list(self.callbacks.values()))
            return self._finish()
        except Diverged as error:
            run.mark("DIVERGED", str(error))
            print(f"mtrl: diverged: {error}", file=sys.stderr)
            return DIVERGED
        except KeyboardInterrupt:
            run.mark("INTERRUPTED", "without a checkpoint of the last moment")
            raise
        except (OSError, SuiteError, CheckpointError) as error:
            reason = one_line(str(error))
            self._try_to_mark(f"FAILED {reason}")
            step = run.checkpoints.newest_step()
            there = (
                f"the newest checkpoint is of step {step} per task"
                if step is not None
                else "there is no checkpoint"
            )
            print(f"mtrl: {reason}; {there}: the same command goes on from it", file=sys.stderr)
            return FAILED
        except BaseException as error:
            self._try_to_mark(f"FAILED {type(error).__name__}: {one_line(str(error))}")
            raise

    def save(self) -> None:
        """A checkpoint of everything."""
        self.guard.check_now()
        for output in self.trainer.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat) and output.writer is not None:
                output.writer.flush()
        state = {
            "trainer": self.trainer.state_dict(),
            "evaluation_envs": self.envs.get_state(),
            "callbacks": {name: callback.state_dict() for name, callback in self.callbacks.items()},
            "generators": generators_state(),
            "positions": self.run.positions(),
        }
        steps = self.trainer.num_timesteps // len(self.protocol.task_names)
        self.run.checkpoints.save(steps, state, self.trainer.replay_buffer)

    def _restore(self, changes: list[str]) -> None:
        """Go on from the newest complete checkpoint; without any, from the start."""
        state = self.run.checkpoints.load(
            self.trainer.replay_buffer, warn=lambda text: print(f"mtrl: {text}", file=sys.stderr)
        )
        if state is None:
            self.run.clear()
        else:
            self.trainer.load_state_dict(state["trainer"])
            self.envs.set_state(with_arrays(state["evaluation_envs"]))
            for name, callback in self.callbacks.items():
                callback.load_state_dict(state["callbacks"].get(name, {}))
            set_generators_state(state["generators"])
            self.run.rewind(state["positions"])
            step = self.trainer.num_timesteps // len(self.protocol.task_names)
            print(f"going on from step {step} per task")
            self.run.note(
                "resumed",
                {"steps_per_task": step, "changes": changes, **describe_run({}, self.trainer.agent.device)},
            )
        if changes:
            write_synced(self.run.config, self.request.text.encode())
        self.run.mark("RUNNING")

    def _finish(self) -> int:
        run, received = self.run, self.checkpoint.received
        self.trainer.agent.policy.save(run.last)
        assert self.evaluation.last is not None
        steps, scores = self.evaluation.last
        if received is None:
            self.guard.check_now()
            self.save()
            write_hparams(self.trainer, self.request.text, scores)
        self.trainer.logger.close()
        self.console.print(scores_table(scores, f"success at {steps} steps per task"))
        if received is not None:
            run.mark("INTERRUPTED", f"by {received} at {steps} steps per task")
            print(
                f"stopped by {received}; policy and checkpoint are saved. The same command goes on; "
                f"`mtrl evaluate {run.path}` evaluates"
            )
            return INTERRUPTED
        run.mark("DONE")
        print(f"done: mtrl evaluate {run.path}")
        return 0

    def _on_scores(self, steps: int, seconds: float, scores: Scores) -> None:
        record = {"steps_per_task": steps, "seconds": round(seconds, 3), **scores.to_dict()}
        self.run.append(self.run.evaluations, record)

    def _on_conflict(self, steps: int, network: str, conflict: Conflict) -> None:
        record = {
            "steps_per_task": steps, "network": network, "cosines": conflict.cosines.tolist(),
            "norms": conflict.norms.tolist(), "weights": conflict.weights.tolist(), **conflict.summary(),
        }  # fmt: skip
        self.run.append(self.run.conflicts, record)

    def _try_to_mark(self, status: str) -> None:
        with contextlib.suppress(OSError):
            self.run.mark(status)


def write_hparams(trainer: Trainer, settings: str, scores: Scores) -> None:
    """One row of TensorBoard's HPARAMS table: every setting of the resolved config."""
    flat = {
        key: value if isinstance(value, (bool, str, int, float)) else str(value)
        for key, value in flat_items(yaml.safe_load(settings))
    }
    metrics = {"eval/success_rate": scores.mean_success}
    trainer.logger.record("hparams", HParam(flat, metrics), exclude=("csv",))
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
