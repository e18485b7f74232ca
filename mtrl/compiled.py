"""The two orders of *mean* and *gradient* as graphs (:mod:`mtrl.fast.graphs`) of the functions that compute them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtrl.fast.graphs import Graphs, Traced
from mtrl.gradients import EagerPath, Loss, TaskGradients, Weighted, weighted_gradient
from mtrl.optimizers import Scalarization, of_present
from mtrl.parameters import Parameters


@dataclass(frozen=True)
class CompiledPath:
    """A :class:`mtrl.gradients.Path` whose functions run as graphs.

    Args:
        eager: what is traced.
    """

    eager: EagerPath
    graphs: Graphs = field(default_factory=Graphs)

    def over_tasks(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.graphs(Traced(self.eager.over_tasks, (function,)), *args)

    def per_task(self, loss: Loss, params: Parameters, *inputs: Any) -> TaskGradients:
        tasks: TaskGradients = self.graphs(Traced(per_task, (self.eager, loss)), params, *inputs)
        return tasks

    def with_gramian(self, loss: Loss, params: Parameters, *inputs: Any) -> tuple[TaskGradients, Tensor]:
        found: tuple[TaskGradients, Tensor] = self.graphs(
            Traced(with_gramian, (self.eager, loss)), params, *inputs
        )
        return found

    def combine(self, tasks: TaskGradients, weights: Tensor) -> dict[str, Tensor]:
        combined: dict[str, Tensor] = self.graphs(Traced(self.eager.combine, ()), tasks, weights)
        return combined

    def weighted(
        self, optimizer: Scalarization, present: Tensor | None, loss: Loss, params: Parameters, *inputs: Any
    ) -> Weighted:
        """Losses that the weights depend on take a forward pass of their own."""
        if optimizer.reads_losses:
            with torch.no_grad():
                losses = self.over_tasks(loss, params, *inputs)[0]
        else:
            losses = next(tensor for _, tensor in params.tensors()).new_ones(optimizer.num_tasks)
        weights = of_present(optimizer, losses, present)
        found: Weighted = self.graphs(Traced(weighted, (self.eager, loss)), weights, params, *inputs)
        return found


def per_task(path: EagerPath, loss: Loss, params: Parameters, *inputs: Any) -> TaskGradients:
    """:attr:`Path.per_task` by parameters that are leaves of the graph."""
    return path.per_task(loss, leaves(params), *inputs)


def with_gramian(
    path: EagerPath, loss: Loss, params: Parameters, *inputs: Any
) -> tuple[TaskGradients, Tensor]:
    """:meth:`Path.with_gramian` likewise: also ``[T, T]``."""
    return path.with_gramian(loss, leaves(params), *inputs)


def weighted(path: EagerPath, loss: Loss, weights: Tensor, params: Parameters, *inputs: Any) -> Weighted:
    """:meth:`Path.weighted` with weights ``[T]`` that are known before the losses."""
    params = leaves(params)
    losses, aux = path.over_tasks(loss, params, *inputs)
    return weighted_gradient(weights, losses, aux, params)


def leaves(params: Parameters) -> Parameters:
    """The same numbers, to differentiate by."""
    return params.map(lambda tensor: tensor.detach().requires_grad_())
