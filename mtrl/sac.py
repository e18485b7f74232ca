"""Multi-task soft actor-critic (MT-SAC). The losses are written for ONE task; vmap makes them T.

Soft actor-critic: Haarnoja et al. 2018 (arXiv 1812.05905). Inside a one-task function there is no
task axis: B rows, D numbers per observation, A per action, N critics. They are pure: parameters,
batch and noise in, numbers out. Every operation acts on the last axes alone, so that the fast path may
hand in all tasks at once (:mod:`mtrl.gradients`); with ``agent.kernels: plain`` it need not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from mtrl.compiled import CompiledPath
from mtrl.config import AgentConfig, ConfigError, NetworkConfig
from mtrl.fast.casts import Casts
from mtrl.fast.chain import Chains
from mtrl.gradients import FACTORED, PLAIN, Gradient, Path, agrees_at_once
from mtrl.layers import LayerRunner, PlainLayers
from mtrl.learner import Learner, decayed
from mtrl.machine import choose_kernels, choose_precision, mkl_is_fast
from mtrl.networks import (
    Actor,
    Critic,
    LayerModule,
    Masks,
    Parameters,
    TaskNetwork,
    call,
    layer_groups,
    make_parameters,
    squashed_sample,
)
from mtrl.optimizers import MultiTaskOptimizer, Scalarization, make_optimizer
from mtrl.parameters import Weights
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


class Functions(NamedTuple):
    """What an update computes of one task."""

    target: Callable[..., Any]
    critic: Callable[..., Any]
    actor: Callable[..., Any]
    temperature: Callable[..., Any]


def mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over rows ``[B]``, weighted where rows are padding; 0 without any row."""
    return x.mean(-1) if weight is None else (x * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def td_target(
    actor: Parameters, target: Parameters, alpha: Tensor, task: Tensor, batch: Batch,
    noise: Tensor, masks: Masks, ceiling: Tensor | None, nets: Networks, gamma: float,
) -> Tensor:  # fmt: skip
    """``r + γ (1 − terminated) (Q̄(s', a') − α log π(a'|s'))`` ``[B]``, Q̄ being the ensemble's value.

    A time limit is no termination: the value beyond it counts (Pardo et al. 2018). A categorical critic's
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


def require_promise(net: TaskNetwork, parameters: Parameters, tasks: Tensor, *widths: int) -> None:
    """Raise ConfigError if a network of one's own that says ``all_at_once`` gives other numbers that way.

    Args:
        tasks: the one-hots ``[T, T]``.
        widths: of the rows ``[T, 3, width]`` that it is tried on, one for each of its inputs but the task.
    """
    if ":" not in (net.architecture.name or ""):
        return  # tests hold ours to it
    draws = torch.Generator().manual_seed(0)
    rows = [torch.randn(len(tasks), 3, width, generator=draws).to(tasks.device) for width in widths]
    if not agrees_at_once(partial(call, net), parameters, *rows, tasks):
        raise ConfigError(
            f"agent.network.name: {net.architecture.name} says all_at_once, but does not give for all tasks at once "
            "what it gives for one: let its operations act on the last axes, or leave all_at_once out"
        )


def require_network(method: MultiTaskOptimizer, name: str, apply_to: str, combine: bool) -> None:
    """Raise ConfigError if nobody would use a method of the critic alone, or combine the temperatures as asked."""
    if method.critic_only and apply_to == "actor":
        raise ConfigError(
            f"optimizer.apply_to: 'actor' is not valid; {name} needs positive losses: both or critic"
        )
    if combine and apply_to != "both":
        raise ConfigError(
            f"optimizer.apply_to: {apply_to!r} is not valid; it must be both with agent.temperature.combine"
        )
    if combine and method.critic_only:
        raise ConfigError(f"agent.temperature.combine: True is not valid; {name} needs positive losses")


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
        ConfigError: a target entropy that no policy can have, or an optimizer that is left without a network.
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
            torch.default_generator.manual_seed(stream(seed, "networks"))
            actor_net, actor = make_parameters(
                lambda: Actor(obs_dim, action_dim, T, config.actor, *task, architectures[0]), T, device
            )
            critic_net, critic = make_parameters(
                lambda: Critic(obs_dim, action_dim, T, config.critic, *task, architectures[1]), T, device
            )
        precision = choose_precision(config.precision, device)
        self.all_at_once = actor_net.all_at_once and critic_net.all_at_once
        # what is written for one task alone, vmap makes T
        kind = choose_kernels(config.kernels, device)
        fast = self.all_at_once and kind != "plain"
        if fast:
            require_promise(actor_net, actor, self.one_hot, obs_dim)
            require_promise(critic_net, critic, self.one_hot, obs_dim, action_dim)
        path = FACTORED if fast else PLAIN
        self.path: Path = CompiledPath(path) if kind == "compiled" else path
        self.nets = nets = Networks(actor_net, critic_net)
        self.functions = Functions(
            partial(td_target, nets=nets, gamma=config.gamma),
            partial(critic_loss, nets=nets),
            partial(actor_loss, nets=nets),
            partial(
                temperature_loss, target_entropy=self.target_entropy,
                through_alpha=config.temperature.loss == "alpha",
            ),
        )  # fmt: skip

        shared, initial = config.temperature.shared, config.temperature.initial
        log_alpha = {"log_alpha": torch.full((1,) if shared else (T, 1), initial, device=device).log()}
        temperature = Parameters(log_alpha, {}) if shared else Parameters({}, log_alpha)

        whole = make_optimizer(optimizer, num_tasks=T, **(options or {}))
        combine = config.temperature.combine
        require_network(whole, optimizer, apply_to, combine)

        def method(name: str, network: str) -> MultiTaskOptimizer:
            chosen = (options or {}) if name == optimizer else {}
            return make_optimizer(name, num_tasks=T, seed=stream(seed, f"{network} method"), **chosen)

        def name_for(network: str) -> str:
            if apply_to not in ("both", network):
                return "unitary"
            return "unitary" if whole.critic_only and network != "critic" else optimizer

        chosen = method(name_for("actor") if combine else "unitary", "temperature")
        # its parameter is in no layer: its own gradients, where they are wanted, are vmap's
        temperature_path = self.path if isinstance(chosen, Scalarization) else PLAIN
        self.learners = {
            "critic": Learner(
                laid_out(critic_net, critic, config.critic), method(name_for("critic"), "critic"), self.path,
                config.critic.learning_rate, config.critic,
            ),
            "actor": Learner(
                laid_out(actor_net, actor, config.actor), method(name_for("actor"), "actor"), self.path,
                config.actor.learning_rate, config.actor,
            ),
            "temperature": Learner(
                Weights.laid_out(temperature, [], [["log_alpha"]]), chosen, temperature_path,
                config.temperature.learning_rate,
            ),
        }  # fmt: skip
        learned = {name: learner.weights for name, learner in self.learners.items()}
        self.averages = {"target": (learned["critic"].copy(), learned["critic"], config.tau)}
        if config.policy_tau < 1:
            self.averages["averaged"] = (learned["actor"].copy(), learned["actor"], config.policy_tau)
        self.actor, self.critic, self.temperature = (
            learned[name].parameters for name in ("actor", "critic", "temperature")
        )
        self.target = self.averages["target"][0].parameters
        self.averaged = self.averages["averaged"][0].parameters if "averaged" in self.averages else self.actor

        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        buffers = [learned["critic"].buffer, learned["actor"].buffer, self.averages["target"][0].buffer]
        run: LayerRunner
        if not fast:
            run = PlainLayers(dtype)
        elif kind == "compiled":  # a graph takes parameters, not buffers
            run = Chains(dtype, traced=True)
        else:
            run = Chains(dtype, kind == "onednn", mkl_is_fast(), casts=Casts(buffers))
        for module in (*actor_net.modules(), *critic_net.modules()):
            if isinstance(module, LayerModule):
                module.run = run
        with torch.device("meta"):  # acts in float32 whatever the update's precision, as a loaded file does
            acting = Actor(obs_dim, action_dim, T, config.actor, *task, architectures[0])
        self.explorer = Policy(acting, self.actor, task_names, obs_dim, action_dim)
        self.policy = Policy(acting, self.averaged, task_names, obs_dim, action_dim, info)
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
                self.functions.target, self.actor, self.target, alpha, self.one_hot, batch,
                noise.next_action, noise.target_masks, ceiling,
            )  # fmt: skip

        metrics: dict[str, Any] = {"alpha": alpha, "reward_scale": scale}

        def step(name: str, loss: Any, *inputs: Any) -> Gradient:
            gradient, conflict = self.learners[name].step(loss, *inputs, present=present, diagnose=diagnose)
            metrics[f"{name}_loss"], metrics[f"{name}_weights"] = gradient.losses, gradient.weights
            metrics[f"{name}_finite"] = gradient.finite
            if conflict is not None:
                metrics[f"conflict_{name}"] = conflict
            return gradient

        critic = step("critic", self.functions.critic, self.one_hot, batch, target, noise.critic_masks)
        actor = step(
            "actor", self.functions.actor, self.critic.detach(), alpha, self.one_hot, batch,
            noise.action, noise.actor_masks, noise.actor_critic_masks,
        )  # fmt: skip
        self.learners["temperature"].step(self.functions.temperature, actor.aux, present=present)
        for average, learned, tau in self.averages.values():
            average.follow(learned, tau)
        return {**metrics, "q": critic.aux, "log_prob": actor.aux}

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes in training, generators included; no copies."""
        return {
            **{name: learner.state_dict() for name, learner in self.learners.items()},
            "averages": {name: average.parameters._asdict() for name, (average, *_) in self.averages.items()},
            "rewards": self.rewards.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`: bit for bit if configured the same, else with this agent's own settings."""
        for name, learner in self.learners.items():
            learner.load_state_dict(state[name])
        for name, (average, *_) in self.averages.items():
            # an average that only begins now begins at its actor
            average.load(state["averages"].get(name, state["actor"]["parameters"]))
        self.rewards.load_state_dict(state["rewards"])
        self.generator.set_state(state["generator"].cpu())


def laid_out(network: TaskNetwork, parameters: Parameters, config: NetworkConfig) -> Weights:
    """Parameters in one buffer: those with weight decay first, and what one product takes next to each other."""
    groups, chosen = layer_groups(network, network.private), decayed(parameters, config)
    return Weights.laid_out(
        parameters,
        [group for group in groups if group[0] in chosen],
        [group for group in groups if group[0] not in chosen],
    )
