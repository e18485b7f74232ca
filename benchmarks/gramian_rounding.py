"""How far a combined gradient is off where the Gramian's products are bfloat16, by the tasks' cosine.

    python benchmarks/gramian_rounding.py

Ten tasks' gradients of a 256 × 256 layer, 32 rows each, whose norms go from .3 to 3; five draws each. The figure is
|d − d₆₄| / |d₆₄|, d₆₄ from products in float64: the mean of the draws; first with the Gramian of the rounded gradients,
then with that of pairs of rows, which small batches take (`mtrl.fast.chain.Factors`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.fast.chain import Factors, gramian
from mtrl.optimizers import OPTIMIZERS, GramianMethod, make_optimizer

TASKS, ROWS, WIDTH, DRAWS = 10, 32, 256, 5
SHARES = (0.0, 0.2, 0.5, 0.9)  # of a row's output gradient that is common to all rows of all tasks


def main() -> None:
    draws = {share: [draw(share, seed) for seed in range(DRAWS)] for share in SHARES}
    cosines = [sum(mean_cosine(f) for f in found) / DRAWS for found in draws.values()]
    print("| method |", " | ".join(f"{cosine:.2f}" for cosine in cosines), "|")
    print("|---|", " | ".join(["---:"] * len(SHARES)), "|", sep="")
    for name, cls in OPTIMIZERS.items():
        if issubclass(cls, GramianMethod):
            cells = [[errors(name, factors) for factors in found] for found in draws.values()]
            means = [[100 * sum(column) / DRAWS for column in zip(*cell, strict=True)] for cell in cells]
            print(f"| `{name}` |", " | ".join(f"{rows:.1f}, {pairs:.1f} %" for rows, pairs in means), "|")


def draw(share: float, seed: int) -> Factors:
    """Features that are positive and alike, as after relu, and output gradients of a common direction plus noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, WIDTH, generator=generator, dtype=torch.float64)

    x = (normal(1, 1).relu() + 0.5 * normal(TASKS, ROWS)).relu()
    d = share * normal(1, 1) + (1 - share) * normal(TASKS, ROWS)
    return Factors(x, d * torch.logspace(-0.5, 0.5, TASKS, dtype=torch.float64).view(-1, 1, 1) / ROWS)


def mean_cosine(factors: Factors) -> float:
    """Over pairs of tasks."""
    gram = factors.gramian()
    norms = gram.diagonal().sqrt()
    cosines = gram / norms / norms.unsqueeze(1)
    return float((cosines.sum() - TASKS) / (TASKS * (TASKS - 1)))


def errors(name: str, factors: Factors) -> tuple[float, float]:
    """Of one method, relative: with the Gramian of rounded gradients, and of pairs of rows."""
    jacobian = factors.rows().flatten(1)
    exact = make_optimizer(name, TASKS).weights(jacobian @ jacobian.T) @ jacobian
    rounded = Factors(factors.x.bfloat16(), factors.d.bfloat16())
    gradients = rounded.rows().flatten(1)

    def error(gram: Tensor) -> float:
        weights = make_optimizer(name, TASKS).weights(gram.float()).double()
        return float((weights @ gradients.double() - exact).norm() / exact.norm())

    return error(gramian(gradients, onednn=False)), error(rounded.gramian())


if __name__ == "__main__":
    main()
