"""Parameter-compositional multi-task learning (PaCo: Sun et al., NeurIPS 2022)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrl.config import NetworkConfig
from mtrl.layers import Layer
from mtrl.networks.base import LayerModule, Network, Spec, initialise, require_count, require_plain_layers


class PaCo(Network):
    """Every layer's parameters are the task's own combination of K shared sets.

    A task's weights w are its own, one vector for all layers (a linear function of the one-hot, as in the paper). They
    start positive and of unit length, so that a layer's scale is that of one set. Layer norms are shared, not composed.

    Where we differ from the authors' code: it has one w per task for actor and critics, ours one for each network; its
    sets start equal, ours are drawn apart; its networks get no code of the task, as ours with ``task_input: none``.

    Args:
        sets: K.
    """

    paper = "Sun et al. 2022, NeurIPS, arXiv 2210.11653"
    formula = "h <- act(sum_k w_tk (W_k h + b_k))"
    all_at_once = True
    private_parts = frozenset({"composition"})

    def __init__(self, spec: Spec, *, sets: int = 5) -> None:
        super().__init__(spec)
        config = self.config = spec.config
        require_plain_layers("paco", config)
        require_count("sets", sets)
        widths = [spec.inputs, *config.hidden, spec.outputs]
        gains = [math.sqrt(2)] * len(config.hidden) + [spec.output_gain]
        self.layers = nn.ModuleList(
            Composed(a, b, sets, config, gain)
            for (a, b), gain in zip(itertools.pairwise(widths), gains, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(b) for b in config.hidden) if config.layer_norm else None
        self.composition = nn.Parameter(F.normalize(torch.rand(sets), dim=0))

    @property
    def mask_widths(self) -> tuple[int, ...]:
        return self.config.hidden

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        masks = iter(masks)
        weights = self.composition.unsqueeze(-2)  # the weights of a task are one row
        *hidden, output = [layer(weights) for layer in self.layers]
        for i, layer in enumerate(hidden):
            hidden[i] = layer._replace(activation=self.config.activation, mask=next(masks, None))
            if self.norms is not None:
                norm = self.norms[i]
                hidden[i] = hidden[i]._replace(gamma=norm.weight, beta=norm.bias)
        run = self.layers[0].run
        assert callable(run)
        result: Tensor = run(x, [*hidden, output])
        return result


class Composed(LayerModule):
    """One layer's K sets: combining them is itself a linear layer, whose input are a task's weights."""

    def __init__(self, inputs: int, outputs: int, sets: int, config: NetworkConfig, gain: float) -> None:
        super().__init__()
        self.shape = (outputs, inputs)
        drawn = [nn.Linear(inputs, outputs) for _ in range(sets)]
        for one in drawn:
            initialise(one, config.init, gain)
        self.weight = nn.Parameter(torch.stack([one.weight.detach().flatten() for one in drawn], 1))
        self.bias = nn.Parameter(torch.stack([one.bias.detach() for one in drawn], 1))

    def forward(self, weights: Tensor) -> Layer:
        """Weights ``[1, K]`` → the task's layer ``[out, in]``, ``[out]``."""
        weight, bias = (self.run(weights, [Layer(p, None)]).squeeze(-2) for p in (self.weight, self.bias))
        return Layer(weight.view(*weight.shape[:-1], *self.shape), bias)
