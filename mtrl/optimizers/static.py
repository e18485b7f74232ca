"""Static scalarization: weights chosen by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtrl.optimizers.adam import of_tasks
from mtrl.optimizers.base import Scalarization, require


class Static(Scalarization):
    """Fixed weights, normalised to sum to 1 over the tasks that are there; where all of these have 0, all get 0.

    Args:
        weights: one non-negative number per task, not all zero; only their ratios matter. None: 1/T each.
    """

    paper = "linear scalarization; studied in Xin et al. 2022, NeurIPS, arXiv:2209.11379"
    formula = "w_i = weights_i / sum_j weights_j"
    reads_losses = False

    def __init__(self, num_tasks: int, *, seed: int = 0, weights: list[float] | None = None) -> None:
        super().__init__(num_tasks, seed=seed)
        chosen = [1.0] * num_tasks if weights is None else list(weights)
        fits = len(chosen) == num_tasks and all(math.isfinite(w) and w >= 0 for w in chosen)
        domain = f"{num_tasks} non-negative numbers, one per task, not all zero"
        require(fits and sum(chosen) > 0, "weights", weights, domain)
        self._fractions = torch.tensor([w / sum(chosen) for w in chosen], dtype=torch.float64)

    def weights(self, losses: Tensor, tasks: Tensor | None = None) -> Tensor:
        self._fractions = self._fractions.to(losses.device)
        weights = of_tasks(self._fractions, tasks)
        total = weights.sum()
        return (weights / torch.where(total > 0, total, torch.ones_like(total))).to(losses.dtype)
