"""Evaluation: the deterministic policy meets every goal once; scores by task name, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from stable_baselines3.common.vec_env import VecEnv

from mtrl.config import ConfigError

Array = npt.NDArray[Any]
CONFIDENCE = 0.95
MOST_STEPS = 100_000  # of an episode, before its env counts as one that never ends it


class Predicts(Protocol):
    """Whatever answers Stable-Baselines3's ``predict``."""

    def predict(
        self, observation: Array, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, Any]: ...


@dataclass(frozen=True)
class TaskScores:
    """The episodes of one task, each array ``[episodes]``.

    Attributes:
        success: reached at any step; the field's usual definition for Meta-World. NaN where no episode told it.
        success_at_end: held in the last step; NaN likewise.
        returns: undiscounted sum of raw rewards.
        steps_to_success: environment steps until first success; NaN without.
    """

    success: Array
    success_at_end: Array
    returns: Array
    steps_to_success: Array

    def to_dict(self) -> dict[str, Any]:
        n, told = len(self.success), self.told
        return {
            "success": float(self.success.mean()) if told else None,
            "success_at_end": float(self.success_at_end.mean()) if told else None,
            "ci": wilson_interval(float(self.success.mean()), n) if n > 1 and told else None,
            "return": float(self.returns.mean()),
            "steps_to_success": (
                float(np.nanmean(self.steps_to_success)) if told and self.success.any() else None
            ),
            "episodes": n,
        }

    @property
    def told(self) -> bool:
        """Whether the env told its success in any episode."""
        return not np.isnan(self.success).any()


@dataclass(frozen=True)
class Scores:
    """All tasks' episodes, by name."""

    tasks: Mapping[str, TaskScores]

    @property
    def mean_success(self) -> float:
        """Mean over tasks of the share of successful episodes; NaN where a task never tells its success."""
        return float(np.mean([scores.success.mean() for scores in self.tasks.values()]))

    @property
    def mean_return(self) -> float:
        return float(np.mean([scores.returns.mean() for scores in self.tasks.values()]))

    @property
    def silent(self) -> list[str]:
        """The tasks that never tell their success."""
        return [name for name, scores in self.tasks.items() if not scores.told]

    def mean_success_interval(self) -> list[float] | None:
        """95 % interval of the mean over these tasks, the goals being a sample of each one's.

        Wilson's interval with the effective number of episodes, that which gives one proportion the variance of
        the mean: ``n = m (1 − m) / Var``, ``Var = Σₜ rₜ (1 − rₜ) / nₜ / T²`` (as for survey strata, Korn & Graubard
        1998), each rate r and the mean m with half a success and half a failure added. So a task at 1.0 has a
        width, which resampling its episodes would not give it. By simulation it covers 94 to 98 % from five
        episodes on; the tasks' own Wilson intervals combined (MOVER, Zou & Donner 2008) cover 85 % near 1. For one
        task it is Wilson's.

        None with one episode per task: the score is exact for that one goal.
        """
        outcomes = [scores.success for scores in self.tasks.values()]
        if min(len(o) for o in outcomes) < 2 or self.silent:
            return None
        episodes = np.array([len(o) for o in outcomes])
        rates = np.array([o.mean() for o in outcomes])
        shrunk = (rates * episodes + 0.5) / (episodes + 1)
        mean = (rates.mean() * episodes.sum() + 0.5) / (episodes.sum() + 1)
        variance = (shrunk * (1 - shrunk) / episodes).sum() / len(rates) ** 2
        return wilson_interval(rates.mean(), mean * (1 - mean) / variance)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: ``mean_success``, ``mean_success_ci``, ``tasks`` by name."""
        return {
            "mean_success": None if self.silent else self.mean_success,
            "mean_success_ci": self.mean_success_interval(),
            "tasks": {name: scores.to_dict() for name, scores in self.tasks.items()},
        }


def wilson_interval(rate: float, episodes: float) -> list[float]:
    """95 % score interval of a proportion (Wilson 1927); an effective number of episodes may be a fraction."""
    z = norm.ppf((1 + CONFIDENCE) / 2)
    centre = (rate + z * z / (2 * episodes)) / (1 + z * z / episodes)
    half = z / (1 + z * z / episodes) * math.sqrt(rate * (1 - rate) / episodes + (z / (2 * episodes)) ** 2)
    return [max(0.0, float(centre - half)), min(1.0, float(centre + half))]


def evaluate(
    policy: Predicts, envs: VecEnv, episodes: int, task_names: Sequence[str] | None = None
) -> Scores:
    """Run ``episodes`` deterministic episodes of every task, from the first goal on.

    A policy that tells its ``task_names`` meets each task under its own name, whatever the order of ``envs``.

    Args:
        policy: sees observations ``[T, D + T]``.
        envs: one environment per task, made for evaluation, so that successive episodes take the goals
            in order. Its infos tell ``success`` (this step) and ``is_success`` (so far).
        episodes: per task.
        task_names: T names, in the order of ``envs``; needed where ``envs`` has none.

    Raises:
        ConfigError: the names of policy, envs and argument contradict, or an episode does not end.
    """
    names = names_of(envs, task_names)
    order = order_of(getattr(policy, "task_names", None), names)
    tasks = range(envs.num_envs)
    records: list[list[tuple[float, float, float, float]]] = [[] for _ in tasks]
    returns, steps = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=int)
    first_success = np.full(envs.num_envs, np.nan)
    envs.seed(0)  # starts the order of goals anew, and the draws of envs that have some
    observations = envs.reset()
    while any(len(record) < episodes for record in records):
        assert isinstance(observations, np.ndarray)
        if order is not None:
            own = observations.shape[1] - len(order)
            observations = np.concatenate((observations[:, :own], observations[:, own:][:, order]), axis=1)
        actions, _ = policy.predict(observations, deterministic=True)
        observations, rewards, dones, infos = envs.step(actions)
        returns += rewards
        steps += 1
        for t in tasks:
            success = infos[t].get("is_success")
            if success and np.isnan(first_success[t]):
                first_success[t] = steps[t]
            if dones[t]:
                if len(records[t]) < episodes:
                    at_end = infos[t].get("success")
                    records[t].append((number(success), number(at_end), returns[t], first_success[t]))
                returns[t], steps[t], first_success[t] = 0, 0, np.nan
            elif steps[t] >= MOST_STEPS and len(records[t]) < episodes:
                raise ConfigError(
                    f"task {names[t]}: an episode has not ended after {MOST_STEPS} steps; give make_suite a horizon"
                )
    columns = [[np.asarray(column, float) for column in zip(*record, strict=True)] for record in records]
    return Scores({name: task_scores(*columns[t]) for t, name in enumerate(names)})


def number(success: bool | None) -> float:
    """1 or 0, NaN for what was not told."""
    return float("nan") if success is None else float(success)


def task_scores(success: Array, at_end: Array, returns: Array, first_success: Array) -> TaskScores:
    """An env that tells its success in some episodes had none in the others; one that never does is unknown."""
    if not np.isnan(success).all():
        success, at_end = np.nan_to_num(success), np.nan_to_num(at_end)
    return TaskScores(success, at_end, returns, first_success)


def names_of(envs: VecEnv, given: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the tasks of ``envs``, its own or the given ones.

    Raises:
        ConfigError: there are none, not one for each env, twice the same, or others than its own.
    """
    own = getattr(envs, "task_names", None)
    names = tuple(given if given is not None else own or ())
    if own is not None and names != tuple(own):
        raise ConfigError(f"task_names: {', '.join(names)} are not those of the envs ({', '.join(own)})")
    if len(names) != envs.num_envs or len(set(names)) != len(names):
        raise ConfigError(
            f"task_names: {', '.join(names) or 'none'}: {envs.num_envs} envs need one name each"
        )
    return names


def order_of(policy: Sequence[str] | None, envs: Sequence[str]) -> list[int] | None:
    """Where the policy's tasks stand among those of the envs; None where the order is the same, or not known.

    Raises:
        ConfigError: they are not the same tasks.
    """
    if policy is None or tuple(policy) == tuple(envs):
        return None
    if sorted(policy) != sorted(envs):
        raise ConfigError(
            f"tasks: the policy's ({', '.join(policy)}) are not those of the envs ({', '.join(envs)})"
        )
    return [list(envs).index(name) for name in policy]
