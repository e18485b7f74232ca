"""Chains of layers as one operation with its own backward pass, which keeps tasks apart.

A chain is linear → layer norm → relu, again and again, for all tasks' rows at once: ``R = T·B`` rows. What lies
between two products stays in their dtype, and is one pass over each row (:mod:`mtrl.fast.rows`).

In a backward pass a row's gradient is that of its own task's loss alone, because no other task's loss has
seen the row. So one pass over all rows holds every task's gradient: a linear layer's weight gradient is
``Σ_b d_b x_bᵀ``, over all rows the sum of the tasks, over one task's rows its own. :class:`Tape` keeps the
two factors, and nobody needs to hold T whole gradients at once. Source: Goodfellow 2015 (arXiv 1510.01799),
who has it per example and for norms; ours is per task and gives the Gramian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrl.fast import rows
from mtrl.layers import ACTIVATIONS, Layer, PlainLayers, layer_norm


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
    """What chains leave behind in a backward pass.

    Attributes:
        num_tasks: T; rows are T equal, consecutive parts. To be known before the backward pass.
        left: by the id of a shared parameter: :class:`Factors` of a matrix, rows ``[T, n]`` of a vector.
    """

    def __init__(self) -> None:
        self.num_tasks = 1
        self.left: dict[int, Factors | Tensor] = {}

    def put(self, parameter: Tensor, left: Factors | Tensor) -> None:
        if id(parameter) in self.left:
            raise ValueError("a shared parameter is used in two layers: agent.kernels = plain takes it")
        self.left[id(parameter)] = left


_tape: Tape | None = None


@contextmanager
def taped() -> Iterator[Tape]:
    """Chains called within give their shared parameters' gradients to this tape, not to autograd."""
    global _tape  # a network's forward, which may be a stranger's, has no argument to pass it through
    outer, _tape = _tape, Tape()
    try:
        yield _tape
    finally:
        _tape = outer


class Link(NamedTuple):
    """Linear, layer norm and relu, each where there is one."""

    weight: Tensor | None
    bias: Tensor | None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    relu: bool = False


@dataclass(frozen=True)
class Chains:
    """:class:`mtrl.layers.PlainLayers` in few operations, for rows ``[T, B, ·]`` of all tasks at once; not for vmap.

    Args:
        dtype: of the matrix products. In bfloat16 a layer norm's or relu's result that goes straight into the
            next product is rounded for it, and so is its gradient; nothing else is.
        onednn: oneDNN's products and compiled passes over rows, on a processor; else torch's.
    """

    dtype: torch.dtype = torch.float32
    onednn: bool = False

    def __call__(self, x: Tensor, layers: Sequence[Layer]) -> Tensor:
        """``[T, B, in]`` → ``[T, B, out]``; weights ``[out, in]``, or one per task ``[T, out, in]``."""
        links: list[Link] = []
        for weight, bias, gamma, beta, activation, mask in layers:
            own_norm = gamma is not None and gamma.dim() == 2
            if weight.dim() == 2 and mask is None and activation in (None, "relu") and not own_norm:
                links.append(Link(weight, bias, gamma, beta, activation == "relu"))
                continue
            if weight.dim() == 3:
                x = PlainLayers(self.dtype).linear(self._run(x, links), weight, bias)
            else:
                x = self._run(x, [*links, Link(weight, bias)])
            x = x if mask is None else x * mask
            if gamma is not None:
                x = layer_norm(x, gamma, beta) if own_norm else self._run(x, [Link(None, None, gamma, beta)])
            x = x if activation is None else ACTIVATIONS[activation](x)
            links = []
        return self._run(x, links)

    def _run(self, x: Tensor, links: Sequence[Link]) -> Tensor:
        if not links:
            return x
        narrow = x.dtype if self.dtype == torch.float32 else self.dtype
        how = How(narrow, x.dtype, self.onednn and narrow in rows.DTYPES and x.device.type == "cpu", _tape)
        tensors = [tensor for link in links for tensor in link[:4]]
        y: Tensor = _Chain.apply(how, [link.relu for link in links], x.flatten(0, -2), *tensors)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)


class How(NamedTuple):
    """How a chain is computed: the products' dtype, the results', whose operations, and who takes the gradients."""

    narrow: torch.dtype
    wide: torch.dtype
    onednn: bool
    tape: Tape | None


class _Chain(torch.autograd.Function):
    """``x [R, in]`` through the links → ``[R, out]``, both of the wide dtype."""

    @staticmethod
    def forward(ctx: Any, how: How, relus: list[bool], x: Tensor, *tensors: Tensor | None) -> Tensor:
        saved: list[Tensor | None] = []
        links = [Link(*tensors[4 * i : 4 * i + 4], relu) for i, relu in enumerate(relus)]  # type: ignore[call-arg,arg-type]
        for link in links:
            weight = entered = None
            if link.weight is not None:
                entered, weight = x.to(how.narrow), link.weight.to(how.narrow)
                bias = None if link.bias is None else link.bias.to(how.narrow)
                x = linear(entered, weight, bias, link.relu and link.gamma is None, how.onednn)
            before, mean, rstd = x, None, None
            if link.gamma is not None:
                # a result that goes straight into the next product is rounded for it, no other is
                before = x if link is not links[-1] else x.to(how.wide)
                x, mean, rstd = rows.norm_forward(before, link.gamma, link.beta, link.relu, how.onednn)
            saved += [entered, weight, before, x if link.relu else None, mean, rstd]
        ctx.save_for_backward(*saved, *(link.gamma for link in links))
        ctx.how, ctx.relus, ctx.parameters = how, relus, tensors
        return x.to(how.wide)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        how: How = ctx.how
        number, saved = len(ctx.relus), ctx.saved_tensors
        found: list[Tensor | None] = [None] * (4 * number)
        tasks = 1 if how.tape is None else how.tape.num_tasks

        def give(place: int, left: Factors | Tensor) -> None:
            """To the tape per task, or to autograd for all tasks."""
            if how.tape is not None:
                how.tape.put(ctx.parameters[place], left)
            else:
                found[place] = left[0] if isinstance(left, Tensor) else left.rows()[0]

        for i in reversed(range(number)):
            entered, weight, before, after, mean, rstd = saved[6 * i : 6 * i + 6]
            gamma = saved[6 * number + i]
            wanted = ctx.needs_input_grad[3 + 4 * i] or ctx.needs_input_grad[3 + 4 * i + 2]
            if gamma is not None:
                d = d.to(before.dtype)
                d, sums = rows.norm_backward(d, before, after, mean, rstd, gamma, tasks, wanted, how.onednn)
                if wanted:
                    give(4 * i + 2, sums[:, 0])
                    give(4 * i + 3, sums[:, 1])
            elif after is not None:
                d = torch.ops.aten.threshold_backward(d.to(after.dtype), after, 0)
            if weight is not None:
                d = d.to(how.narrow)
                if wanted:
                    by_task = d.view(tasks, -1, d.shape[-1])
                    if ctx.parameters[4 * i + 1] is not None:
                        bias = sums[:, 2] if gamma is not None else by_task.sum(1).to(how.wide)
                        give(4 * i + 1, bias)
                    if how.tape is None:
                        found[4 * i] = product(d.t(), entered.t(), how.onednn).to(how.wide)
                    else:
                        seen = entered.detach().view(tasks, -1, entered.shape[-1])
                        give(4 * i, Factors(seen, by_task, how.onednn))
                if i > 0 or ctx.needs_input_grad[2]:
                    d = product(d, weight.t(), how.onednn)
        return None, None, d.to(how.wide) if ctx.needs_input_grad[2] else None, *found


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, onednn: bool) -> Tensor:
    """``[m, k]`` → ``[m, n]``, with relu where wanted."""
    if onednn:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    else:
        y = F.linear(x, weight, bias)
    return y.relu_() if relu else y  # oneDNN's own relu makes 0 of what is not a number


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
