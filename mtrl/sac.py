"""Multi-task soft actor-critic (MT-SAC). The losses are written for ONE task; vmap makes them T.

Soft actor-critic: Haarnoja et al. 2018 (arXiv 1812.05905). Inside a one-task function there is no
task axis: B rows, D numbers per observation, A per action, N critics. They are pure: parameters,
batch and noise in, numbers out. Every operation acts on the last axes alone, so that the fast path may
hand in all tasks at once (:mod:`mtrl.gradients`); with ``agent.kernels: plain`` it need not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from mtrl.config import AgentConfig, ConfigError, NetworkConfig
from mtrl.conflict import measure_conflict
from mtrl.fast.chain import Chains
from mtrl.gradients import FACTORED, PLAIN, Gradient, multitask_gradient, task_share
from mtrl.layers import PlainLayers
from mtrl.machine import choose_kernels, choose_precision
from mtrl.networks import (
    Actor,
    Critic,
    LayerModule,
    Masks,
    Parameters,
    call,
    make_parameters,
    squashed_sample,
)
from mtrl.optimizers import MultiTaskOptimizer, Scalarization, make_optimizer
from mtrl.policy import Policy
from mtrl.replay import Batch
from mtrl.rewards import make_reward_scale
from mtrl.streams import stream


class Noise(NamedTuple):
    """All randomness of one update: standard normal ``[T, B, A]`` and dropout masks ``[T, B, ·]``."""

    next_action: Tensor
    action: Tensor
    target_masks: Masks
    critic_masks: Masks
    actor_critic_masks: Masks
    actor_masks: Masks


@dataclass(frozen=True)
class Networks:
    """The one-task modules; their parameters are handed in at each call."""

    actor: Actor
    critic: Critic


def mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over rows ``[B]``, weighted where rows are padding; 0 without any row."""
    return x.mean(-1) if weight is None else (x * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def td_target(
    actor: Parameters, target: Parameters, alpha: Tensor, task: Tensor, batch: Batch,
    noise: Tensor, masks: Masks, ceiling: Tensor | None, nets: Networks, gamma: float,
) -> Tensor:  # fmt: skip
    """``r + γ (1 − terminated) (Q̄(s', a') − α log π(a'|s'))`` ``[B]``, Q̄ being the ensemble's value.

    A time limit is no termination: the value behind it counts (Pardo et al. 2018). A categorical critic's
    target has probabilities ``[B, K]`` instead, every atom being a next value.

    Args:
        ceiling: ``[]``, no target is above it; None is no ceiling.
    """
    mean_, log_std = call(nets.actor, actor, batch.next_obs, task)
    action, log_prob = squashed_sample(mean_, log_std, noise)
    outputs = call(nets.critic, target, batch.next_obs, action, task, masks)
    bonus = alpha.unsqueeze(-1) * -log_prob
    rewards, goes_on, bonus = (x.unsqueeze(-1) for x in (batch.rewards, 1 - batch.terminated, bonus))

    def backup(value: Tensor) -> Tensor:
        y = rewards + gamma * goes_on * (value + bonus)
        return y if ceiling is None else torch.minimum(y, ceiling.unsqueeze(-1).unsqueeze(-1))

    return nets.critic.target(outputs, backup)


def critic_loss(
    critic: Parameters, task: Tensor, batch: Batch, target: Tensor, masks: Masks, nets: Networks
) -> tuple[Tensor, Tensor]:
    """``Σ_i mean (Q_i(s, a) − y)²`` and the mean value. The paper's; SB3 has ½ of it.

    For categorical critics ``Σ_i mean`` cross-entropy, and the mean expectation. Auxiliary towers learn the same
    target.
    """
    args = (batch.obs, batch.actions, task, masks)
    (_, outputs), *more = call(nets.critic, critic, *args, method="with_auxiliary")
    values = nets.critic.values(outputs.detach()).mean(0)
    loss = mean(nets.critic.loss(outputs, target), batch.weight)
    for weight, auxiliary in more:
        loss = loss + weight * mean(nets.critic.loss(auxiliary, target), batch.weight)
    return loss, mean(values, batch.weight)


def actor_loss(
    actor: Parameters, critic: Parameters, alpha: Tensor, task: Tensor, batch: Batch,
    noise: Tensor, masks: Masks, critic_masks: Masks, nets: Networks,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``mean (α log π(a|s) − Q(s, a))`` with ``a`` reparameterised, and the mean log π.

    An auxiliary head is a policy with a loss of its own, on the same noise.
    """

    def of(gaussian: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        action, log_prob = squashed_sample(*gaussian, noise)
        outputs = call(nets.critic, critic, batch.obs, action, task, critic_masks)
        value = nets.critic.reduced(outputs)
        return mean(alpha.unsqueeze(-1) * log_prob - value, batch.weight), log_prob

    (_, gaussian), *more = call(nets.actor, actor, batch.obs, task, masks, method="with_auxiliary")
    loss, log_prob = of(gaussian)
    for weight, auxiliary in more:
        loss = loss + weight * of(auxiliary)[0]
    return loss, mean(log_prob.detach(), batch.weight)


def temperature_loss(
    temperature: Parameters, log_prob: Tensor, target_entropy: float, through_alpha: bool
) -> tuple[Tensor, Tensor]:
    """``−x (log π + H̄)``, with ``x`` = log α, or α itself; ``log_prob`` is the task's mean, ``[]``, and returned."""
    log_alpha = dict(temperature.tensors())["log_alpha"].squeeze(-1)
    x = log_alpha.exp() if through_alpha else log_alpha
    return -x * (log_prob + target_entropy), log_prob


class MTSAC:
    """The agent: networks, temperatures, reward scale, and one update of them all.

    Args:
        obs_dim: D, without the task's one-hot.
        action_dim: A; actions lie in [-1, 1].
        task_names: T names, in the order of the one-hot.
        config: every setting of the agent.
        optimizer: name of the multi-task optimizer; critic and actor each get an instance.
        options: of the optimizer.
        apply_to: the networks whose gradients it combines; the other one takes the mean.
        seed: of initialisation, exploration noise and optimizer.
        device: where everything lives.
        info: told in the policy file (see :class:`Policy`).

    Raises:
        OptimizerError: unknown optimizer or option.
        ConfigError: a target entropy that no policy can have.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, task_names: tuple[str, ...], config: AgentConfig | None = None, *,
        optimizer: str = "unitary", options: dict[str, Any] | None = None,
        apply_to: Literal["both", "critic", "actor"] = "both",
        seed: int = 0, device: torch.device | str = "cpu", info: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.config = config = config or AgentConfig()
        self.device = device = torch.device(device)
        self.num_tasks = T = len(task_names)
        self.action_dim = action_dim
        self.one_hot = torch.eye(T, device=device)
        self.generator = torch.Generator(device).manual_seed(stream(seed, "exploration"))
        wanted, most = config.temperature.target_entropy, action_dim * math.log(2)
        if wanted is not None and wanted >= most:
            raise ConfigError(
                f"agent.temperature.target_entropy: {wanted!r} is not valid; it must be below {most:.3f}, the "
                f"entropy of uniform actions in [-1, 1] of {action_dim} numbers"
            )
        self.target_entropy = -float(action_dim) if wanted is None else wanted

        task = (config.task_input, config.embedding_dim)
        architectures = [config.architecture(part) for part in (config.actor, config.critic)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(seed, "networks"))
            actor, self.actor = make_parameters(
                lambda: Actor(obs_dim, action_dim, T, config.actor, *task, architectures[0]), T, device
            )
            critic, self.critic = make_parameters(
                lambda: Critic(obs_dim, action_dim, T, config.critic, *task, architectures[1]), T, device
            )
        precision = choose_precision(config.precision, device)
        self.all_at_once = actor.all_at_once and critic.all_at_once
        # what is written for one task alone, vmap makes T
        kind = choose_kernels(config.kernels, device) if self.all_at_once else "plain"
        self.path = PLAIN if kind == "plain" else FACTORED
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        run = PlainLayers(dtype) if kind == "plain" else Chains(dtype, onednn=kind == "onednn")
        for module in (*actor.modules(), *critic.modules()):
            if isinstance(module, LayerModule):
                module.run = run
        self.nets = Networks(actor, critic)
        self.target = self.critic.map(lambda p: p.detach().clone())
        log_alpha = {
            "log_alpha": torch.full(
                (1,) if config.temperature.shared else (T, 1), config.temperature.initial, device=device
            ).log().requires_grad_()
        }  # fmt: skip
        self.temperature = (
            Parameters(log_alpha, {}) if config.temperature.shared else Parameters({}, log_alpha)
        )
        with torch.device("meta"):  # acts in float32 whatever the update's precision, as a loaded file does
            acting = Actor(obs_dim, action_dim, T, config.actor, *task, architectures[0])
        averages = config.policy_tau < 1
        self.averaged = self.actor.map(lambda p: p.detach().clone()) if averages else self.actor
        self.explorer = Policy(acting, self.actor, task_names, obs_dim, action_dim)
        self.policy = Policy(acting, self.averaged, task_names, obs_dim, action_dim, info)

        def method(name: str, network: str) -> MultiTaskOptimizer:
            chosen = (options or {}) if name == optimizer else {}
            return make_optimizer(name, num_tasks=T, seed=stream(seed, f"{network} method"), **chosen)

        def name_for(network: str) -> str:
            if apply_to not in ("both", network):
                return "unitary"
            needs_positive_losses = make_optimizer(optimizer, num_tasks=T, **(options or {})).critic_only
            return "unitary" if needs_positive_losses and network != "critic" else optimizer

        # one shared temperature is all that there is to combine
        combine = config.temperature.combine and config.temperature.shared and apply_to == "both"
        self.methods = {
            "critic": method(name_for("critic"), "critic"),
            "actor": method(name_for("actor"), "actor"),
            "temperature": method(name_for("actor") if combine else "unitary", "temperature"),
        }
        self.steps = {
            "critic": make_adam(self.critic, config.critic),
            "actor": make_adam(self.actor, config.actor),
            "temperature": torch.optim.Adam(
                [p for _, p in self.temperature.tensors()], lr=config.temperature.learning_rate
            ),
        }
        self.rewards = make_reward_scale(
            config.reward_scale, T, config.gamma, abs(self.target_entropy), config.ema_coefficient
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        """T names, in the order of the one-hot."""
        return self.policy.task_names

    @property
    def alpha(self) -> Tensor:
        """Temperatures ``[T]``, whether shared or not."""
        (_, log_alpha), *_ = self.temperature.tensors()
        return log_alpha.detach().exp().flatten().expand(self.num_tasks)

    def act(self, observations: Tensor) -> Tensor:
        """Exploring actions ``[T, A]`` for ``[T, D + T]``, with the agent's own generator."""
        noise = torch.randn(len(observations), self.action_dim, generator=self.generator, device=self.device)
        return self.explorer.act(observations.to(self.device), noise)

    def random_actions(self) -> Tensor:
        """Uniform actions ``[T, A]`` in [-1, 1]: the warm-up's."""
        shape = (self.num_tasks, self.action_dim)
        return torch.rand(shape, generator=self.generator, device=self.device) * 2 - 1

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[Any], Any]:
        """Stable-Baselines3's ``predict`` (see :meth:`Policy.predict`)."""
        return self.policy.predict(observation, state, episode_start, deterministic)

    def draw_noise(self, rows: int) -> Noise:
        """The randomness of one update with ``rows`` rows per task."""
        shape = (self.num_tasks, rows)
        critic, actor = self.nets.critic, self.nets.actor
        next_action, action = torch.randn(
            2, *shape, self.action_dim, generator=self.generator, device=self.device
        )
        return Noise(
            next_action, action,
            critic.draw_masks(shape, self.generator),
            critic.draw_masks(shape, self.generator),
            critic.draw_masks(shape, self.generator),
            actor.draw_masks(shape, self.generator),
        )  # fmt: skip

    def update(self, batch: Batch, noise: Noise | None = None, diagnose: bool = False) -> dict[str, Any]:
        """One step of critics, actor, temperatures, and the averages of weights (target, policy), in this order.

        Args:
            batch: rewards as stored; ``[T, B, ·]``. A task without rows has gradient zero in its private
                parameters; what Adam remembers still moves them.
            noise: None draws it.
            diagnose: also return the tasks' gradients' Gramians and what was made of them.

        Returns:
            device tensors, nothing waited for: ``critic_loss, actor_loss, q, log_prob, alpha,
            reward_scale, critic_weights, actor_weights`` and ``critic_finite, actor_finite``, all
            ``[T]``; with ``diagnose``, ``conflict_critic`` and ``conflict_actor``.
        """
        noise = noise or self.draw_noise(batch.rewards.shape[1])
        alpha, present = self.alpha, batch.present
        scale = self.rewards.scale(alpha)
        ceiling = self.rewards.largest_return(scale) if self.config.target_clip else None
        batch = batch._replace(rewards=batch.rewards / scale.unsqueeze(1))
        with torch.no_grad():
            target = self.path.over_tasks(
                partial(td_target, nets=self.nets, gamma=self.config.gamma),
                self.actor, self.target, alpha, self.one_hot, batch, noise.next_action, noise.target_masks,
                ceiling,
            )  # fmt: skip

        metrics: dict[str, Any] = {"alpha": alpha, "reward_scale": scale}
        critic = self._step(
            "critic", partial(critic_loss, nets=self.nets), self.critic, self.config.critic,
            (self.one_hot, batch, target, noise.critic_masks), present, diagnose, metrics,
        )  # fmt: skip
        actor = self._step(
            "actor", partial(actor_loss, nets=self.nets), self.actor, self.config.actor,
            (
                self.critic.detach(), alpha, self.one_hot, batch,
                noise.action, noise.actor_masks, noise.actor_critic_masks,
            ),
            present, diagnose, metrics,
        )  # fmt: skip
        temperature = partial(
            temperature_loss, target_entropy=self.target_entropy,
            through_alpha=self.config.temperature.loss == "alpha",
        )  # fmt: skip
        self._step("temperature", temperature, self.temperature, None, (actor.aux,), present, False, {})
        follow(self.target, self.critic, self.config.tau)
        if self.averaged is not self.actor:
            follow(self.averaged, self.actor, self.config.policy_tau)
        return {**metrics, "q": critic.aux, "log_prob": actor.aux}

    def _step(
        self, name: str, loss: Any, params: Parameters, config: NetworkConfig | None, inputs: tuple[Any, ...],
        present: Tensor | None, diagnose: bool, metrics: dict[str, Any],
    ) -> Gradient:  # fmt: skip
        """Loss → gradient → clip → Adam → the method's own step."""
        method = self.methods[name]
        # the temperature's parameter is in no layer: its own gradients, where they are wanted, are vmap's
        path = PLAIN if params is self.temperature and not isinstance(method, Scalarization) else self.path
        gradient = multitask_gradient(method, loss, params, *inputs, present=present, path=path)
        metrics |= {
            f"{name}_loss": gradient.losses,
            f"{name}_weights": gradient.weights,
            f"{name}_finite": gradient.finite,
        }
        if diagnose:
            tasks = path.per_task(loss, params, *inputs)
            metrics[f"conflict_{name}"] = measure_conflict(
                tasks, gradient.params.shared, gradient.weights, task_share(tasks.losses, present)
            )
        for (_, p), (_, g) in zip(params.tensors(), gradient.params.tensors(), strict=True):
            p.grad = laid_out_as(p, g)
        if config is not None and config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_([p for _, p in params.tensors()], config.max_grad_norm)
        self.steps[name].step()
        if method.needs_after_step:
            with torch.no_grad():
                method.after_step(path.over_tasks(loss, params, *inputs)[0])
        return gradient

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes in training, generators included; no copies."""
        return {
            **{name: p._asdict() for name, p in self._parameters().items()},
            "steps": {name: step.state_dict() for name, step in self.steps.items()},
            "methods": {name: method.state_dict() for name, method in self.methods.items()},
            "rewards": self.rewards.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`: bit for bit if configured the same, else with this agent's own settings."""
        state = {"averaged": state["actor"], **state}  # an average that only begins now begins at its actor
        with torch.no_grad():
            for name, parameters in self._parameters().items():
                for kind, tensors in parameters._asdict().items():
                    for key, tensor in tensors.items():
                        tensor.copy_(state[name][kind][key])
        for name, step in self.steps.items():
            groups = [{k: v for k, v in group.items() if k != "params"} for group in step.param_groups]
            step.load_state_dict(state["steps"][name])
            for group, own in zip(step.param_groups, groups, strict=True):
                group.update(own)  # torch loads the learning rate and decay of the day it was saved
            for parameter, memory in step.state.items():
                for key, value in memory.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        memory[key] = laid_out_as(parameter, value)
        for name, method in self.methods.items():
            method.load_state_dict(state["methods"][name])
        self.rewards.load_state_dict(state["rewards"])
        self.generator.set_state(state["generator"].cpu())

    def _parameters(self) -> dict[str, Parameters]:
        learned = {
            "actor": self.actor, "critic": self.critic, "target": self.target, "temperature": self.temperature,
        }  # fmt: skip
        return learned if self.averaged is self.actor else {**learned, "averaged": self.averaged}


@torch.no_grad()
def follow(average: Parameters, learned: Parameters, tau: float) -> None:
    """``average ← (1 − tau) average + tau learned``, in place: an exponential moving average of weights."""
    torch._foreach_lerp_([p for _, p in average.tensors()], [p for _, p in learned.tensors()], tau)


def laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in memory of the parameter's layout: torch's fused optimizers read both as flat memory."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def make_adam(params: Parameters, config: NetworkConfig) -> torch.optim.Adam:
    """Adam with L2 (``coupled``), or AdamW; decay acts on matrices, or ``as_published`` on everything."""
    if config.decay_on == "as_published":
        decayed = [p for _, p in params.tensors()]
    else:
        decayed = [p for p in params.shared.values() if p.dim() >= 2]
        decayed += [p for p in params.private.values() if p.dim() >= 3]
    chosen = {id(p) for p in decayed}
    others = [p for _, p in params.tensors() if id(p) not in chosen]
    kind = torch.optim.AdamW if config.decay == "decoupled" else torch.optim.Adam
    return kind(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate, fused=True,
    )  # fmt: skip
