"""Linear and layer norm: as torch has them, or fused, with a backward pass that keeps tasks apart.

Both kinds compute the same function. :class:`PlainKernels` is stock torch, which vmap and ``torch.func``
take. :class:`FusedKernels` has fewer and bigger operations, for all tasks' rows at once: relu is part of the
product or of the layer norm, and what lies between two products stays in their dtype.

In a backward pass a row's gradient is that of its own task's loss alone, because no other task's loss has
seen the row. So one pass over all rows holds every task's gradient: a linear layer's weight gradient is
``Σ_b d_b x_bᵀ``, over all rows the sum of the tasks, over one task's rows its own. :class:`Tape` keeps the
two factors, and nobody needs to hold T whole gradients at once. Source: Goodfellow 2015 (arXiv 1510.01799),
who has it per example and for norms; ours is per task and gives the Gramian.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["plain", "torch", "onednn"]


class Factors(NamedTuple):
    """What one linear layer saw, of which its weight's per-task gradients are products.

    Attributes:
        x: inputs ``[T, B, in]``.
        d: gradients of the tasks' losses by the outputs ``[T, B, out]``, of the same dtype.
        onednn: whose float32 products to use.
    """

    x: Tensor
    d: Tensor
    onednn: bool = False

    def rows(self) -> Tensor:
        """Per-task gradients of the weight, ``[T, out, in]``."""
        return torch.bmm(self.d.mT, self.x)

    def weighted(self, weights: Tensor) -> Tensor:
        """``Σ_t w_t · row_t`` of the weight, ``[out, in]``, in one product."""
        scaled = (self.d * weights.view(-1, 1, 1)).to(self.d.dtype)
        return product(scaled.flatten(0, 1).t(), self.x.flatten(0, 1).t(), self.onednn)


class Tape:
    """What fused layers leave behind in a backward pass.

    Attributes:
        num_tasks: T; rows are T equal, consecutive parts. To be known before the backward pass.
        left: by the id of a shared parameter: :class:`Factors` of a matrix, rows ``[T, n]`` of a vector.
    """

    def __init__(self) -> None:
        self.num_tasks = 1
        self.left: dict[int, Factors | Tensor] = {}

    def put(self, parameter: int, left: Factors | Tensor) -> None:
        if parameter in self.left:
            raise ValueError("a shared parameter is used in two layers: agent.kernels = plain takes it")
        self.left[parameter] = left

    def split(self, rows: Tensor) -> Tensor:
        """``[T·B, n]`` → ``[T, B, n]``."""
        return rows.view(self.num_tasks, -1, rows.shape[-1])


_tape: Tape | None = None


@contextmanager
def taped() -> Iterator[Tape]:
    """Fused layers called within give their shared parameters' gradients to this tape, not to autograd."""
    global _tape  # a network's forward, which may be a stranger's, has no argument to pass it through
    outer, _tape = _tape, Tape()
    try:
        yield _tape
    finally:
        _tape = outer


@dataclass(frozen=True)
class PlainKernels:
    """Stock torch. ``dtype`` is of the matrix products; everything else stays in the parameters' dtype."""

    dtype: torch.dtype = torch.float32

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
        """``[..., in]`` → ``[..., out]``; a weight ``[T, out, in]`` takes ``x [T, B, in]``."""
        if self.dtype != torch.float32:  # else in the parameters' dtype: float64 stays exact
            x, weight, bias = (t.to(self.dtype) for t in (x, weight, bias))
        private = weight.dim() == 3
        y = torch.baddbmm(bias.unsqueeze(1), x, weight.mT) if private else F.linear(x, weight, bias)
        y = y if self.dtype == torch.float32 else y.float()
        return torch.relu(y) if relu else y

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
        y = F.layer_norm(x, weight.shape, weight, bias)
        return torch.relu(y) if relu else y


@dataclass(frozen=True)
class FusedKernels:
    """One operation per layer, for rows ``[T, B, ·]`` of all tasks at once; not for vmap.

    What comes out has the products' dtype. In bfloat16 a forward pass rounds where :class:`PlainKernels`
    does, a backward pass also between a layer norm or relu and the next product.

    Args:
        dtype: of the matrix products.
        onednn: use oneDNN's products where torch has them (CPU, float32 and bfloat16).
    """

    dtype: torch.dtype = torch.float32
    onednn: bool = False

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
        """``[T, B, in]`` → ``[T, B, out]``, weights ``[out, in]`` or one per task ``[T, out, in]``."""
        if weight.dim() == 3:
            y = PlainKernels(self.dtype).linear(x, weight, bias, relu)
            return y if self.dtype == torch.float32 else y.to(self.dtype)
        dtype = x.dtype if self.dtype == torch.float32 else self.dtype
        onednn = self.onednn and dtype != torch.float64
        y = _apply(_Linear, x.flatten(0, -2).to(dtype), weight, bias, relu, onednn, _tape)
        return y.view(*x.shape[:-1], -1)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
        """``[T, B, n]`` → the same; statistics in float32 whatever the dtype."""
        if x.device.type == "cpu":
            return _apply(_LayerNorm, x.flatten(0, -2), weight, bias, relu, _tape).view(x.shape)
        # CUDA's takes no parameters of another dtype than the input
        y = _apply(_LayerNorm, x.flatten(0, -2).to(weight.dtype), weight, bias, relu, _tape)
        return y.to(x.dtype).view(x.shape)


Kernels = PlainKernels | FusedKernels


def make_kernels(kind: Kind, dtype: torch.dtype) -> Kernels:
    """The kernels of ``AgentConfig.kernels``."""
    return PlainKernels(dtype) if kind == "plain" else FusedKernels(dtype, onednn=kind == "onednn")


def _apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result


def product(a: Tensor, b: Tensor, onednn: bool) -> Tensor:
    """``a @ b.T``, ``[m, k]`` and ``[n, k]`` → ``[m, n]``."""
    # in bfloat16 torch's own products go to oneDNN, by a quicker way for transposed arguments
    if onednn and a.dtype == torch.float32:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return result
    return a @ b.t()


def gramian(rows: Tensor, onednn: bool) -> Tensor:
    """``J Jᵀ`` ``[T, T]`` of rows ``[T, n]``."""
    half = len(rows) // 2
    if half < 10:  # below about 20 tasks one product is quicker than two smaller ones
        return product(rows, rows, onednn)
    gram = rows.new_empty(len(rows), len(rows))
    gram[:, :half] = product(rows, rows[:half], onednn)
    gram[half:, half:] = product(rows[half:], rows[half:], onednn)
    gram[:half, half:] = gram[half:, :half].T
    return gram


class _Linear(torch.autograd.Function):
    """Linear, and relu where wanted: ``x [R, in]`` of the products' dtype → ``[R, out]``; R = T·B rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool, onednn: bool, tape: Tape | None
    ) -> Tensor:
        w, b = weight.to(x.dtype), bias.to(x.dtype)
        if onednn:
            y = torch.ops.mkldnn._linear_pointwise(x, w, b, "relu" if relu else "none", [], "")
        else:
            y = F.linear(x, w, b)
            if relu:
                y.relu_()
        ctx.save_for_backward(x, w, y if relu else None)
        ctx.onednn, ctx.tape, ctx.keys, ctx.dtype = onednn, tape, (id(weight), id(bias)), weight.dtype
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        x, w, y = ctx.saved_tensors
        if y is not None:
            d = torch.ops.aten.threshold_backward(d, y, 0)
        dx = product(d, w.t(), ctx.onednn) if ctx.needs_input_grad[0] else None
        dw = db = None
        if ctx.needs_input_grad[1]:
            tape: Tape | None = ctx.tape
            if tape is None:
                dw = product(d.t(), x.t(), ctx.onednn).to(ctx.dtype)
                db = _sums(d, 0)
            else:
                factors = Factors(tape.split(x.detach()), tape.split(d), ctx.onednn)
                tape.put(ctx.keys[0], factors)
                tape.put(ctx.keys[1], _sums(factors.d, 1))
        return dx, dw, db, None, None, None


def _sums(d: Tensor, dim: int) -> Tensor:
    """Sums over rows: accumulated in float32 at least, rounded as the products are, returned as float32."""
    return d.sum(dim).to(torch.promote_types(d.dtype, torch.float32))


class _LayerNorm(torch.autograd.Function):
    """Layer norm (Ba et al. 2016, arXiv 1607.06450), and relu where wanted: ``[R, n]`` → the same, in its dtype."""

    EPS = 1e-5  # torch's default

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool, tape: Tape | None) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, _LayerNorm.EPS)
        if relu:
            y.relu_()
        ctx.save_for_backward(x, weight, bias, mean, rstd, y if relu else None)
        ctx.tape, ctx.keys = tape, (id(weight), id(bias))
        return y

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        x, weight, bias, mean, rstd, y = ctx.saved_tensors
        if y is not None:
            d = torch.ops.aten.threshold_backward(d, y, 0)
        tape: Tape | None = ctx.tape
        wanted = ctx.needs_input_grad[1]
        dx, dw, db = torch.ops.aten.native_layer_norm_backward(
            d, x, weight.shape, mean, rstd, weight, bias,
            [ctx.needs_input_grad[0], wanted and tape is None, wanted and tape is None],
        )  # fmt: skip
        if wanted and tape is not None:
            normal = (x - mean) * rstd
            tape.put(ctx.keys[0], _sums(tape.split(d * normal), 1))
            tape.put(ctx.keys[1], _sums(tape.split(d), 1))
            dw = db = None
        return dx, dw, db, None, None
