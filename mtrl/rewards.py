"""Per-task reward scales. Raw rewards stay in the buffer; what is sampled is divided by the scale.

A scale sees every reward as it comes (:meth:`observe`) and keeps float64 statistics per task:
float32 variances can turn negative.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RETURN_BOUND = 10.0


class RewardScale:
    """No scaling, and the interface.

    Args:
        num_tasks: T.
        gamma: the agent's discount factor.
        entropy_bonus: most nats per step that entropy can add to a reward, from ``entropy_bound``.
    """

    def __init__(self, num_tasks: int, gamma: float = 0.99, entropy_bonus: float = 0.0) -> None:
        self.num_tasks, self.gamma, self.entropy_bonus = num_tasks, gamma, entropy_bonus

    def observe(self, rewards: Tensor, done: Tensor) -> None:
        """One step's raw rewards ``[T]`` and episode ends ``[T]`` (time limits too), on the CPU."""

    def scale(self, temperature: Tensor) -> Tensor:
        """What rewards are divided by, ``[T]`` float32; ``temperature`` is α ``[T]``."""
        return torch.ones_like(temperature)

    def state_dict(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in vars(self).items() if isinstance(v, Tensor)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
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

    def observe(self, rewards: Tensor, done: Tensor) -> None:
        rewards = rewards.double()
        self.count += 1
        delta = rewards - self.mean
        self.mean += delta / self.count
        self.squares += delta * (rewards - self.mean)

    def scale(self, temperature: Tensor) -> Tensor:
        sigma = (self.squares / self.count.clamp(min=1)).sqrt()
        return torch.where(sigma > 1e-8, sigma, 1.0).to(temperature)


class ReturnBound(RewardScale):
    """The largest |discounted return| of task k so far plus what entropy can add, over 10.

    Values then lie in about ±10 for every task, whatever its rewards, so that one squared-error loss
    and one temperature fit all of them. Source: per-task return normalisation of BRC (Nauman et al. 2025,
    arXiv 2505.23150). Ours: the return is accumulated forward, ``R ← γR + r`` from the episode's
    start, which needs no episode in memory and has the same bound.
    """

    def __init__(self, num_tasks: int, gamma: float = 0.99, entropy_bonus: float = 0.0) -> None:
        super().__init__(num_tasks, gamma, entropy_bonus)
        self.running = torch.zeros(num_tasks, dtype=torch.float64)
        self.largest = torch.zeros(num_tasks, dtype=torch.float64)

    def observe(self, rewards: Tensor, done: Tensor) -> None:
        self.running = self.gamma * self.running + rewards.double()
        self.largest = torch.maximum(self.largest, self.running.abs())
        self.running = torch.where(done.bool(), 0.0, self.running)

    def scale(self, temperature: Tensor) -> Tensor:
        entropy = temperature * self.entropy_bonus / (1 - self.gamma)
        bound = (self.largest.to(temperature) + entropy) / RETURN_BOUND
        return torch.where(bound > 1e-8, bound, 1.0)


def make_reward_scale(
    kind: Literal["none", "sigma", "return"], num_tasks: int, gamma: float, entropy_bonus: float
) -> RewardScale:
    """The scale of that name (``AgentConfig.reward_scale``)."""
    kinds = {"none": RewardScale, "sigma": RunningSigma, "return": ReturnBound}
    return kinds[kind](num_tasks, gamma, entropy_bonus)
