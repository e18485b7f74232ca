"""One fully connected layer as data, and what it computes in stock torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "tanh": torch.tanh, "silu": F.silu, "gelu": F.gelu, "elu": F.elu,
}  # fmt: skip


class Layer(NamedTuple):
    """Linear → dropout → LayerNorm → activation; what is None is left out.

    Attributes:
        weight, bias: ``[out, in]`` and ``[out]``; no bias is None.
        gamma, beta: scale and shift of the LayerNorm, ``[out]``.
        activation: a name in :data:`ACTIVATIONS`.
        mask: what dropout multiplies by, ``[B, out]``.
        norm: whether it normalises, or only scales and shifts.
    """

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    activation: str | None = None
    mask: Tensor | None = None
    norm: bool = True


class LayerRunner(Protocol):
    """Who computes layers."""

    @property
    def grouped(self) -> bool:
        """Whether :meth:`each` is one operation."""

    def __call__(self, x: Tensor, layers: Sequence[Layer]) -> Tensor:
        """``x [..., in]`` through the layers: ``[..., out]``."""

    def each(self, x: Tensor, stacks: Sequence[Sequence[Layer]], own: bool = False) -> Tensor:
        """K stacks of layers on the same ``x``, or each on its ``own x [K, ..., in]``: ``[K, ..., out]``."""

    def mixture(self, shares: Tensor, parts: Tensor) -> Tensor:
        """``Σ_k shares_k parts_k``: shares ``[..., K]``, parts ``[K, ..., n]`` → ``[..., n]``."""


@dataclass(frozen=True)
class PlainLayers:
    """Stock torch. ``dtype`` is of the matrix products; everything else stays in the parameters' dtype."""

    dtype: torch.dtype = torch.float32
    grouped = False

    def __call__(self, x: Tensor, layers: Sequence[Layer]) -> Tensor:
        """``x [..., in]`` through the layers: ``[..., out]``."""
        for layer in layers:
            x = self.linear(x, layer.weight, layer.bias)
            if layer.mask is not None:
                x = x * layer.mask
            if layer.gamma is not None:
                x = (layer_norm if layer.norm else affine)(x, layer.gamma, layer.beta)
            if layer.activation is not None:
                x = ACTIVATIONS[layer.activation](x)
        return x

    def each(self, x: Tensor, stacks: Sequence[Sequence[Layer]], own: bool = False) -> Tensor:
        """K stacks of layers on the same ``x``, or each on its ``own x [K, ..., in]``: ``[K, ..., out]``."""
        return torch.stack([self(x[k] if own else x, layers) for k, layers in enumerate(stacks)])

    def mixture(self, shares: Tensor, parts: Tensor) -> Tensor:
        """``Σ_k shares_k parts_k``: shares ``[..., K]``, parts ``[K, ..., n]`` → ``[..., n]``."""
        return (shares.movedim(-1, 0).unsqueeze(-1) * parts).sum(0)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A weight ``[T, out, in]``, always with a bias, takes ``x [T, B, in]``."""
        wide = x.dtype
        if self.dtype != torch.float32:  # else in the parameters' dtype: float64 stays exact
            x, weight = x.to(self.dtype), weight.to(self.dtype)
            bias = None if bias is None else bias.to(self.dtype)
        if weight.dim() == 3:
            assert bias is not None
            return torch.baddbmm(bias.unsqueeze(1), x, weight.mT).to(wide)
        return F.linear(x, weight, bias).to(wide)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    """LayerNorm over the last axis; ``gamma [T, n]`` and ``beta`` of each task take ``x [T, B, n]``."""
    if gamma.dim() == 1:
        return F.layer_norm(x, gamma.shape, gamma, beta)
    return affine(F.layer_norm(x, gamma.shape[-1:]), gamma, beta)


def affine(x: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    """``gamma x + beta``, for one task or all."""
    assert beta is not None
    return torch.addcmul(beta.unsqueeze(-2), x, gamma.unsqueeze(-2))
