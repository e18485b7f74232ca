"""GradVac: bring every pair of gradients to the similarity they usually have."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtrl.optimizers.base import Array, GramianMethod, cosines_of, like, on_host, require
from mtrl.optimizers.pcgrad import random_orders

CEILING = 1 - 1e-6  # of a target cosine: reaching 1 would need infinitely much of the other gradient

VANISHED = 1e-14  # squared norm, relative to the start, of a row that was cancelled: its cosines are rounding


class GradVac(GramianMethod):
    """Where two gradients are less similar than their moving average of similarity, adds enough of the other.

    Wang et al. 2021, algorithm 1: for task i, starting from ``p = gᵢ`` and meeting the other
    tasks j in random order, with ``φ = cos(p, gⱼ)`` and target φ̂ᵢⱼ: if φ < φ̂,
    ``p += gⱼ ‖p‖ (φ̂ √(1 − φ²) − φ √(1 − φ̂²)) / (‖gⱼ‖ √(1 − φ̂²))``, after which cos(p, gⱼ) = φ̂; then
    ``φ̂ ← (1 − β) φ̂ + β φ``. Targets start at 0, where a step is PCGrad's. One target per ordered pair of
    tasks.

    Where we differ: the mean of the changed gradients instead of the sum (``scale="as_published"`` sums);
    targets are capped at 1 − 1e-6; gradients that are zero, or become so, meet nobody. Pairs with an absent
    task keep their target.

    Args:
        beta: β of the moving average, in [0, 1].
    """

    paper = "Wang et al. 2021, ICLR, arXiv:2010.05874"
    formula = "d = mean_i p_i;  p_i = g_i, then p_i += a_j g_j so that cos(p_i, g_j) >= its moving average"
    saved = ("targets",)

    def __init__(
        self,
        num_tasks: int,
        *,
        seed: int = 0,
        beta: float = 0.01,
        scale: Literal["mean", "as_published"] = "mean",
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        require(0 <= beta <= 1, "beta", beta, "from 0 to 1")
        self.beta = beta
        self.scale = scale
        self.targets = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)  # φ̂

    def weights(self, gramian: Tensor, tasks: Tensor | None = None) -> Tensor:
        host = on_host(gramian)
        if not np.isfinite(host).all():  # the moving averages must not learn it
            return torch.full_like(gramian[0], torch.nan)
        tasks = torch.arange(self.num_tasks) if tasks is None else tasks.cpu()
        pairs = (tasks[:, None], tasks)
        targets = self.targets[pairs].numpy()
        order = random_orders(len(tasks), self.generator).numpy()
        weights = vaccinate(host, order, targets, self.beta)
        self.targets[pairs] = torch.from_numpy(targets)
        return like(weights if self.scale == "as_published" else weights / len(tasks), gramian)


def vaccinate(gramian: Array, order: np.ndarray, targets: Array, beta: float) -> Array:
    """The sum of all tasks' changed gradients as weights ``[n]``; `targets` ``[n, n]`` is updated in place.

    Args:
        gramian: ``[n, n]``.
        order: ``[n, n - 1]``, row i being the tasks that gradient i meets, in order.
    """
    norms, cosines = cosines_of(gramian)
    n = len(norms)
    rows = np.arange(n)
    shares = np.eye(n)  # of the unit gradients, in units of each row's own norm at the start
    products = cosines.copy()  # of each row with the unit gradients
    squares = np.ones(n)  # of each row's norm
    for column in order.T:
        vanished = squares < VANISHED
        length = np.sqrt(np.where(vanished, 1, squares))
        cosine = (products[rows, column] / length).clip(-1, 1)
        target = targets[rows, column].clip(max=CEILING)
        meets = (norms > 0) & (norms[column] > 0) & ~vanished
        below = meets & (cosine < target)
        missing = length * (target * np.sqrt((1 - cosine**2) / (1 - target**2)) - cosine)
        missing[~below] = 0
        squares = squares + 2 * missing * products[rows, column] + missing**2
        shares[rows, column] += missing
        products += missing[:, None] * cosines[column]
        old = targets[rows, column]
        targets[rows, column] = np.where(meets, (1 - beta) * old + beta * cosine, old)
    inverse = np.divide(1, norms, out=np.zeros(n), where=norms > 0)
    weights: Array = (norms[:, None] * shares * inverse).sum(axis=0) + (norms == 0)
    return weights
