"""Random loss weighting: new random weights at every update."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtrl.optimizers.base import Scalarization


class RLW(Scalarization):
    """Weights drawn anew at every update, non-negative and summing to 1: their expectation is 1/T each.

    Lin et al. 2022, section 3: ``dirichlet`` draws from Dirichlet(1, …, 1), ``normal`` takes the softmax of T
    standard normal numbers. `combine` uses the latest draw and makes none.
    """

    paper = "Lin et al. 2022, TMLR, arXiv:2111.10603"
    formula = "w ~ Dirichlet(1, ..., 1), or w = softmax(z) with z ~ Normal(0, I)"
    saved = ("latest",)

    def __init__(
        self, num_tasks: int, *, seed: int = 0, distribution: Literal["dirichlet", "normal"] = "dirichlet"
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        self.distribution = distribution
        self.latest = torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)

    def weights(self, losses: Tensor) -> Tensor:
        draw = torch.empty(self.num_tasks, dtype=torch.float64)
        if self.distribution == "normal":
            self.latest = draw.normal_(generator=self.generator).softmax(dim=0)
        else:  # T exponential numbers divided by their sum are uniform on the simplex
            draw.exponential_(generator=self.generator)
            self.latest = draw / draw.sum()
        return self.weights_now(losses)

    def weights_now(self, reference: Tensor) -> Tensor:
        return self.latest.to(reference, non_blocking=True)
