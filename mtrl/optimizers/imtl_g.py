"""IMTL-G: the combination with equal projections on all unit gradients."""

from __future__ import annotations

import numpy as np

from mtrl.optimizers.base import Array, HostSolver, cosines_of

RIDGE = 1e-10  # on the cosines: where gradients coincide or oppose, the symmetric solution
BALANCE = 1e-6  # smallest |sum| of the weights, relative to the sum of their sizes, that they are divided by


class IMTLG(HostSolver):
    """Weights summing to 1 for which d has the same product with every task's *unit* gradient.

    Liu et al. 2021 (ICLR), section 3.1. With norms n and cosines C the condition reads ``C (n ∘ w) = const``, so
    w is ``C⁻¹ 1 / n`` divided by its sum: one symmetric solve instead of the paper's system in T − 1 unknowns.
    Weights may be negative, and large where their sum is nearly zero: the projections can then be equal *and
    negative*, and the step ascends every task.

    Degenerate cases: a zero gradient has no direction; it gets weight 0 and the others are solved without
    it. If the sum before normalising is below 1e-6 of the weights' sizes there is no normalisation, and the
    result is the mean.

    Args:
        as_published: reproduce the error of the unitary paper's code, which solves with the transposed
            matrix: the same for two tasks, but for more the projections are not equal. Also its 1e-6 on the
            diagonal (in absolute units: the result does not scale with the gradients) and its zero step
            where the solve fails.
    """

    paper = "Liu et al. 2021, ICLR, openreview:IMPnRXEWpvr"
    formula = "w ~ C^-1 1 / n, sum w = 1: d.g_i/|g_i| is the same for all i"

    def __init__(self, num_tasks: int, *, seed: int = 0, as_published: bool = False) -> None:
        super().__init__(num_tasks, seed=seed)
        self.as_published = as_published

    def solve(self, gramian: Array) -> Array:
        if self.as_published:
            published = solve_transposed(gramian)
            self.fallbacks += published is None
            return np.zeros(len(gramian)) if published is None else published
        norms, cosines = cosines_of(gramian)
        n = len(norms)
        there = norms > 0
        if not there.any():
            return np.full(n, 1 / n)
        norms, cosines = norms[there], cosines[np.ix_(there, there)]
        shares = np.linalg.solve(cosines + RIDGE * np.eye(len(norms)), np.ones(len(norms)))
        found = shares * (norms.min() / norms)
        if abs(found.sum()) < BALANCE * np.abs(found).sum():
            self.fallbacks += 1
            return np.full(n, 1 / n)
        weights = np.zeros(n)
        weights[there] = found / found.sum()
        return weights


def solve_transposed(gramian: Array) -> Array | None:
    """The published solve: ``M w = r`` where the paper's closed form has ``Mᵀ w = r``.

    ``Mᵢⱼ = (g₁ − gᵢ)·(u₁ − uⱼ)`` and ``rⱼ = g₁·(u₁ − uⱼ)`` for i, j ≥ 2, u the unit gradients; w₁ = 1 − Σ w. None
    where it fails.
    """
    n = len(gramian)
    norms = np.sqrt(gramian.diagonal().clip(min=0))
    with np.errstate(all="ignore"):
        onto_units = gramian / norms  # gᵢ·uⱼ
        differences = onto_units[:, :1] - onto_units[:, 1:]  # gᵢ·(u₁ − uⱼ)
        matrix = differences[0] - differences[1:]
        try:
            others = np.linalg.solve(matrix + 1e-6 * np.eye(n - 1), differences[0])
        except np.linalg.LinAlgError:
            return None
    weights = np.concatenate([[1 - others.sum()], others])
    return weights if np.isfinite(weights).all() else None
