"""What happens along with training: logging, evaluation, checkpoints, the progress bar.

All are Stable-Baselines3 callbacks of a :class:`mtrl.train.Trainer`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure
from stable_baselines3.common.vec_env import VecEnv

from mtrl.config import ConfigError
from mtrl.conflict import Conflict
from mtrl.evaluate import Scores, TaskScores, evaluate, names_of, task_order
from mtrl.run.board import show_gif
from mtrl.run.outputs import tell
from mtrl.run.signals import Signals

if TYPE_CHECKING:
    from mtrl.train import Trainer

PER_TASK = {
    "critic_loss": "train_critic_loss", "actor_loss": "train_actor_loss", "q": "train_q",
    "alpha": "train_ent_coef", "reward_scale": "train_reward_scale", "log_prob": "train_log_prob",
}  # fmt: skip
EPISODES_IN_MEAN = 10  # per task, in the rollout means


class TrainerCallback(BaseCallback):
    """A callback that knows the tasks' names and acts every ``every`` steps per task."""

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.every = every

    @property
    def trainer(self) -> Trainer:
        return self.model  # type: ignore[return-value]

    @property
    def task_names(self) -> tuple[str, ...]:
        return self.trainer.agent.policy.task_names

    @property
    def steps_per_task(self) -> int:
        return self.trainer.num_timesteps // self.trainer.envs.num_envs

    def record(self, tag: str, value: Any) -> None:
        """A mean over tasks under ``tag``'s Stable-Baselines3 name is the caller's; floats only."""
        self.logger.record(tag, float(value))

    def record_tasks(self, metric: str, values: Any) -> None:
        """``metric/<task>`` for each finite value of ``[T]``."""
        for name, value in zip(self.task_names, values, strict=True):
            if np.isfinite(value):
                self.record(f"{metric}/{name}", value)

    def _on_step(self) -> bool:
        return self.due() if self.every > 0 and self.steps_per_task % self.every == 0 else True

    def due(self) -> bool:
        """Every ``every`` steps per task; False stops the training."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume: plain values, arrays, tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""

    def close(self) -> None:
        """Give back what training took from the process, however training ended."""


class LogCallback(TrainerCallback):
    """Reads the device's numbers and writes a row of the log."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self.returns: list[deque[float]] = []
        self.successes: list[deque[float]] = []
        self.before: dict[str, float] = {}
        self.success_rate = float("nan")

    def _on_training_start(self) -> None:
        if not self.before:
            self.returns = [deque(maxlen=EPISODES_IN_MEAN) for _ in self.task_names]
            self.successes = [deque(maxlen=EPISODES_IN_MEAN) for _ in self.task_names]
            self.before = self._progress()

    def _progress(self) -> dict[str, float]:
        trainer = self.trainer
        return {**trainer.seconds, "timesteps": trainer.num_timesteps, "updates": trainer.num_updates}

    def _on_step(self) -> bool:
        for t in np.flatnonzero(self.locals["dones"]):
            info = self.locals["infos"][t]
            self.returns[t].append(info["episode"]["r"])
            if info["is_success"] is not None:
                self.successes[t].append(info["is_success"])
        return super()._on_step()

    def due(self) -> bool:
        self._record_rollouts()
        self._record_training()
        self._record_time()
        self.trainer.dump_logs()
        return True

    def _record_rollouts(self) -> None:
        for tag, metric, window in (
            ("rollout/ep_rew_mean", "rollout_return", self.returns),
            ("rollout/success_rate", "rollout_success", self.successes),
        ):
            means = np.array([np.mean(w) if w else np.nan for w in window])
            self.record_tasks(metric, means)
            if np.isfinite(means).any():
                self.record(tag, np.nanmean(means))
        self.success_rate = self.logger.name_to_value.get("rollout/success_rate", float("nan"))

    def _record_training(self) -> None:
        metrics = self.trainer.metrics
        if not metrics:
            return
        for network in ("critic", "actor"):
            self.record_tasks(f"train_{network}_weight", metrics[f"{network}_weights"].tolist())
            fallbacks = self.trainer.agent.learners[network].method.fallbacks
            if fallbacks is not None:
                self.record(f"train/{network}_fallbacks", fallbacks)
        for key, metric in PER_TASK.items():
            self.record_tasks(metric, metrics[key].tolist())
        for key, tag in (
            ("critic_loss", "train/critic_loss"), ("actor_loss", "train/actor_loss"), ("alpha", "train/ent_coef"),
        ):  # fmt: skip
            self.record(tag, metrics[key].mean())
        self.record("train/n_updates", self.trainer.num_updates)

    def _record_time(self) -> None:
        now = self._progress()
        spent = {key: now[key] - self.before[key] for key in now}
        self.before = now
        training = spent["total"] - spent["evaluation"]
        steps = spent["timesteps"] / self.trainer.envs.num_envs
        if spent["updates"] > 0:
            self.record("time/update_ms", 1e3 * spent["update"] / spent["updates"])
        self.record("time/env_ms", 1e3 * spent["env"] / steps)
        self.record("time/other_ms", 1e3 * (training - spent["env"] - spent["update"]) / steps)
        self.record("time/fps", spent["timesteps"] / training)
        self.record("time/total_timesteps", self.trainer.num_timesteps)
        self.record("time/seconds", now["total"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "returns": [list(w) for w in self.returns], "successes": [list(w) for w in self.successes],
            "before": self.before, "success_rate": self.success_rate,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("returns", "successes"):
            setattr(self, name, [deque(w, maxlen=EPISODES_IN_MEAN) for w in state[name]])
        self.before, self.success_rate = state["before"], state["success_rate"]


class ConflictCallback(TrainerCallback):
    """Writes how the tasks' gradients conflict: scalars and a picture for TensorBoard, rows for a file.

    Args:
        every: steps per task between looks for a new measurement.
        picture_every: steps per task between pictures of the cosine matrix.
        on_conflict: called with (steps per task, network, measurement).
    """

    def __init__(
        self, every: int, picture_every: int, on_conflict: Callable[[int, str, Conflict], None]
    ) -> None:
        super().__init__(every)
        self.picture_every, self.on_conflict = picture_every, on_conflict
        self.seen_update = -1
        self.next_picture = 0

    def due(self) -> bool:
        metrics = self.trainer.metrics
        if metrics.get("conflict_update", -1) == self.seen_update:
            return True
        self.seen_update = metrics["conflict_update"]
        with_picture = self.steps_per_task >= self.next_picture
        for network in ("critic", "actor"):
            conflict: Conflict = metrics[f"conflict_{network}"]
            for key, value in conflict.summary().items():
                self.record(f"train_conflict_{network}/{key}", value)
            self.record_tasks(f"train_conflict_{network}_norm", conflict.norms.tolist())
            self.on_conflict(self.steps_per_task, network, conflict)
            if with_picture:
                from mtrl.results.figures import cosine_figure  # matplotlib takes half a second

                figure = cosine_figure({network: conflict.cosines.cpu().numpy()}, self.task_names)
                self.logger.record(
                    f"train_conflict_{network}/cosines", Figure(figure, close=True), exclude=("csv",)
                )
        if with_picture:
            self.next_picture = self.steps_per_task + self.picture_every
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"seen_update": self.seen_update, "next_picture": self.next_picture}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen_update, self.next_picture = state["seen_update"], state["next_picture"]


class EvaluationCallback(TrainerCallback):
    """Evaluates on environments of its own, hands the scores on, keeps the best policy's file.

    At the end of training too, but not where it is stopped before: who stops it may not wait.

    Args:
        envs: made for evaluation, one per task.
        every: steps per task between evaluations; 0 is only at the end.
        episodes: per task.
        on_scores: called with (steps per task, seconds of training, scores).
        best: where the best policy so far is kept: by success, or by return where a task tells no success.
    """

    def __init__(
        self, envs: VecEnv, every: int, episodes: int,
        on_scores: Callable[[int, float, Scores], None], best: Path,
    ) -> None:  # fmt: skip
        super().__init__(every)
        self.envs, self.episodes, self.on_scores, self.best = envs, episodes, on_scores, best
        self.last: tuple[int, Scores] | None = None
        self.best_score, self.best_by = -math.inf, ""
        # tasks that have told success: where they tell none later, there was none
        self.told: set[str] = set()
        self.said = False

    def _on_training_start(self) -> None:
        if self.envs is self.trainer.envs:
            raise ConfigError("envs: evaluation would reset those of training; make it a suite of its own")
        task_order(self.trainer, self.envs, self._names())  # refused now, not after an hour

    def _names(self) -> tuple[str, ...]:
        return names_of(self.envs) or self.task_names

    def due(self) -> bool:
        start, seconds = time.perf_counter(), self.trainer.seconds["total"]
        scores = evaluate(self.trainer, self.envs, self.episodes, self._names())
        self.trainer.seconds["evaluation"] += time.perf_counter() - start
        self.trainer.keep_time()  # a checkpoint of this step has both or neither
        self.told |= set(scores.tasks) - set(scores.silent)
        scores = scores.told_by(self.told)
        self.last = self.steps_per_task, scores
        self.record("eval/mean_reward", scores.mean_return)
        if scores.silent:
            if not self.said:
                tell(f"{', '.join(scores.silent)} never told success in an episode: no success is shown")
            self.said = True
        else:
            self.record("eval/success_rate", scores.mean_success)
            tasks = [scores.tasks[name] for name in self.task_names]
            self.record_tasks("eval_success", [task.success.mean() for task in tasks])
        self.record_tasks("eval_return", [scores.tasks[name].returns.mean() for name in self.task_names])
        self.trainer.dump_logs()
        self.on_scores(self.steps_per_task, seconds, scores)
        by, score = ("return", scores.mean_return) if scores.silent else ("success", scores.mean_success)
        if by != self.best_by or score > self.best_score:
            self.best_by, self.best_score = by, score
            self.trainer.save(self.best)
        return True

    def _on_training_end(self) -> None:
        ended = self.trainer.num_timesteps >= self.locals["total_timesteps"]
        if ended and (self.last is None or self.last[0] != self.steps_per_task):
            self.due()

    def state_dict(self) -> dict[str, Any]:
        last = None
        if self.last is not None:
            steps, scores = self.last
            last = [steps, {name: vars(task) for name, task in scores.tasks.items()}]
        return {
            "best_score": self.best_score,
            "best_by": self.best_by,
            "told": sorted(self.told),
            "last": last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_score = state["best_score"]
        if state["last"] is not None:
            steps, tasks = state["last"]
            columns = {name: {k: v.numpy() for k, v in task.items()} for name, task in tasks.items()}
            self.last = steps, Scores({name: TaskScores(**task) for name, task in columns.items()})
            # earlier versions told neither
            self.told = set(state.get("told", set(columns) - set(self.last[1].silent)))
            self.best_by = state.get("best_by", "return" if self.last[1].silent else "success")


class VideoCallback(TrainerCallback):
    """Films an episode of every task, and shows it in TensorBoard.

    What cannot be filmed is said and trained on without.

    Args:
        every: steps per task between films; 0 is never.
        shoot: given the policy and the steps per task, leaves a GIF and tells where; raises ``ValueError``.
    """

    def __init__(self, every: int, shoot: Callable[[Trainer, int], Path]) -> None:
        super().__init__(every)
        self.shoot = shoot

    def due(self) -> bool:
        start = time.perf_counter()
        try:
            show_gif(
                self.logger, "eval/video", self.shoot(self.trainer, self.steps_per_task), self.steps_per_task
            )
        except ValueError as error:
            tell(f"warning: no video at {self.steps_per_task} steps per task: {error}")
        self.trainer.seconds["evaluation"] += time.perf_counter() - start
        self.trainer.keep_time()
        return True


class CheckpointCallback(TrainerCallback):
    """Saves at the start and every so many minutes, and stops with a checkpoint when the system asks.

    Args:
        minutes: between checkpoints, fractions allowed; 0 is only at the start and the end.
        save: writes one.
        signals: of which one may have come.
        there: whether there is one.
    """

    def __init__(
        self, minutes: float, save: Callable[[], None], signals: Signals, there: Callable[[], bool]
    ) -> None:
        super().__init__()
        self.minutes, self.save, self.signals, self.there = minutes, save, signals, there
        self._last = 0.0

    def _on_training_start(self) -> None:
        if not self.there():  # one that is written again at each try would look like progress
            self.save()
        self._last = time.monotonic()

    def due(self) -> bool:
        if self.signals.received:
            self.save()
            return False
        if self.minutes > 0 and time.monotonic() - self._last >= 60 * self.minutes:
            self.save()
            self._last = time.monotonic()
        return True


class ProgressCallback(TrainerCallback):
    """A bar with ETA, steps per task and second, success so far and at the last evaluation. Only for a terminal."""

    def __init__(self, log: LogCallback, evaluation: EvaluationCallback) -> None:
        super().__init__()
        self.log, self.evaluation = log, evaluation
        self.progress: Progress | None = None

    def _on_training_start(self) -> None:
        self.progress = Progress(
            TextColumn("steps per task"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"), refresh_per_second=2,
        )  # fmt: skip
        total = self.locals["total_timesteps"] // self.trainer.envs.num_envs
        self.bar = self.progress.add_task("", total=total, completed=self.steps_per_task, status="warming up")
        self.progress.start()

    def due(self) -> bool:
        status = f"{self.steps_per_task / max(self.trainer.seconds['total'], 1e-9):.1f} steps/s"
        if np.isfinite(self.log.success_rate):
            status += f" · success {self.log.success_rate:.2f}"
        if self.evaluation.last is not None:
            status += f" · last evaluation {self.evaluation.last[1].mean_success:.2f}"
        assert self.progress is not None
        with contextlib.suppress(OSError):  # the terminal is gone, and its signal is still to come
            self.progress.update(self.bar, completed=self.steps_per_task, status=status)
        return True

    def close(self) -> None:
        if self.progress is not None:
            with contextlib.suppress(OSError):
                self.progress.stop()
