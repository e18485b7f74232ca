"""PCGrad: project away what conflicts, pair by pair."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mtrl.optimizers.base import GramianMethod, like, on_host


class PCGrad(GramianMethod):
    """Each task's gradient loses its component against every other that it conflicts with; then the mean.

    Yu et al. 2020, algorithm 1: for every task i, starting from ``p = gᵢ`` and meeting the other tasks j in
    a random order of its own, ``p ← p − (p·gⱼ / ‖gⱼ‖²) gⱼ`` whenever ``p·gⱼ < 0``; gⱼ is always the
    *original* gradient. Without a negative inner product the result is the mean. It may still conflict with
    a task for T > 2, since a later projection can undo an earlier one.

    ``p`` is a combination of the gradients, so the Gramian is enough: the rows of ``W`` hold the
    combinations of all tasks, ``V = W G`` their products with all gradients, and one pass over the order
    moves all rows at once.

    Where we differ: the paper sums the projected gradients, we take the mean (``scale="as_published"``
    sums). The authors' code also lets a gradient meet itself, which can only bite after two other
    projections have turned it round; the paper's algorithm leaves it out, and so do we.
    """

    paper = "Yu et al. 2020, NeurIPS, arXiv:2001.06782"
    formula = "d = mean_i p_i;  p_i = g_i, then p_i -= (p_i.g_j/|g_j|^2) g_j for each j with p_i.g_j < 0"

    def __init__(
        self, num_tasks: int, *, seed: int = 0, scale: Literal["mean", "as_published"] = "mean"
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        self.scale = scale

    def weights(self, gramian: Tensor, tasks: Tensor | None = None) -> Tensor:
        n = len(gramian)
        order = random_orders(n, self.generator)
        if gramian.device.type == "cpu":  # numpy dispatches a small operation several times faster than torch
            host = on_host(gramian)
            host = host if np.isfinite(host).all() else np.full_like(host, np.nan)
            weights = like(project(host, order.numpy()), gramian)
        else:  # elsewhere the same text runs on tensors: launches, but no wait for the device
            weights = project(gramian.detach().double(), order.to(gramian.device, non_blocking=True)).to(
                gramian.dtype
            )
        return weights if self.scale == "as_published" else weights / n


def random_orders(tasks: int, generator: torch.Generator) -> Tensor:
    """For each task a uniformly random order of the others, long ``[T, T - 1]``."""
    keys = torch.rand(tasks, tasks, generator=generator)
    keys.fill_diagonal_(2.0)  # itself comes last, and is cut off
    return keys.argsort(dim=1)[:, :-1]


def project(gramian: Any, order: Any) -> Any:
    """The sum of all tasks' projected gradients as weights ``[T]``; numpy arrays and tensors alike.

    Args:
        gramian: ``[T, T]``, float64.
        order: ``[T, T - 1]``, row i being the tasks that gradient i meets, in order.
    """
    module: Any = torch if isinstance(gramian, Tensor) else np
    tasks = len(gramian)
    place = {"device": gramian.device} if module is torch else {}
    rows = module.arange(tasks, **place)
    squares = gramian.diagonal()
    inverse = 1 / module.where(squares > 0, squares, module.inf)  # a zero gradient conflicts with nobody
    products = gramian * 1
    weights = module.eye(tasks, dtype=gramian.dtype, **place)
    for column in order.T:
        product = products[rows, column]
        excess = product * (product < 0) * inverse[column]
        weights[rows, column] -= excess
        products -= excess[:, None] * gramian[column]
    return weights.sum(0)
