"""Uncertainty weighting: each task's loss scale is learned."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtrl.optimizers.adam import adam_start, adam_step, of_tasks
from mtrl.optimizers.base import Scalarization, require


class Uncertainty(Scalarization):
    """Weights ``exp(−s)``, where s = log σ² is learned together with the network.

    Kendall et al. 2018, section 3.2, for regression: minimise ``Σ ½ exp(−sᵢ) lossᵢ + ½ sᵢ`` over network and
    s. At rest ``exp(sᵢ) = lossᵢ``: a task counts in inverse proportion to its loss. Losses have to be
    non-negative, so it acts on the critic; the actor takes the mean.

    Where we differ: the weights are divided by their sum (``scale="as_published"``: ``½ exp(−s)`` as they
    are), and s has an Adam of its own instead of a place among the network's parameters.

    Args:
        lr: of that Adam, in units of s per update.
    """

    paper = "Kendall et al. 2018, CVPR, arXiv:1705.07115"
    formula = "w_i ~ exp(-s_i);  s descends sum_i (exp(-s_i) loss_i + s_i) / 2"
    critic_only = True
    saved = ("log_variance",)

    def __init__(
        self,
        num_tasks: int,
        *,
        seed: int = 0,
        lr: float = 1e-3,
        scale: Literal["mean", "as_published"] = "mean",
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        require(lr > 0, "lr", lr, "positive")
        self.lr = lr
        self.scale = scale
        self.log_variance = adam_start(num_tasks)  # [4, T], row 0 is s

    def weights(self, losses: Tensor, tasks: Tensor | None = None) -> Tensor:
        self.log_variance = self.log_variance.to(losses.device)
        minus = -of_tasks(self.log_variance[0], tasks)
        weights = minus.exp() / 2 if self.scale == "as_published" else minus.softmax(dim=0)
        gradient = (1 - minus.exp() * losses.detach()) / 2
        self.log_variance = adam_step(self.log_variance, gradient, self.lr, 0.0, tasks)
        return weights.to(losses.dtype)
