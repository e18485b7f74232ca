"""Three updates of the agent against the same three written apart from it: the parameters after the steps."""

from __future__ import annotations

import itertools
from typing import Any

import independent_update
import pytest
import torch
from independent_update import Recipe, State
from torch import Tensor

from mtrl.config import ActorConfig, AgentConfig, CriticConfig, TemperatureConfig
from mtrl.networks import Parameters
from mtrl.replay import Batch
from mtrl.sac import MTSAC, Noise

T, B, D, A = 3, 4, 3, 2
SEEN = torch.tensor([[1.0, -2.0, 4.0], [0.5, 3.0, -5.0], [2.0, 2.0, 1.0]], dtype=torch.float64)  # [steps, T]
GAMMA = 0.9
TASK_INPUTS = ("one_hot", "embedding", "heads", "none")
CRITIC_LOSSES = ("squared", "distributional", "two_hot", "hl_gauss")
REWARD_SCALES = ("none", "ema", "sigma", "return")
METHODS = ("unitary", "pcgrad", "graddrop")
KERNELS = ("plain", "torch", "onednn")


def agent_of(
    task_input: Any,
    critic_loss: Any,
    through: Any,
    scale: Any,
    method: str,
    kernels: Any,
    shared_alpha: bool,
    norms: tuple[bool, bool],
) -> MTSAC:
    config = AgentConfig(
        actor=ActorConfig(hidden=(5, 4), layer_norm=norms[0], weight_decay=0.1, decay="coupled", learning_rate=0.02),
        critic=CriticConfig(
            hidden=(5,), layer_norm=norms[1], weight_decay=0.1, loss=critic_loss, atoms=5, support=3.0,
            max_grad_norm=0.5, learning_rate=0.02,
        ),
        temperature=TemperatureConfig(shared=shared_alpha, initial=0.3, learning_rate=0.05, loss=through),
        gamma=GAMMA, tau=0.1, policy_tau=0.2, task_input=task_input, embedding_dim=2, reward_scale=scale,
        precision="fp32", kernels=kernels,
    )  # fmt: skip
    torch.set_default_dtype(torch.float64)
    try:
        agent = MTSAC(D, A, tuple("abc"), config, optimizer=method, seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    for rewards in SEEN:
        agent.rewards.observe(rewards, torch.zeros(T))
    return agent


def scale_of(kind: str, alpha: Tensor) -> Tensor:
    """What three rewards per task make of the scale, by the definitions."""
    if kind == "sigma":
        return (SEEN - SEEN.mean(0)).square().mean(0).sqrt()
    if kind == "return":
        sums, most = torch.zeros(T, dtype=torch.float64), torch.zeros(T, dtype=torch.float64)
        for rewards in SEEN:
            sums = GAMMA * sums + rewards
            most = torch.maximum(most, sums.abs())
        return (most + alpha * A / (1 - GAMMA)) / 10
    return torch.ones(T, dtype=torch.float64)


def independent(
    agent: MTSAC, method: str, scale: str, critic_loss: str, through: str
) -> tuple[State, Recipe]:
    def copied(parameters: Parameters, learns: bool) -> dict[str, Tensor]:
        return {k: v.detach().clone().requires_grad_(learns) for k, v in parameters.tensors()}

    generators = {}
    for network in ("critic", "actor"):
        generators[network] = torch.Generator()
        generators[network].set_state(agent.learners[network].method.generator.get_state())
    shared_alpha = agent.config.temperature.shared
    state = State(
        copied(agent.actor, True), copied(agent.critic, True), copied(agent.target, False),
        copied(agent.averaged, False),
        next(agent.temperature.tensors())[1].detach().clone().requires_grad_(),
        {
            "actor": set(agent.actor.private), "critic": set(agent.critic.private),
            "temperature": set() if shared_alpha else {"log_alpha"},
        },
        generators,
    )  # fmt: skip
    recipe = Recipe(
        tasks=T, task_input=agent.config.task_input, critic_loss=critic_loss, through_alpha=through == "alpha",
        shared_alpha=shared_alpha, method=method, gamma=GAMMA, tau=0.1, policy_tau=0.2,
        target_entropy=-A, atoms=5, support=3.0, critics=2,
        learning_rate={"actor": 0.02, "critic": 0.02, "temperature": 0.05},
        weight_decay={"actor": 0.1, "critic": 0.1, "temperature": 0.0},
        decoupled={"actor": False, "critic": True, "temperature": False},
        max_grad_norm=0.5, scale=lambda alpha: scale_of(scale, alpha),
    )  # fmt: skip
    return state, recipe


def batches(absent: bool) -> list[tuple[Batch, tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    found = []
    for i in range(3):
        weight = None
        if absent:
            weight = torch.ones(T, B, dtype=torch.float64)
            weight[i % T] = 0  # a task without a row, another with fewer
            weight[(i + 1) % T, 2:] = 0
        batch = Batch(
            draw(T, B, D), draw(T, B, A).tanh(), 2 * draw(T, B), draw(T, B, D),
            (draw(T, B) < -0.7).double(), weight,
        )  # fmt: skip
        found.append((batch, (draw(T, B, A), draw(T, B, A))))
    return found


def others(ti: int, cl: int, th: int, me: int) -> tuple[str, bool, bool, tuple[bool, bool]]:
    """The settings that go with a task input, a critic's loss, a temperature's loss and a method, by their places."""
    norms = ((ti // 2 + cl // 2 + th) % 2 == 1, (cl + me // 2 + ti // 2) % 2 == 1)
    scale = REWARD_SCALES[(ti + cl + 2 * th + me) % len(REWARD_SCALES)]
    return scale, (ti // 2 + cl + th + me) % 2 == 1, (ti + cl // 2 + me) % 2 == 1, norms


def test_every_pair_of_settings_occurs():
    rows = [
        (*places, scale, absent, shared, *norms)
        for places in itertools.product(*map(range, (len(TASK_INPUTS), len(CRITIC_LOSSES), 2, len(METHODS))))
        for scale, absent, shared, norms in [others(*places)]
    ]
    for a, b in itertools.combinations(range(len(rows[0])), 2):
        kinds = len({row[a] for row in rows}) * len({row[b] for row in rows})
        assert len({(row[a], row[b]) for row in rows}) == kinds, (a, b)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("through", ["log_alpha", "alpha"])
@pytest.mark.parametrize("critic_loss", CRITIC_LOSSES)
@pytest.mark.parametrize("task_input", TASK_INPUTS)
def test_three_updates_leave_the_parameters_of_an_update_written_apart(
    task_input, critic_loss, through, method
):
    ti, cl, me = TASK_INPUTS.index(task_input), CRITIC_LOSSES.index(critic_loss), METHODS.index(method)
    scale, absent, shared_alpha, norms = others(ti, cl, int(through == "alpha"), me)
    settings = (task_input, critic_loss, through, scale, method)
    agents = [agent_of(*settings, kernels, shared_alpha, norms) for kernels in KERNELS]
    state, recipe = independent(agents[0], method, scale, critic_loss, through)
    for batch, noise in batches(absent):
        full = batch._replace(weight=torch.ones(T, B).double() if batch.weight is None else batch.weight)
        independent_update.update(state, recipe, full._asdict(), noise)
        for agent in agents:
            agent.update(batch, Noise(*noise, (), (), (), ()))
    for agent, kernels in zip(agents, KERNELS, strict=True):
        for name in ("actor", "critic", "target", "averaged"):
            for key, ours in getattr(agent, name).tensors():
                torch.testing.assert_close(
                    ours.detach(), getattr(state, name)[key].detach(), rtol=1e-9, atol=1e-9,
                    msg=lambda text, w=(kernels, scale, absent, name, key): f"{w}: {text}",
                )  # fmt: skip
        log_alpha = next(agent.temperature.tensors())[1]
        torch.testing.assert_close(log_alpha.detach(), state.log_alpha.detach(), rtol=1e-9, atol=1e-9)
