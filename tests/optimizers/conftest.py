"""Jacobians and reference implementations that the tests of several methods share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtrl.optimizers import OPTIMIZERS

torch.set_num_threads(1)


@pytest.fixture
def two_tasks() -> Tensor:
    """g₁ = (1, 0), g₂ = (−1, 2): G = [[1, −1], [−1, 5]], mean (0, 1), one conflict."""
    return torch.tensor([[1.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)


@pytest.fixture(params=list(OPTIMIZERS))
def name(request: pytest.FixtureRequest) -> str:
    """Every optimizer in turn."""
    return str(request.param)
