"""How much the tasks' gradients conflict, and what an optimizer made of them: for every optimizer alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mtrl.gradients import TaskGradients


class Conflict(NamedTuple):
    """One measurement on the shared parameters of one network.

    Attributes:
        gramian: ``[T, T]`` inner products of the tasks' gradients.
        weights: ``[T]`` given to the tasks; NaN where a method acts on coordinates.
        cosine_to_mean: ``[]`` between the applied direction and the mean gradient of the present tasks.
        norm_ratio: ``[]``, the applied direction's norm over the mean gradient's.
    """

    gramian: Tensor
    weights: Tensor
    cosine_to_mean: Tensor
    norm_ratio: Tensor

    @property
    def norms(self) -> Tensor:
        """``[T]``, each task's gradient norm."""
        return self.gramian.diagonal().clamp(min=0).sqrt()

    @property
    def cosines(self) -> Tensor:
        """``[T, T]`` pairwise; NaN where a gradient is zero."""
        return (self.gramian / torch.outer(self.norms, self.norms)).clamp(-1, 1)

    def summary(self) -> dict[str, float]:
        """Mean cosine over pairs, share of pairs below zero, and the two numbers of the direction."""
        tasks = len(self.gramian)
        first, second = torch.triu_indices(tasks, tasks, offset=1)
        pairs = self.cosines[first, second]
        pairs = pairs[pairs.isfinite()]
        return {
            "cosine_mean": pairs.mean().item() if len(pairs) else float("nan"),
            "negative_pairs": (pairs < 0).float().mean().item() if len(pairs) else float("nan"),
            "cosine_to_mean": self.cosine_to_mean.item(),
            "norm_ratio": self.norm_ratio.item(),
        }


def measure_conflict(
    tasks: TaskGradients, applied: dict[str, Tensor], weights: Tensor, share: Tensor
) -> Conflict:
    """Measure from the tasks' gradients and the applied direction, by parameter name.

    Args:
        share: ``[T]``, each task's in the mean: 0 where it is absent, and equal elsewhere.
    """
    gramian = tasks.gramian()
    mean = tasks.combine(share)
    applied_norm, mean_norm = _dot(applied, applied).sqrt(), _dot(mean, mean).sqrt()
    return Conflict(
        gramian, weights, _dot(applied, mean) / (applied_norm * mean_norm), applied_norm / mean_norm
    )


def _dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()
