"""Nash-MTL: the bargaining solution between the tasks."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mtrl.optimizers.base import Array, HostSolver, cosines_of, lifted

RIDGE = 1e-9
FOUND = (
    1e-4  # of the decrement, by which it counts as solved; rounding leaves up to 6e-6 where gradients oppose
)
STEPS = 100  # far more than it takes: a handful, and about 20 where gradients oppose


class NashMTL(HostSolver):
    """The direction that maximises ``Σ log(gᵢ·d)``: weights α > 0 with ``G α = 1/α``.

    Navon et al. 2022, claim 3.1. α is the minimiser of the convex ``½ αᵀ G α − Σ log αᵢ``, found by Newton's
    method in T dimensions; the published code approximates it by a sequence of convex programs in a cone
    solver. The result is indifferent to each gradient's norm up to its own scale, and never conflicts:
    ``gᵢ·d = 1/αᵢ > 0``.

    Works on the cosines + 1e-9 I. Where no bargain exists (gradients that oppose or cancel: no direction
    improves all), that term alone decides, and d is nearly zero. Zero gradients have nothing to bargain with:
    they get weight 0.

    Where we differ: weights are divided by their sum. ``scale="as_published"`` leaves α as it is; d then
    does not scale with the gradients (‖d‖² = T), for which the published code clips its norm.
    """

    paper = "Navon et al. 2022, ICML, arXiv:2202.01017"
    formula = "d = w.J;  w = alpha / sum alpha, G alpha = 1/alpha"

    def __init__(
        self, num_tasks: int, *, seed: int = 0, scale: Literal["mean", "as_published"] = "mean"
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        self.scale = scale

    def solve(self, gramian: Array) -> Array:
        norms, cosines = cosines_of(gramian)
        n = len(norms)
        there = norms > 0
        if not there.any():
            return np.full(n, 1 / n)
        norms, cosines = norms[there], cosines[np.ix_(there, there)]
        bargain, found = bargain_of(lifted(cosines, RIDGE))
        self.fallbacks += not found
        weights = np.zeros(n)
        if self.scale == "as_published":
            weights[there] = bargain / norms
        else:
            shares = bargain * (norms.min() / norms)
            weights[there] = shares / shares.sum()
        return weights


def bargain_of(matrix: Array) -> tuple[Array, bool]:
    """The β > 0 with ``M β = 1/β``, for a positive definite M ``[n, n]``, and whether it was found.

    Newton's method on ``½ βᵀMβ − Σ log β``, which is self-concordant: the step 1 / (1 + decrement) never
    leaves the domain and always descends; near the optimum it is a full step and converges quadratically.
    After each, the best multiple of β is known: the one with ``βᵀMβ = n``.
    """
    n = len(matrix)
    beta = np.ones(n)
    for _ in range(STEPS):
        image = matrix @ beta
        stretch = np.sqrt(n / (beta @ image))
        beta, image = beta * stretch, image * stretch
        # in units of the present β, so that the Hessian is near I however unequal the weights
        scaled = beta[:, None] * matrix * beta
        gradient = beta * image - 1
        scaled.flat[:: n + 1] += 1
        step = np.linalg.solve(scaled, gradient)
        decrement = np.sqrt(max(0.0, float(gradient @ step)))
        beta = beta * (1 - step / (1 + decrement if decrement > 0.25 else 1))
        if decrement < 1e-10:
            break
    return beta, bool(decrement < FOUND)
