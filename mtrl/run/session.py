"""One process's share of a run: what happens around the training loop, and how it ends."""

from __future__ import annotations

import contextlib
import datetime
import math
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import TensorBoardOutputFormat

from mtrl.conflict import Conflict
from mtrl.envs import SuiteError, make_suite
from mtrl.envs.protocol import NotFiniteError, WorkerDiedError
from mtrl.envs.vec import SuiteVecEnv
from mtrl.errors import CheckpointError
from mtrl.evaluate import Scores
from mtrl.files import write_synced
from mtrl.registry import import_options
from mtrl.results.tables import scores_table, show
from mtrl.results.video import film
from mtrl.run.board import introduce
from mtrl.run.callbacks import (
    CheckpointCallback,
    ConflictCallback,
    EvaluationCallback,
    LogCallback,
    ProgressCallback,
    TrainerCallback,
    VideoCallback,
)  # fmt: skip
from mtrl.run.checkpoint import generators_state, set_generators_state, with_arrays
from mtrl.run.folder import RunFolder, describe_run
from mtrl.run.guard import Diverged, GuardCallback
from mtrl.run.outputs import leave_lost_outputs, report, tell
from mtrl.run.signals import Signals
from mtrl.settings.train import Request, parse_train
from mtrl.train import Trainer
from mtrl.values import one_line

FAILED, DIVERGED, INTERRUPTED = 1, 3, 4
FILM_TILE = 120  # pixels; a run's events hold every film
RESTARTS = 2  # of workers that die without a new checkpoint in between


class Session:
    """One process's share of a run: callbacks, checkpoints, marks.

    Args:
        trainer, envs: made by :func:`build`.
        request: what was asked for.
        run: its folder, locked.
        signals: taken.
    """

    def __init__(
        self, trainer: Trainer, envs: SuiteVecEnv, request: Request, run: RunFolder, signals: Signals
    ) -> None:
        self.trainer, self.envs, self.run, self.signals = trainer, envs, run, signals
        self.request, self.protocol = request, request.protocol
        self.config = config = request.config
        self.deaths: Counter[int | None] = Counter()  # of workers, by the newest checkpoint's step
        episodes = min(config.eval_episodes, envs.num_goals or config.eval_episodes)
        log = LogCallback(config.log_every)
        self.guard = GuardCallback(math.gcd(config.log_every, config.eval_every), run.evidence)
        self.evaluation = EvaluationCallback(envs, config.eval_every, episodes, self._on_scores, run.best)
        self.checkpoint = CheckpointCallback(
            config.checkpoint_every, self.save, signals, lambda: run.checkpoints.newest_step() is not None
        )
        trainer.between_updates = self.checkpoint.due  # a burst is long: it stops and saves between updates
        self.callbacks: dict[str, TrainerCallback] = {
            "guard": self.guard,
            "conflict": ConflictCallback(
                config.log_every, config.eval_every or config.total_steps_per_task, self._on_conflict
            ),
            "log": log,
            "evaluation": self.evaluation,
            "video": VideoCallback(config.video_every, self._film),
            "checkpoint": self.checkpoint,  # last, so that it saves what the others have done
        }
        if sys.stdout.isatty():
            self.callbacks["progress"] = ProgressCallback(log, self.evaluation)

    def train(self, changes: list[str]) -> int:
        """Train to the end or until stopped; returns the exit code.

        Raises:
            CheckpointError: there is nothing that can be gone on from; the run is as it was.
        """
        run, names = self.run, self.protocol.task_names
        try:
            self._restore(changes)
            replay = math.ceil(self.trainer.replay_buffer.nbytes / 1e6)
            report(
                f"{len(names)} tasks ({self.protocol.name}), {self.config.optimizer.name}, "
                f"{self.trainer.agent.device}, {torch.get_num_threads()} thread(s), "
                f"replay up to {replay} MB -> {run.path}"
            )
            agent = self.trainer.agent
            if self.config.agent.kernels == "compiled":
                report("compiling the update: 30 to 120 seconds, about 10 if it is in the cache")
            elif self.config.agent.kernels != "plain" and not agent.all_at_once:
                report(
                    "note: this network is written for one task alone, so vmap runs it in stock torch: slower, "
                    "and right (docs/networks.md)"
                )
            if not self.envs.savable:
                report(
                    "note: these envs have no get_state and set_state, so a run that goes on begins new episodes: "
                    "it is not the same bit for bit"
                )
            if self.config.warmup_steps >= self.config.total_steps_per_task:
                report(
                    f"note: no update is made: warmup_steps is {self.config.warmup_steps}, and the run ends at "
                    f"{self.config.total_steps_per_task}"
                )
            while not self._learn():
                self._restore([])
            return self._finish()
        except CheckpointError as error:
            if self.deaths:  # it has trained: what the run was is over
                self._try_to_mark(f"FAILED {error}")
            raise
        except Diverged as error:
            self._try_to_mark(f"DIVERGED {error}")
            tell(f"diverged: {error}")
            return DIVERGED
        except KeyboardInterrupt:
            self._try_to_mark("INTERRUPTED at once")
            tell(f"interrupted at once; {self._newest()}")
            return FAILED if run.checkpoints.newest_step() is None else INTERRUPTED
        except (OSError, SuiteError) as error:
            reason = one_line(str(error))
            self._try_to_mark(f"FAILED {reason}")
            tell(f"{reason}; {self._newest()}")
            return FAILED
        except BaseException as error:
            self._try_to_mark(f"FAILED {type(error).__name__}: {one_line(str(error))}")
            raise

    def _learn(self) -> bool:
        """Train until the end or a stop; False where a worker died and training can go back to a checkpoint."""
        total = self.config.total_steps_per_task * len(self.protocol.task_names)
        self.trainer.logger = self.run.logger()
        if self.run.checkpoints.newest_step() is None:
            introduce(self.trainer.logger, self.request.text, parse_train([]).text, self.run.described())
        others = threading.excepthook
        # TensorBoard's thread meets a full disk as well: what is to be said of it, this one says
        threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else others(args)
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
            tell(f"{error}; started again")
            for envs in (self.trainer.envs, self.envs):
                envs.restart_workers()  # type: ignore[attr-defined]
            self.trainer.logger.close()
            return False
        finally:
            for callback in self.callbacks.values():
                callback.close()
            threading.excepthook = others
        return True

    def save(self) -> None:
        """A checkpoint of everything, and after it the policy as it is now."""
        self.guard.check_now()
        for output in self.trainer.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat) and output.writer is not None:
                output.writer.flush()
        state = {
            "trainer": self.trainer.state_dict(),
            "evaluation_envs": self.envs.get_state() if self.envs.savable else None,
            "callbacks": {name: callback.state_dict() for name, callback in self.callbacks.items()},
            "generators": generators_state(),
            "positions": self.run.positions(),
        }
        steps = self.trainer.num_timesteps // len(self.protocol.task_names)
        self.run.checkpoints.save(steps, state, self.trainer.replay_buffer)
        if steps > 0:
            self.trainer.save(self.run.last)

    def _restore(self, changes: list[str]) -> None:
        """Go on from the newest complete checkpoint; without any, from the start."""
        run = self.run
        state = run.checkpoints.load(self.trainer.replay_buffer, warn=tell)
        if state is None:
            run.clear()
        else:
            try:
                self._load_state(state)
            except (OSError, MemoryError, torch.OutOfMemoryError, WorkerDiedError):
                raise  # it is not the checkpoint's fault
            except Exception as error:  # whatever a state makes of a run that it is not of
                raise CheckpointError(
                    f"{run.checkpoints.folder}: the checkpoint does not fit this run "
                    f"({type(error).__name__}: {one_line(str(error))})"
                ) from None
            for problem in run.rewind(state["positions"]):
                tell(f"warning: {problem}; what was lost is not made again")
        step = self.trainer.num_timesteps // len(self.protocol.task_names)
        if state is not None:
            report(f"going on from step {step} per task")
        if state is not None or changes:
            protocol = {**self.protocol.to_dict(), "name": self.protocol.name}
            here = describe_run(protocol, self.trainer.agent.device, self.request.command)
            run.restore_meta(here)
            run.note("resumed", {"steps_per_task": step, "changes": changes, **here})
        run.mark("RUNNING")  # before the config: a finished run that is to train on is none until it has
        if changes:
            write_synced(run.config, self.request.text.encode())

    def _load_state(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        if state["evaluation_envs"] is not None:  # else every evaluation resets them anyway
            self.envs.set_state(with_arrays(state["evaluation_envs"]))
        for name, callback in self.callbacks.items():
            if name in state["callbacks"]:  # the progress bar comes and goes with the terminal
                callback.load_state_dict(state["callbacks"][name])
        set_generators_state(state["generators"])

    def _finish(self) -> int:
        run, trainer = self.run, self.trainer
        leave_lost_outputs()  # a Ctrl-C ends what reads them as well
        steps = trainer.num_timesteps // len(self.protocol.task_names)
        if steps < self.config.total_steps_per_task:
            trainer.logger.close()
            run.mark("INTERRUPTED", f"by {self.signals.received} at {steps} steps per task")
            report(
                f"stopped by {self.signals.received}; policy and checkpoint are saved. "
                f"The same command goes on; `{self._evaluate_command()}` evaluates"
            )
            return INTERRUPTED
        self.save()
        assert self.evaluation.last is not None
        _, scores = self.evaluation.last
        trainer.logger.close()
        run.mark("DONE")
        with contextlib.suppress(OSError, ValueError, KeyboardInterrupt):  # whoever reads it: the run is done
            show(scores_table(scores, f"success at {steps} steps per task"))
            print(f"done: {self._evaluate_command()}", flush=True)
        return 0

    def _evaluate_command(self) -> str:
        agent = self.config.agent
        networks = (str(agent.architecture(part).name) for part in (agent.actor, agent.critic))
        return f"mtrl evaluate {self.run.path}{import_options([self.protocol.suite, *networks])}"

    def _newest(self) -> str:
        step = self.run.checkpoints.newest_step()
        if step is None:
            return "there is no checkpoint yet: the same command starts anew"
        return f"the newest checkpoint is of step {step} per task: the same command goes on from it"

    def _film(self, trainer: Trainer, steps: int) -> Path:
        """An episode of every task, on a suite that lives as long as the film."""
        folder = self.run.path / "videos"
        folder.mkdir(exist_ok=True)
        path = folder / f"step{steps}.gif"
        envs = make_suite(self.protocol, seed=self.config.seed, evaluation=True, render_mode="rgb_array")
        try:
            film(trainer, envs, path, tile=FILM_TILE)
        finally:
            envs.close()
        return path

    def _on_scores(self, steps: int, seconds: float, scores: Scores) -> None:
        record = {"steps_per_task": steps, "seconds": round(seconds, 3), **scores.to_dict()}
        self.run.append(self.run.evaluations, record)
        if not sys.stdout.isatty():
            self._tell_progress(steps, scores)

    def _tell_progress(self, steps: int, scores: Scores) -> None:
        """One line for a log: where training stands and how long it will take."""
        total, spent = self.config.total_steps_per_task, self.trainer.seconds["total"]
        success = "–" if scores.silent else f"{scores.mean_success:.3f}"
        left = datetime.timedelta(seconds=round(spent / max(steps, 1) * (total - steps)))
        report(
            f"{steps} of {total} steps per task: success {success}, return {scores.mean_return:.1f}, "
            f"{steps / max(spent, 1e-9):.1f} steps/s, {left} left"
        )

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
