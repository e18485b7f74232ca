"""Per-task reward scales. Raw rewards stay in the buffer; what is sampled is divided by the scale.

A scale sees every reward as it comes (:meth:`observe`) and keeps float64 statistics per task:
float32 variances can turn negative. Only the moving average changes what is stored.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RETURN_BOUND = 10.0


class RewardScale:
    """No scaling, and the interface. It keeps each task's highest reward, as stored.

    Args:
        num_tasks: T.
        gamma: the agent's discount factor.
        entropy_bonus: nats per step that entropy is taken to add to a reward.
    """

    def __init__(self, num_tasks: int, gamma: float = 0.99, entropy_bonus: float = 0.0) -> None:
        self.num_tasks, self.gamma, self.entropy_bonus = num_tasks, gamma, entropy_bonus
        self.highest = torch.full((num_tasks,), -torch.inf, dtype=torch.float64)

    def observe(self, rewards: Tensor, done: Tensor) -> None:
        """One step's raw rewards ``[T]`` and episode ends ``[T]`` (time limits too), on the CPU."""
        self._learn(rewards.double(), done)
        self.highest = torch.maximum(self.highest, self.on_store(rewards).double())

    def _learn(self, rewards: Tensor, done: Tensor) -> None:
        """:meth:`observe` for the kind's own statistics; rewards in float64."""

    def begin_episodes(self) -> None:
        """All tasks begin new episodes, without an end of those before."""

    def on_store(self, rewards: Tensor) -> Tensor:
        """What the buffer keeps of rewards ``[T]`` that were just observed."""
        return rewards

    def scale(self, temperature: Tensor) -> Tensor:
        """What rewards are divided by, ``[T]`` float32; ``temperature`` is α ``[T]``."""
        return torch.ones_like(temperature)

    def largest_return(self, scale: Tensor) -> Tensor:
        """``max r / scale / (1 − γ)`` ``[T]`` for the highest reward so far; infinite before any.

        Source: ``target_clip`` of Kurin et al. 2022 (arXiv 2201.04122), the runs' code.
        """
        highest = torch.where(self.highest > -torch.inf, self.highest, torch.inf)
        return highest.to(scale, non_blocking=True) / scale / (1 - self.gamma)

    def state_dict(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in vars(self).items() if isinstance(v, Tensor)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError: the state is another kind's."""
        if state.keys() != self.state_dict().keys():
            raise ValueError(
                f"rewards: the state has {', '.join(state)}, which {type(self).__name__} has not"
            )
        for name, value in state.items():
            getattr(self, name).copy_(value)


class RunningSigma(RewardScale):
    """σ_k over all rewards of task k so far, by Welford's recurrence; no centring, no clipping.

    Source: "buffer reward normalisation" of Kurin et al. 2022 (arXiv 2201.04122), app. B. Before two
    different rewards were seen the scale is 1.
    """

    def __init__(self, num_tasks: int, gamma: float = 0.99, entropy_bonus: float = 0.0) -> None:
        super().__init__(num_tasks, gamma, entropy_bonus)
        self.count = torch.zeros((), dtype=torch.float64)
        self.mean = torch.zeros(num_tasks, dtype=torch.float64)
        self.squares = torch.zeros(num_tasks, dtype=torch.float64)

    def _learn(self, rewards: Tensor, done: Tensor) -> None:
        self.count += 1
        delta = rewards - self.mean
        self.mean += delta / self.count
        self.squares += delta * (rewards - self.mean)

    def scale(self, temperature: Tensor) -> Tensor:
        sigma = (self.squares / self.count.clamp(min=1)).sqrt()
        return torch.where(sigma > 1e-8, sigma, 1.0).to(temperature, non_blocking=True)


class MovingAverage(RewardScale):
    """Rewards are divided by σ of an exponential moving average *before* they are stored; no centring.

    ``m ← m + c (r − m)``, ``v ← v + c ((r − m)² − v)``, from m = 0 and v = 1, per task and reward; stored
    is ``r / √v``. Source: the reward wrapper of garage, Meta-World's and mtrl's runs (c = .001), the
    published baseline of Kurin et al. 2022 ("env_rewnorm"). Rewards in the buffer keep the scale of the
    day they came, so the same transition is worth different amounts; that is what the other kinds avoid.

    Args:
        coefficient: c.
    """

    def __init__(
        self, num_tasks: int, gamma: float = 0.99, entropy_bonus: float = 0.0, coefficient: float = 1e-3
    ) -> None:
        super().__init__(num_tasks, gamma, entropy_bonus)
        self.coefficient = coefficient
        self.mean = torch.zeros(num_tasks, dtype=torch.float64)
        self.variance = torch.ones(num_tasks, dtype=torch.float64)

    def _learn(self, rewards: Tensor, done: Tensor) -> None:
        self.mean = torch.lerp(self.mean, rewards, self.coefficient)
        self.variance = torch.lerp(self.variance, (rewards - self.mean).square(), self.coefficient)

    def on_store(self, rewards: Tensor) -> Tensor:
        return (rewards.double() / (self.variance.sqrt() + 1e-8)).to(rewards.dtype)


class ReturnBound(RewardScale):
    """The largest |discounted sum of past rewards| of task k so far plus what entropy is taken to add, over 10.

    Values are then of the order of 10 for every task, whatever its rewards, so that one squared-error loss
    and one temperature fit all of them. Source: per-task return normalisation of BRC (Nauman et al. 2025,
    arXiv 2505.23150). Where we differ: the sum goes forward, ``R ← γR + r`` from the episode's start, which needs
    no episode in memory. It discounts the oldest reward most, where a return discounts the latest most: rewards
    1, 2, 3 at γ = ½ give ¼ + 1 + 3 = 4.25 and a return of 1 + 1 + ¾ = 2.75; constant rewards give the same. BRC has the
    return, from the end back, where a time limit has the episode's
    mean reward follow for ever. For a constant reward that is 1 / (1 − γᴴ) times ours, so a critic that
    bootstraps at time limits, as ours does, learns values above 10 by this factor (1.15 at γ = .99 and
    H = 200), and by more where rewards come late in an episode (1.6 from the middle on, 2.5 in the last quarter; by
    BRC's rule 1.2 and 1.8). BRC halves the entropy's part. Both add it to the return before dividing by 10, while the
    entropy in the critic's target is not divided by the scale: at a large α values can be larger still.
    """

    def __init__(self, num_tasks: int, gamma: float = 0.99, entropy_bonus: float = 0.0) -> None:
        super().__init__(num_tasks, gamma, entropy_bonus)
        self.running = torch.zeros(num_tasks, dtype=torch.float64)
        self.largest = torch.zeros(num_tasks, dtype=torch.float64)

    def _learn(self, rewards: Tensor, done: Tensor) -> None:
        self.running = self.gamma * self.running + rewards
        self.largest = torch.maximum(self.largest, self.running.abs())
        self.running = torch.where(done.bool(), 0.0, self.running)

    def begin_episodes(self) -> None:
        self.running.zero_()

    def scale(self, temperature: Tensor) -> Tensor:
        entropy = temperature * self.entropy_bonus / (1 - self.gamma)
        bound = (self.largest.to(temperature, non_blocking=True) + entropy) / RETURN_BOUND
        return torch.where(bound > 1e-8, bound, 1.0)


def make_reward_scale(
    kind: Literal["none", "ema", "sigma", "return"], num_tasks: int, gamma: float, entropy_bonus: float,
    ema_coefficient: float = 1e-3,
) -> RewardScale:  # fmt: skip
    """The scale of that name (``AgentConfig.reward_scale``)."""
    if kind == "ema":
        return MovingAverage(num_tasks, gamma, entropy_bonus, ema_coefficient)
    kinds = {"none": RewardScale, "sigma": RunningSigma, "return": ReturnBound}
    return kinds[kind](num_tasks, gamma, entropy_bonus)
