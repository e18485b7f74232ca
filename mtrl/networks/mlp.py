"""The plain network: everything shared, the task's code an input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from torch import Tensor

from mtrl.networks.base import Masks, Network, Spec, Stack, each


class MLP(Network):
    """A multilayer perceptron of ``hidden`` widths, with ``blocks`` residual blocks."""

    paper = "none: what every other network is compared with"
    formula = "f([x, task])"
    all_at_once = True

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.stack = Stack(spec.inputs, spec.outputs, spec.config, spec.output_gain)

    @classmethod
    def together(cls, networks: Sequence[Network], x: Tensor, task: Tensor, masks: Sequence[Masks]) -> Tensor:
        return each([network.stack for network in networks], x, chain(*masks))  # type: ignore[misc]

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        return self.stack(x, masks)  # type: ignore[no-any-return]
