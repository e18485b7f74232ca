"""What lies between two matrix products, in one pass over a row that stays in the first-level cache.

Forward: layer norm, relu and rounding to the products' dtype. Backward: relu, layer norm, rounding, and the
sums over each task's rows that are its gradients of the layer norm's parameters and of the bias before it. Compiled
(:mod:`mtrl.fast.compiled`) or in torch's operations.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

from mtrl.fast import EPS

DTYPES = (torch.float32, torch.bfloat16)


@cache
def available() -> bool:
    """Whether numba is installed, which compiles."""
    return importlib.util.find_spec("numba") is not None


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
    from mtrl.fast.compiled import FORWARD  # compiles when it is first needed

    FORWARD[x.dtype](
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
    from mtrl.fast.compiled import BACKWARD

    BACKWARD[x.dtype](
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
