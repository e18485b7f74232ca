"""How far a combined gradient is off where the Gramian's products are bfloat16, by the tasks' cosine.

    python benchmarks/gramian_rounding.py

Ten gradients of a 400 × 400 layer, with one cosine between any two and norms from .3 to 3; five draws each. The figure
is |d − d₆₄| / |d₆₄|, d₆₄ from products in float64: the mean of the draws.
"""

from __future__ import annotations

import torch

from mtrl.fast.chain import gramian
from mtrl.optimizers import OPTIMIZERS, GramianMethod, make_optimizer

T, P, DRAWS = 10, 400 * 400, 5
COSINES = (0.0, 0.5, 0.9, 0.99)


def main() -> None:
    print("| method |", " | ".join(f"{cosine:g}" for cosine in COSINES), "|")
    print("|---|", " | ".join(["---:"] * len(COSINES)), "|", sep="")
    for name, cls in OPTIMIZERS.items():
        if issubclass(cls, GramianMethod):
            print(f"| `{name}` |", " | ".join(f"{100 * error(name, c):.1f} %" for c in COSINES), "|")


def error(name: str, cosine: float) -> float:
    """Of one method, relative."""
    found = []
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        common = torch.randn(P, generator=generator, dtype=torch.float64)
        own = torch.randn(T, P, generator=generator, dtype=torch.float64)
        norms = torch.logspace(-0.5, 0.5, T, dtype=torch.float64).unsqueeze(1)
        jacobian = norms * (cosine**0.5 * common + (1 - cosine) ** 0.5 * own)
        exact = make_optimizer(name, T).weights(jacobian @ jacobian.T) @ jacobian
        rounded = jacobian.bfloat16()
        weights = make_optimizer(name, T).weights(gramian(rounded, onednn=False).float())
        found.append(float((weights.double() @ rounded.double() - exact).norm() / exact.norm()))
    return sum(found) / DRAWS


if __name__ == "__main__":
    main()
