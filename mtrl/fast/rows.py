"""What lies between two matrix products, in one pass over a row that stays in the first-level cache.

Forward: layer norm, relu and rounding to the products' dtype. Backward: relu, layer norm, rounding, and the
sums over each task's rows that are its gradients of the layer norm's parameters and of the bias before it. Compiled
(:mod:`mtrl.fast.passes`) or in torch's operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtrl.fast import EPS

DTYPES = (torch.float32, torch.bfloat16)


def norm_forward(
    x: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor, relu: bool, compiled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm (Ba et al. 2016, arXiv 1607.06450) of ``x + bias``, and relu where wanted: ``[G, R, n]`` → the same.

    Args:
        bias: of each group of rows, ``[G, n]``.
        gamma, beta: of each group, or of each of its H / G equal, consecutive parts: ``[H, n]``.

    Returns:
        also what :func:`norm_backward` takes: the means and reciprocal standard deviations.
    """
    if len(gamma) > len(x):
        y, mean, rstd = norm_forward(*in_parts(len(gamma), x, bias), gamma, beta, relu, compiled)
        return y.view_as(x), mean, rstd
    groups, rows, n = x.shape
    if not compiled:
        y, mean, rstd = torch.native_layer_norm(shifted(x, bias, gamma), (n,), None, None, EPS)
        y = torch.addcmul(beta.unsqueeze(1), y, gamma.unsqueeze(1))
        return (y.relu_() if relu else y).to(x.dtype), mean, rstd
    x = x.contiguous()
    y, mean, rstd = torch.empty_like(x), gamma.new_empty(groups, rows), gamma.new_empty(groups, rows)
    from mtrl.fast.passes import FORWARD  # compiles when it is first needed

    FORWARD[x.dtype](
        x.data_ptr(), (x if bias is None else bias).data_ptr(), gamma.data_ptr(), beta.data_ptr(),
        y.data_ptr(), mean.data_ptr(), rstd.data_ptr(),
        groups, rows, n, bias is not None, relu,
    )  # fmt: skip
    return y, mean, rstd


def norm_backward(
    d: Tensor, x: Tensor, bias: Tensor | None, after: Tensor | None, mean: Tensor, rstd: Tensor, gamma: Tensor,
    tasks: int, wanted: bool, compiled: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient of :func:`norm_forward` by ``x``, and its sums.

    Args:
        d: gradient by the result, ``[G, R, n]``.
        after: the result, where it went through relu.
        tasks: T; a group's rows are T equal, consecutive parts.
        wanted: whether the sums are.

    Returns:
        ``[G, R, n]``, and per task, or per part of a group with a gamma of its own, the gradients of gamma, of beta,
        and of a bias that was added before: ``[G, T, 3, n]``, without any group where not wanted.
    """
    if len(gamma) > len(x):
        parts = len(gamma)
        d, after = (
            d.reshape(parts, -1, d.shape[-1]),
            None if after is None else after.reshape(parts, -1, d.shape[-1]),
        )
        dx, sums = norm_backward(d, *in_parts(parts, x, bias), after, mean, rstd, gamma, 1, wanted, compiled)
        return dx.view_as(x), sums.view(len(x) if wanted else 0, parts // len(x), *sums.shape[2:])
    if not compiled:
        return _eager_backward(d, shifted(x, bias, gamma), x.dtype, after, mean, rstd, gamma, tasks, wanted)
    groups, rows, n = x.shape
    d, x = d.contiguous(), x.contiguous()
    dx = torch.empty_like(x)
    sums = gamma.new_empty(groups if wanted else 0, tasks, 3, n)
    from mtrl.fast.passes import BACKWARD

    BACKWARD[x.dtype](
        d.data_ptr(), x.data_ptr(), (x if bias is None else bias).data_ptr(),
        (x if after is None else after).data_ptr(),
        mean.data_ptr(), rstd.data_ptr(), gamma.data_ptr(), dx.data_ptr(), sums.data_ptr(),
        groups, tasks, rows // tasks, n, bias is not None, after is not None, wanted,
    )  # fmt: skip
    return dx, sums


def _eager_backward(
    d: Tensor, x: Tensor, dtype: torch.dtype, after: Tensor | None, mean: Tensor, rstd: Tensor, gamma: Tensor,
    tasks: int, wanted: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    groups, _, n = x.shape
    if after is not None:
        d = torch.ops.aten.threshold_backward(d, after, 0)
    d = d.to(gamma.dtype)
    dx, _, _ = torch.ops.aten.native_layer_norm_backward(
        d * gamma.unsqueeze(1), x, (n,), mean, rstd, None, None, [True, False, False]
    )
    if not wanted:
        return dx.to(dtype), gamma.new_empty(0, tasks, 3, n)
    parts = (d * ((x - mean) * rstd), d, dx)
    return dx.to(dtype), torch.stack([part.view(groups, tasks, -1, n).sum(2) for part in parts], 2)


class Mixture(torch.autograd.Function):
    """``Σ_k shares_k parts_k``, compiled: shares ``[R, K]``, parts ``[K, R, n]`` of float32 → ``[R, n]``."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, parts: Tensor) -> Tensor:
        from mtrl.fast.passes import MIX

        shares, parts = shares.contiguous(), parts.contiguous()
        ctx.save_for_backward(shares, parts)
        mixed = torch.empty_like(parts[0])
        MIX(shares.data_ptr(), parts.data_ptr(), mixed.data_ptr(), *parts.shape)
        return mixed

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        from mtrl.fast.passes import UNMIX

        shares, parts = ctx.saved_tensors
        d = d.contiguous()
        to_shares, to_parts = torch.empty_like(shares), torch.empty_like(parts)
        given = (d, shares, parts, to_shares, to_parts)
        UNMIX(*(tensor.data_ptr() for tensor in given), *parts.shape)
        return to_shares, to_parts


def in_parts(parts: int, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Groups of rows ``[G, R, n]`` as equal, consecutive parts, ``[H, R G / H, n]``, with the bias of each."""
    bias = None if bias is None else bias.repeat_interleave(parts // len(x), 0)
    return x.reshape(parts, -1, x.shape[-1]), bias


def shifted(x: Tensor, bias: Tensor | None, gamma: Tensor) -> Tensor:
    """``x + bias`` in gamma's dtype."""
    wide = x.to(gamma.dtype)
    return wide if bias is None else wide + bias.unsqueeze(1)
