"""The fast path to per-task gradients: all tasks in one call, and each layer's factors instead of a Jacobian.

The loss is called once on the arguments of all tasks, and one backward pass of the losses' sum leaves at each
layer the factors of every task's gradient (:mod:`mtrl.fast.chain`). A Gramian is summed up layer by layer, and
the combined gradient is one product per layer, so that a large Jacobian is never held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mtrl.fast.chain import Factors, gramian, taped
from mtrl.networks import Parameters

Rows = dict[str, Tensor]  # the Jacobian, [T, *shape] per shared parameter
MOST_KEPT = 2**28  # bytes of a Jacobian that are held between its Gramian and its combination


@dataclass(frozen=True)
class FactoredRows:
    """Per-task gradients of which a matrix's rows are made when needed, one layer at a time.

    A Gramian needs no rows of a matrix whose batch is small (:attr:`Factors.few`). It keeps those that it had to
    make while the Jacobian is small (:data:`MOST_KEPT`), because to combine them is ten times less work than to make
    their combination from the factors. Vectors are short and many: their rows are one matrix.

    In bfloat16 products each layer's part of a Gramian is rounded: docs/optimizers.md tells who minds.

    Args:
        shapes: of the shared parameters by name, in their order; what the losses do not depend on has gradient zero.
        matrices: :class:`Factors` by name.
        vectors: rows ``[T, n]`` by name.
    """

    shapes: dict[str, torch.Size]
    matrices: dict[str, Factors]
    vectors: dict[str, Tensor]
    private: dict[str, Tensor]
    losses: Tensor
    aux: Any
    kept: Rows = field(default_factory=dict)

    def rows(self) -> Rows:
        matrices = {name: self._rows(name).to(self.losses.dtype) for name in self.matrices}
        return self._of_all(self.vectors | matrices, len(self.losses))

    def gramian(self) -> Tensor:
        grams, size = [self.losses.new_zeros(len(self.losses), len(self.losses))], 0
        for name, factors in self.matrices.items():
            if factors.few:
                grams.append(factors.gramian().to(self.losses.dtype))
                continue
            rows = self._rows(name)
            size += rows.nbytes
            if size <= MOST_KEPT:
                self.kept[name] = rows
            grams.append(gramian(rows.flatten(1), factors.onednn).to(self.losses.dtype))
        if self.vectors:
            grams.append(gramian(self._short, onednn=False))
        return torch.stack(grams).sum(0)

    def combine(self, weights: Tensor) -> dict[str, Tensor]:
        combined = {}
        if self.vectors:
            sizes = [rows.shape[1] for rows in self.vectors.values()]
            combined = dict(zip(self.vectors, torch.split(weights @ self._short, sizes), strict=True))
        for name, factors in self.matrices.items():
            if name in self.kept:
                rows = self.kept[name]
                matrix = (weights.to(rows.dtype) @ rows.flatten(1)).view(rows.shape[1:])
            else:
                matrix = factors.weighted(weights)
            combined[name] = matrix.to(self.losses.dtype)
        return self._of_all(combined)

    @cached_property
    def _short(self) -> Tensor:
        return torch.cat(list(self.vectors.values()), 1)

    def _rows(self, name: str) -> Tensor:
        return self.kept[name] if name in self.kept else self.matrices[name].rows()

    def _of_all(self, found: dict[str, Tensor], *tasks: int) -> dict[str, Tensor]:
        return {
            name: found[name] if name in found else self.losses.new_zeros(*tasks, *shape)
            for name, shape in self.shapes.items()
        }


def all_at_once(function: Callable[..., Any], *args: Any) -> Any:
    """Call a one-task function, each of whose operations acts on the last axes alone, for every task at once.

    Raises:
        ValueError: the function is not such a one, its result has lost the task axis.
    """
    result = function(*args)
    if (result[0] if isinstance(result, tuple) else result).dim() == 0:
        raise ValueError(f"{function} reduces over the task axis, so it needs vmap: agent.kernels = plain")
    return result


def factored_gradients(
    loss: Callable[..., tuple[Tensor, Any]], params: Parameters, *inputs: Any
) -> FactoredRows:
    """Every task's own gradient by one backward pass, for networks that :class:`mtrl.fast.chain.Chains` run.

    Raises:
        ValueError: a shared parameter is used by something else than a layer.
    """
    with taped() as tape:
        losses, aux = all_at_once(loss, params, *inputs)
    tape.num_tasks = len(losses)
    names, tensors = zip(*params.tensors(), strict=True)
    grads = dict(zip(names, torch.autograd.grad(losses.sum(), tensors, allow_unused=True), strict=True))
    for name in params.shared:
        if grads[name] is not None:
            raise ValueError(
                f"{name} is used outside of its network's layers: agent.kernels = plain takes it"
            )
    left = {name: tape.left[id(p)] for name, p in params.shared.items() if id(p) in tape.left}
    matrices = {name: part for name, part in left.items() if isinstance(part, Factors)}
    vectors = {name: part for name, part in left.items() if isinstance(part, Tensor)}
    private = {
        name: torch.zeros_like(p) if grads[name] is None else grads[name]
        for name, p in params.private.items()
    }
    shapes = {name: p.shape for name, p in params.shared.items()}
    return FactoredRows(shapes, matrices, vectors, private, losses.detach(), detached(aux))


def detached(aux: Any) -> Any:
    """Every tensor in a nest of tuples and dictionaries, without its graph."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, aux)
