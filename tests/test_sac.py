"""MT-SAC: its losses by hand and by Stable-Baselines3, its update, its state."""

from __future__ import annotations

import copy
import math
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch.distributions import Normal

from mtrl.cli import main
from mtrl.config import ActorConfig, AgentConfig, ConfigError, CriticConfig, TemperatureConfig
from mtrl.gradients import multitask_gradient
from mtrl.networks import Actor, Critic, Parameters, call, squashed_sample
from mtrl.optimizers import OPTIMIZERS, make_optimizer
from mtrl.replay import Batch
from mtrl.sac import (
    MTSAC,
    Networks,
    Noise,
    actor_loss,
    critic_loss,
    mean,
    td_target,
    temperature_loss,
)

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)  # 0.918939: −log of a standard normal's density at 0


# --- golden values: D = A = 1, linear networks, the action is tanh(0 + 1·noise) -----------------------


@pytest.fixture
def nets() -> Networks:
    """π = N(0, 1) squashed; Q₁ = s + 2a, Q₂ = 3."""
    with torch.device("meta"):
        return Networks(
            Actor(1, 1, 1, ActorConfig(hidden=(), log_std="clip"), "none"),
            Critic(1, 1, 1, CriticConfig(hidden=(), layer_norm=False), "none"),
        )


ACTOR = Parameters(
    {"net.stack.output.weight": torch.zeros(2, 1), "net.stack.output.bias": torch.zeros(2)}, {}
)
CRITIC = Parameters(
    {
        "nets.0.stack.output.weight": torch.tensor([[1.0, 2.0]]),
        "nets.0.stack.output.bias": torch.zeros(1),
        "nets.1.stack.output.weight": torch.zeros(1, 2),
        "nets.1.stack.output.bias": torch.tensor([3.0]),
    },
    {},
)
TASK, ALPHA = torch.ones(1), torch.tensor(0.5)


def two_rows(weight: list[float] | None = None) -> Batch:
    """s = 1, 2; a = ½, 0; r = 1, 10; s' = 4, 2; the second row ends for real."""
    return Batch(
        torch.tensor([[1.0], [2.0]]),
        torch.tensor([[0.5], [0.0]]),
        torch.tensor([1.0, 10.0]),
        torch.tensor([[4.0], [2.0]]),
        torch.tensor([0.0, 1.0]),
        None if weight is None else torch.tensor(weight),
    )


def test_the_target_bootstraps_the_smaller_value_and_the_entropy_and_termination_cuts_it(nets):
    target = td_target(ACTOR, CRITIC, ALPHA, TASK, two_rows(), torch.zeros(2, 1), (), None, nets, 0.9)
    # a' = 0, log π = −0.918939. Row 1: min(4, 3) = 3, so 1 + 0.9 (3 + 0.5 · 0.918939) = 4.113523.
    # Row 2 terminated: its reward alone.
    assert target.tolist() == pytest.approx([4.113523, 10.0], rel=1e-6)


def test_the_critic_loss_is_the_sum_over_critics_of_the_mean_squared_error(nets):
    loss, value = critic_loss(CRITIC, TASK, two_rows(), torch.tensor([1.0, 5.0]), (), nets)
    # Q₁ = 2, 2; Q₂ = 3, 3; errors 1, −3 and 2, −2: (1 + 9)/2 + (4 + 4)/2 = 9; mean value 2.5
    assert loss.item() == pytest.approx(9)
    assert value.item() == pytest.approx(2.5)


def test_a_weighted_loss_counts_the_rows_of_weight_one(nets):
    loss, value = critic_loss(CRITIC, TASK, two_rows([0.0, 1.0]), torch.tensor([1.0, 5.0]), (), nets)
    assert loss.item() == pytest.approx(9 + 4)  # errors −3 and −2
    assert value.item() == pytest.approx(2.5)
    assert mean(torch.ones(3), torch.zeros(3)).item() == 0


def test_the_actor_loss_is_entropy_against_the_smaller_value(nets):
    noise = torch.zeros(2, 1)
    loss, log_prob = actor_loss(ACTOR, CRITIC, ALPHA, TASK, two_rows(), noise, (), (), nets)
    # a = 0: min(1, 3) = 1 and min(2, 3) = 2; log π = −0.918939: −0.459469 − 1.5
    assert loss.item() == pytest.approx(-0.5 * HALF_LOG_2PI - 1.5)
    assert log_prob.item() == pytest.approx(-HALF_LOG_2PI)
    loss, _ = actor_loss(ACTOR, CRITIC, ALPHA, TASK, two_rows([0.0, 1.0]), noise, (), (), nets)
    assert loss.item() == pytest.approx(-0.5 * HALF_LOG_2PI - 2)


@pytest.mark.parametrize(("through_alpha", "loss", "slope"), [(False, -2.079442, 3.0), (True, 1.5, 1.5)])
def test_the_temperature_loss_goes_through_log_alpha_or_alpha(through_alpha, loss, slope):
    # α = ½, log π = −1, H̄ = −2: log π + H̄ = −3. Through log α: 3 log ½ = −2.079442, slope 3.
    # Through α: 3 · ½ = 1.5, and its slope by log α is the same times α.
    log_alpha = torch.tensor([0.5]).log().requires_grad_()
    value, _ = temperature_loss(
        Parameters({"log_alpha": log_alpha}, {}), torch.tensor(-1.0), -2, through_alpha
    )
    value.backward()
    assert value.item() == pytest.approx(loss, rel=1e-6)
    assert log_alpha.grad.item() == pytest.approx(slope)


# --- Stable-Baselines3 as the oracle --------------------------------------------------------------------


class Nothing(gym.Env):
    """Spaces, for the oracle's networks."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)


@pytest.fixture
def pair(make_agent):
    """Our agent with one task, and Stable-Baselines3's SAC with the same weights."""
    network = {"learning_rate": 1e-2, "init": "torch", "hidden": (16, 12)}
    agent = make_agent(
        1,
        task_input="none",
        gamma=0.9,
        tau=0.1,
        actor={**network, "log_std": "clip", "log_std_min": -20, "log_std_max": 2},
        critic={**network, "layer_norm": False},
        temperature={"initial": 0.2, "learning_rate": 1e-2},
    )
    with torch.no_grad():  # a target that is not the critic
        for _, p in agent.target.tensors():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    oracle = SAC(
        "MlpPolicy",
        Nothing(),
        learning_rate=1e-2,
        gamma=0.9,
        tau=0.1,
        ent_coef="auto_0.2",
        buffer_size=1,
        policy_kwargs={"net_arch": [16, 12]},
        device="cpu",
    )
    oracle.set_logger(Logger(None, []))
    with torch.no_grad():
        for ours, theirs in zip(*flat_parameters(agent, oracle), strict=True):
            theirs.copy_(ours.view_as(theirs))
    return agent, oracle


def flat_parameters(agent: MTSAC, oracle: SAC) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Both agents' parameters in one order: actor, critics, target critics, log α."""
    ours, theirs = [], []
    net = agent.actor.shared
    for i, layer in enumerate((0, 2)):
        for kind in ("weight", "bias"):
            ours.append(net[f"net.stack.hidden.{i}.{kind}"])
            theirs.append(getattr(oracle.actor.latent_pi[layer], kind))
    for kind in ("weight", "bias"):
        ours += [net[f"net.stack.output.{kind}"][:2], net[f"net.stack.output.{kind}"][2:]]
        theirs += [getattr(oracle.actor.mu, kind), getattr(oracle.actor.log_std, kind)]
    for parameters, critic in ((agent.critic, oracle.critic), (agent.target, oracle.critic_target)):
        for n, q in enumerate(critic.q_networks):
            for name, layer in (("hidden.0", 0), ("hidden.1", 2), ("output", 4)):
                for kind in ("weight", "bias"):
                    ours.append(parameters.shared[f"nets.{n}.stack.{name}.{kind}"])
                    theirs.append(getattr(q[layer], kind))
    ((_, log_alpha),) = agent.temperature.tensors()
    return [*ours, log_alpha], [*theirs, oracle.log_ent_coef]


def oracle_step(oracle: SAC, batch: Batch, noise: Noise, monkeypatch) -> dict[str, float]:
    """Its own ``train()`` on our batch and our noise: what it logged, and its gradients."""
    column = torch.Tensor.reshape
    samples = ReplayBufferSamples(
        batch.obs[0],
        batch.actions[0],
        batch.next_obs[0],
        column(batch.terminated[0], (-1, 1)),
        column(batch.rewards[0], (-1, 1)),
    )
    draws = iter([noise.action[0], noise.next_action[0]])  # it draws for s first, then for s'
    monkeypatch.setattr(Normal, "rsample", lambda self, shape=(): self.loc + self.scale * next(draws))
    oracle.replay_buffer = SimpleNamespace(sample=lambda *args, **kwargs: samples)
    oracle.train(gradient_steps=1)
    assert next(draws, None) is None
    return {name: float(value) for name, value in oracle.logger.name_to_value.items()}


def test_three_updates_are_stable_baselines3s(pair, make_batch, monkeypatch):
    agent, oracle = pair
    before = [p.detach().clone() for p in flat_parameters(*pair)[0]]
    for step in range(3):
        batch, noise = make_batch(1, 32, seed=step), agent.draw_noise(32)
        alpha = agent.alpha.clone()
        metrics = agent.update(batch, noise)
        logged = oracle_step(oracle, batch, noise, monkeypatch)
        assert metrics["critic_loss"].item() == pytest.approx(2 * logged["train/critic_loss"], rel=1e-4)
        assert metrics["actor_loss"].item() == pytest.approx(logged["train/actor_loss"], rel=1e-4)
        assert metrics["alpha"].item() == pytest.approx(logged["train/ent_coef"], rel=1e-5)
        temperature = Parameters({"log_alpha": alpha.log()}, {})
        loss, _ = temperature_loss(temperature, metrics["log_prob"][0], agent.target_entropy, False)
        assert loss.item() == pytest.approx(logged["train/ent_coef_loss"], rel=1e-4)
    ours, theirs = flat_parameters(*pair)
    for old, mine, other in zip(before, ours, theirs, strict=True):
        assert (mine - old).abs().max() > 1e-4  # everything moved, by 1e-2 a step where Adam acts
        torch.testing.assert_close(mine, other.view_as(mine), rtol=0, atol=1e-4)


def test_the_gradients_are_stable_baselines3s_and_the_critics_twice_its(pair, make_batch, monkeypatch):
    agent, oracle = pair
    caught: dict[str, list[torch.Tensor]] = {}

    def catch(name: str, optimizer: torch.optim.Optimizer) -> None:
        def hook(optimizer, *_):
            caught[name] = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]

        optimizer.register_step_pre_hook(hook)

    for name, optimizer in (
        ("critic", oracle.critic.optimizer),
        ("actor", oracle.actor.optimizer),
        ("temperature", oracle.ent_coef_optimizer),
    ):
        catch(name, optimizer)
    batch, noise = make_batch(1, 32), agent.draw_noise(32)
    agent.update(batch, noise)
    oracle_step(oracle, batch, noise, monkeypatch)

    def flat(gradients: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([g.flatten() for g in gradients])

    critic = [agent.critic.shared[name].grad for name in agent.critic.shared]
    torch.testing.assert_close(flat(critic), 2 * flat(caught["critic"]), rtol=1e-4, atol=1e-5)
    net = agent.actor.shared
    hidden = [net[f"net.stack.hidden.{i}.{kind}"].grad for i in (0, 1) for kind in ("weight", "bias")]
    weight, bias = net["net.stack.output.weight"].grad, net["net.stack.output.bias"].grad
    actor = [*hidden, weight[:2], bias[:2], weight[2:], bias[2:]]
    torch.testing.assert_close(flat(actor), flat(caught["actor"]), rtol=1e-4, atol=1e-5)
    ((_, log_alpha),) = agent.temperature.tensors()
    torch.testing.assert_close(log_alpha.grad.flatten(), caught["temperature"][0], rtol=1e-4, atol=1e-5)


# --- the update ------------------------------------------------------------------------------------------


def everything(agent: MTSAC) -> dict[str, torch.Tensor]:
    """Copies of all parameters by name."""
    found = {}
    for name, parameters in (
        ("actor", agent.actor),
        ("critic", agent.critic),
        ("target", agent.target),
        ("temperature", agent.temperature),
    ):
        found |= {f"{name}.{key}": p.detach().clone() for key, p in parameters.tensors()}
    return found


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_an_update_tells_every_tasks_numbers(make_agent, make_batch):
    agent = make_agent()
    metrics = agent.update(make_batch(), diagnose=True)
    conflicts = [metrics.pop(f"conflict_{network}") for network in ("critic", "actor")]
    assert all(conflict.gramian.shape == (3, 3) for conflict in conflicts)
    expected = (
        "critic_loss actor_loss q log_prob alpha reward_scale critic_weights actor_weights "
        "critic_finite actor_finite"
    )
    assert set(metrics) == set(expected.split())
    for value in metrics.values():
        assert value.shape == (3,)
        assert not value.requires_grad


def test_the_target_moves_by_tau_towards_the_fresh_critic(make_agent, make_batch):
    agent = make_agent(tau=0.25, critic={"learning_rate": 0.1})
    before = agent.target.map(torch.clone)
    agent.update(make_batch())
    for name, old in before.tensors():
        expected = 0.75 * old + 0.25 * agent.critic.shared[name].detach()
        torch.testing.assert_close(agent.target.shared[name], expected)
        assert not torch.equal(agent.target.shared[name], old)


def test_the_saved_policy_averages_the_actors_and_training_does_not_notice(make_agent, make_batch):
    fast = {"learning_rate": 0.1}
    plain, averaging = make_agent(actor=fast), make_agent(actor=fast, policy_tau=0.25)
    expected = averaging.actor.map(lambda p: p.detach().clone())
    observations = torch.cat((torch.ones(3, averaging.policy.obs_dim), torch.eye(3)), dim=1)
    for _ in range(3):
        batch = make_batch()
        for agent in (plain, averaging):
            agent.update(batch)
        for (_, average), (_, now) in zip(expected.tensors(), averaging.actor.tensors(), strict=True):
            average += 0.25 * (now.detach() - average)
        assert torch.equal(plain.act(observations), averaging.act(observations))
    for name in ("actor", "critic"):
        for (_, one), (_, other) in zip(
            getattr(plain, name).tensors(), getattr(averaging, name).tensors(), strict=True
        ):
            assert torch.equal(one, other)
    assert plain.policy.parameters is plain.actor
    for (_, got), (_, average), (_, now) in zip(
        averaging.policy.parameters.tensors(), expected.tensors(), averaging.actor.tensors(), strict=True
    ):
        torch.testing.assert_close(got, average)
        assert not torch.equal(got, now)


def test_an_average_of_policies_that_begins_with_a_loaded_agent_begins_at_its_actor(make_agent, make_batch):
    plain, averaging = make_agent(), make_agent(policy_tau=0.25)
    for agent in (plain, averaging):
        agent.update(make_batch())
    averaging.load_state_dict(plain.state_dict())
    for (_, got), (_, actor) in zip(
        averaging.policy.parameters.tensors(), plain.actor.tensors(), strict=True
    ):
        assert torch.equal(got, actor)


def test_the_actor_is_updated_against_the_fresh_critic(make_agent, make_batch):
    agent = make_agent(critic={"learning_rate": 0.1})
    batch, noise, actor = make_batch(), agent.draw_noise(5), agent.actor.map(lambda p: p.detach().clone())
    told = agent.update(batch, noise)["actor_loss"]
    for t in range(3):
        rows = Batch(*(None if column is None else column[t] for column in batch))
        arguments = (torch.tensor(0.1), agent.one_hot[t], rows, noise.action[t], (), (), agent.nets)
        loss, _ = actor_loss(actor, agent.critic.detach(), *arguments)
        torch.testing.assert_close(told[t], loss)


def test_rewards_are_divided_by_their_tasks_scale_before_the_loss(make_agent, make_batch):
    plain, scaled = make_agent(), make_agent(reward_scale="sigma")
    for reward in (0.0, 2.0):  # σ = 1, 2, 3
        scaled.rewards.observe(torch.tensor([1.0, 2.0, 3.0]) * reward, torch.zeros(3, dtype=torch.bool))
    batch = make_batch()
    raised = batch._replace(rewards=batch.rewards * torch.tensor([[1.0], [2.0], [3.0]]))
    assert scaled.update(raised)["reward_scale"].tolist() == [1, 2, 3]
    plain.update(batch)
    for key, value in everything(plain).items():
        torch.testing.assert_close(everything(scaled)[key], value)


def test_the_target_entropy_is_minus_the_number_of_actions_unless_set(make_agent):
    assert make_agent().target_entropy == -2.0
    assert make_agent(temperature={"target_entropy": -0.5}).target_entropy == -0.5


@pytest.mark.parametrize("loss", ["log_alpha", "alpha"])
@pytest.mark.parametrize("shared", [False, True])
def test_temperatures_take_their_own_gradient_over_t_or_the_mean_of_all(make_agent, make_batch, shared, loss):
    agent = make_agent(temperature={"shared": shared, "loss": loss, "initial": 0.3})
    metrics = agent.update(make_batch())
    own = -(metrics["log_prob"] - 2) * (0.3 if loss == "alpha" else 1)  # H̄ = −2
    ((_, log_alpha),) = agent.temperature.tensors()
    expected = own.mean().view(1) if shared else own.view(3, 1) / 3
    assert log_alpha.shape == expected.shape
    torch.testing.assert_close(log_alpha.grad, expected)
    # Adam's first step is the learning rate against the sign
    torch.testing.assert_close(log_alpha.detach(), math.log(0.3) - 3e-4 * expected.sign(), rtol=1e-5, atol=0)
    assert agent.alpha.shape == (3,)


def test_a_task_whose_entropy_is_below_target_gets_a_higher_temperature(make_agent, make_batch):
    agent = make_agent(temperature={"target_entropy": 1.3}, actor={"log_std_min": -5, "log_std_max": -4})
    before = agent.alpha.clone()
    agent.update(make_batch())
    assert (agent.alpha > before).all()


def test_pcgrad_on_a_shared_temperature_is_zero_when_two_tasks_disagree():
    # log π + H̄ = (1, −3): gradients −1 and 3. On a line each projects the other away whole: 0.
    # The mean is 1.
    temperature = Parameters({"log_alpha": torch.zeros(1, requires_grad=True)}, {})
    results = {}
    for name in ("pcgrad", "unitary"):
        gradient = multitask_gradient(
            make_optimizer(name, 2),
            lambda params, log_prob: temperature_loss(params, log_prob, -2.0, False),
            temperature,
            torch.tensor([3.0, -1.0]),
        )
        results[name] = gradient.params.shared["log_alpha"].item()
    assert results == {"pcgrad": pytest.approx(0, abs=1e-6), "unitary": pytest.approx(1)}


def test_the_temperatures_method_is_the_mean_unless_it_is_asked_to_combine(make_agent):
    for combine, expected in ((False, "unitary"), (True, "pcgrad")):
        agent = make_agent(optimizer="pcgrad", temperature={"shared": True, "combine": combine})
        assert type(agent.learners["temperature"].method) is OPTIMIZERS[expected]


@pytest.mark.parametrize("optimizer", ["pcgrad", "graddrop", "unitary"])
@pytest.mark.parametrize(("shared", "combine"), [(False, False), (True, True)])
def test_combining_temperatures_works_with_every_kind_of_method(
    make_agent, make_batch, optimizer, shared, combine
):
    agent = make_agent(optimizer=optimizer, temperature={"shared": shared, "combine": combine})
    agent.update(make_batch())
    assert agent.alpha.isfinite().all()
    assert type(agent.learners["temperature"].method) is OPTIMIZERS[optimizer if combine else "unitary"]
    if not shared:  # private: no method combines them
        torch.testing.assert_close(
            agent.alpha.log() - math.log(0.1), torch.full((3,), -3e-4), rtol=1e-2, atol=0
        )


def test_methods_for_positive_losses_leave_the_actor_the_mean(make_agent):
    for name in ("famo", "uncertainty"):
        agent = make_agent(optimizer=name)
        assert type(agent.learners["critic"].method) is OPTIMIZERS[name]
        assert type(agent.learners["actor"].method) is OPTIMIZERS["unitary"]


def test_a_method_that_wants_the_losses_after_the_step_gets_them_on_the_same_batch_and_noise(
    make_agent, make_batch, monkeypatch
):
    agent = make_agent(optimizer="famo", gamma=0.0, critic={"dropout": 0.2, "learning_rate": 0.05})
    batch, noise, got = make_batch(), agent.draw_noise(5), []
    monkeypatch.setattr(agent.learners["critic"].method, "after_step", got.append)
    before = agent.update(batch, noise)["critic_loss"]
    (after,) = got
    inputs = (agent.one_hot, batch, batch.rewards, noise.critic_masks)  # γ = 0: the target is the reward
    expected, _ = agent.path.over_tasks(partial(critic_loss, nets=agent.nets), agent.critic, *inputs)
    torch.testing.assert_close(after, expected.detach())
    assert not torch.allclose(after, before, rtol=1e-2)


def torchs_adam(learner):
    """From this state of a learner: what asserts, after its next step, that torch's own class makes the same one."""
    before, steps = learner.weights.buffer.detach().clone(), learner.steps[0].clone()
    moments = {key: moment.buffer.clone() for key, moment in learner.moments.items()}

    def same(kind: type[torch.optim.Optimizer], learning_rate: float, weight_decay: float) -> None:
        parts = [before[part].clone().requires_grad_() for part in learner.weights.parts]
        adam = kind(
            [{"params": [part], "weight_decay": d} for part, d in zip(parts, (weight_decay, 0), strict=True)],
            lr=learning_rate,
        )
        for part, place in zip(parts, learner.weights.parts, strict=True):
            part.grad = learner.gradient.buffer[place]
            adam.state[part] = {"step": steps.clone(), **{k: m[place].clone() for k, m in moments.items()}}
        adam.step()
        assert not torch.equal(learner.weights.buffer, before)
        torch.testing.assert_close(
            learner.weights.buffer, torch.cat([p.detach() for p in parts]), rtol=1e-6, atol=1e-9
        )

    return same


def test_actor_and_critic_have_their_own_learning_rate_and_decay(make_agent, make_batch):
    agent = make_agent(
        actor={"learning_rate": 1e-3, "weight_decay": 0.2}, critic={"learning_rate": 1e-4, "decay": "coupled"}
    )
    actor, critic = (torchs_adam(agent.learners[name]) for name in ("actor", "critic"))
    agent.update(make_batch())
    actor(torch.optim.AdamW, 1e-3, 0.2)
    critic(torch.optim.Adam, 1e-4, 0)


@pytest.mark.parametrize("network", ["actor", "critic"])
def test_max_grad_norm_scales_the_whole_gradient_of_one_network(make_agent, make_batch, network):
    free, limited = (
        make_agent(task_input="heads"),
        make_agent(task_input="heads", **{network: {"max_grad_norm": 1e-3}}),
    )
    for agent in (free, limited):
        agent.update(make_batch())

    def gradient(agent: MTSAC) -> torch.Tensor:
        return torch.cat([p.grad.flatten() for _, p in getattr(agent, network).tensors()])

    assert gradient(free).norm() > 1e-2
    assert gradient(limited).norm().item() == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(
        gradient(limited), gradient(free) * 1e-3 / gradient(free).norm(), rtol=1e-3, atol=1e-8
    )


# --- padding and absence -----------------------------------------------------------------------------------


def cut(noise: Noise, rows: int) -> Noise:
    return Noise(
        *(x[:, :rows] if isinstance(x, torch.Tensor) else tuple(m[:, :rows] for m in x) for x in noise)
    )


@pytest.mark.parametrize("optimizer", ["unitary", "pcgrad", "graddrop"])
def test_padded_rows_change_nothing(make_agent, make_batch, optimizer):
    agents = [
        make_agent(optimizer=optimizer, actor={"dropout": 0.1}, critic={"dropout": 0.1}, task_input="heads")
        for _ in range(3)
    ]
    batch, noise = make_batch(3, 8), agents[0].draw_noise(8)
    weight = (torch.arange(8) < 5).float().expand(3, 8)
    padded = batch._replace(weight=weight)
    agents[0].update(padded, noise)
    agents[1].update(
        padded._replace(**{
            name: torch.where(weight.bool().view(3, 8, *(1,) * (column.dim() - 2)), column, column + 5)
            for name, column in batch._asdict().items() if column is not None
        }),
        noise,
    )  # fmt: skip
    assert_same(everything(agents[0]), everything(agents[1]))
    if optimizer == "unitary":  # the others' draws differ when tasks are selected
        agents[2].update(Batch(*(column[:, :5] for column in batch[:5])), cut(noise, 5))
        for name, learner in agents[2].learners.items():  # Adam's first step does not tell a gradient's size
            found, expected = (one.gradient.buffer for one in (agents[0].learners[name], learner))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_first_update_without_a_task_leaves_its_parameters_and_temperature(make_agent, make_batch):
    for optimizer in ("unitary", "pcgrad"):
        agent = make_agent(task_input="heads", optimizer=optimizer)
        before = everything(agent)
        weight = torch.tensor([1.0, 0.0, 1.0]).view(3, 1).expand(3, 5)
        metrics = agent.update(make_batch()._replace(weight=weight))
        assert metrics["critic_loss"].gt(0).tolist() == [True, False, True]
        for key, new in everything(agent).items():
            if "output" in key or "log_alpha" in key:
                moved = [not torch.equal(new[t], before[key][t]) for t in range(3)]
                assert moved == [True, False, True], key


# --- randomness and state ----------------------------------------------------------------------------------


def test_acting_and_noise_come_from_the_agents_own_generator(make_agent):
    observations = torch.cat((torch.randn(3, 3), torch.eye(3)), dim=1)
    first, second, other = make_agent(), make_agent(), make_agent(seed=1)
    torch.manual_seed(5)
    a = [first.act(observations), first.random_actions(), first.draw_noise(4).action]
    torch.manual_seed(6)
    b = [second.act(observations), second.random_actions(), second.draw_noise(4).action]
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(other.random_actions(), make_agent().random_actions())
    assert a[1].abs().max() <= 1


def test_building_an_agent_leaves_the_global_generator_alone(make_agent):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    make_agent()
    assert torch.equal(torch.rand(2), expected)


def test_an_agent_explores_around_its_deterministic_action(make_agent):
    agent = make_agent(actor={"log_std_min": -9, "log_std_max": -8})
    observations = torch.cat((torch.randn(3, 3), torch.eye(3)), dim=1)
    noisy, plain = agent.act(observations), agent.predict(observations.numpy())[0]
    assert 0 < np.abs(noisy.numpy() - plain).max() < 0.01


STATEFUL = ["unitary", "pcgrad", "famo", "gradvac", "rlw", "uncertainty", "graddrop", "nash_mtl"]


@pytest.mark.parametrize("optimizer", STATEFUL)
def test_updates_a_saved_state_and_updates_are_all_updates_bit_for_bit(make_agent, make_batch, optimizer):
    def fresh(seed: int) -> MTSAC:
        return make_agent(
            optimizer=optimizer, seed=seed, task_input="heads", reward_scale="return",
            actor={"dropout": 0.1}, critic={"dropout": 0.1, "weight_decay": 0.01},
        )  # fmt: skip

    def train(agent: MTSAC, steps: range) -> None:
        for step in steps:
            batch = make_batch(seed=step)
            agent.rewards.observe(batch.rewards[:, 0], batch.terminated[:, 0])
            agent.update(batch)

    straight, stopped, resumed = fresh(0), fresh(0), fresh(7)
    train(straight, range(6))
    train(stopped, range(3))
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    train(resumed, range(3, 6))
    assert_same(everything(resumed), everything(straight))
    observations = torch.cat((torch.randn(3, 3), torch.eye(3)), dim=1)
    assert torch.equal(resumed.act(observations), straight.act(observations))  # policy and generator
    train(stopped, range(3, 5))
    assert not torch.equal(
        stopped.actor.shared["net.stack.hidden.0.weight"], resumed.actor.shared["net.stack.hidden.0.weight"]
    )


def test_an_agent_that_goes_on_from_anothers_state_keeps_its_own_learning_rate_and_decay(
    make_agent, make_batch
):
    other = make_agent(critic={"learning_rate": 1e-3, "decay": "coupled"})
    other.update(make_batch())
    agent = make_agent(
        critic={"learning_rate": 1e-5, "decay": "decoupled", "weight_decay": 0.5},
        temperature={"learning_rate": 0.0625},
    )
    agent.load_state_dict(other.state_dict())
    for key in ("exp_avg", "exp_avg_sq"):
        assert_same(*(one.learners["critic"].moments[key].parameters.shared for one in (agent, other)))
    assert all(torch.equal(step, torch.ones(())) for step in agent.learners["critic"].steps)
    critic, temperature = (torchs_adam(agent.learners[name]) for name in ("critic", "temperature"))
    agent.update(make_batch())
    critic(torch.optim.AdamW, 1e-5, 0.5)
    temperature(torch.optim.Adam, 0.0625, 0)


def test_no_method_draws_what_another_or_a_neighbouring_seeds_draws(make_agent):
    agents = [make_agent(optimizer="rlw", seed=seed) for seed in range(5)]
    seeds = [
        method.generator.initial_seed()
        for agent in agents
        for method in (learner.method for learner in agent.learners.values())
    ]
    assert len(set(seeds)) == 15


def test_the_critic_that_acts_as_target_is_a_copy(make_agent):
    agent = make_agent()
    for name, p in agent.critic.tensors():
        assert torch.equal(p, agent.target.shared[name])
        assert p.data_ptr() != agent.target.shared[name].data_ptr()


def test_the_minimum_over_the_ensemble_is_taken_row_by_row(make_agent, make_batch):
    agent = make_agent(1, critic={"ensemble": 4, "init": "torch"})
    batch = Batch(*(None if c is None else c[0] for c in make_batch(1, 50)))
    noise, task, alpha = torch.randn(50, 2), agent.one_hot[0], torch.tensor(0.0)
    target = td_target(agent.actor, agent.target, alpha, task, batch, noise, (), None, agent.nets, 1.0)
    gaussian = call(agent.nets.actor, agent.actor, batch.next_obs, task)
    action, _ = squashed_sample(*gaussian, noise)
    q = call(agent.nets.critic, agent.target, batch.next_obs, action, task)
    assert q.shape == (4, 50)
    assert len(q.argmin(0).unique()) > 1  # not one critic is the smallest everywhere
    expected = batch.rewards + (1 - batch.terminated) * q.min(dim=0).values
    torch.testing.assert_close(target, expected)


def test_no_two_streams_of_a_seed_or_of_its_neighbours_start_alike(make_agent):
    from mtrl.replay import TaskReplay
    from mtrl.streams import STREAMS, stream

    seeds = [stream(seed, name) for seed in range(20) for name in STREAMS]
    assert len(set(seeds)) == len(seeds)
    states = []
    for seed in (0, 1):
        agent = make_agent(seed=seed, optimizer="pcgrad")
        generators = [
            agent.generator,
            *(method.generator for method in (learner.method for learner in agent.learners.values())),
        ]
        generators.append(TaskReplay(3, 10, 3, 2, seed=seed).generator)
        states += [bytes(generator.get_state().tolist()) for generator in generators]
        torch.manual_seed(seed)
        states.append(bytes(torch.get_rng_state().tolist()))
    assert len(set(states)) == len(states)


def test_absent_tasks_do_not_enlarge_the_direction_beside_the_mean(make_agent, make_batch):
    batch = make_batch(4)
    weight = torch.ones(batch.rewards.shape)
    weight[:2] = 0
    conflict = make_agent(4).update(batch._replace(weight=weight), diagnose=True)["conflict_critic"]
    assert conflict.norm_ratio.item() == pytest.approx(1, rel=1e-5)
    assert conflict.cosine_to_mean.item() == pytest.approx(1, rel=1e-5)


def test_a_state_saved_with_other_strides_goes_on_as_the_agent_does(make_agent, make_batch):
    one, other = make_agent(seed=1), make_agent(seed=2)
    one.update(make_batch())
    state = copy.deepcopy(one.state_dict())
    for moment in state["critic"]["moments"].values():
        for name, tensor in moment["shared"].items():
            if tensor.dim() == 2:
                moment["shared"][name] = tensor.t().contiguous().t()
    other.load_state_dict(state)
    batch, noise = make_batch(seed=5), one.draw_noise(make_batch().rewards.shape[1])
    one.update(batch, noise)
    other.update(batch, noise)
    for (name, ours), (_, theirs) in zip(one.critic.tensors(), other.critic.tensors(), strict=True):
        assert ours.equal(theirs), name


@pytest.mark.parametrize(
    ("optimizer", "apply_to", "expected"),
    [
        ("pcgrad", "both", ("PCGrad", "PCGrad")), ("pcgrad", "critic", ("PCGrad", "Unitary")),
        ("pcgrad", "actor", ("Unitary", "PCGrad")), ("famo", "both", ("FAMO", "Unitary")),
    ],
)  # fmt: skip
def test_a_method_acts_on_the_networks_it_is_applied_to(optimizer, apply_to, expected):
    agent = MTSAC(3, 2, ("a", "b"), optimizer=optimizer, apply_to=apply_to)
    assert tuple(type(agent.learners[name].method).__name__ for name in ("critic", "actor")) == expected


def test_a_method_that_nobody_would_use_is_refused(capsys):
    with pytest.raises(
        ConfigError, match=r"optimizer\.apply_to: 'actor' is not valid; famo needs positive losses"
    ):
        MTSAC(3, 2, ("a", "b"), optimizer="famo", apply_to="actor")
    assert main(["train", "--config=point", "--optimizer.name=famo", "--optimizer.apply_to=actor"]) == 2
    assert "optimizer.apply_to: 'actor' is not valid" in capsys.readouterr().err


def test_temperatures_are_not_combined_where_nothing_would_do_it(make_agent):
    with pytest.raises(ConfigError, match=r"combine: True is not valid; it must be false, or shared true"):
        make_agent(optimizer="pcgrad", temperature={"shared": False, "combine": True})
    config = AgentConfig(temperature=TemperatureConfig(shared=True, combine=True))
    with pytest.raises(
        ConfigError, match=r"temperature\.combine: True is not valid; famo needs positive losses"
    ):
        MTSAC(3, 2, ("a", "b"), config, optimizer="famo")
    for network in ("critic", "actor"):
        with pytest.raises(
            ConfigError, match=f"apply_to: '{network}' is not valid; it must be both with agent.temp"
        ):
            MTSAC(3, 2, ("a", "b"), config, optimizer="pcgrad", apply_to=network)


def test_adams_count_of_steps_serves_another_choice_of_what_decays(make_agent, make_batch):
    agent = make_agent(critic={"weight_decay": 1e-3})
    agent.update(make_batch())
    other = make_agent(critic={"weight_decay": 1e-3, "decay_on": "as_published"})
    other.load_state_dict(agent.state_dict())
    assert [float(step) for step in other.learners["critic"].steps] == [1.0]
