"""Small Towers: under-parameterized self-auxiliaries (Wang et al. 2020, arXiv 2008.05808; WWW 2022)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from mtrl.networks.base import Network, Spec, Stack, hidden, require, require_widths
from mtrl.networks.mmoe import MMoE
from mtrl.networks.shared_bottom import SharedBottom


class SmallTowers(Network):
    """Beside each task's tower a much smaller one on the same shared features, which learns the same.

    The loss is ``Σ_t w_t [L_t(θ_sh, θ_t) + γ L_t(θ_sh, θ_t^a)]``, with the same targets and no stop-gradient: the small
    tower cannot serve its task unless the shared part does. It is used in training only: no target, minimum, action or
    policy file has it. In the critic it learns the same Bellman target; in the actor it is a second policy head with
    the actor's loss of its own.

    The authors' code divides the auxiliary's logits by 20 or 30, which shrinks its gradient, and leaves the auxiliary
    out under MGDA and uncertainty weighting; ours does neither.

    Args:
        base: what the towers stand on.
        gamma: γ; 0 leaves the auxiliaries out.
        auxiliary: hidden widths of the small tower; none is linear, the paper's. The tower's own widths are the paper's
            ablation.
        tower: hidden widths of each task's tower.
        experts: of ``base: mmoe``; 4 by default.
    """

    paper = "Wang et al. 2020, arXiv 2008.05808"
    formula = "loss_t(tower_t(z)) + gamma loss_t(small_t(z)),  z = the base's shared features"
    all_at_once = True
    side_by_side = True
    private_parts = frozenset({"gate", "tower", "auxiliary"})
    training_parts = frozenset({"auxiliary"})

    def __init__(
        self, spec: Spec, *, base: Literal["shared_bottom", "mmoe"] = "shared_bottom", gamma: float = 1.0,
        auxiliary: tuple[int, ...] = (), tower: tuple[int, ...] = (128,), experts: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        require(0 <= gamma < float("inf"), "gamma", gamma, "0 or more, and finite")
        require_widths("auxiliary", auxiliary)
        require(base == "mmoe" or experts is None, "experts", experts, "left out unless base is mmoe")
        self.base = (
            MMoE(spec, experts=4 if experts is None else experts, tower=tower)
            if base == "mmoe"
            else SharedBottom(spec, tower=tower)
        )
        self.auxiliary_weight = gamma
        if gamma > 0:
            self.auxiliary = Stack(
                self.base.tower.in_dim, spec.outputs, hidden(spec.config, auxiliary), spec.output_gain
            )

    def forward(self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()) -> Tensor:
        return self.base(x, task, masks)  # type: ignore[no-any-return]

    def with_auxiliary(
        self, x: Tensor, task: Tensor, masks: Iterable[Tensor] = ()
    ) -> tuple[Tensor, Tensor | None]:
        if self.auxiliary_weight == 0:
            return self(x, task, masks), None
        masks = iter(masks)
        features = self.base.features(x, masks)
        return self.base.tower(features, masks), self.auxiliary(features, masks)
