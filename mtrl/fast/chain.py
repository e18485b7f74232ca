"""Chains of layers as one operation with its own backward pass, which keeps tasks apart.

A chain is linear → layer norm → relu, again and again, for all tasks' rows at once: ``R = T·B`` rows. What lies
between two products stays in their dtype, and is one pass over each row (:mod:`mtrl.fast.rows`). Chains of one shape
that run next to each other (twin critics, experts, or one layer of each task's own) are G *groups* of one chain:
``x [G, R, in]``, weights ``[G, out, in]``, one batched product for all.

In a backward pass a row's gradient is that of its own task's loss alone, because no other task's loss has
seen the row. So one pass over all rows holds every task's gradient: a linear layer's weight gradient is
``Σ_b d_b x_bᵀ``, over all rows the sum of the tasks, over one task's rows its own. :class:`Tape` keeps the
two factors, and nobody needs to hold T whole gradients at once. Source: Goodfellow 2015 (arXiv 1510.01799),
who has it per example and for norms; ours is per task and gives the Gramian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrl.fast import rows
from mtrl.fast.casts import Casts
from mtrl.layers import ACTIVATIONS, Layer, PlainLayers, affine


class Factors(NamedTuple):
    """What one linear layer saw, of which its weight's per-task gradients are products.

    Attributes:
        x: inputs ``[T, B, in]``.
        d: gradients of the tasks' losses by the outputs ``[T, B, out]``, of the same dtype.
        onednn, mkl: whose float32 products to use (:class:`Chains`); a Gramian's, of few long rows, are oneDNN's.
    """

    x: Tensor
    d: Tensor
    onednn: bool = False
    mkl: bool = False

    def rows(self) -> Tensor:
        """Per-task gradients of the weight, ``[T, out, in]``."""
        return torch.bmm(self.d.mT, self.x)

    @property
    def few(self) -> bool:
        """Whether the inner products of all pairs of rows are fewer numbers than the tasks' gradients.

        Then :meth:`gramian` is quicker where products cost less than memory, as in bfloat16; with float32 it is not.
        """
        tasks, rows, n = self.d.shape
        return self.x.dtype == torch.bfloat16 and 2 * tasks * rows**2 < n * self.x.shape[-1]

    def gramian(self) -> Tensor:
        """``J Jᵀ`` ``[T, T]``: of tasks t and s ``Σ_bc (x_tb · x_sc) (d_tb · d_sc)``, so that no gradient is made."""
        sums, rows = torch.promote_types(self.x.dtype, torch.float32), self.x.shape[1]

        def block(first: slice, second: slice) -> Tensor:
            inner = [
                product(tensor[first].flatten(0, 1)[None], tensor[second].flatten(0, 1)[None], self.onednn)[0]
                for tensor in (self.x, self.d)
            ]
            pairs = inner[0] * inner[1]
            return pairs.view(len(pairs) // rows, rows, -1, rows).sum((1, 3), dtype=sums)

        return symmetric(len(self.x), block)

    def weighted(self, weights: Tensor) -> Tensor:
        """``Σ_t w_t · row_t`` of the weight, ``[out, in]``, in one product."""
        scaled = (self.d * weights.view(-1, 1, 1)).to(self.d.dtype)
        onednn = self.onednn and not self.mkl
        return product(scaled.flatten(0, 1).mT[None], self.x.flatten(0, 1).mT[None], onednn)[0]


class Tape:
    """What chains leave for later in a backward pass.

    Attributes:
        num_tasks: T; a group's rows are T equal, consecutive parts. To be known before the backward pass.
        left: by the id of a shared parameter: :class:`Factors` of a matrix, rows ``[T, n]`` of a vector.
    """

    def __init__(self) -> None:
        self.num_tasks = 1
        self.left: dict[int, Factors | Tensor] = {}

    def put(self, parameter: Tensor, left: Factors | Tensor) -> None:
        if not parameter.is_leaf:
            raise ValueError("a layer's weight is computed from parameters: agent.kernels = plain takes it")
        if id(parameter) in self.left:
            raise ValueError("a shared parameter is used in two layers: agent.kernels = plain takes it")
        self.left[id(parameter)] = left


# a network's forward, which may be a stranger's, has no argument to pass a tape through; each thread has its own
_tape: ContextVar[Tape | None] = ContextVar("tape", default=None)


@contextmanager
def taped() -> Iterator[Tape]:
    """Chains called within give their shared parameters' gradients to this tape, not to autograd."""
    tape = Tape()
    outer = _tape.set(tape)
    try:
        yield tape
    finally:
        _tape.reset(outer)


class Link(NamedTuple):
    """Linear, layer norm and relu, each where there is one; all shared, or all or the norm of each task's own."""

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
            next product is rounded for it, and so is its gradient; nothing else is. With an odd number of inputs,
            what is not finite in a row may reach the row before it, too (oneDNN on processors with AMX).
        onednn: oneDNN's products and compiled passes over rows, on a processor; else torch's.
        mkl: float32 products are torch's own nevertheless, which can be batched (:func:`mtrl.machine.mkl_is_fast`).
        traced: a graph is made of the operations, whose compiler makes the passes (:mod:`mtrl.fast.graphs`).
        casts: the buffers that parameters lie in.
    """

    dtype: torch.dtype = torch.float32
    onednn: bool = False
    mkl: bool = False
    traced: bool = False
    casts: Casts = field(default_factory=Casts)

    @property
    def grouped(self) -> bool:
        """oneDNN has no batched product in float32."""
        return self.mkl or not (self.onednn and self.dtype == torch.float32)

    def __call__(self, x: Tensor, layers: Sequence[Layer]) -> Tensor:
        """``[T, B, in]`` → ``[T, B, out]``; weights ``[out, in]``, or one per task ``[T, out, in]``."""
        chain: list[Link] = []
        per_task = False
        for layer in layers:
            weight, bias, gamma, beta, activation, mask, _ = layer
            if chain and per_task != (weight.dim() == 3):
                x, chain = self._run(x, [chain], per_task), []
            per_task = weight.dim() == 3
            if fits(layer):
                chain.append(Link(weight, bias, gamma, beta, activation == "relu"))
                continue
            x, chain = self._run(x, [[*chain, Link(weight, bias)]], per_task), []
            x = x if mask is None else x * mask
            if gamma is not None:
                x = self._run(x, [[Link(None, None, gamma, beta)]]) if layer.norm else affine(x, gamma, beta)
            x = x if activation is None else ACTIVATIONS[activation](x)
        return self._run(x, [chain], per_task) if chain else x

    def each(self, x: Tensor, stacks: Sequence[Sequence[Layer]], own: bool = False) -> Tensor:
        """K stacks of layers on the same ``x``, or each on its ``own x [K, T, B, in]``: ``[K, T, B, out]``."""
        slow = not self.grouped and self._narrow(x) == torch.float32
        if slow or len(stacks) == 1 or not alike(stacks):
            return torch.stack([self(x[k] if own else x, layers) for k, layers in enumerate(stacks)])
        links = [[Link(*layer[:4], layer.activation == "relu") for layer in layers] for layers in stacks]
        return self._run(x, links, stacks[0][0].weight.dim() == 3, own)

    def mixture(self, shares: Tensor, parts: Tensor) -> Tensor:
        """``Σ_k shares_k parts_k``: shares ``[..., K]``, parts ``[K, ..., n]`` → ``[..., n]``."""
        if not (self.onednn and parts.dtype == torch.float32 and parts.device.type == "cpu"):
            return PlainLayers().mixture(shares, parts)
        count, *shape, n = parts.shape
        flat = shares.expand(*shape, count).reshape(-1, count), parts.reshape(count, -1, n)
        mixed: Tensor = rows.Mixture.apply(*flat)  # type: ignore[no-untyped-call]
        return mixed.view(*shape, n)

    def _narrow(self, x: Tensor) -> torch.dtype:
        return x.dtype if self.dtype == torch.float32 else self.dtype

    def _run(
        self, x: Tensor, stacks: Sequence[Sequence[Link]], per_task: bool = False, own: bool = False
    ) -> Tensor:
        """``[T, B, out]`` of one stack, ``[K, T, B, out]`` of more; with ``per_task``, weights are each task's own."""
        count, narrow = len(stacks), self._narrow(x)
        compiled = (
            self.onednn and narrow in rows.DTYPES and x.dtype == torch.float32 and x.device.type == "cpu"
        )
        onednn = compiled and not (self.mkl and narrow == torch.float32)
        tape, relus = None if per_task else _tape.get(), [link.relu for link in stacks[0]]
        how = How(narrow, x.dtype, compiled, onednn, self.traced, tape, self.casts, count, per_task, relus)
        links = zip(*stacks, strict=True)
        tensors = [link[slot] for same in links for slot in range(4) for link in same]
        shape = x.shape[1:-1] if own else x.shape[:-1]
        if not per_task:  # a group is a stack
            x = x.flatten(1, -2) if own else x.flatten(0, -2).unsqueeze(0)
        elif count > 1:  # a group is a stack of one task
            x = (x if own else x.expand(count, *x.shape)).flatten(0, 1)
        y: Tensor = _Chain.apply(how, x, *tensors)  # type: ignore[no-untyped-call]
        return y.view(*shape, -1) if count == 1 else y.view(count, *shape, -1)


def fits(layer: Layer) -> bool:
    """Whether a layer is a link: no mask, relu or nothing, and no shared norm of what is each task's own."""
    norm = layer.gamma is None or (layer.norm and layer.gamma.dim() >= layer.weight.dim() - 1)
    return layer.mask is None and layer.activation in (None, "relu") and norm


def alike(stacks: Sequence[Sequence[Layer]]) -> bool:
    """Whether stacks of the same widths can be the groups of one chain."""
    first, *others = stacks
    same = all(
        (layer.activation, layer.mask, layer.norm) == (one.activation, None, one.norm)
        and shapes(layer) == shapes(one)
        for stack in others
        for layer, one in zip(stack, first, strict=True)
    )
    return same and all(map(fits, first)) and len({layer.weight.dim() for layer in first}) == 1


def shapes(layer: Layer) -> list[torch.Size | None]:
    return [None if tensor is None else tensor.shape for tensor in layer[:4]]


class How(NamedTuple):
    """How a chain is computed: the products' dtype, the results', whose passes and products; who takes the gradients.

    ``stacks`` is their number; each gives every slot of a link (weight, bias, gamma, beta) one tensor, which
    with ``per_task`` is one of each task's own, stacked.
    """

    narrow: torch.dtype
    wide: torch.dtype
    compiled: bool
    onednn: bool
    traced: bool
    tape: Tape | None
    casts: Casts
    stacks: int
    per_task: bool
    relus: list[bool]


class _Chain(torch.autograd.Function):
    """``x [G, R, in]``, or ``[1, R, in]`` for every group → ``[G, R, out]``, both of the wide dtype."""

    @staticmethod
    def forward(ctx: Any, how: How, x: Tensor, *tensors: Tensor | None) -> Tensor:
        def slot(place: int, dtype: torch.dtype) -> Tensor | None:
            """``[G, ...]`` of the K stacks' tensors; ``[G·T, ...]`` of a norm that each task has its own of."""
            found = tensors[place * how.stacks : (place + 1) * how.stacks]
            if found[0] is None:
                return None
            stacked = how.casts.stacked(found, dtype)  # type: ignore[arg-type]
            own = how.per_task or (place % 4 > 1 and found[0].dim() == 2)
            return stacked.flatten(0, 1) if own else stacked

        saved: list[Tensor | None] = []
        number = len(how.relus)
        for i, relu in enumerate(how.relus):
            weight = slot(4 * i, how.narrow)
            gamma, beta = slot(4 * i + 2, how.wide), slot(4 * i + 3, how.wide)
            # the pass over rows adds a bias that the product would take as a matrix
            later = weight is not None and gamma is not None and (len(weight) > 1 or how.traced)
            bias = slot(4 * i + 1, how.wide if later else how.narrow)
            entered = None
            if weight is not None:
                entered = x.to(how.narrow)
                x = linear(entered, weight, None if later else bias, relu and gamma is None, how.onednn)
            before, mean, rstd = x, None, None
            if gamma is not None:
                assert beta is not None
                # a result that goes straight into the next product is rounded for it, no other is
                before = x if i + 1 < number else x.to(how.wide)
                x, mean, rstd = rows.norm_forward(
                    before, bias if later else None, gamma, beta, relu, how.compiled
                )
            saved += [
                entered,
                weight,
                before,
                bias if later else None,
                x if relu else None,
                mean,
                rstd,
                gamma,
            ]
        ctx.save_for_backward(*saved)
        ctx.how, ctx.parameters = how, tensors
        x = x.to(how.wide)
        return x.clone() if x._is_view() else x  # who gets it may change it in place

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        how: How = ctx.how
        count, saved = how.stacks, ctx.saved_tensors
        found: list[Tensor | None] = [None] * len(ctx.parameters)
        tasks = 1 if how.tape is None else how.tape.num_tasks

        def give(place: int, left: Sequence[Factors] | Tensor, own: bool = False) -> None:
            """Each group's: to the tape per task, or to autograd, as what is each task's ``own`` always is."""
            start, end = place * count, (place + 1) * count
            if how.tape is not None and not own:
                for parameter, part in zip(ctx.parameters[start:end], left, strict=True):
                    how.tape.put(parameter, part)
            else:
                assert isinstance(left, Tensor)
                shape = ctx.parameters[start].shape
                found[start:end] = left.to(how.wide).reshape(count, *shape).unbind(0)

        for i in reversed(range(len(how.relus))):
            entered, weight, before, shift, after, mean, rstd, gamma = saved[8 * i : 8 * i + 8]
            places = [2 + (4 * i + slot) * count for slot in range(4)]
            of_weight, of_bias, of_gamma, of_beta = (any(ctx.needs_input_grad[p : p + count]) for p in places)
            if gamma is not None:
                wanted = of_bias or of_gamma or of_beta
                d = d.to(before.dtype)
                d, sums = rows.norm_backward(
                    d, before, shift, after, mean, rstd, gamma, tasks, wanted, how.compiled
                )
                own = not how.per_task and ctx.parameters[(4 * i + 2) * count].dim() == 2
                if of_gamma:
                    give(4 * i + 2, sums[:, :, 0], own)
                if of_beta:
                    give(4 * i + 3, sums[:, :, 1], own)
            elif after is not None:
                d = torch.ops.aten.threshold_backward(d.to(after.dtype), after, 0)
            if weight is None:
                continue
            d = d.to(how.narrow)
            by_task = d.view(len(d), tasks, -1, d.shape[-1])
            if of_bias:
                to_bias = by_task.sum(2).to(how.wide) if gamma is None else sums[:, :, 2]
                # a norm of each task's own sums by task, whoever takes the gradients
                give(4 * i + 1, to_bias if tasks == to_bias.shape[1] else to_bias.sum(1, keepdim=True))
            if of_weight:
                seen = entered.detach().expand(len(d), -1, -1)
                if how.tape is None:
                    give(4 * i, product(d.mT, seen.mT, how.onednn))
                else:
                    both = zip(seen.unflatten(1, (tasks, -1)), by_task, strict=True)
                    mkl = how.compiled and not how.onednn
                    give(4 * i, [Factors(x, own, how.compiled, mkl) for x, own in both])
            if i > 0 or ctx.needs_input_grad[1]:
                d = product(d, weight.mT, how.onednn)
                if len(entered) < len(d):  # one input for all groups
                    d = d.sum(0, keepdim=True, dtype=how.wide)
        return None, d.to(how.wide) if ctx.needs_input_grad[1] else None, *found


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, onednn: bool) -> Tensor:
    """``[G or 1, R, k]`` by ``[G, n, k]`` → ``[G, R, n]``, with relu where wanted."""
    if len(weight) > 1:
        x = x.expand(len(weight), -1, -1)
        y = torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
    else:
        first = None if bias is None else bias[0]
        if onednn:
            y = torch.ops.mkldnn._linear_pointwise(x[0], weight[0], first, "none", [], "").unsqueeze(0)
        else:
            y = F.linear(x[0], weight[0], first).unsqueeze(0)
    return y.relu_() if relu else y  # oneDNN's own relu makes 0 of what is not a number


def product(a: Tensor, b: Tensor, onednn: bool) -> Tensor:
    """``a @ b.T`` of each group, ``[G, m, k]`` and ``[G, n, k]`` → ``[G, m, n]``."""
    if len(a) > 1:
        return torch.bmm(a, b.mT)
    # in bfloat16 torch's own products go to oneDNN, by a quicker way for transposed arguments
    if onednn and a.dtype == torch.float32:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(a[0], b[0], None, "none", [], "")
    else:
        result = a[0] @ b[0].t()
    return result.unsqueeze(0)


def gramian(rows: Tensor, onednn: bool) -> Tensor:
    """``J Jᵀ`` ``[T, T]`` of rows ``[T, n]``."""
    return symmetric(
        len(rows), lambda first, second: product(rows[None, first], rows[None, second], onednn)[0]
    )


def symmetric(size: int, block: Callable[[slice, slice], Tensor]) -> Tensor:
    """A matrix ``[size, size]`` of its blocks, of which the one above the diagonal is not computed."""
    half = size // 2
    if half < 10:  # below about 20 one product is quicker than two smaller ones
        return block(slice(size), slice(size))
    left, corner = block(slice(size), slice(half)), block(slice(half, size), slice(half, size))
    return torch.cat((left, torch.cat((left[half:].T, corner))), 1)
