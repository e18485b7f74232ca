"""Parameters that lie in one buffer, rounded all at once, and taken together where they are neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Key = tuple[Any, ...]  # shape, and the addresses and strides of tensors


class Casts:
    """What a matrix product takes: parameters stacked, and rounded to its dtype.

    A buffer is rounded once for each version of what is in it, whoever changes it in place.

    Args:
        buffers: flat; parameters are views of them. Others are rounded and stacked one by one.
    """

    def __init__(self, buffers: Iterable[Tensor] = ()) -> None:
        self._buffers = {buffer.untyped_storage().data_ptr(): Buffer(buffer) for buffer in buffers}
        self._known: dict[Key, tuple[Buffer, Tensor]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy knows its own buffers' addresses."""
        return Casts, ([buffer.exact for buffer in self._buffers.values()],)

    def stacked(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """K of one shape ``[*, ...]`` → ``[K, ...]``."""
        if not self._buffers:  # nor has a tensor that is traced an address
            return torch.stack(tuple(tensors)).to(dtype)
        key = (tensors[0].shape, *[(tensor.data_ptr(), tensor.stride()) for tensor in tensors])
        if key not in self._known:  # the addresses are a buffer's, which lives as long as this does
            buffer = self._buffers.get(tensors[0].untyped_storage().data_ptr())
            if buffer is None or not neighbours(tensors):
                return torch.stack(tuple(tensors)).to(dtype)
            self._known[key] = buffer, buffer.view(buffer.exact, tensors)
        buffer, view = self._known[key]
        return view if view.dtype == dtype else buffer.rounded(key, view, dtype)


class Buffer:
    """One buffer, and what it was rounded to last."""

    def __init__(self, exact: Tensor) -> None:
        self.exact = exact
        self._version, self._rounded = -1, exact
        self._views: dict[Key, Tensor] = {}

    @staticmethod
    def view(buffer: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        first = tensors[0]
        shape, strides = (len(tensors), *first.shape), (first.numel(), *first.stride())
        return buffer.as_strided(shape, strides, first.storage_offset())

    def rounded(self, key: Key, view: Tensor, dtype: torch.dtype) -> Tensor:
        """The same view of the rounded buffer."""
        if self._version != self.exact._version or self._rounded.dtype != dtype:
            # a new one: a backward pass may still need the old
            self._version, self._rounded, self._views = self.exact._version, self.exact.to(dtype), {}
        if key not in self._views:
            self._views[key] = self._rounded.as_strided(view.shape, view.stride(), view.storage_offset())
        return self._views[key]


def neighbours(tensors: Sequence[Tensor]) -> bool:
    """Whether each begins in memory where the one before it ends; contiguous, and of one shape."""
    first = tensors[0]
    place, size = first.data_ptr(), first.numel() * first.element_size()
    return all(
        tensor.data_ptr() == place + k * size and tensor.is_contiguous() and tensor.shape == first.shape
        for k, tensor in enumerate(tensors)
    )
