"""Evaluation: the deterministic policy meets every goal once; scores by task name, with intervals."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from mtrl.config import ConfigError, whole

Array = npt.NDArray[Any]
CONFIDENCE = 0.95
MOST_STEPS = 50_000
"""Of an episode whose end nothing promises; a hundred of Meta-World's."""


class Predicts(Protocol):
    """Whatever answers Stable-Baselines3's ``predict``."""

    def predict(
        self, observation: Array, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, Any]: ...


@dataclass(frozen=True)
class TaskScores:
    """The episodes of one task, each array ``[episodes]``.

    Attributes:
        success: reached at any step; the field's usual definition for Meta-World. All NaN where no episode of
            the task told any; where some did, those that told none count as 0.
        success_at_end: held in the last step.
        returns: undiscounted sum of raw rewards.
        steps_to_success: environment steps until first success; NaN without.
    """

    success: Array
    success_at_end: Array
    returns: Array
    steps_to_success: Array

    @property
    def told(self) -> bool:
        """Whether the env tells success at all."""
        return not np.isnan(self.success).any()

    def to_dict(self) -> dict[str, Any]:
        n, told = len(self.success), self.told
        reached = told and self.success.any()
        return {
            "success": float(self.success.mean()) if told else None,
            "success_at_end": float(self.success_at_end.mean()) if told else None,
            "ci": wilson_interval(float(self.success.mean()), n) if told and n > 1 else None,
            "return": float(self.returns.mean()),
            "steps_to_success": float(np.nanmean(self.steps_to_success)) if reached else None,
            "episodes": n,
        }


@dataclass(frozen=True)
class Scores:
    """All tasks' episodes, by name."""

    tasks: Mapping[str, TaskScores]

    @property
    def mean_success(self) -> float:
        """Mean over tasks of the share of successful episodes; NaN where a task tells no success."""
        return float(np.mean([scores.success.mean() for scores in self.tasks.values()]))

    @property
    def silent(self) -> list[str]:
        """The tasks that never tell their success."""
        return [name for name, scores in self.tasks.items() if not scores.told]

    def told_by(self, names: Collection[str]) -> Scores:
        """With 0 for the success of those of these tasks that told none."""
        tasks = {
            name: replace(
                scores, success=np.nan_to_num(scores.success), success_at_end=np.nan_to_num(scores.success_at_end)
            )
            if name in names else scores
            for name, scores in self.tasks.items()
        }  # fmt: skip
        return Scores(tasks)

    @property
    def mean_return(self) -> float:
        return float(np.mean([scores.returns.mean() for scores in self.tasks.values()]))

    def mean_success_interval(self) -> list[float] | None:
        """95 % interval of the mean over these tasks, the goals being a sample of each one's.

        Wilson's interval with the effective number of episodes, that which gives one proportion the variance of
        the mean: ``n = m (1 − m) / Var``, ``Var = Σₜ rₜ (1 − rₜ) / nₜ / T²`` (as for survey strata, Korn & Graubard
        1998), each rate r and the mean m with half a success and half a failure added. So a task at 1.0 has a
        width, which resampling its episodes would not give it. By simulation it covers 94 to 97 % with the
        protocols' 50 goals; with 20 and fewer, where many tasks are near 0 or 1, up to 100 %: too wide, never too
        narrow. The tasks' own Wilson intervals combined (MOVER, Zou & Donner 2008) cover 85 % near 1. For one
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
        """JSON-able: ``mean_success``, ``mean_success_ci`` (None where not all tell it), ``tasks`` by name."""
        return {
            "mean_success": None if self.silent else self.mean_success,
            "mean_success_ci": None if self.silent else self.mean_success_interval(),
            "tasks": {name: scores.to_dict() for name, scores in self.tasks.items()},
        }


def wilson_interval(rate: float, episodes: float) -> list[float]:
    """95 % score interval of a proportion (Wilson 1927); an effective number of episodes may be a fraction."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre = (rate + z * z / (2 * episodes)) / (1 + z * z / episodes)
    half = z / (1 + z * z / episodes) * math.sqrt(rate * (1 - rate) / episodes + (z / (2 * episodes)) ** 2)
    return [max(0.0, float(centre - half)), min(1.0, float(centre + half))]


def evaluate(
    policy: Predicts, envs: VecEnv, episodes: int, task_names: Sequence[str] | None = None
) -> Scores:
    """Run ``episodes`` deterministic episodes of every task, from the first goal on.

    Args:
        policy: sees observations ``[T, D + T]``; tasks that it knows in another order are given to it in that.
        envs: one environment per task, made for evaluation, so that successive episodes take the goals
            in order. Its infos tell ``success`` (this step) or ``is_success`` (this step, or so far), or None.
        episodes: per task.
        task_names: T names, in the order of ``envs``; needed where these have none.

    Raises:
        ConfigError: the names contradict those of the envs or of the policy, the rewards are normalized, or an
            episode does not end.
    """
    episodes = whole("episodes", episodes, 1)
    task_names = names_of(envs) or () if task_names is None else task_names
    order = task_order(policy, envs, task_names)
    limit = getattr(envs, "horizon", None) or MOST_STEPS
    tasks = range(envs.num_envs)
    records: list[list[tuple[float, float, float, float]]] = [[] for _ in tasks]
    returns, steps = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=int)
    first_success, success = np.full((2, envs.num_envs), np.nan)
    # starts the order of goals anew, and the draws of envs that have some
    envs.seed(getattr(envs, "suite_seed", 0))
    observations = envs.reset()
    while any(len(record) < episodes for record in records):
        assert isinstance(observations, np.ndarray)
        if order is not None:
            size = observations.shape[1] - envs.num_envs
            observations = np.hstack([observations[:, :size], observations[:, size:][:, order]])
        actions, _ = policy.predict(observations, deterministic=True)
        observations, rewards, dones, infos = envs.step(actions)
        returns += rewards
        steps += 1
        for t in tasks:
            so_far = infos[t].get("is_success")
            now = infos[t].get("success", so_far)
            for flag in (so_far, now):
                if flag is not None:
                    success[t] = np.fmax(success[t], float(flag))
            if success[t] == 1 and np.isnan(first_success[t]):
                first_success[t] = steps[t]
            if dones[t]:
                if len(records[t]) < episodes:
                    at_end = np.nan if now is None else float(now)
                    records[t].append((success[t], at_end, returns[t], first_success[t]))
                returns[t], steps[t], first_success[t], success[t] = 0, 0, np.nan, np.nan
            elif steps[t] >= limit and len(records[t]) < episodes:
                raise ConfigError(
                    f"task {task_names[t]}: an episode has not ended after {steps[t]} steps, and could not be "
                    "evaluated; give make_suite a horizon, or the env a time limit"
                )
    return Scores({name: _scores(record) for name, record in zip(task_names, records, strict=True)})


def _scores(record: list[tuple[float, float, float, float]]) -> TaskScores:
    success, at_end, returns, first = (np.asarray(column) for column in zip(*record, strict=True))
    if not np.isnan(success).all():
        success, at_end = np.nan_to_num(success), np.nan_to_num(at_end)
    return TaskScores(success, at_end, returns, first)


def task_order(policy: object, envs: VecEnv, task_names: Sequence[str]) -> list[int] | None:
    """The positions in ``envs`` of the policy's tasks, in its order; None where the order is the same.

    Raises:
        ConfigError: the names are not those of the envs, or not those of the policy, where these carry names;
            or a wrapper normalizes the rewards, or goes on learning to normalize.
    """
    names, carried, known = tuple(task_names), names_of(envs), names_of(policy)
    if len(names) != envs.num_envs or len(set(names)) != len(names):
        raise ConfigError(
            f"task_names: {listed(names)} are not {envs.num_envs} different names, one for each env"
        )
    if carried is not None and carried != names:
        raise ConfigError(f"task_names: {listed(names)} are not those of the envs, {listed(carried)}")
    if known is not None and sorted(known) != sorted(names):
        raise ConfigError(f"tasks: the policy knows {listed(known)}, and the envs are {listed(names)}")
    normalized = unwrap_vec_normalize(envs)
    if normalized is not None and (normalized.norm_reward or normalized.training):
        raise ConfigError(
            "envs: a VecNormalize around them scales the rewards or goes on learning; "
            "set its norm_reward and training to False"
        )
    return None if known in (None, names) else [names.index(name) for name in known or ()]


def names_of(holder: object) -> tuple[str, ...] | None:
    """The names of the tasks that a policy, an agent, a trainer or a suite carries; None for none."""
    for part in (holder, getattr(holder, "policy", None)):
        names = getattr(part, "task_names", None)
        if names is not None:
            return tuple(names)
    return None


def listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names))
