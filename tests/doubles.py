"""Parameters, batches and inputs in float64."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtrl.networks import Parameters


def double(x: Any) -> Any:
    """The same nest of tuples with its tensors, and leaves of its parameters, in float64."""
    if isinstance(x, Parameters):
        return x.map(lambda p: p.detach().double().requires_grad_())
    if isinstance(x, Tensor):
        return x.detach().double()
    if x is None:
        return None
    return type(x)(*map(double, x)) if hasattr(x, "_fields") else tuple(map(double, x))
