"""The plain network: everything shared, the task's code an input."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from mtrl.networks.base import Network, Spec, Stack


class MLP(Network):
    """A multilayer perceptron of ``hidden`` widths, with ``blocks`` residual blocks."""

    paper = "none: what every other network is compared with"
    formula = "f([x, task])"
    all_at_once = True
    side_by_side = True

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.stack = Stack(spec.inputs, spec.outputs, spec.config, spec.output_gain)

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        return self.stack(x, masks)  # type: ignore[no-any-return]
