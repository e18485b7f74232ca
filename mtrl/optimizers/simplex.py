"""The one problem behind MGDA and CAGrad, solved exactly: a linear term plus a norm, over the simplex."""

from __future__ import annotations

import numpy as np

from mtrl.optimizers.base import Array, cosines_of, lifted

RIDGE = 1e-12  # on the cosines: makes the minimiser unique, equal tasks get equal weights
ROUNDS = 10  # times n, at most; it takes about n
ZERO = 1e-12  # a zero gradient counts as one of this norm, relative to the largest, orthogonal to all others


def minimise_norm(gramian: Array) -> tuple[Array, bool]:
    """Weights ``[n]`` on the simplex of the shortest combination of the gradients (`gramian` ``[n, n]``), and whether
    they were found.
    """
    norms, cosines = _lift(gramian)
    weights, _, found = _minimise(cosines, norms, np.zeros_like(norms), 1.0)
    return weights, found


def minimise_against_mean(gramian: Array, c: float) -> tuple[Array, float, bool]:
    """CAGrad's dual: minimise ``g_w·g₀ + c ‖g₀‖ ‖g_w‖`` for w on the simplex, g₀ being the mean gradient.

    Args:
        gramian: ``[n, n]``.
        c: in (0, 1).

    Returns:
        w ``[n]``, ``λ = c ‖g₀‖ / ‖g_w‖``, and whether w was found.
    """
    norms, cosines = _lift(gramian)
    products = cosines @ norms / len(norms)
    radius = c * float(np.sqrt(norms @ products / len(norms)))
    weights, length, found = _minimise(cosines, norms, products, radius)
    return weights, radius / length, found


def _lift(gramian: Array) -> tuple[Array, Array]:
    """Norms and cosines, made positive definite: as if every gradient had a small component of its own.

    Working on these lifted gradients throughout keeps every division defined where the real ones cancel.
    """
    norms, cosines = cosines_of(gramian)
    largest = norms.max()
    norms = np.where(norms > 0, norms, ZERO * largest if largest > 0 else 1.0)
    return norms, lifted(cosines, RIDGE)


def _minimise(cosines: Array, norms: Array, linear: Array, radius: float) -> tuple[Array, float, bool]:
    """Minimise ``linear·y + radius √(yᵀ C y)`` over ``y ≥ 0, Σ yᵢ/normᵢ = 1``; weights are ``y / norms``.

    A primal active-set method. On the tasks in play S the minimiser has a closed form. With ``y₀`` the
    shortest point, ``q`` the linear term's component along the plane, ``n₀`` and ``n_q`` their lengths in C:
    the stationary point is ``y₀ − q n₀ / √(radius² − n_q²)``, and where ``n_q ≥ radius`` the objective falls
    for ever along −q. Tasks whose weight would turn negative leave, the one whose multiplier is most negative
    returns. The objective falls with each return, so no set comes twice; the cap on the number of rounds
    guards against rounding.

    Returns:
        The weights ``[n]``, the length ``√(yᵀ C y)``, and False where the cap was met: these are the last.
    """
    n = len(norms)
    rate = norms.min() / norms  # the constraint is rate·y = 1, in units of the smallest norm
    y = np.full(n, 1 / n) / rate
    active = np.arange(n)
    right = np.stack([rate, linear], axis=1)
    descending = (
        False  # until the first optimum on a set, tasks leave many at a time: a start need not descend
    )
    returned = -1
    found = True
    for _ in range(ROUNDS * n):
        of_rate, of_linear = np.linalg.solve(cosines[np.ix_(active, active)], right[active]).T
        a = rate[active]
        shortest = of_rate / (a @ of_rate)
        slope = of_linear - (a @ of_linear) * shortest
        slope_length = np.sqrt(max(0.0, linear[active] @ slope))
        if slope_length >= radius and len(active) > 1:
            # where norms differ much, the smallest gradient's share is lost to rounding: from the constraint
            smallest = a.argmax()
            slope[smallest] = 0
            slope[smallest] = -(a @ slope) / a[smallest]
            step, bounded = -slope, False
        else:
            length = 1 / np.sqrt(a @ of_rate)
            stretch = length / np.sqrt(radius**2 - slope_length**2) if slope_length > 0 else 0.0
            target, bounded = shortest - stretch * slope, True
            step = target - y[active]
        if bounded and target.min() >= 0:
            y[active] = target
            descending = True
            image = cosines[:, active] @ target
            length = np.sqrt(target @ image[active])
            gradient = linear + radius * image / length
            level = gradient[active] @ target  # the multiplier of the constraint
            size = np.abs(linear) + radius * np.abs(image) / length + abs(level) * rate
            excess = (gradient - level * rate) / size
            excess[active] = 0
            returned = int(excess.argmin())
            if excess[returned] >= -1e-9:
                break
            active = np.sort(np.append(active, returned))
            continue
        if bounded and not descending:
            stays = target > 0
            y[active[~stays]] = 0
            active = active[stays]
            y[active] = target[stays] / (rate[active] @ target[stays])
            continue
        falling = step < 0
        if not falling.any():
            break  # nothing but rounding is left to gain
        reach = np.full(len(active), np.inf)
        reach[falling] = y[active][falling] / -step[falling]
        first = reach.min() if descending else np.median(reach[falling])
        y[active] = (y[active] + first * step).clip(min=0)
        leaving = reach <= first
        y[active[leaving]] = 0
        if first == 0 and active[leaving][0] == returned:
            break  # it returned by rounding only
        active = active[~leaving]
    else:
        found = False
    weights = y * rate
    return weights / weights.sum(), float(np.sqrt(y @ cosines @ y)) * norms.min(), found
