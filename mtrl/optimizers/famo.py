"""FAMO: fast adaptive multitask optimization, from losses alone."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtrl.optimizers.adam import adam_start, adam_step, of_tasks
from mtrl.optimizers.base import Scalarization, require

FLOOR = 1e-8  # of a loss, before its logarithm or inverse is taken


class FAMO(Scalarization):
    """Descends all log-losses, giving more weight to the task that improves least; needs no task gradients.

    Liu et al. 2023, algorithm 1, with z = softmax(ξ):

    * update of the network: weights ``wᵢ = c zᵢ / lossᵢ`` with ``c = (Σ zⱼ / lossⱼ)⁻¹``, so that Σ w = 1;
    * `after_step`, with the losses on the same batch after the step: ``δᵢ = log lossᵢ − log loss'ᵢ``, and ξ
      steps by Adam along ``∂(z·δ)/∂ξ = z ∘ (δ − z·δ)``, with L2 decay γ.

    Losses have to be positive, so it acts on the critic; the actor takes the mean. Losses are floored at
    1e-8.

    Where we differ: the authors' reinforcement-learning code multiplies by Σ zⱼ / lossⱼ where the paper
    divides by it; ``scale="as_published"`` does so.

    Args:
        lr: β, the step of ξ.
        gamma: γ, the decay of ξ.

    Their reinforcement-learning code trains MT10 with ``lr`` .025 and ``gamma`` .01.
    """

    paper = "Liu et al. 2023, NeurIPS, arXiv:2306.03792"
    formula = "w_i ~ z_i/loss_i, sum w = 1, z = softmax(xi);  xi learns from the change of log loss"
    critic_only = True
    needs_after_step = True
    saved = ("logits",)

    def __init__(
        self,
        num_tasks: int,
        *,
        seed: int = 0,
        lr: float = 0.025,
        gamma: float = 1e-5,
        scale: Literal["mean", "as_published"] = "mean",
    ) -> None:
        super().__init__(num_tasks, seed=seed)
        require(lr > 0, "lr", lr, "positive")
        require(gamma >= 0, "gamma", gamma, "at least 0")
        self.lr = lr
        self.gamma = gamma
        self.scale = scale
        self.logits = adam_start(num_tasks)  # [4, T], row 0 is ξ
        self.losses: Tensor | None = None  # [n], of this update's `weights`
        self.tasks: Tensor | None = None  # [n], the tasks that were in it; None: all

    def weights(self, losses: Tensor, tasks: Tensor | None = None) -> Tensor:
        self.losses, self.tasks = losses.detach(), tasks
        weights = self._shares() / self.losses.double().clamp(min=FLOOR)
        total = weights.sum()
        return (weights * total if self.scale == "as_published" else weights / total).to(losses.dtype)

    def after_step(self, losses: Tensor) -> None:
        """ξ learns from how much each task's loss fell since the `weights` of this update.

        Without them, as in a batch that no task is in, it learns nothing.
        """
        if self.losses is None:
            return
        z, losses = self._shares(), of_tasks(losses.detach(), self.tasks)
        fall = self.losses.double().clamp(min=FLOOR).log() - losses.double().clamp(min=FLOOR).log()
        gradient = z * (fall - (z * fall).sum())
        self.logits = adam_step(self.logits, gradient, self.lr, self.gamma, self.tasks)
        self.losses = self.tasks = None

    def _shares(self) -> Tensor:
        """z ``[n]``, float64: the softmax of ξ over the tasks that are there."""
        assert self.losses is not None
        self.logits = self.logits.to(self.losses.device)
        return of_tasks(self.logits[0], self.tasks).softmax(dim=0)
