"""Values as distributions over a fixed grid of atoms: targets as probabilities, and the loss.

``K`` atoms lie evenly on ``[-v, v]``. A critic gives K logits; its value is the expectation. A target
beyond the grid counts as its end. All functions are for one task and any number of leading axes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HL_GAUSS_WIDTH = 0.75  # σ over the distance of two atoms: the paper's choice, about six atoms get mass


def atoms_on(support: float, count: int, like: Tensor) -> Tensor:
    """The grid ``[K]`` from ``-support`` to ``support``, of ``like``'s dtype and device."""
    return torch.linspace(-support, support, count, dtype=like.dtype, device=like.device)


def expectation(logits: Tensor, atoms: Tensor) -> Tensor:
    """Logits ``[..., K]`` → values ``[...]``."""
    return logits.softmax(-1) @ atoms


def project(positions: Tensor, probabilities: Tensor, atoms: Tensor) -> Tensor:
    """Mass that lies at ``positions [..., K']`` shared between the two atoms around each, ``[..., K]``.

    The projected Bellman target of C51 (Bellemare et al. 2017, arXiv 1707.06887, algorithm 1), written
    as a hat function over each atom instead of an index: nothing is gathered, so vmap takes it.
    """
    step = atoms[1] - atoms[0]
    positions = positions.clamp(atoms[0], atoms[-1])
    hats = (1 - (positions.unsqueeze(-1) - atoms).abs() / step).clamp(min=0)  # [..., K', K]
    return (probabilities.unsqueeze(-2) @ hats).squeeze(-2)


def two_hot(values: Tensor, atoms: Tensor) -> Tensor:
    """Values ``[...]`` → ``[..., K]``: all mass on the two atoms around, so that the mean is kept.

    MuZero's (Schrittwieser et al. 2020, arXiv 1911.08265, app. F), DreamerV3's.
    """
    return project(values.unsqueeze(-1), torch.ones_like(values).unsqueeze(-1), atoms)


def hl_gauss(values: Tensor, atoms: Tensor) -> Tensor:
    """Values ``[...]`` → ``[..., K]``: a Gaussian around each, integrated over the bins around the atoms.

    HL-Gauss (Imani & White 2018; Farebrother et al. 2024, arXiv 2403.03950, section 3.1), renormalised to
    the grid; near its ends the mean is therefore pulled inwards.
    """
    step = atoms[1] - atoms[0]
    edges = torch.cat((atoms - step / 2, atoms[-1:] + step / 2))
    values = values.clamp(atoms[0], atoms[-1])
    z = (edges - values.unsqueeze(-1)) / (HL_GAUSS_WIDTH * step * math.sqrt(2))
    mass = torch.erf(z).diff(dim=-1)
    return mass / mass.sum(-1, keepdim=True)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """``−Σ_k p_k log softmax(logits)_k``, ``[..., K]`` and ``[..., K]`` → ``[...]``."""
    return -(target * F.log_softmax(logits, dim=-1)).sum(-1)
