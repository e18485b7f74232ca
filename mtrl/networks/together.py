"""Modules of one kind next to each other: stacks as one operation, and N networks as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.networks.base import Stack


class Together:
    """N modules of one kind, such as an ensemble's networks, as one whose tensors have N as their first axis.

    What is called on it runs the module's own text once: a stack in it is N stacks, in one operation where
    :func:`each` has one; a parameter is N, stacked; a number is the same for all. Its inputs have N as their first
    axis, or 1 where all N read the same.
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        self.parts = tuple(parts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "parts":  # asked by copies of an object that has none yet
            raise AttributeError(name)
        found = [getattr(part, name) for part in self.parts]
        if isinstance(found[0], MethodType):
            return MethodType(found[0].__func__, self)
        result = self._joined(found, name)
        if isinstance(result, Together):
            self.__dict__[name] = result
        return result

    def __call__(self, x: Tensor, *rest: Any) -> Any:
        if isinstance(self.parts[0], Stack):
            return each(self.parts, x.squeeze(0)) if len(x) == 1 else each(self.parts, x, own=True)
        return type(self.parts[0]).forward(self, x, *rest)

    def __len__(self) -> int:
        return len(self.parts[0])  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """Of lists of modules or parameters."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Any:
        name = f"[{i}]"
        if name not in self.__dict__:
            result = self._joined([part[i] for part in self.parts], name)  # type: ignore[index]
            if not isinstance(result, Together):
                return result
            self.__dict__[name] = result
        return self.__dict__[name]

    def _joined(self, values: Sequence[Any], name: str) -> Any:
        first = values[0]
        if isinstance(first, nn.Module):
            return Together(values)
        if isinstance(first, Tensor):
            return torch.stack(list(values))
        if any(value is not first and value != first for value in values):
            raise TypeError(
                f"{type(self.parts[0]).__name__}.{name} differs between networks of an ensemble, which are called "
                "as one; a network that needs it does not say side_by_side"
            )
        return first


def each(stacks: Iterable[Any], x: Tensor, masks: Iterable[Tensor] = (), own: bool = False) -> Tensor:
    """K stacks next to each other, experts or critics: ``[K, ..., out]``; one operation where they are alike.

    Args:
        stacks: or K of N stacks each (:class:`Together`), which give ``[K, N, ..., out]``.
        x: what all of them read, or with ``own`` each its own: ``[K, ..., in]``.
    """
    found = list(stacks)
    if isinstance(found[0], Together):
        number = len(found[0].parts)
        flat = [part for group in found for part in group.parts]
        if not own and len(x) == 1:
            y = each(flat, x.squeeze(0), masks)
        else:
            x = x if own else x.expand(len(found), *x.shape)
            y = each(flat, x.expand(-1, number, *x.shape[2:]).flatten(0, 1), masks, own=True)
        return y.view(len(found), number, *y.shape[1:])
    masks, first = iter(masks), found[0]
    if any((s.in_dim, s.out_dim, s.widths) != (first.in_dim, first.out_dim, first.widths) for s in found) or (
        first.plain < len(first.widths)  # residual blocks
    ):
        return torch.stack([stack(x[k] if own else x, masks) for k, stack in enumerate(found)])
    return first.run.each(x, [stack.layers(masks) for stack in found], own)  # type: ignore[no-any-return]
