"""Aligned-MTL: the mean of gradients made orthogonal and equally long."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mtrl.optimizers.base import Array, HostSolver, cosines_of

RANK = 1e-6  # eigenvalues of the cosines below this share of the largest are rounding


class AlignedMTL(HostSolver):
    """Replaces J by the nearest matrix with orthogonal directions of one length, its smallest singular value.

    Senushkin et al. 2023, algorithm 1: with ``G = V Λ Vᵀ``, ``w = σ_min V Λ^(−1/2) Vᵀ (1/T, …, 1/T)``, over
    the non-zero eigenvalues. It has non-negative product with every task's gradient if J has full rank and
    ``G^(1/2) 1 ≥ 0``; it is as small as the weakest independent direction, so nearly parallel gradients give
    a small step.

    Where we differ: the rank is that of the *cosine* matrix, at 1e-6, so that float32 rounding does not
    count as a direction and a small gradient does. The authors' code adds the T columns
    (``scale="as_published"``: T times ours), where the paper has weights that sum to 1.
    """

    paper = "Senushkin et al. 2023, CVPR, arXiv:2305.19000"
    formula = "w = sigma_min V Lambda^(-1/2) V^T 1/T;  G = V Lambda V^T"

    def __init__(
        self, num_tasks: int, *, seed: int = 0, scale: Literal["mean", "as_published"] = "mean"
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        self.scale = scale

    def solve(self, gramian: Array) -> Array:
        n = len(gramian)
        wanted = np.ones(n) if self.scale == "as_published" else np.full(n, 1 / n)
        norms, cosines = cosines_of(gramian)
        largest = norms.max()
        if largest == 0:
            return wanted
        directions = np.linalg.eigvalsh(cosines)
        rank = int((directions > RANK * directions[-1]).sum()) - int((norms == 0).sum())
        relative = norms / largest
        values, vectors = np.linalg.eigh(relative[:, None] * cosines * relative)
        values, vectors = values[-rank:], vectors[:, -rank:]
        sound = values > n * np.finfo(np.float64).eps * values[-1]  # norms too far apart for float64
        values, vectors = values[sound], vectors[:, sound]
        weights: Array = vectors @ ((vectors.T @ wanted) * np.sqrt(values[0] / values))
        return weights
