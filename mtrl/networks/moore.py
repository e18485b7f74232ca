"""Mixture of orthogonal experts (Hendawy et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mtrl.networks.base import (
    Network,
    Spec,
    Stack,
    hidden,
    require,
    require_count,
    require_plain_layers,
    require_widths,
)
from mtrl.networks.together import each


class MOORE(Network):
    """Experts whose outputs are made orthonormal row by row, mixed by the task's own weights; tanh; its own head.

    An expert has the ``hidden`` widths, the last one linear. The task's code is no input: the weights and the head tell
    the tasks apart. As in the paper the weights are a linear function of the one-hot, so one vector for each task. They
    start normal, of variance 1; the authors' are Xavier's.

    Args:
        experts: how many, at most the last hidden width.
        tower: hidden widths of each task's own head; none is linear, the paper's.
    """

    paper = "Hendawy et al. 2024, ICLR, arXiv 2311.11385"
    formula = "head_t(tanh(sum_k w_tk u_k)),  u = Gram-Schmidt(f_1(x), ..., f_K(x))"
    all_at_once = True
    side_by_side = True
    code_in_input = False
    private_parts = frozenset({"shares", "head"})

    def __init__(self, spec: Spec, *, experts: int = 4, tower: tuple[int, ...] = ()) -> None:
        super().__init__(spec)
        require_plain_layers("moore", spec.config)
        require_count("experts", experts)
        require_widths("tower", tower)
        *widths, last = spec.config.hidden
        require(experts <= last, "experts", experts, f"at most the last hidden width, {last}")
        config = hidden(spec.config, widths)
        self.experts = nn.ModuleList(Stack(spec.inputs, last, config) for _ in range(experts))
        self.head = Stack(last, spec.outputs, hidden(spec.config, tower), spec.output_gain)
        self.shares = nn.Parameter(torch.randn(experts))

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        masks = iter(masks)
        directions = orthonormal(each(self.experts, x, masks))
        return self.head(self.run.mixture(self.shares.unsqueeze(-2), directions).tanh(), masks)  # type: ignore[no-any-return]


def orthonormal(vectors: Tensor) -> Tensor:
    """Gram–Schmidt, as modified for rounding, on K vectors ``[K, ..., n]``, row by row.

    A vector that depends on those before it gives one that is not of unit length, and finite.
    """
    found: list[Tensor] = []
    for vector in vectors.unbind():
        for other in found:
            vector = vector - (vector * other).sum(-1, keepdim=True) * other
        # the length is smooth at zero, so that its gradient is finite there
        found.append(vector / (vector.square().sum(-1, keepdim=True) + 1e-12).sqrt())
    return torch.stack(found)
