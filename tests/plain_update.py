"""A multi-task SAC update in plain torch, as a good engineer would write it by hand."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrl.bench.settings import ACTION, OBSERVATION, Setting
from mtrl.replay import Batch

GAMMA, TAU, LEARNING_RATE = 0.99, 0.005, 3e-4


def mlp(inputs: int, setting: Setting, outputs: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for a, b in itertools.pairwise((inputs, *setting.hidden)):
        modules += [nn.Linear(a, b), *([nn.LayerNorm(b)] if setting.layer_norm else []), nn.ReLU()]
    return nn.Sequential(*modules, nn.Linear(setting.hidden[-1], outputs))


def flat(batch: Batch) -> Batch:
    """``[T, B, ·]`` as ``[T·B, ·]``, observations with their one-hot behind, numbers as columns ``[T·B, 1]``."""
    tasks, rows = batch.rewards.shape
    one_hot = torch.eye(tasks).repeat_interleave(rows, 0)
    return Batch(
        torch.cat((batch.obs.flatten(0, 1), one_hot), 1), batch.actions.flatten(0, 1),
        batch.rewards.view(-1, 1), torch.cat((batch.next_obs.flatten(0, 1), one_hot), 1),
        batch.terminated.view(-1, 1),
    )  # fmt: skip


class PlainUpdate:
    """One flat batch of T·B rows, one backward pass per network; twin critics, a temperature per task."""

    def __init__(self, setting: Setting) -> None:
        state = OBSERVATION + setting.tasks
        self.setting = setting
        self.actor = mlp(state, setting, 2 * ACTION)
        self.critics = nn.ModuleList(mlp(state + ACTION, setting, 1) for _ in range(2))
        self.targets = nn.ModuleList(mlp(state + ACTION, setting, 1) for _ in range(2))
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_alpha = torch.zeros(setting.tasks, requires_grad=True)
        self.critic_step = torch.optim.Adam(self.critics.parameters(), lr=LEARNING_RATE, fused=True)
        self.actor_step = torch.optim.Adam(self.actor.parameters(), lr=LEARNING_RATE, fused=True)
        self.alpha_step = torch.optim.Adam([self.log_alpha], lr=LEARNING_RATE)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Action ``[N, A]`` and log π ``[N, 1]``."""
        mean, raw = self.actor(obs).chunk(2, dim=-1)
        log_std = -5 + 3.5 * (torch.tanh(raw) + 1)
        u = mean + log_std.exp() * noise
        log_prob = -0.5 * noise**2 - log_std - 0.9189385 - 2 * (0.6931472 - u - F.softplus(-2 * u))
        return torch.tanh(u), log_prob.sum(-1, keepdim=True)

    def __call__(self, batch: Batch, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of everything.

        Args:
            batch: made by :func:`flat`.
            noise: ``[2, T·B, A]`` standard normal, of the next action and the action; None draws it.

        Returns:
            the critics' and the actor's loss before the step, means over tasks.
        """
        tasks, rows = self.setting.tasks, self.setting.rows
        next_noise, noise = torch.randn(2, tasks * rows, ACTION) if noise is None else noise
        alpha = self.log_alpha.detach().exp().repeat_interleave(rows).unsqueeze(1)
        with torch.no_grad():
            next_action, next_log_prob = self.sample(batch.next_obs, next_noise)
            inputs = torch.cat((batch.next_obs, next_action), 1)
            q = torch.minimum(self.targets[0](inputs), self.targets[1](inputs))
            target = batch.rewards + GAMMA * (1 - batch.terminated) * (q - alpha * next_log_prob)
        inputs = torch.cat((batch.obs, batch.actions), 1)
        critic_loss = F.mse_loss(self.critics[0](inputs), target) + F.mse_loss(
            self.critics[1](inputs), target
        )
        self.critic_step.zero_grad()
        critic_loss.backward()  # type: ignore[no-untyped-call]
        self.critic_step.step()
        self.critics.requires_grad_(False)
        action, log_prob = self.sample(batch.obs, noise)
        inputs = torch.cat((batch.obs, action), 1)
        q = torch.minimum(self.critics[0](inputs), self.critics[1](inputs))
        actor_loss = (alpha * log_prob - q).mean()
        self.actor_step.zero_grad()
        actor_loss.backward()  # type: ignore[no-untyped-call]
        self.actor_step.step()
        self.critics.requires_grad_(True)
        entropy = log_prob.detach().view(tasks, rows).mean(1)
        alpha_loss = -(self.log_alpha * (entropy - ACTION)).mean()
        self.alpha_step.zero_grad()
        alpha_loss.backward()  # type: ignore[no-untyped-call]
        self.alpha_step.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()), TAU)
        return critic_loss.detach(), actor_loss.detach()
