"""MGDA: the shortest convex combination of the gradients."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mtrl.optimizers.base import Array, HostSolver, cosines_of
from mtrl.optimizers.simplex import minimise_norm


class MGDA(HostSolver):
    """The point of smallest norm in the convex hull of the task gradients: weights ≥ 0 that sum to 1.

    Désidéri 2012; Sener & Koltun 2018, section 3.1. It never conflicts: its product with every task's
    gradient is at least its own square. It follows the *small* gradients, and is zero where some combination is (a
    zero gradient, opposite ones): no direction improves all tasks there. Solved exactly, where the published
    codes run Frank-Wolfe or 250 iterations of projected gradient.

    Args:
        normalize: ``l2`` finds the shortest combination of the *unit* gradients and multiplies it by the mean
            norm; ``none`` takes the gradients as they are.
        scale: ``as_published`` leaves out that multiplication, as the unitary paper's code does: the result
            then has norm ≤ 1 whatever the gradients' size. Without ``l2`` both are the same.
    """

    paper = "Sener & Koltun 2018, NeurIPS, arXiv:1810.04650"
    formula = "d = w.J;  w = argmin over the simplex of |w.J|"

    def __init__(
        self,
        num_tasks: int,
        *,
        seed: int = 0,
        normalize: Literal["none", "l2"] = "none",
        scale: Literal["mean", "as_published"] = "mean",
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        self.normalize = normalize
        self.scale = scale

    def solve(self, gramian: Array) -> Array:
        if self.normalize == "none":
            return self._shortest(gramian)
        norms, cosines = cosines_of(gramian)
        if (
            norms.min() == 0
        ):  # the unit gradient of a zero gradient is zero, and so is the shortest combination
            return np.zeros_like(norms)
        factor = 1.0 if self.scale == "as_published" else norms.mean()
        return self._shortest(cosines) * factor / norms

    def _shortest(self, gramian: Array) -> Array:
        weights, found = minimise_norm(gramian)
        self.fallbacks += not found
        return weights
