"""PE-LTR: MGDA with a least weight for every task."""

from __future__ import annotations

import numpy as np

from mtrl.optimizers.base import Array, HostSolver, cosines_of, require
from mtrl.optimizers.simplex import ZERO, minimise_norm

RANK = 1e-6  # singular values below this share of the largest are rounding of a Gramian in float32


class PELTR(HostSolver):
    """The shortest combination of the gradients whose weights sum to 1 and are at least c each.

    Lin et al. 2019 (RecSys), section 3.2. With ``w = c + s y``, y on the simplex and ``s = 1 − T c``, it is MGDA's
    problem for the gradients ``s g_i + c Σ_j g_j``, which is solved exactly. c = 0 is MGDA, c = 1/T the mean. Where
    tasks are absent c counts for the present ones as c T / n, so that it lies between the same two.

    Args:
        c: the least weight, from 0 to 1/T; None is half of 1/T.
        as_published: the paper's two steps, first without ``w ≥ c`` and then a projection onto it, whose result is not
            the shortest. Its normal equations, which fail for parallel gradients, are a least-squares solve here.
    """

    paper = "Lin et al. 2019, RecSys, doi:10.1145/3298689.3346998"
    formula = "d = w.J;  w = argmin over {w >= c, sum w = 1} of |w.J|"

    def __init__(
        self, num_tasks: int, *, seed: int = 0, c: float | None = None, as_published: bool = False
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        c = 0.5 / num_tasks if c is None else c
        require(0 <= c * num_tasks <= 1, "c", c, f"from 0 to 1/T, {1 / num_tasks:.4g} for {num_tasks} tasks")
        self.c, self.as_published = c, as_published

    def solve(self, gramian: Array) -> Array:
        n = len(gramian)
        least = self.c * self.num_tasks / n
        rest = max(0.0, 1 - n * least)
        if rest == 0:
            return np.full(n, 1 / n)
        if self.as_published:
            return least + onto_simplex(relaxed(gramian, least, rest), rest)
        moved = rest * np.eye(n) + least  # row i makes the i-th of the gradients above
        shares, found = minimise_norm(moved @ gramian @ moved.T)
        self.fallbacks += not found
        return least + rest * shares


def relaxed(gramian: Array, least: float, rest: float) -> Array:
    """The paper's eq. 9: the minimiser over ``Σ x = rest`` alone, solved for weights of unit gradients."""
    norms, cosines = cosines_of(gramian)
    largest = norms.max()
    norms = np.where(norms > 0, norms, ZERO * largest if largest > 0 else 1.0)
    rate = norms.min() / norms
    system = np.block([[cosines, rate[:, None]], [rate, np.zeros(1)]])
    right = np.append(-least / norms.min() * cosines @ norms, rest)
    found: Array = rate * np.linalg.lstsq(system, right, rcond=RANK)[0][:-1]
    return found


def onto_simplex(x: Array, total: float) -> Array:
    """The nearest point with ``x ≥ 0, Σ x = total`` (Duchi et al. 2008, figure 1)."""
    ordered = np.sort(x)[::-1]
    excess = (np.cumsum(ordered) - total) / np.arange(1, len(x) + 1)
    last = np.flatnonzero(ordered > excess)
    level = excess[last[-1]] if len(last) else excess[-1]
    found: Array = (x - level).clip(min=0)
    return found
