"""Random loss weighting: new random weights at every update."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtrl.optimizers.base import Scalarization


class RLW(Scalarization):
    """Weights drawn anew at every update, non-negative and summing to 1 over the tasks that are there.

    Lin et al. 2022, section 3: ``dirichlet`` draws from Dirichlet(1, …, 1), ``normal`` takes the softmax of T
    standard normal numbers. The expectation of each is 1/T.
    """

    paper = "Lin et al. 2022, TMLR, arXiv:2111.10603"
    formula = "w ~ Dirichlet(1, ..., 1), or w = softmax(z) with z ~ Normal(0, I)"
    reads_losses = False

    def __init__(
        self, num_tasks: int, *, seed: int = 0, distribution: Literal["dirichlet", "normal"] = "dirichlet"
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        self.distribution = distribution

    def weights(self, losses: Tensor, tasks: Tensor | None = None) -> Tensor:
        draw = torch.empty(len(losses), dtype=torch.float64)
        if self.distribution == "normal":
            weights = draw.normal_(generator=self.generator).softmax(dim=0)
        else:  # exponential numbers divided by their sum are uniform on the simplex
            draw.exponential_(generator=self.generator)
            weights = draw / draw.sum()
        return weights.to(losses, non_blocking=True)
