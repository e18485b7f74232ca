"""``mtrl train``: from a config to a run folder with an evaluated policy."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from stable_baselines3.common.logger import HParam, TensorBoardOutputFormat

from envs import Protocol, SuiteError, make_suite
from envs.protocol import NotFiniteError, WorkerDiedError
from envs.vec import SuiteVecEnv
from mtrl.callbacks import (
    CheckpointCallback,
    ConflictCallback,
    EvaluationCallback,
    LogCallback,
    ProgressCallback,
    TrainerCallback,
)  # fmt: skip
from mtrl.checkpoint import CheckpointError, generators_state, set_generators_state, with_arrays
from mtrl.commands.parser import Request, changed_settings, flat_items, one_line, parse_train, settle
from mtrl.commands.tables import scores_table
from mtrl.config import ConfigError, TrainConfig
from mtrl.conflict import Conflict
from mtrl.evaluate import Scores
from mtrl.files import write_synced
from mtrl.guard import Diverged, GuardCallback
from mtrl.machine import choose_threads
from mtrl.optimizers import make_optimizer
from mtrl.replay import TaskReplay, free_memory
from mtrl.runfolder import RunFolder, describe_run
from mtrl.sac import MTSAC
from mtrl.train import Trainer

FAILED, DIVERGED, INTERRUPTED = 1, 3, 4
RESTARTS = 2  # of workers that die without a new checkpoint in between


def main(arguments: list[str]) -> int:
    """Exit codes: see :mod:`mtrl.cli`."""
    request = parse_train(arguments)
    config, protocol = request.config, request.protocol
    run = RunFolder(request.resume or config.run_dir or default_folder(config, protocol))
    device = choose_device(config.device)
    request = settle(request, run.config, device)
    config = request.config
    changes: list[str] = []
    try:
        if run.exists:
            run.lock()
            if run.status.startswith("DONE") and request.resume:
                print(f"{run.path} is finished already; nothing to do")
                return 0
            changes = check_resumable(run, request)
        torch.set_num_threads(choose_threads(config.threads))
        trainer, envs = build(config, protocol, device)
        try:
            if not run.exists:
                run.start(request.text, describe_run({**protocol.to_dict(), "name": protocol.name}, device))
            return Session(trainer, envs, request, run).train(changes)
        finally:
            trainer.envs.close()
            envs.close()
    finally:
        run.unlock()


def check_resumable(run: RunFolder, request: Request) -> list[str]:
    """The settings that changed since the run began, where that is allowed.

    Raises:
        ConfigError: the run is finished or diverged, or settings changed without ``--allow_changes``.
    """
    choices = "choose another --seed, --label or --run_dir"
    if run.status.startswith("DONE"):
        raise ConfigError(f"run_dir: {run.path} holds a finished run; nothing was changed: {choices}")
    changes = changed_settings(run.config, request.text)
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
    require_memory(config, obs_dim, action_dim, len(names), device)
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


def require_memory(
    config: TrainConfig, obs_dim: int, action_dim: int, num_tasks: int, device: torch.device
) -> None:
    """Refuse networks and batches that this machine cannot hold, before any memory is taken.

    Counts the weights four times (Adam has two more, a gradient one), once more where an average of them
    is kept (the target, an averaged policy), and of a batch its rows and one activation per hidden unit.

    Raises:
        ConfigError: it says how much is needed and how much there is.
    """
    agent, free = config.agent, free_memory(device)
    task = num_tasks if agent.task_input == "one_hot" else agent.embedding_dim
    rows = num_tasks * config.replay.batch_size
    for key, network, inputs, outputs, count, copies in (
        ("actor", agent.actor, obs_dim + task, 2 * action_dim * num_tasks, 1, 4 + (agent.policy_tau < 1)),
        ("critic", agent.critic, obs_dim + action_dim + task, num_tasks, agent.critic.ensemble, 5),
    ):
        widths = [inputs, *network.hidden, outputs]
        weights = sum(a * b for a, b in itertools.pairwise(widths))
        needed = 4 * count * (copies * weights + rows * sum(widths))
        if needed > free:
            raise ConfigError(
                f"agent.{key}.hidden: {list(network.hidden)} with replay.batch_size {config.replay.batch_size} "
                f"takes at least {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
            )


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
        self.deaths: Counter[int | None] = Counter()  # of workers, by the newest checkpoint's step
        episodes = min(config.eval_episodes, 1 if protocol.goals == "fixed" else protocol.num_goals)
        log = LogCallback(config.log_every)
        self.guard = GuardCallback(math.gcd(config.log_every, config.eval_every), run.evidence)
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
        """Train to the end or until stopped; returns the exit code.

        Raises:
            CheckpointError: there is nothing that can be gone on from; the run is as it was.
        """
        run, names = self.run, self.protocol.task_names
        try:
            self._restore(changes)
            replay = self.trainer.replay_buffer.nbytes / 1e9
            print(
                f"{len(names)} tasks ({self.protocol.name}), {self.config.optimizer.name}, "
                f"{self.trainer.agent.device}, {torch.get_num_threads()} thread(s), "
                f"replay up to {replay:.2f} GB -> {run.path}",
                flush=True,
            )
            while not self._learn():
                self._restore([])
            return self._finish()
        except CheckpointError:
            raise
        except Diverged as error:
            self._try_to_mark(f"DIVERGED {error}")
            print(f"mtrl: diverged: {error}", file=sys.stderr)
            return DIVERGED
        except KeyboardInterrupt:
            self._try_to_mark("INTERRUPTED at once")
            print(f"mtrl: interrupted at once; {self._newest()}", file=sys.stderr)
            return FAILED if run.checkpoints.newest_step() is None else INTERRUPTED
        except (OSError, SuiteError) as error:
            reason = one_line(str(error))
            self._try_to_mark(f"FAILED {reason}")
            print(f"mtrl: {reason}; {self._newest()}", file=sys.stderr)
            return FAILED
        except BaseException as error:
            self._try_to_mark(f"FAILED {type(error).__name__}: {one_line(str(error))}")
            raise

    def _learn(self) -> bool:
        """Train until the end or a stop; False where a worker died and training can go back to a checkpoint."""
        total = self.config.total_steps_per_task * len(self.protocol.task_names)
        self.trainer.logger = self.run.logger()
        try:
            self.trainer.learn(total, list(self.callbacks.values()))
        except NotFiniteError as error:
            self.guard.check_now()  # an actor that is not finite is the cause, not the environment
            self.guard.diverged(str(error))
        except WorkerDiedError as error:
            step = self.run.checkpoints.newest_step()
            self.deaths[step] += 1
            if step is None or self.deaths[step] > RESTARTS:
                raise
            print(f"mtrl: {error}; started again", file=sys.stderr)
            for envs in (self.trainer.envs, self.envs):
                envs.restart_workers()  # type: ignore[attr-defined]
            self.trainer.logger.close()
            return False
        finally:
            for callback in self.callbacks.values():
                callback.close()
        return True

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
        run = self.run
        state = run.checkpoints.load(self.trainer.replay_buffer, warn=self.checkpoint.say)
        if state is None:
            run.clear()
        else:
            try:
                self._load_state(state)
            except Exception as error:  # whatever a state makes of a run that it is not of
                raise CheckpointError(
                    f"{run.checkpoints.folder}: the checkpoint does not fit this run "
                    f"({type(error).__name__}: {one_line(str(error))})"
                ) from None
            run.rewind(state["positions"])
        step = self.trainer.num_timesteps // len(self.protocol.task_names)
        if state is not None:
            print(f"going on from step {step} per task")
        if state is not None or changes:
            here = describe_run({}, self.trainer.agent.device)
            run.note("resumed", {"steps_per_task": step, "changes": changes, **here})
        if changes:
            write_synced(run.config, self.request.text.encode())
        run.mark("RUNNING")

    def _load_state(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        self.envs.set_state(with_arrays(state["evaluation_envs"]))
        for name, callback in self.callbacks.items():
            if name in state["callbacks"]:  # the progress bar comes and goes with the terminal
                callback.load_state_dict(state["callbacks"][name])
        set_generators_state(state["generators"])

    def _finish(self) -> int:
        run, trainer = self.run, self.trainer
        trainer.agent.policy.save(run.last)
        steps = trainer.num_timesteps // len(self.protocol.task_names)
        if steps < self.config.total_steps_per_task:
            trainer.logger.close()
            run.mark("INTERRUPTED", f"by {self.checkpoint.received} at {steps} steps per task")
            print(
                f"stopped by {self.checkpoint.received}; policy and checkpoint are saved. "
                f"The same command goes on; `mtrl evaluate {run.path}` evaluates"
            )
            return INTERRUPTED
        self.save()
        assert self.evaluation.last is not None
        _, scores = self.evaluation.last
        write_hparams(trainer, self.request.text, scores)
        trainer.logger.close()
        self.console.print(scores_table(scores, f"success at {steps} steps per task"))
        run.mark("DONE")
        print(f"done: mtrl evaluate {run.path}")
        return 0

    def _newest(self) -> str:
        step = self.run.checkpoints.newest_step()
        if step is None:
            return "there is no checkpoint yet: the same command starts anew"
        return f"the newest checkpoint is of step {step} per task: the same command goes on from it"

    def _on_scores(self, steps: int, seconds: float, scores: Scores) -> None:
        record = {"steps_per_task": steps, "seconds": round(seconds, 3), **scores.to_dict()}
        self.run.append(self.run.evaluations, record)

    def _on_conflict(self, steps: int, network: str, conflict: Conflict) -> None:
        record = {
            "steps_per_task": steps, "network": network,
            # three decimals of a cosine say all; the file would otherwise outgrow the policy
            "cosines": [[round(x, 3) for x in row] for row in conflict.cosines.tolist()],
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
