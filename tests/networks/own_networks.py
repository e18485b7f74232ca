"""Networks of a user's own, as a user writes them: for one task, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.networks import Network, Spec


class Mixture(Network):
    """A mixture of experts in its natural line: ``experts @ gate``."""

    private_parts = frozenset({"gate"})

    def __init__(self, spec: Spec, *, experts: int = 3) -> None:
        super().__init__(spec)
        width = spec.config.hidden[0]
        self.experts = nn.ModuleList(nn.Linear(spec.inputs, width) for _ in range(experts))
        self.gate = nn.Parameter(torch.randn(experts))
        self.scale = nn.Parameter(torch.ones(()))  # shared, and in no layer
        self.output = nn.Linear(width, spec.outputs)

    def forward(self, x: Tensor, task: Tensor, masks: object = ()) -> Tensor:
        experts = torch.stack([expert(x).relu() for expert in self.experts], -1)  # [B, width, E]
        return self.output(self.scale * (experts @ self.gate.softmax(0)))
