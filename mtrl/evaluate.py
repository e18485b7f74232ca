"""Evaluation: the deterministic policy meets every goal once; scores by task name, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from stable_baselines3.common.vec_env import VecEnv

Array = npt.NDArray[Any]
CONFIDENCE = 0.95
RESAMPLES = 2000


class Predicts(Protocol):
    """Whatever answers Stable-Baselines3's ``predict``."""

    def predict(
        self, observation: Array, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, Any]: ...


@dataclass(frozen=True)
class TaskScores:
    """The episodes of one task, each array ``[episodes]``.

    Attributes:
        success: reached at any step; the field's usual definition for Meta-World.
        success_at_end: held in the last step.
        returns: undiscounted sum of raw rewards.
        steps_to_success: environment steps until first success; NaN without.
    """

    success: Array
    success_at_end: Array
    returns: Array
    steps_to_success: Array

    def to_dict(self) -> dict[str, Any]:
        n = len(self.success)
        return {
            "success": float(self.success.mean()),
            "success_at_end": float(self.success_at_end.mean()),
            "ci": wilson_interval(int(self.success.sum()), n) if n > 1 else None,
            "return": float(self.returns.mean()),
            "steps_to_success": float(np.nanmean(self.steps_to_success)) if self.success.any() else None,
            "episodes": n,
        }


@dataclass(frozen=True)
class Scores:
    """All tasks' episodes, by name."""

    tasks: Mapping[str, TaskScores]

    @property
    def mean_success(self) -> float:
        """Mean over tasks of the share of successful episodes."""
        return float(np.mean([scores.success.mean() for scores in self.tasks.values()]))

    @property
    def mean_return(self) -> float:
        return float(np.mean([scores.returns.mean() for scores in self.tasks.values()]))

    def mean_success_interval(self) -> list[float] | None:
        """95 % percentile bootstrap: episodes resampled within each task.

        None with one episode per task: there is nothing to resample, the score is exact for that one
        goal.
        """
        outcomes = [scores.success for scores in self.tasks.values()]
        if min(len(o) for o in outcomes) < 2:
            return None
        generator = np.random.default_rng(0)
        means = [generator.choice(o, (RESAMPLES, len(o))).mean(1) for o in outcomes]
        tail = (1 - CONFIDENCE) / 2
        return [float(q) for q in np.quantile(np.mean(means, axis=0), [tail, 1 - tail])]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: ``mean_success``, ``mean_success_ci``, ``tasks`` by name."""
        return {
            "mean_success": self.mean_success,
            "mean_success_ci": self.mean_success_interval(),
            "tasks": {name: scores.to_dict() for name, scores in self.tasks.items()},
        }


def wilson_interval(successes: int, episodes: int) -> list[float]:
    """95 % score interval of a proportion (Wilson 1927)."""
    ci = binomtest(successes, episodes).proportion_ci(CONFIDENCE, method="wilson")
    return [float(ci.low), float(ci.high)]


def evaluate(policy: Predicts, envs: VecEnv, episodes: int, task_names: Sequence[str]) -> Scores:
    """Run ``episodes`` deterministic episodes of every task, from the first goal on.

    Args:
        policy: sees observations ``[T, D + T]``.
        envs: one environment per task, made for evaluation, so that successive episodes take the goals
            in order. Its infos tell ``success`` (this step) and ``is_success`` (so far).
        episodes: per task.
        task_names: T names, in the order of ``envs``.
    """
    tasks = range(envs.num_envs)
    records: list[list[tuple[bool, bool, float, float]]] = [[] for _ in tasks]
    returns, steps = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=int)
    first_success = np.full(envs.num_envs, np.nan)
    envs.seed(0)  # starts the order of goals anew, and the draws of envs that have some
    observations = envs.reset()
    while any(len(record) < episodes for record in records):
        assert isinstance(observations, np.ndarray)
        actions, _ = policy.predict(observations, deterministic=True)
        observations, rewards, dones, infos = envs.step(actions)
        returns += rewards
        steps += 1
        for t in tasks:
            if infos[t]["is_success"] and np.isnan(first_success[t]):
                first_success[t] = steps[t]
            if dones[t]:
                if len(records[t]) < episodes:
                    records[t].append(
                        (
                            infos[t]["is_success"],
                            infos[t]["success"],
                            float(returns[t]),
                            float(first_success[t]),
                        )
                    )
                returns[t], steps[t], first_success[t] = 0, 0, np.nan
    columns = [
        [np.asarray(column, dtype=float) for column in zip(*record, strict=True)] for record in records
    ]
    return Scores({name: TaskScores(*columns[t]) for name, t in zip(task_names, tasks, strict=True)})
