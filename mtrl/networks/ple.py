"""Progressive layered extraction (Tang et al., RecSys 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mtrl.config import NetworkConfig
from mtrl.networks.base import (
    MOST_PARTS,
    LayerModule,
    Network,
    Spec,
    Stack,
    hidden,
    linear,
    require,
    require_count,
    require_plain_layers,
    require_widths,
)
from mtrl.networks.together import each


class PLE(Network):
    """Levels of shared experts and of each task's own; a task's gate mixes both kinds. One level is CGC.

    The ``hidden`` layers are divided among the levels, the first ones getting what is left over. Every level but the
    last also mixes what the next level's shared experts read. In the paper that gate mixes the experts of *all* tasks;
    here a row belongs to one task, so that it mixes the row's own task's experts and the shared ones. LibMTL has no
    such gate.

    Args:
        levels: how many, at most one for each hidden layer.
        shared_experts, own_experts: per level, the latter per task too.
        tower: hidden widths of each task's own tower; none is a linear head.
    """

    paper = "Tang et al. 2020, RecSys"
    formula = (
        "tower_t(x_t);  each level x_t <- sum_i softmax(W_t x_t)_i f_i over own f_i(x_t) and shared f_i(x_s)"
    )
    all_at_once = True
    side_by_side = True
    private_parts = frozenset({"own_experts", "gate", "tower"})

    def __init__(
        self, spec: Spec, *, levels: int = 2, shared_experts: int = 2, own_experts: int = 1,
        tower: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(spec)
        config, depth = spec.config, len(spec.config.hidden)
        require_plain_layers("ple", config)
        require(1 <= levels <= depth, "levels", levels, f"from 1 to the number of hidden layers, {depth}")
        require_count("shared_experts", shared_experts)
        require(0 <= own_experts <= MOST_PARTS, "own_experts", own_experts, f"from 0 to {MOST_PARTS}")
        require_widths("tower", tower)
        self.levels = nn.ModuleList()
        inputs, rest = spec.inputs, config.hidden
        for level in range(levels):
            size = -(-len(rest) // (levels - level))
            widths, rest = rest[:size], rest[size:]
            last = level == levels - 1
            self.levels.append(Level(inputs, widths, config, own_experts, shared_experts, last))
            inputs = widths[-1]
        self.tower = Stack(inputs, spec.outputs, hidden(config, tower), spec.output_gain)

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        masks = iter(masks)
        own, shared = x, x
        for level in self.levels:
            own, shared = level(own, shared, masks)
        return self.tower(own, masks)  # type: ignore[no-any-return]


class Level(LayerModule):
    """Experts of one level; the last level has no gate for the shared ones."""

    def __init__(
        self, inputs: int, widths: Sequence[int], config: NetworkConfig, own: int, shared: int, last: bool
    ) -> None:
        super().__init__()

        def experts(number: int) -> nn.ModuleList:
            return nn.ModuleList(Stack(inputs, None, hidden(config, widths)) for _ in range(number))

        self.shared_experts, self.own_experts = experts(shared), experts(own)
        self.shared_gate = None if last else linear(inputs, own + shared, config)
        self.gate = linear(inputs, own + shared, config)

    def forward(self, own: Tensor, shared: Tensor, masks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """What the task, and what the shared experts of the next level, read: ``[B, in]`` → ``[B, width]`` each."""
        parts = each(self.shared_experts, shared, masks)
        if len(self.own_experts) > 0:
            parts = torch.cat((parts, each(self.own_experts, own, masks)))
        mixed = self.run.mixture(self.gate(own).softmax(-1), parts)
        if self.shared_gate is None:
            return mixed, shared
        return mixed, self.run.mixture(self.shared_gate(shared).softmax(-1), parts)
