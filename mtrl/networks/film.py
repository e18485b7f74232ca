"""Feature-wise linear modulation (Perez et al., AAAI 2018): the task scales and shifts every channel."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from mtrl.networks.base import Network, Spec, Stack, require_plain_layers


class FiLM(Network):
    """A multilayer perceptron whose hidden layers, before the activation, are scaled and shifted by the task.

    Each task has its own scale and shift per channel of every hidden layer: a linear function of the one-hot. They
    start at 1 and 0, where the network is the MLP. With layer norm they are its only ones, as in the paper, whose
    norms before a modulation have none. (metaworld-algorithms has one scalar per layer, in an encoder only.)
    """

    paper = "Perez et al. 2018, AAAI, arXiv 1709.07871"
    formula = "h <- act(scale_t * norm(W h + b) + shift_t), per channel"
    all_at_once = True
    side_by_side = True
    private_parts = frozenset({"norms"})

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        require_plain_layers("film", spec.config)
        self.stack = Stack(spec.inputs, spec.outputs, spec.config, spec.output_gain, scaled=True)

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        return self.stack(x, masks)  # type: ignore[no-any-return]
