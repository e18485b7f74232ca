"""Hard parameter sharing (Caruana 1997): one trunk for all tasks, a tower for each."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from mtrl.networks.base import Network, Spec, Stack, hidden, require_widths


class SharedBottom(Network):
    """The trunk has the ``hidden`` widths, and ends with its last activation.

    Args:
        tower: hidden widths of each task's own tower; none is a linear head.
    """

    paper = "Caruana 1997, Machine Learning 28"
    formula = "tower_t(f([x, task]))"
    all_at_once = True
    side_by_side = True
    private_parts = frozenset({"tower"})

    def __init__(self, spec: Spec, *, tower: tuple[int, ...] = ()) -> None:
        super().__init__(spec)
        require_widths("tower", tower)
        self.trunk = Stack(spec.inputs, None, spec.config)
        self.tower = Stack(self.trunk.out_dim, spec.outputs, hidden(spec.config, tower), spec.output_gain)

    def features(self, x: Tensor, masks: Iterable[Tensor]) -> Tensor:
        """``[B, in]`` → ``[B, width]``: what all tasks' towers read."""
        return self.trunk(x, masks)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        masks = iter(masks)
        return self.tower(self.features(x, masks), masks)  # type: ignore[no-any-return]
