"""Soft modularization (Yang et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.config import MOST_WIDTH
from mtrl.layers import ACTIVATIONS
from mtrl.networks.base import (
    Network,
    Spec,
    Stack,
    hidden,
    linear,
    require,
    require_code,
    require_count,
    require_plain_layers,
)
from mtrl.networks.together import each


class SoftModules(Network):
    """Layers of M modules; a routing network softly chooses which modules of a layer feed each of the next.

    One hidden layer of modules for each width in ``hidden``. The routing reads ``e = f(x) · h(task)``, in which the
    state's encoder f and the task's h are linear and learned; the first modules read ``act(f(x))``.

    As the authors' code, and unlike the paper's equation 9, the last layer's modules are mixed by a gate of their own
    and have one output layer. As in the paper, a gate reads the logits before it; the code's reads their softmax, and
    two more layers come before its first gate.

    Args:
        modules: M of each layer.
        embedding: width of f and h; None is the first hidden width.
    """

    paper = "Yang et al. 2020, NeurIPS, arXiv 2003.13661"
    formula = "g_i <- sum_j softmax(p)_ij act(W_j g_j);  p = W_d relu(W_u p_before * f(x) * h(task))"
    all_at_once = True
    side_by_side = True
    code_in_input = False

    def __init__(self, spec: Spec, *, modules: int = 2, embedding: int | None = None) -> None:
        super().__init__(spec)
        config, (first, *_) = spec.config, (*spec.config.hidden, 1)
        require_plain_layers("soft_modules", config)
        require_code("soft_modules", spec)
        require_count("modules", modules)
        wide = first if embedding is None else embedding
        require(1 <= wide <= MOST_WIDTH, "embedding", embedding, f"from 1 to {MOST_WIDTH}, or null")
        widths = [wide, *config.hidden]
        depth = len(config.hidden)
        self.number = modules
        self.activation = config.activation
        self.encoder = linear(spec.inputs, wide, config)
        self.task = linear(spec.code, wide, config)
        self.layers = nn.ModuleList(
            nn.ModuleList(Stack(widths[i], None, hidden(config, (widths[i + 1],))) for _ in range(modules))
            for i in range(depth)
        )
        sizes = [modules * modules] * (depth - 1) + [modules]
        self.routes = nn.ModuleList(linear(wide, size, config) for size in sizes)
        self.back = nn.ModuleList(linear(size, wide, config) for size in sizes[:-1])
        self.output = linear(widths[-1], spec.outputs, config, spec.output_gain)

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        masks = iter(masks)
        state = self.encoder(x)
        embedded = state * self.task(task.unsqueeze(-2))
        routing, parts = embedded.relu(), ACTIVATIONS[self.activation](state)
        layers: Any = self.layers
        for i, layer in enumerate(layers):
            given = each(layer, parts, masks, own=i > 0)
            logits = self.routes[i](routing)
            if i + 1 < len(layers):
                shares = logits.unflatten(-1, (self.number, self.number)).softmax(-1)  # [..., next, before]
                parts = torch.stack([self.run.mixture(share, given) for share in shares.unbind(-2)])
                routing = (embedded * self.back[i](logits)).relu()
        return self.output(self.run.mixture(logits.softmax(-1), given))  # type: ignore[no-any-return]
