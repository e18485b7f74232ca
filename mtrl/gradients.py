"""From a one-task loss to one gradient: the two orders of *mean* and *gradient*.

::

    scalarization    :  grad( Σ_t w_t · vmap(loss)_t )     -> one gradient          [P]
    gradient methods :  vmap( grad(loss) )                 -> one row per task   [T, P]

:data:`PLAIN` computes them as they are written. :data:`FACTORED` is the fast path to the same numbers
(:mod:`mtrl.fast.factored`).

A one-task loss is ``loss(params, *inputs) -> (scalar, aux)``. It sees one task: its slice of the
private parameters, its rows of the batch, its noise. Every input has the task as its first axis,
except another network's :class:`Parameters`, whose shared part is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

from mtrl.fast.factored import Rows, all_at_once, detached, factored_gradients
from mtrl.networks import Parameters
from mtrl.optimizers import GramianMethod, MultiTaskOptimizer, RowMethod, Scalarization, of_present

Loss = Callable[..., tuple[Tensor, Any]]


class Gradient(NamedTuple):
    """What an update needs of one network.

    Attributes:
        params: the gradient to step along: shared (combined), private (own task's over T).
        losses: ``[T]``, detached.
        weights: ``[T]`` given to the tasks' gradients; NaN where a method acts on coordinates.
        aux: what the loss returned with its value, stacked ``[T, ...]``.
        finite: ``[T]`` bool, whether the task's loss (and gradient, where computed) is finite.
    """

    params: Parameters
    losses: Tensor
    weights: Tensor
    aux: Any
    finite: Tensor


def in_dims(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """vmap's ``in_dims``: a network's shared part is not mapped, everything else is, over axis 0."""

    def of(arg: Any) -> Any:
        if isinstance(arg, Parameters):
            return Parameters(None, 0)  # type: ignore[arg-type]
        return tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, arg)

    return tuple(of(arg) for arg in args)


class TaskGradients(Protocol):
    """The tasks' own gradients, in whatever form.

    Attributes:
        private: gradients ``[T, ...]`` of the private parameters; a row is that of its own task.
        losses: ``[T]``.
        aux: what the loss returned with its value, stacked ``[T, ...]``.
    """

    @property
    def private(self) -> dict[str, Tensor]: ...
    @property
    def losses(self) -> Tensor: ...
    @property
    def aux(self) -> Any: ...

    def rows(self) -> Rows:
        """The Jacobian of the shared parameters."""

    def gramian(self) -> Tensor:
        """``J Jᵀ`` ``[T, T]``, layer by layer."""

    def combine(self, weights: Tensor) -> dict[str, Tensor]:
        """``Σ_t w_t · row_t`` for each shared parameter; weights ``[T]``."""


@dataclass(frozen=True)
class WholeRows:
    """:class:`TaskGradients` that hold the Jacobian."""

    shared: Rows
    private: dict[str, Tensor]
    losses: Tensor
    aux: Any

    def rows(self) -> Rows:
        return self.shared

    def gramian(self) -> Tensor:
        none = self.losses.new_zeros(len(self.losses), len(self.losses))
        return torch.stack([none, *(rows @ rows.T for rows in map(flat, self.shared.values()))]).sum(0)

    def combine(self, weights: Tensor) -> dict[str, Tensor]:
        return {name: (weights @ flat(row)).view(row.shape[1:]) for name, row in self.shared.items()}


def over_tasks(function: Callable[..., Any], *args: Any) -> Any:
    """Call a one-task function for every task at once; results are stacked ``[T, ...]``."""
    return vmap(function, in_dims=in_dims(args))(*args)


def agrees_at_once(function: Callable[..., Any], *args: Any) -> bool:
    """Whether a one-task function gives for all tasks at once, as the fast path calls it, what it gives for each."""
    try:
        results = (tree_leaves(call(function, *args)) for call in (over_tasks, all_at_once))
        return all(
            one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4)
            for one, other in zip(*results, strict=True)
        )
    except (RuntimeError, ValueError):  # shapes that do not go together
        return False


def per_task_gradients(loss: Loss, params: Parameters, *inputs: Any) -> WholeRows:
    """Every task's own gradient by ``vmap(grad(loss))``."""
    with torch.no_grad():  # the inner grad records what it needs; nothing outside shall
        rows, (losses, aux) = over_tasks(grad_and_value(loss, has_aux=True), params, *inputs)
    return WholeRows(rows.shared, rows.private, losses, aux)


def per_task_gradients_by_loop(loss: Loss, params: Parameters, *inputs: Any) -> WholeRows:
    """The same by T backward passes over one graph: the classic way, kept to compare with."""
    losses, aux = over_tasks(loss, params, *inputs)
    shared, private = list(params.shared.values()), list(params.private.values())
    rows = []
    for t in range(len(losses)):
        grads = torch.autograd.grad(losses[t], shared + private, retain_graph=True, materialize_grads=True)
        rows.append([*grads[: len(shared)], *(g[t] for g in grads[len(shared) :])])
    stacked = [torch.stack(column) for column in zip(*rows, strict=True)]
    return WholeRows(
        dict(zip(params.shared, stacked[: len(shared)], strict=True)),
        dict(zip(params.private, stacked[len(shared) :], strict=True)),
        losses.detach(), detached(aux),
    )  # fmt: skip


class Weighted(NamedTuple):
    """The gradient of ``Σ_t w_t loss_t``, by parameter name, and what it was made of, detached."""

    grads: dict[str, Tensor]
    losses: Tensor
    weights: Tensor
    aux: Any


class Path(Protocol):
    """One way to compute the two orders."""

    @property
    def over_tasks(self) -> Callable[..., Any]:
        """Calls a one-task function for every task."""

    @property
    def per_task(self) -> Callable[..., TaskGradients]:
        """Every task's own gradient."""

    @property
    def eager(self) -> EagerPath:
        """The same, without graphs that have to be compiled: for what is seldom called."""

    def with_gramian(self, loss: Loss, params: Parameters, *inputs: Any) -> tuple[TaskGradients, Tensor]:
        """:attr:`per_task` and the Gramian ``[T, T]``."""

    def combine(self, tasks: TaskGradients, weights: Tensor) -> dict[str, Tensor]:
        """``Σ_t w_t · row_t`` of what :meth:`with_gramian` gave."""

    def weighted(
        self, optimizer: Scalarization, present: Tensor | None, loss: Loss, params: Parameters, *inputs: Any
    ) -> Weighted:
        """One backward pass of the losses' sum, weighted by the optimizer."""


@dataclass(frozen=True)
class EagerPath:
    """Of two functions: see :class:`Path`."""

    over_tasks: Callable[..., Any]
    per_task: Callable[..., TaskGradients]

    def with_gramian(self, loss: Loss, params: Parameters, *inputs: Any) -> tuple[TaskGradients, Tensor]:
        tasks = self.per_task(loss, params, *inputs)
        return tasks, tasks.gramian()

    def combine(self, tasks: TaskGradients, weights: Tensor) -> dict[str, Tensor]:
        return tasks.combine(weights)

    def weighted(
        self, optimizer: Scalarization, present: Tensor | None, loss: Loss, params: Parameters, *inputs: Any
    ) -> Weighted:
        losses, aux = self.over_tasks(loss, params, *inputs)
        weights = of_present(optimizer, losses.detach(), present)
        return weighted_gradient(weights, losses, aux, params)

    @property
    def eager(self) -> EagerPath:
        return self


def weighted_gradient(weights: Tensor, losses: Tensor, aux: Any, params: Parameters) -> Weighted:
    """Of losses ``[T]`` with a history, and weights ``[T]`` without."""
    names, tensors = zip(*params.tensors(), strict=True)
    found = torch.autograd.grad((weights * losses).sum(), tensors, materialize_grads=True)
    return Weighted(dict(zip(names, found, strict=True)), losses.detach(), weights, detached(aux))


PLAIN = EagerPath(over_tasks, per_task_gradients)
BY_LOOP = EagerPath(over_tasks, per_task_gradients_by_loop)
FACTORED = EagerPath(all_at_once, factored_gradients)


def jacobian(rows: Rows) -> Tensor:
    """The rows as one matrix ``[T, P]``."""
    return torch.cat([flat(row) for row in rows.values()], dim=1)


def flat(rows: Tensor) -> Tensor:
    """``[T, *shape]`` → ``[T, n]``; a number per task is ``[T, 1]``."""
    return rows.reshape(len(rows), -1)


def as_parameters(vector: Tensor, rows: Rows) -> dict[str, Tensor]:
    """A combination ``[P]`` cut up into the parameters that :func:`jacobian` put together."""
    parts = torch.split(vector, [row[0].numel() for row in rows.values()])
    return {name: part.view(row.shape[1:]) for (name, row), part in zip(rows.items(), parts, strict=True)}


def multitask_gradient(
    optimizer: MultiTaskOptimizer, loss: Loss, params: Parameters, *inputs: Any,
    present: Tensor | None = None, path: Path = PLAIN,
) -> Gradient:  # fmt: skip
    """The one gradient that a multi-task optimizer makes of all tasks' losses.

    Args:
        optimizer: its kind decides what is computed: a weighted loss, a Gramian, or rows.
        loss: for one task.
        params: what to differentiate by. Private ones never enter the combination: theirs is their own
            task's gradient over T, or times its weight under a scalarization, which weights the whole loss.
        inputs: of the loss, task axis first.
        present: ``[T]`` bool, False for tasks that the batch has no row of; None is all present.
        path: how; :data:`FACTORED` needs networks of fused kernels.
    """
    if isinstance(optimizer, Scalarization):
        return _scalarized(optimizer, path, loss, params, inputs, present)
    if isinstance(optimizer, GramianMethod):
        tasks, gram = path.with_gramian(loss, params, *inputs)
        losses = tasks.losses
        weights = of_present(optimizer, gram, present)
        shared = path.combine(tasks, weights)
        finite = gram.diagonal().isfinite() & losses.isfinite()
    else:
        assert isinstance(optimizer, RowMethod)
        tasks = path.per_task(loss, params, *inputs)
        losses = tasks.losses
        rows = tasks.rows()
        matrix = jacobian(rows) if rows else losses.new_zeros(len(losses), 0)
        shared = as_parameters(of_present(optimizer, matrix, present), rows)
        weights = torch.full_like(losses, torch.nan)
        finite = matrix.square().sum(1).isfinite() & losses.isfinite()
    share = task_share(losses, present)
    private = {k: row * share.view(-1, *(1,) * (row.dim() - 1)) for k, row in tasks.private.items()}
    return Gradient(Parameters(shared, private), losses, weights, tasks.aux, finite)


def task_share(losses: Tensor, present: Tensor | None) -> Tensor:
    """``[T]``: 1/T each; with absent tasks 1/(number present), and 0 for the absent."""
    if present is None:
        return torch.full_like(losses, 1 / len(losses))
    return present.to(losses.dtype) / present.sum().clamp(min=1)


def _scalarized(
    optimizer: Scalarization, path: Path, loss: Loss, params: Parameters, inputs: tuple[Any, ...],
    present: Tensor | None,
) -> Gradient:  # fmt: skip
    grads, losses, weights, aux = path.weighted(optimizer, present, loss, params, *inputs)
    gradient = Parameters({k: grads[k] for k in params.shared}, {k: grads[k] for k in params.private})
    return Gradient(gradient, losses, weights, aux, losses.isfinite())
