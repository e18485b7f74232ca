"""Our update against one written by hand: a multi-task SAC update in plain torch, as short as it gets.

    python benchmarks/plain_update.py [--rounds 30] [--threads 1]

Both have T = 10 tasks, B = 128 rows per task, 3 × 400 ReLU networks, 49 numbers per observation (39 and
the one-hot), Adam, a temperature per task, fp32. The two take turns; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrl.config import ActorConfig, AgentConfig, CriticConfig, TemperatureConfig
from mtrl.replay import Batch
from mtrl.sac import MTSAC

T, B, D, A, WIDTH = 10, 128, 39, 4, 400


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs),
    )  # fmt: skip


class PlainUpdate:
    """One flat batch of T·B rows, one backward pass per network."""

    def __init__(self) -> None:
        self.actor = mlp(D + T, 2 * A)
        self.critics = nn.ModuleList(mlp(D + T + A, 1) for _ in range(2))
        self.targets = nn.ModuleList(mlp(D + T + A, 1) for _ in range(2))
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_alpha = torch.zeros(T, requires_grad=True)
        self.critic_step = torch.optim.Adam(self.critics.parameters(), lr=3e-4, fused=True)
        self.actor_step = torch.optim.Adam(self.actor.parameters(), lr=3e-4, fused=True)
        self.alpha_step = torch.optim.Adam([self.log_alpha], lr=3e-4)

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.actor(obs).chunk(2, dim=-1)
        log_std = -5 + 3.5 * (torch.tanh(raw) + 1)
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        log_prob = -0.5 * noise**2 - log_std - 0.9189385 - 2 * (0.6931472 - u - F.softplus(-2 * u))
        return torch.tanh(u), log_prob.sum(-1, keepdim=True)

    def __call__(self, batch: dict[str, Tensor]) -> None:
        obs, action, next_obs = batch["obs"], batch["action"], batch["next_obs"]
        alpha = self.log_alpha.detach().exp().repeat_interleave(B).unsqueeze(1)
        with torch.no_grad():
            next_action, next_log_prob = self.sample(next_obs)
            inputs = torch.cat((next_obs, next_action), 1)
            q = torch.minimum(self.targets[0](inputs), self.targets[1](inputs))
            target = batch["reward"] + 0.99 * (q - alpha * next_log_prob)
        inputs = torch.cat((obs, action), 1)
        critic_loss = sum(F.mse_loss(critic(inputs), target) for critic in self.critics)
        self.critic_step.zero_grad()
        critic_loss.backward()
        self.critic_step.step()
        new_action, log_prob = self.sample(obs)
        inputs = torch.cat((obs, new_action), 1)
        for p in self.critics.parameters():
            p.requires_grad_(False)
        q = torch.minimum(self.critics[0](inputs), self.critics[1](inputs))
        actor_loss = (alpha * log_prob - q).mean()
        self.actor_step.zero_grad()
        actor_loss.backward()
        self.actor_step.step()
        for p in self.critics.parameters():
            p.requires_grad_(True)
        entropy = log_prob.detach().view(T, B).mean(1)
        alpha_loss = -(self.log_alpha * (entropy - A)).mean()
        self.alpha_step.zero_grad()
        alpha_loss.backward()
        self.alpha_step.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()), 0.005)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    obs, next_obs = torch.randn(2, T, B, D)
    action, reward = torch.rand(T, B, A) * 2 - 1, torch.randn(T, B)
    one_hot = torch.eye(T).repeat_interleave(B, 0)
    flat = {
        "obs": torch.cat((obs.view(-1, D), one_hot), 1), "next_obs": torch.cat((next_obs.view(-1, D), one_hot), 1),
        "action": action.view(-1, A), "reward": reward.view(-1, 1),
    }  # fmt: skip
    config = AgentConfig(
        actor=ActorConfig(hidden=(WIDTH,) * 3), critic=CriticConfig(hidden=(WIDTH,) * 3, layer_norm=False),
        temperature=TemperatureConfig(initial=1.0), reward_scale="none",
    )  # fmt: skip
    agent = MTSAC(D, A, tuple(f"task{t}" for t in range(T)), config)
    batch = Batch(obs, action, reward, next_obs, torch.zeros(T, B))
    plain = PlainUpdate()

    def timed(function: Callable[[], object]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    times = [
        (timed(lambda: agent.update(batch)), timed(lambda: plain(flat))) for _ in range(args.rounds + 3)
    ][3:]
    ours, theirs = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(a / b for a, b in times)
    print(
        f"ours {ours:.1f} ms, by hand {theirs:.1f} ms, ratio {statistics.median(ratios):.3f} "
        f"(quartiles {ratios[len(ratios) // 4]:.3f} … {ratios[-len(ratios) // 4]:.3f}), "
        f"{args.threads} thread(s), {args.rounds} rounds"
    )


if __name__ == "__main__":
    main()
