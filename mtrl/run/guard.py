"""The guard: a run that is no longer learning anything real is stopped and marked, not averaged in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save
from torch import Tensor

from mtrl.files import write_synced
from mtrl.run.callbacks import TrainerCallback
from mtrl.run.outputs import tell

VALUE_MARGIN = 3.0
TEMPERATURE_MARGIN = 10.0
SMALLEST_BOUND = 10.0  # an untrained critic's own values are no explosion, however small the rewards
ZERO_MEASUREMENTS = 5


class Diverged(RuntimeError):
    """Training stopped making sense. Names what, the tasks, the network and the step."""


class GuardCallback(TrainerCallback):
    """Looks at every so many steps and at the end; saves the evidence and raises, or warns.

    Raises :class:`Diverged` on a non-finite reward or observation, at once; on a non-finite loss, gradient
    or parameter; and on values beyond ``VALUE_MARGIN`` times what rewards and discount permit: with scaled
    rewards of at most r and temperature α, ``|Q| <= (r + α · max |log π|) / (1 − γ)``, the largest so far,
    and with squared loss N critics' summed mean squared errors at most N (2 VALUE_MARGIN |Q|)²; and on a
    temperature α above ``TEMPERATURE_MARGIN`` times the largest of r / (1 − γ), its initial value and
    ``SMALLEST_BOUND``: one nat of entropy is then worth more than all rewards to come. Warns, once per task and
    kind, about a collapsed entropy (below that of σ = ``exp(log_std_min)``, plus 1 %) and about a task whose
    gradient was zero in ``ZERO_MEASUREMENTS`` conflict measurements in a row.

    Args:
        every: steps per task between looks; a policy that is evaluated should have been looked at.
        evidence: where the last metrics and a batch go (safetensors) when a run diverges.
    """

    def __init__(self, every: int, evidence: Path) -> None:
        super().__init__(every)
        self.evidence = evidence
        self.largest_reward: Tensor | None = None
        self.permitted: Tensor | None = None
        self.zero_gradients: dict[str, int] = {}
        self.seen_update = -1
        self.warned: list[str] = []

    def _on_step(self) -> bool:
        rewards = self.trainer.agent.rewards.on_store(torch.as_tensor(self.locals["rewards"])).abs()
        self._check_environments(rewards, torch.as_tensor(self.locals["new_obs"]))
        seen = self.largest_reward
        self.largest_reward = rewards if seen is None else torch.maximum(seen, rewards)
        return super()._on_step()

    def due(self) -> bool:
        metrics = self.trainer.metrics
        if metrics:
            self._check_finite(metrics)
            self._check_values(metrics)
            self._watch_entropy(metrics)
            self._watch_gradients(metrics)
        return True

    def _on_training_end(self) -> None:
        self.due()

    def _check_environments(self, rewards: Tensor, observations: Tensor) -> None:
        good = rewards.isfinite() & observations.isfinite().all(1)
        if not good.all():
            self.check_now()  # a network that is not finite makes the environments so
            self._require(good, "environment: a reward or observation is not finite")

    def check_now(self) -> None:
        """The finite checks alone: what must hold before anything is saved."""
        if self.trainer.metrics:
            self._check_finite(self.trainer.metrics)

    def _check_finite(self, metrics: dict[str, Any]) -> None:
        agent = self.trainer.agent
        for network in ("critic", "actor"):
            self._require(metrics[f"{network}_finite"], f"{network}: a loss or gradient is not finite")
        for network, params in (
            ("critic", agent.critic),
            ("actor", agent.actor),
            ("temperature", agent.temperature),
        ):
            total = torch.stack([p.detach().sum() for _, p in params.tensors()])
            if not total.isfinite().all():
                self.diverged(f"{network}: a parameter is not finite")

    def _check_values(self, metrics: dict[str, Any]) -> None:
        config, agent = self.trainer.agent.config, self.trainer.agent
        assert self.largest_reward is not None
        actor = config.actor
        # a Gaussian's log-density at σ = exp(log_std_min), two σ from the mean, and the tanh's share
        nats = agent.action_dim * (abs(actor.log_std_min) + 3.0)
        reward = self.largest_reward.to(metrics["q"]) / metrics["reward_scale"]
        lowest = max(SMALLEST_BOUND, config.temperature.initial)
        most = TEMPERATURE_MARGIN * (reward / (1 - config.gamma)).clamp(min=lowest)
        self._require(metrics["alpha"] <= most, "temperature: α is beyond what rewards give a reason for")
        permitted = (reward + metrics["alpha"] * nats) / (1 - config.gamma)
        # values follow a shrinking temperature or a growing scale only slowly
        seen = self.permitted  # on the CPU, if it comes from a checkpoint
        self.permitted = permitted if seen is None else torch.maximum(seen.to(permitted), permitted)
        bound = (VALUE_MARGIN * self.permitted).clamp(min=SMALLEST_BOUND)
        good = metrics["q"].abs() <= bound
        if config.critic.loss == "squared":  # where critics differ in sign, their mean tells nothing
            good &= metrics["critic_loss"] <= config.critic.ensemble * (2 * bound).square()
        self._require(good, "critic: values are beyond what rewards and discount permit")

    def _watch_entropy(self, metrics: dict[str, Any]) -> None:
        agent = self.trainer.agent
        lowest = agent.action_dim * (agent.config.actor.log_std_min + 0.5 * math.log(2 * math.pi * math.e))
        for name, log_prob in zip(self.task_names, metrics["log_prob"].tolist(), strict=True):
            if -log_prob < lowest + 0.01 * abs(lowest):
                self._warn(f"actor: the entropy of {name} collapsed ({-log_prob:.1f} nats)")

    def _watch_gradients(self, metrics: dict[str, Any]) -> None:
        if metrics.get("conflict_update", -1) == self.seen_update:
            return
        self.seen_update = metrics.get("conflict_update", -1)
        for network in ("critic", "actor"):
            for name, norm in zip(
                self.task_names, metrics[f"conflict_{network}"].norms.tolist(), strict=True
            ):
                key = f"{network}: the gradient of {name} is zero"
                self.zero_gradients[key] = self.zero_gradients.get(key, 0) + 1 if norm == 0 else 0
                if self.zero_gradients[key] >= ZERO_MEASUREMENTS:
                    self._warn(key)

    def _warn(self, text: str) -> None:
        if text not in self.warned:
            self.warned.append(text)
            tell(f"warning: {text} at step {self.steps_per_task} per task")

    def _require(self, good: Tensor, what: str) -> None:
        if not good.all():
            names = [name for name, ok in zip(self.task_names, good.tolist(), strict=True) if not ok]
            self.diverged(f"{what} for {', '.join(names)}")

    def diverged(self, what: str) -> NoReturn:
        """Save the evidence and raise :class:`Diverged`."""
        trainer = self.trainer
        tensors = {key: value for key, value in trainer.metrics.items() if isinstance(value, Tensor)}
        if trainer.replay_buffer.size:
            batch = trainer.replay_buffer.sample(trainer.batch_size)
            tensors |= {f"batch.{key}": value for key, value in batch._asdict().items() if value is not None}
        for network in ("critic", "actor"):
            if f"conflict_{network}" in trainer.metrics:
                tensors[f"gramian_{network}"] = trainer.metrics[f"conflict_{network}"].gramian
        copies = {
            k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()
        }
        where = f"evidence in {self.evidence}"
        try:
            write_synced(self.evidence, save(copies))
        except OSError as error:
            where = f"no evidence, {self.evidence} cannot be written ({error.strerror})"
        raise Diverged(f"{what}, at step {self.steps_per_task} per task; {where}")

    def state_dict(self) -> dict[str, Any]:
        return {
            "largest_reward": self.largest_reward, "permitted": self.permitted,
            "zero_gradients": self.zero_gradients, "seen_update": self.seen_update, "warned": self.warned,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.state_dict():
            setattr(self, name, state[name])
