"""Unitary scalarization: the mean of the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.optimizers.base import Scalarization


class Unitary(Scalarization):
    """Every task counts the same: weights 1/T.

    Kurin et al. 2022. The paper sums; we average, as its reinforcement-learning code does.
    """

    paper = "Kurin et al. 2022, NeurIPS, arXiv:2201.04122"
    formula = "w = 1/T"
    reads_losses = False

    def weights(self, losses: Tensor, tasks: Tensor | None = None) -> Tensor:
        return torch.full_like(losses, 1 / len(losses))
