"""What lies between two matrix products, in one pass over a row that stays in the first-level cache.

Forward: bias, layer norm, relu and rounding to the products' dtype. Backward: relu, layer norm, rounding, and
the sums over each task's rows that are its gradients of the layer norm's parameters and the bias. Compiled by numba for
float32 and bfloat16 on a processor; :func:`available` says whether it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

EPS = 1e-5  # torch's default
DTYPES = (torch.float32, torch.bfloat16)

# sums may be reordered, so that they fill a vector register; what is not finite stays so
REORDER = {"reassoc", "contract", "nsz", "arcp"}


@cache
def available() -> bool:
    """Whether numba is installed."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


_KEPT: list[Any] = []  # compiled code lives as long as its object does


@cache
def _compiled(dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None]]:
    import numba
    import numpy as np
    from numba import types

    half = dtype == torch.bfloat16
    many, exact = np.uint16 if half else np.float32, np.float32
    whole, flag, at = types.int64, types.int8, types.voidptr
    jit: Callable[[Any], Any] = numba.njit(inline="always", fastmath=REORDER)
    zero, one, high = np.float32(0), np.float32(1), np.uint32(16)
    if half:  # a bfloat16 is the upper half of a float32

        @jit
        def load(row: Any, bits: Any) -> None:
            for i in range(len(bits)):
                bits[i] = np.uint32(row[i]) << high

        @jit
        def store(bits: Any, row: Any) -> None:
            for i in range(len(bits)):  # to the nearest, ties to even
                u = bits[i]
                row[i] = np.uint16((u + np.uint32(0x7FFF) + ((u >> high) & np.uint32(1))) >> high)
    else:

        @jit
        def load(row: Any, bits: Any) -> None:
            values = bits.view(np.float32)
            for i in range(len(bits)):
                values[i] = row[i]

        @jit
        def store(bits: Any, row: Any) -> None:
            values = bits.view(np.float32)
            for i in range(len(bits)):
                row[i] = values[i]

    def forward(
        x_: Any, gamma_: Any, beta_: Any, out_: Any, mean_: Any, rstd_: Any, rows: int, n: int, relu: int
    ) -> None:
        x, out = numba.carray(x_, (rows, n), many), numba.carray(out_, (rows, n), many)
        gamma, beta = numba.carray(gamma_, n, exact), numba.carray(beta_, n, exact)
        means, rstds = numba.carray(mean_, rows, exact), numba.carray(rstd_, rows, exact)
        bits = np.empty(n, np.uint32)
        v = bits.view(np.float32)
        low = zero if relu else -np.float32(np.inf)
        for r in range(rows):
            load(x[r], bits)
            total = zero
            for i in range(n):
                total += v[i]
            mean = total / np.float32(n)
            squares = zero
            for i in range(n):
                squares += (v[i] - mean) * (v[i] - mean)
            rstd = one / np.sqrt(squares / np.float32(n) + np.float32(EPS))
            for i in range(n):
                y = (v[i] - mean) * rstd * gamma[i] + beta[i]
                v[i] = low if y < low else y  # nan stays nan
            store(bits, out[r])
            means[r] = mean
            rstds[r] = rstd

    def backward(
        d_: Any, x_: Any, out_: Any, mean_: Any, rstd_: Any, gamma_: Any, dx_: Any, sums_: Any,
        tasks: int, rows: int, n: int, relu: int, wanted: int,
    ) -> None:  # fmt: skip
        shape = (tasks * rows, n)
        d, x = numba.carray(d_, shape, many), numba.carray(x_, shape, many)
        out, dx = numba.carray(out_, shape, many), numba.carray(dx_, shape, many)
        gamma, sums = numba.carray(gamma_, n, exact), numba.carray(sums_, (tasks, 3, n), exact)
        means, rstds = numba.carray(mean_, tasks * rows, exact), numba.carray(rstd_, tasks * rows, exact)
        d_bits, x_bits, o_bits = np.empty(n, np.uint32), np.empty(n, np.uint32), np.empty(n, np.uint32)
        g, h, o = d_bits.view(np.float32), x_bits.view(np.float32), o_bits.view(np.float32)
        for t in range(tasks):
            to_gamma, to_beta, to_bias = sums[t, 0], sums[t, 1], sums[t, 2]
            if wanted:
                sums[t] = zero
            for r in range(t * rows, (t + 1) * rows):
                load(d[r], d_bits)
                load(x[r], x_bits)
                mean, rstd = means[r], rstds[r]
                if relu:
                    load(out[r], o_bits)
                    for i in range(n):
                        g[i] = zero if o[i] <= zero else g[i]
                first, second = zero, zero
                for i in range(n):
                    h[i] = (h[i] - mean) * rstd
                    first += g[i] * gamma[i]
                    second += g[i] * gamma[i] * h[i]
                first /= np.float32(n)
                second /= np.float32(n)
                if wanted:
                    for i in range(n):
                        to_gamma[i] += g[i] * h[i]
                        to_beta[i] += g[i]
                        g[i] = (g[i] * gamma[i] - first - h[i] * second) * rstd
                        to_bias[i] += g[i]
                else:
                    for i in range(n):
                        g[i] = (g[i] * gamma[i] - first - h[i] * second) * rstd
                store(d_bits, dx[r])

    one_way = numba.cfunc(types.void(*[at] * 6, whole, whole, flag), fastmath=REORDER)(forward)
    other_way = numba.cfunc(types.void(*[at] * 8, whole, whole, whole, flag, flag), fastmath=REORDER)(
        backward
    )
    _KEPT.extend((one_way, other_way))
    return one_way.ctypes, other_way.ctypes


def norm_forward(
    x: Tensor, gamma: Tensor, beta: Tensor | None, relu: bool, compiled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm (Ba et al. 2016, arXiv 1607.06450), and relu where wanted: ``[R, n]`` → the same, in its dtype.

    Returns also the means and reciprocal standard deviations ``[R]`` that :func:`norm_backward` takes.
    """
    assert beta is not None
    if not compiled:
        # CUDA's takes no parameters of another dtype than the input
        wide = x if x.device.type == "cpu" else x.to(gamma.dtype)
        y, mean, rstd = torch.native_layer_norm(wide, gamma.shape, gamma, beta, EPS)
        return (y.relu_() if relu else y).to(x.dtype), mean, rstd
    x = x.contiguous()
    rows, n = x.shape
    y, mean, rstd = torch.empty_like(x), gamma.new_empty(rows), gamma.new_empty(rows)
    forward, _ = _compiled(x.dtype)
    forward(
        x.data_ptr(), gamma.data_ptr(), beta.data_ptr(), y.data_ptr(), mean.data_ptr(), rstd.data_ptr(),
        rows, n, relu,
    )  # fmt: skip
    return y, mean, rstd


def norm_backward(
    d: Tensor, x: Tensor, after: Tensor | None, mean: Tensor, rstd: Tensor, gamma: Tensor,
    tasks: int, wanted: bool, compiled: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient of :func:`norm_forward` by ``x``, and its sums.

    Args:
        d: gradient by the result, ``[R, n]``.
        after: the result, where it went through relu.
        tasks: T; rows are T equal, consecutive parts.
        wanted: whether the sums are.

    Returns:
        ``[R, n]``, and per task the gradients of gamma, of beta, and of a bias that was added before:
        ``[T, 3, n]``, empty where not wanted.
    """
    if not compiled:
        return _eager_backward(d, x, after, mean, rstd, gamma, tasks, wanted)
    rows, n = x.shape
    d, dx = d.contiguous(), torch.empty_like(x)
    sums = gamma.new_empty(tasks if wanted else 0, 3, n)
    _, backward = _compiled(x.dtype)
    backward(
        d.data_ptr(), x.data_ptr(), x.data_ptr() if after is None else after.data_ptr(), mean.data_ptr(),
        rstd.data_ptr(), gamma.data_ptr(), dx.data_ptr(), sums.data_ptr(), tasks, rows // tasks, n,
        after is not None, wanted,
    )  # fmt: skip
    return dx, sums


def _eager_backward(
    d: Tensor, x: Tensor, after: Tensor | None, mean: Tensor, rstd: Tensor, gamma: Tensor,
    tasks: int, wanted: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if after is not None:
        d = torch.ops.aten.threshold_backward(d, after, 0)
    wide = x if x.device.type == "cpu" else x.to(gamma.dtype)
    dx, _, _ = torch.ops.aten.native_layer_norm_backward(
        d.to(wide.dtype), wide, gamma.shape, mean, rstd, gamma, None, [True, False, False]
    )
    dx = dx.to(x.dtype)
    if not wanted:
        return dx, gamma.new_empty(0, 3, x.shape[1])
    parts = (d * ((x - mean) * rstd), d, dx)
    return dx, torch.stack([p.view(tasks, -1, p.shape[-1]).sum(1).to(gamma.dtype) for p in parts], 1)
