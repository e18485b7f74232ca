"""CAGrad: the best worst-case improvement near the mean gradient."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtrl.optimizers.base import Array, HostSolver, gramian_of, on_host, require, weighted_sum
from mtrl.optimizers.simplex import minimise_against_mean


class CAGrad(HostSolver):
    """Maximises the smallest product with a task's gradient over the ball ``‖d − g₀‖ ≤ c ‖g₀‖``, g₀ the mean.

    Liu et al. 2021, section 3, in the dual: ``d = g₀ + λ g_w`` with ``g_w = Σ wᵢ gᵢ``, ``λ = c ‖g₀‖ /
    ‖g_w‖`` and w on the simplex minimising ``g_w·g₀ + c ‖g₀‖ ‖g_w‖``. c = 0 is the mean. It may conflict
    with a task, and differs from the mean without any conflict: it always leans towards the worst-off.

    Where we differ: three public solvers rescale d in four ways. We divide by 1 + c, the one of them under
    which identical gradients give that gradient, and we solve exactly (see `simplex`). A zero gradient, which no
    direction improves, counts in the mean alone.

    Args:
        c: in [0, 1); the paper's code has 0.4 in supervised learning, .9 on MT10, .5 on MT50.
        solver: ``exact``, or ``as_published``: the reinforcement-learning code's 20 steps of SGD on softmax logits
            (momentum .5, learning rate 25, from 50 tasks on 50). It adds 1e-4 to every squared norm before it
            divides the Gramian by their mean, so that gradients of norm below 1e-2 count as zero.
        scale: ``mean`` divides by 1 + c; ``1+c^2`` and ``1+lambda`` divide by these (the
            reinforcement-learning code and its fast variant); ``as_published`` is the paper's algorithm 1,
            not rescaled.
    """

    paper = "Liu et al. 2021, NeurIPS, arXiv:2110.14048"
    formula = "d = (g_0 + c |g_0| g_w/|g_w|)/(1 + c);  w minimises g_w.g_0 + c |g_0| |g_w| on the simplex"

    def __init__(
        self,
        num_tasks: int,
        *,
        seed: int = 0,
        c: float = 0.5,
        solver: Literal["exact", "as_published"] = "exact",
        scale: Literal["mean", "1+c^2", "1+lambda", "as_published"] = "mean",
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        require(0 <= c < 1, "c", c, "at least 0 and below 1")
        self.c = c
        self.solver = solver
        self.scale = scale

    def solve(self, gramian: Array) -> Array:
        weights, factor = self._towards_the_worst(gramian)
        return (1 / len(gramian) + factor * weights) / self._divisor(factor)

    def _combine(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """:meth:`solve` with the ball's radius from the vectors themselves: where gradients all but cancel, their
        Gramian no longer has it.
        """
        gramian = on_host(gramian_of(jacobian))
        weights, factor = self._towards_the_worst(gramian)
        mean, worst = (
            weighted_sum(torch.as_tensor(w, device=jacobian.device), jacobian.double())
            for w in (np.full(len(weights), 1 / len(weights)), weights)
        )
        if self.solver == "exact" and worst.norm() > 0:
            factor = self.c * float(mean.norm() / worst.norm())
        return ((mean + factor * worst) / self._divisor(factor)).to(jacobian.dtype)

    def _towards_the_worst(self, gramian: Array) -> tuple[Array, float]:
        """w ``[n]`` and λ."""
        n = len(gramian)
        if self.c == 0:
            return np.full(n, 1 / n), 0.0
        if self.solver != "exact":
            return descend_logits(gramian, self.c, 50.0 if self.num_tasks >= 50 else 25.0)
        there = gramian.diagonal() > 0
        if not there.any():
            return np.full(n, 1 / n), self.c
        weights = np.zeros(n)
        weights[there], factor, found = minimise_against_mean(gramian[np.ix_(there, there)], self.c)
        factor *= there.mean()  # the mean is over all
        self.fallbacks += not found
        mean, worst = gramian.mean(), weights @ gramian @ weights
        rounding = n * np.finfo(np.float64).eps * gramian.diagonal().max()
        # the solver adds a little to every norm; the ball is that of the real ones, as far as they are known
        if worst > rounding and mean > rounding:
            factor = self.c * float(np.sqrt(mean / worst))
        return weights, factor

    def _divisor(self, factor: float) -> float:
        return {
            "mean": 1 + self.c, "1+c^2": 1 + self.c**2, "1+lambda": 1 + factor, "as_published": 1.0,
        }[self.scale]  # fmt: skip


def descend_logits(gramian: Array, c: float, lr: float) -> tuple[Array, float]:
    """The official approximate solver: weights ``[n]`` and λ.

    20 steps of SGD with momentum .5 on the logits of w, from w = 1/n; the best of the 21 points counts. The
    Gramian is first divided by the squared mean norm, with 1e-4 added to every square.
    """
    scale = np.sqrt(gramian.diagonal().clip(min=0) + 1e-4).mean()
    gramian = gramian / scale / scale
    linear = gramian.mean(axis=1)
    radius = c * np.sqrt(max(0.0, linear.mean()) + 1e-4)
    logits = velocity = np.zeros(len(gramian))
    best = np.inf
    for _ in range(21):
        exponentials = np.exp(logits - logits.max())
        weights = exponentials / exponentials.sum()
        image = gramian @ weights
        length = np.sqrt(max(0.0, weights @ image) + 1e-4)
        objective = weights @ linear + radius * length
        if objective < best:
            best, chosen, shortest = objective, weights, length
        gradient = linear + radius * image / length
        velocity = 0.5 * velocity + weights * (gradient - weights @ gradient)
        logits = logits - lr * velocity
    return chosen, float(radius / (shortest + 1e-4))
