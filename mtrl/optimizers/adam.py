"""Adam for the T numbers that a loss-weighting method learns."""

from __future__ import annotations

import torch
from torch import Tensor


def adam_start(num_tasks: int) -> Tensor:
    """State ``[4, T]``, float64: value, first moment, second moment and number of steps of each task's
    number.
    """
    return torch.zeros(4, num_tasks, dtype=torch.float64)


def of_tasks(values: Tensor, tasks: Tensor | None) -> Tensor:
    """``[..., T]`` → ``[..., n]``, of these tasks (long ``[n]``); None is all."""
    return values if tasks is None else values[..., tasks]


def adam_step(state: Tensor, gradient: Tensor, lr: float, decay: float, tasks: Tensor | None) -> Tensor:
    """The state after one step of Adam (Kingma & Ba 2015; β = .9, .999, ε = 1e-8) on `gradient` ``[n]``.

    `decay` is the coupled L2 coefficient. Only these tasks (long ``[n]``; None: all) move; others keep their value,
    moments and step count. One tensor holds all, so that it is saved and moved as one.
    """
    value, first, second, steps = of_tasks(state, tasks)
    gradient = gradient.double() + decay * value
    steps = steps + 1
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient.square()
    slope = (first / (1 - 0.9**steps)) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
    after = torch.stack([value - lr * slope, first, second, steps])
    if tasks is None:
        return after
    state = state.clone()
    state[:, tasks] = after
    return state
