"""A network's parameters, shared and private, and how a network is called with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound="TaskModule")


class TaskModule(nn.Module):
    """A module written for one task, some of whose parameters every task has its own of."""

    @property
    def private(self) -> frozenset[str]:
        """Names of the parameters of which each task has its own."""
        return frozenset()

    @cached_property
    def slots(self) -> dict[str, tuple[dict[str, Any], str]]:
        """By parameter name the dictionary that holds it, and its key there."""
        owners = {name: module._parameters for name, module in self.named_modules()}
        parts = {name: name.rpartition(".") for name, _ in self.named_parameters()}
        return {name: (owners[owner], key) for name, (owner, _, key) in parts.items()}


class Parameters(NamedTuple):
    """A network's parameters, by name: ``shared`` as the module has them, ``private`` ``[T, ...]``."""

    shared: dict[str, Tensor]
    private: dict[str, Tensor]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, shared first: the order of every optimizer and file."""
        yield from self.shared.items()
        yield from self.private.items()

    def map(self, function: Callable[[Tensor], Tensor]) -> Parameters:
        return Parameters(
            {k: function(v) for k, v in self.shared.items()},
            {k: function(v) for k, v in self.private.items()},
        )

    def detach(self) -> Parameters:
        return self.map(Tensor.detach)


def call(module: TaskModule, parameters: Parameters, *args: Any, method: str = "forward") -> Any:
    """The module's method with these parameters: ``torch.func.functional_call``, ten times as quick.

    Under vmap a private parameter is the one task's slice; without, private ones are stacked ``[T, ...]``
    and ``args`` have the task as their first axis.
    """
    own = {}
    for name, tensor in parameters.tensors():
        owner, key = module.slots[name]
        own[name], owner[key] = owner[key], tensor
    try:
        return getattr(module, method)(*args)
    finally:
        for name, tensor in own.items():
            owner, key = module.slots[name]
            owner[key] = tensor


def make_parameters(
    build: Callable[[], Module], num_tasks: int, device: torch.device
) -> tuple[Module, Parameters]:
    """A network and its leaf parameters: each task's private ones are drawn anew."""
    first = build()
    networks = [first, *(build() for _ in range(num_tasks - 1))] if first.private else [first]
    of_task = [dict(network.named_parameters()) for network in networks]

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone(memory_format=torch.contiguous_format).to(device).requires_grad_()

    shared = {k: leaf(v) for k, v in of_task[0].items() if k not in first.private}
    private = {k: leaf(torch.stack([p[k] for p in of_task])) for k in of_task[0] if k in first.private}
    return first.to("meta"), Parameters(shared, private)
