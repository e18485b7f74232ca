"""How fast this machine multiplies matrices at best: the floor under every update."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# [n, k] by [k, m]: an update's own, and larger ones that a processor may be better at
SHAPES = ((1280, 400, 400), (1280, 512, 512), (4096, 512, 2048), (2048, 2048, 2048))
SECONDS = 0.5  # about as long is one product repeated, so that a slow kernel costs no minutes


class Product(NamedTuple):
    """A product ``[n, k] @ [k, m]`` by one kernel, to be run again and again."""

    kernel: str
    shape: tuple[int, int, int]
    run: Callable[[], Tensor]

    @property
    def flops(self) -> int:
        n, k, m = self.shape
        return 2 * n * k * m


class Peak(NamedTuple):
    """The fastest product found."""

    gflops: float
    product: Product


def kernels() -> Iterator[tuple[str, Callable[[Tensor, Tensor], Any]]]:
    """Every kernel that torch reaches for ``x [n, k]`` and ``weight [m, k]``, by name."""
    yield "torch.mm", lambda x, weight: torch.mm(x, weight.T)
    yield "F.linear", F.linear
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        onednn = torch.ops.mkldnn._linear_pointwise
        yield "onednn", lambda x, weight: onednn(x, weight, None, "none", [], "")


def find_peak(dtype: torch.dtype, shapes: Sequence[tuple[int, int, int]] = SHAPES, rounds: int = 10) -> Peak:
    """The highest of the medians over kernels and shapes, with the present number of threads."""
    best = None
    for n, k, m in shapes:
        x, weight = torch.randn(n, k).to(dtype), torch.randn(m, k).to(dtype)
        for name, kernel in kernels():
            product = Product(name, (n, k, m), lambda f=kernel, x=x, w=weight: f(x, w))  # type: ignore[misc]
            product.run()
            times: list[float] = []
            while len(times) < rounds and sum(times) < SECONDS:
                start = time.perf_counter()
                product.run()
                times.append(time.perf_counter() - start)
            peak = Peak(product.flops / statistics.median(times) / 1e9, product)
            best = peak if best is None or peak.gflops > best.gflops else best
    assert best is not None
    return best
