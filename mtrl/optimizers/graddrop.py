"""GradDrop: at each coordinate keep one sign, drawn at random."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtrl.optimizers.base import RowMethod


class GradDrop(RowMethod):
    """For each coordinate keeps only the positive or only the negative task gradients, at random by their
    weight.

    Chen et al. 2020, algorithm 1, on parameters: the positive ones with probability ``½ (1 + Σ g / Σ |g|)``,
    which is their share of Σ |g|. In expectation the kept sum is the plain sum.

    Where we differ: the kept gradients are divided by T (the paper sums). ``scale="as_published"`` sums, and
    rescales to the norm of the plain sum, as the unitary paper's code does and the paper does not.

    The draws come from the own generator: on a GPU, from one seeded by it, so that they are other numbers
    than on the CPU.
    """

    paper = "Chen et al. 2020, NeurIPS, arXiv:2010.06808"
    formula = "d_p = mean over i of g_ip [sign g_ip = s_p];  P(s_p = +1) = (1 + sum g/sum |g|)/2"

    def __init__(
        self, num_tasks: int, *, seed: int = 0, scale: Literal["mean", "as_published"] = "mean"
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        self.scale = scale

    def combine_rows(self, jacobian: Tensor, tasks: Tensor | None = None) -> Tensor:
        device = jacobian.device
        generator = self.generator
        if device.type != "cpu":
            generator = torch.Generator(device).manual_seed(self.draw_seed())
        rising = jacobian.clamp(min=0).sum(dim=0)
        falling = jacobian.clamp(max=0).sum(dim=0)
        draws = torch.rand(len(rising), generator=generator, device=device, dtype=torch.float32)
        share = rising / (rising - falling)  # 0/0 where all are zero: either choice is zero
        kept = torch.where(share <= draws, falling, rising)  # inf/inf keeps the infinite one
        if self.scale == "mean":
            return kept / len(jacobian)
        norm = kept.norm()
        return kept * torch.where(norm > 0, (rising + falling).norm() / norm, 0.0)
