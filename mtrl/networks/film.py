"""Feature-wise linear modulation (Perez et al., AAAI 2018): the task scales and shifts every channel."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mtrl.layers import ACTIVATIONS
from mtrl.networks.base import Network, Spec, Stack, hidden, linear, require_plain_layers


class FiLM(Network):
    """A multilayer perceptron whose hidden layers, before the activation, are scaled and shifted by the task.

    Each task has its own scale and shift per channel of every hidden layer: a linear function of the one-hot. They
    start at 1 and 0, where the network is the MLP. (metaworld-algorithms has one scalar per layer, in an encoder only.)
    """

    paper = "Perez et al. 2018, AAAI, arXiv 1709.07871"
    formula = "h <- act(scale_t * norm(W h + b) + shift_t), per channel"
    all_at_once = True
    side_by_side = True
    private_parts = frozenset({"scales", "shifts"})

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        require_plain_layers("film", spec.config)
        widths = spec.config.hidden
        self.activation = ACTIVATIONS[spec.config.activation]
        self.layers = nn.ModuleList(
            Stack(before, None, hidden(spec.config, (width,)), open_end=True)
            for before, width in itertools.pairwise((spec.inputs, *widths))
        )
        self.output = linear(widths[-1], spec.outputs, spec.config, spec.output_gain)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(width)) for width in widths)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        masks = iter(masks)
        for layer, scale, shift in zip(self.layers, self.scales, self.shifts, strict=True):
            x = torch.addcmul(shift.unsqueeze(-2), scale.unsqueeze(-2), layer(x, masks))
            x = self.activation(x)
        return self.output(x)  # type: ignore[no-any-return]
