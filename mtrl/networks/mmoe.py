"""Multi-gate mixture of experts (Ma et al., KDD 2018)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from mtrl.networks.base import (
    Network,
    Spec,
    Stack,
    hidden,
    linear,
    require_count,
    require_widths,
)
from mtrl.networks.together import each


class MMoE(Network):
    """Experts of the ``hidden`` widths, mixed by each task's own gate, which reads what they read; then its tower.

    LibMTL's version does not count the gates among a method's parameters; ours are private, since a task's gate is
    that task's own.

    Args:
        experts: how many.
        tower: hidden widths of each task's own tower; none is a linear head.
    """

    paper = "Ma et al. 2018, KDD"
    formula = "tower_t(sum_i softmax(W_t x)_i f_i(x))"
    all_at_once = True
    side_by_side = True
    private_parts = frozenset({"gate", "tower"})

    def __init__(self, spec: Spec, *, experts: int = 4, tower: tuple[int, ...] = ()) -> None:
        super().__init__(spec)
        require_count("experts", experts)
        require_widths("tower", tower)
        self.experts = nn.ModuleList(Stack(spec.inputs, None, spec.config) for _ in range(experts))
        inputs = spec.config.widths[-1] if spec.config.widths else spec.inputs
        self.tower = Stack(inputs, spec.outputs, hidden(spec.config, tower), spec.output_gain)
        self.gate = linear(spec.inputs, experts, spec.config)

    def features(self, x: Tensor, masks: Iterable[Tensor]) -> Tensor:
        """``[B, in]`` → ``[B, width]``: the task's mixture."""
        masks = iter(masks)
        return self.run.mixture(self.gate(x).softmax(-1), each(self.experts, x, masks))

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        masks = iter(masks)
        return self.tower(self.features(x, masks), masks)  # type: ignore[no-any-return]
