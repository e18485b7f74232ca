"""Contextual attention over encoders (CARE: Sodhani et al., ICML 2021)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mtrl.networks.base import (
    Network,
    Spec,
    Stack,
    hidden,
    require_code,
    require_count,
    require_widths,
)
from mtrl.networks.together import each


class CARE(Network):
    """Encoders mixed by an attention that reads the task's context alone; then a torso reads both.

    The context is an MLP of the task's code (learned with ``agent.task_input: embedding``). As in the paper, what
    the attention makes of it does not train it: only the torso does.

    Where we differ: the paper starts from a pretrained language model's embedding of the task's description; this one
    knows no language. In the paper's figure 3 the attention compares the context with each encoding; ours reads the
    context alone, as the authors' code does. Theirs has one context and one set of encoders for actor and critics,
    trained by the critic's loss; here each network has its own.

    Args:
        encoders: how many.
        encoder: hidden widths of each; the last is that of what they give, linear.
        context: widths of the context's MLP.
    """

    paper = "Sodhani et al. 2021, ICML, arXiv 2102.06177"
    formula = "torso([sum_k softmax(a(c))_k f_k(x), c]),  c = g(task)"
    all_at_once = True
    side_by_side = True
    code_in_input = False

    def __init__(
        self, spec: Spec, *, encoders: int = 6, encoder: tuple[int, ...] = (50, 50, 50),
        context: tuple[int, ...] = (50, 50),
    ) -> None:  # fmt: skip
        super().__init__(spec)
        require_code("care", spec)
        require_count("encoders", encoders)
        require_widths("encoder", encoder, 1)
        require_widths("context", context, 1)
        *inner, width = encoder
        config = spec.config
        self.encoders = nn.ModuleList(
            Stack(spec.inputs, width, hidden(config, inner)) for _ in range(encoders)
        )
        self.context = Stack(spec.code, context[-1], hidden(config, context[:-1]))
        self.attention = Stack(context[-1], encoders, hidden(config, context[-1:]))
        self.torso = Stack(width + context[-1], spec.outputs, config, spec.output_gain)

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        masks = iter(masks)
        encoded = each(self.encoders, x, masks)
        # one row for the task; a mask of dropout is for B rows, of which it takes the first
        context = self.context(task.unsqueeze(-2), (mask[..., :1, :] for mask in masks))
        shares = self.attention(context.detach(), (mask[..., :1, :] for mask in masks)).softmax(-1)
        x = self.run.mixture(shares, encoded)
        return self.torso(torch.cat((x, context.expand(*x.shape[:-1], -1)), -1), masks)  # type: ignore[no-any-return]
