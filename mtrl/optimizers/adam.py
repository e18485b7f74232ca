"""Adam for the T numbers that a loss-weighting method learns."""

from __future__ import annotations

import torch
from torch import Tensor


def adam_start(num_tasks: int) -> Tensor:
    """State ``[4, T]``, float64: value, first moment, second moment and number of steps of each task's
    number.
    """
    return torch.zeros(4, num_tasks, dtype=torch.float64)


def adam_step(state: Tensor, gradient: Tensor, lr: float, decay: float, present: Tensor | None) -> Tensor:
    """The state after one step of Adam (Kingma & Ba 2015; β = .9, .999, ε = 1e-8) on `gradient` ``[T]``.

    `decay` is the coupled L2 coefficient. Tasks absent from the batch (`present` bool ``[T]``; None: all are
    there) keep their value, moments and step count. One tensor holds all, so that it is saved and moved as
    one.
    """
    value, first, second, steps = state
    gradient = gradient.double() + decay * value
    steps = steps + 1
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient.square()
    slope = (first / (1 - 0.9**steps)) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
    after = torch.stack([value - lr * slope, first, second, steps])
    return after if present is None else torch.where(present, after, state)
