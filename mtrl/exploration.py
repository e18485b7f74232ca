"""Exploration that lasts: now and then a random action is held for some steps.

The policy's own noise is drawn anew at each step, averages out within a few and leaves a pose that pays only
by going through steps that pay less. A held action carries the hand through them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.config import ExplorationConfig


class HeldActions:
    """Each task's action is the policy's, or one drawn earlier that is still held.

    At a step at which nothing is held, with ``hold_probability`` a uniform action in [-1, 1] is drawn, and
    held for 1 to ``hold_steps`` steps, each number as likely. It does not look at episodes: what an episode's
    last step holds goes on in the next. Source: temporally extended ε-greedy exploration (Dabney, Ostrovski &
    Barreto 2021, arXiv 2006.01782), there for discrete actions and with durations from a heavy-tailed
    distribution.

    Args:
        config: how often and how long; a probability of 0 draws nothing from the generator.
        shape: ``(T, A)``.
        device: of the actions.
    """

    def __init__(self, config: ExplorationConfig, shape: tuple[int, int], device: torch.device) -> None:
        self.config = config
        self.remaining = torch.zeros(shape[0], 1, dtype=torch.int64, device=device)
        self.held = torch.zeros(shape, device=device)

    def override(self, actions: Tensor, generator: torch.Generator) -> Tensor:
        """``actions`` ``[T, A]``, but the held one for each task that holds one; ``generator`` on their device."""
        if self.config.hold_probability == 0:
            return actions
        (T, _), device = actions.shape, actions.device
        drawn = torch.rand(actions.shape, generator=generator, device=device) * 2 - 1
        begins = torch.rand(T, 1, generator=generator, device=device) < self.config.hold_probability
        steps = torch.randint(1, self.config.hold_steps + 1, (T, 1), generator=generator, device=device)
        begins &= self.remaining == 0
        self.held.copy_(torch.where(begins, drawn, self.held))
        self.remaining.copy_(torch.where(begins, steps, self.remaining))
        actions = torch.where(self.remaining > 0, self.held, actions)
        self.remaining.sub_(1).clamp_(min=0)
        return actions

    def state_dict(self) -> dict[str, Tensor]:
        return {"remaining": self.remaining, "held": self.held}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.remaining.copy_(state["remaining"])
        self.held.copy_(state["held"])
