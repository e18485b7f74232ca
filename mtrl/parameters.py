"""A network's parameters, shared and private, and how a network is called with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


ALIGN = 16  # numbers: vectors like to begin at multiples of 64 bytes


@dataclass(frozen=True)
class Weights:
    """A network's parameters in one buffer: what acts on all of them alike is one operation.

    Attributes:
        buffer: ``[P]``, zero between the parameters.
        parameters: views of it.
        parts: of the buffer.
    """

    buffer: Tensor
    parameters: Parameters
    parts: tuple[slice, ...]

    @classmethod
    def laid_out(cls, parameters: Parameters, *parts: Sequence[Sequence[str]]) -> Weights:
        """Copies, in this order: parts of groups of names; a group's parameters follow each other without a gap."""
        named, groups = dict(parameters.tensors()), []
        for part in parts:
            groups.append([torch.cat([named[name].detach().flatten() for name in group]) for group in part])
        sizes = [sum(padded(len(group)) for group in part) for part in groups]
        ends = list(itertools.accumulate(sizes))
        first = next(iter(named.values()))
        buffer = torch.zeros(ends[-1], dtype=first.dtype, device=first.device)
        views, start = {}, 0
        for name_groups, numbers in zip(parts, groups, strict=True):
            for names, group in zip(name_groups, numbers, strict=True):
                buffer[start : start + len(group)] = group
                place = start
                for name in names:
                    views[name] = buffer[place : place + named[name].numel()].view(named[name].shape).detach()
                    place += named[name].numel()
                start += padded(len(group))
        slices = tuple(slice(end - size, end) for size, end in zip(sizes, ends, strict=True))
        return cls(
            buffer,
            Parameters({k: views[k] for k in parameters.shared}, {k: views[k] for k in parameters.private}),
            slices,
        )

    def like(self, buffer: Tensor) -> Weights:
        """The same places in another buffer."""
        parameters = self.parameters.map(
            lambda p: buffer.as_strided(p.shape, p.stride(), p.storage_offset()).detach()
        )
        return Weights(buffer, parameters, self.parts)

    def copy(self) -> Weights:
        return self.like(self.buffer.clone())

    def tensors(self) -> list[Tensor]:
        return [p for _, p in self.parameters.tensors()]

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over the numbers of ``parameters._asdict()``."""
        for kind, tensors in self.parameters._asdict().items():
            for name, tensor in tensors.items():
                tensor.copy_(state[kind][name])

    @torch.no_grad()
    def follow(self, learned: Weights, tau: float) -> None:
        """``self ← (1 − tau) self + tau learned``: an exponential moving average."""
        self.buffer.lerp_(learned.buffer, tau)


def padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


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
    own = first.private
    networks = [first, *(build() for _ in range(num_tasks - 1))] if own else [first]
    of_task = [dict(network.named_parameters()) for network in networks]

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone(memory_format=torch.contiguous_format).to(device).requires_grad_()

    shared = {k: leaf(v) for k, v in of_task[0].items() if k not in own}
    private = {k: leaf(torch.stack([p[k] for p in of_task])) for k in of_task[0] if k in own}
    return first.to("meta"), Parameters(shared, private)
