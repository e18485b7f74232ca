"""UPGrad: project each gradient onto the directions that harm no task, then take the mean."""

from __future__ import annotations

import numpy as np

from mtrl.optimizers.base import Array, HostSolver, cosines_of

RIDGE = 1e-12  # least eigenvalue of the cosines: opposite gradients would lead the active-set method astray


class UPGrad(HostSolver):
    """The mean of the projections of all gradients onto the cone ``{d: gⱼ·d ≥ 0 for all j}``.

    Quinton & Rey 2024: the projection of gᵢ is ``Jᵀ v`` with v the minimiser of ``vᵀ G v`` over
    ``v ≥ eᵢ``. Writing v = eᵢ + u, that is a non-negative least squares in T dimensions, solved by scipy's
    active-set method on a square root of the cosine matrix. Never conflicts; without a negative inner
    product the result is the mean.

    Where we differ: the paper's code divides the Gramian by its trace, adds 1e-4 I and takes the mean below
    a trace of 1e-4, so that its result can conflict slightly and a small gradient next to a large one is not
    projected. We normalise every gradient, and raise eigenvalues of the cosines below 1e-12 to that. Zero gradients
    conflict with nobody.
    """

    paper = "Quinton & Rey 2024, arXiv:2406.16232"
    formula = "d = mean over i of the projection of g_i onto {d: g_j.d >= 0 for all j}"

    def solve(self, gramian: Array) -> Array:
        from scipy.optimize import nnls  # a third of a second, for this method alone

        norms, cosines = cosines_of(gramian)
        n = len(norms)
        own = norms * np.eye(n)  # row i: the weights of gradient i's projection, on unit gradients
        conflicting = np.flatnonzero((cosines < 0).any(axis=1))
        if len(conflicting):
            values, vectors = np.linalg.eigh(cosines)
            root = np.sqrt(values.clip(min=RIDGE))[:, None] * vectors.T  # rootᵀ root = cosines
            for i in conflicting:
                try:
                    added, _ = nnls(root, -root[:, i], maxiter=30 * n)
                except RuntimeError:  # it met its limit: this gradient stays as it is
                    self.fallbacks += 1
                    continue
                own[i] += norms[i] * added
        inverse = np.divide(1, norms, out=np.zeros(n), where=norms > 0)
        weights: Array = ((own * inverse).sum(axis=0) + (norms == 0)) / n
        return weights
