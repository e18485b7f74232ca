"""Networks: initialisation, how the task enters, dropout, the squashed Gaussian, the ensemble."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from torch.func import functional_call, grad

from mtrl.config import ActorConfig, CriticConfig, NetworkConfig
from mtrl.layers import ACTIVATIONS, PlainLayers
from mtrl.networks import (
    Actor,
    Critic,
    Stack,
    dropout_masks,
    make_parameters,
    squashed_sample,
)  # fmt: skip

D, A, T = 4, 2, 3
CPU = torch.device("cpu")


def layers(net: Stack) -> list[torch.nn.Linear]:
    return [*net.hidden, net.output]


@pytest.mark.parametrize("init", ["torch", "xavier", "orthogonal"])
def test_an_initialisation_draws_what_its_name_says(init):
    torch.manual_seed(0)
    net = Stack(40, 30, NetworkConfig(hidden=(50, 60), init=init), output_gain=0.01)
    for layer in layers(net):
        weight, (fan_out, fan_in) = layer.weight, layer.weight.shape
        if init == "torch":  # uniform on ±1/√fan_in, biases too
            bound = fan_in**-0.5
            assert 0.9 * bound < layer.bias.abs().max().item() <= bound
        else:
            assert (layer.bias == 0).all()
        if init == "xavier":  # uniform on ±√(6 / (fan_in + fan_out))
            bound = math.sqrt(6 / (fan_in + fan_out))
        if init == "orthogonal":  # the smaller side's Gramian is gain² I
            gain = 0.01 if layer is net.output else math.sqrt(2)
            small = weight @ weight.T if fan_out <= fan_in else weight.T @ weight
            torch.testing.assert_close(small, gain**2 * torch.eye(len(small)), rtol=0, atol=1e-5 * gain**2)
        else:
            assert 0.98 * bound < weight.abs().max().item() <= bound * (1 + 1e-6)
            assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.1)  # a uniform's variance


def test_orthogonal_critics_end_with_gain_one_and_actors_with_a_hundredth():
    critic = Critic(D, A, T, CriticConfig(hidden=(16,)))
    actor = Actor(D, A, T, ActorConfig(hidden=(16,)))
    assert critic.nets[0].stack.output.weight.norm().item() == pytest.approx(1, rel=1e-5)  # one row of norm 1
    # 2A = 4 orthogonal rows of norm 0.01
    assert actor.net.stack.output.weight.norm().item() == pytest.approx(0.01 * 2, rel=1e-5)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_a_hidden_layer_is_linear_then_mask_then_layer_norm_then_activation(activation):
    net = Stack(3, 2, NetworkConfig(hidden=(5,), activation=activation, layer_norm=True))
    x, mask = torch.randn(7, 3), torch.tensor([2.0, 0.0, 2.0, 2.0, 0.0]).expand(7, 5)
    name = {"relu": "ReLU", "tanh": "Tanh", "silu": "SiLU", "gelu": "GELU", "elu": "ELU"}[activation]
    h = torch.nn.functional.layer_norm(net.hidden[0](x) * mask, (5,))
    torch.testing.assert_close(net(x, (mask,)), net.output(getattr(torch.nn, name)()(h)))


def test_bf16_products_leave_the_output_and_the_gradient_in_float32():
    torch.manual_seed(0)
    config = NetworkConfig(hidden=(32,), layer_norm=True)
    plain, rounded = Stack(D, 2, config), Stack(D, 2, config)
    rounded.run = PlainLayers(torch.bfloat16)
    parameters, x = dict(plain.named_parameters()), torch.randn(50, D)

    def loss(p: dict[str, Tensor], net: Stack) -> Tensor:
        out = functional_call(net, p, (x,))
        assert out.dtype == torch.float32
        return out.square().mean()

    for name, exact in grad(loss)(parameters, plain).items():
        other = grad(loss)(parameters, rounded)[name]
        assert other.dtype == torch.float32
        assert 0 < (other - exact).norm() < 0.03 * exact.norm()  # bf16 has 8 bits: 0.4 % a product


@pytest.mark.parametrize(
    ("task_input", "private"),
    [
        ("one_hot", set()),
        ("none", set()),
        ("embedding", {"embedding"}),
        ("heads", {"net.stack.output.weight", "net.stack.output.bias"}),
    ],
)
def test_private_parameters_are_the_embedding_or_the_output_layer(task_input, private):
    actor, parameters = make_parameters(
        lambda: Actor(D, A, T, ActorConfig(hidden=(6,)), task_input, 5), T, CPU
    )
    assert actor.private == private == set(parameters.private)
    assert set(parameters.shared) == {name for name, _ in actor.named_parameters()} - private
    for name, stacked in parameters.private.items():
        assert stacked.shape == (T, *dict(actor.named_parameters())[name].shape)
        if "bias" not in name:  # each task's is drawn anew
            assert not torch.equal(stacked[0], stacked[1])


def test_the_heads_of_every_critic_are_private():
    critic, parameters = make_parameters(lambda: Critic(D, A, T, CriticConfig(hidden=(6,)), "heads"), T, CPU)
    expected = {f"nets.{i}.stack.output.{kind}" for i in range(2) for kind in ("weight", "bias")}
    assert critic.private == expected == set(parameters.private)


@pytest.mark.parametrize(
    ("task_input", "extra"), [("one_hot", T), ("embedding", 5), ("heads", 0), ("none", 0)]
)
def test_the_task_widens_the_input_by_its_code(task_input, extra):
    actor = Actor(D, A, T, ActorConfig(hidden=(6,)), task_input, 5)
    assert actor.net.stack.hidden[0].weight.shape == (6, D + extra)
    critic = Critic(D, A, T, CriticConfig(hidden=(6,)), task_input, 5)
    assert critic.nets[0].stack.hidden[0].weight.shape == (6, D + A + extra)


def test_an_embedding_enters_with_unit_norm_whatever_its_length():
    torch.manual_seed(0)
    actor = Actor(D, A, T, ActorConfig(hidden=(6,), init="torch"), "embedding", 5)
    obs, task = torch.randn(7, D), torch.eye(T)[0]
    code = actor.with_code(obs, actor.code(task))[:, D:]
    torch.testing.assert_close(code.norm(dim=1), torch.ones(7))
    before = actor(obs, task)[0]
    with torch.no_grad():
        actor.embedding.mul_(37.0)
    torch.testing.assert_close(actor(obs, task)[0], before)
    with torch.no_grad():
        actor.embedding.mul_(-1.0)
    assert not torch.allclose(actor(obs, task)[0], before)


@pytest.mark.parametrize(("task_input", "same"), [("one_hot", False), ("none", True), ("heads", True)])
def test_only_a_one_hot_network_reads_the_one_hot(task_input, same):
    torch.manual_seed(0)
    critic = Critic(D, A, T, CriticConfig(hidden=(6,)), task_input)
    obs, action = torch.randn(7, D), torch.randn(7, A)
    first, second = (critic(obs, action, torch.eye(T)[t]) for t in (0, 1))
    assert torch.equal(first, second) == same


def test_a_head_serves_its_own_task_only(make_agent):
    agent = make_agent(3, task_input="heads", actor={"init": "torch"})
    rows = torch.cat((torch.randn(1, 3).expand(3, 3), torch.eye(3)), dim=1)  # one observation, three tasks
    before = agent.policy.act(rows)
    assert not torch.allclose(before[0], before[1])
    with torch.no_grad():
        agent.actor.private["net.stack.output.bias"][1] += 1
    changed = (agent.policy.act(rows) != before).any(dim=1)
    assert changed.tolist() == [False, True, False]


def test_dropout_masks_have_mean_one_and_the_asked_share_of_zeros():
    masks = dropout_masks(0.2, (100, 50), (4, 250), torch.Generator().manual_seed(0))
    assert [m.shape for m in masks] == [(4, 250, 100), (4, 250, 50)]
    for mask in masks:
        assert set(mask.unique().tolist()) == {0.0, 1.25}  # 1 / (1 − 0.2)
        # 5e4 draws of standard deviation √(0.2 / 0.8) = 0.5: four of their mean's are 0.009
        assert mask.mean().item() == pytest.approx(1, abs=0.009)
        assert mask.mean(dim=(0, 1)).std() < 0.05  # no column is special


def test_without_dropout_there_are_no_masks_and_an_ensemble_has_its_own_each():
    generator = torch.Generator().manual_seed(0)
    assert dropout_masks(0.0, (6,), (4,), generator) == ()
    masks = Critic(D, A, T, CriticConfig(hidden=(6,), dropout=0.5)).draw_masks((20,), generator)
    assert len(masks) == 2
    assert not torch.equal(masks[0], masks[1])


def test_each_critic_of_an_ensemble_uses_its_own_masks():
    critic = Critic(D, A, T, CriticConfig(hidden=(6, 6), dropout=0.5))
    obs, action, task = torch.randn(7, D), torch.randn(7, A), torch.eye(T)[0]
    masks = critic.draw_masks((7,), torch.Generator().manual_seed(0))
    values = critic(obs, action, task, masks)
    x = critic.with_code(torch.cat((obs, action), -1), critic.code(task))
    for i, net in enumerate(critic.nets):
        torch.testing.assert_close(values[i], net(x, task, masks[2 * i : 2 * i + 2]).squeeze(-1))


@pytest.mark.parametrize("mode", ["clip", "tanh"])
def test_log_std_stays_within_its_bounds_and_reaches_them(mode):
    actor = Actor(
        D, A, T, ActorConfig(hidden=(6,), init="torch", log_std=mode, log_std_min=-3, log_std_max=1), "none"
    )
    with torch.no_grad():
        actor.net.stack.output.weight *= 1000
    _, log_std = actor(torch.randn(200, D), torch.eye(T)[0])
    assert log_std.min().item() == pytest.approx(-3, abs=1e-3)
    assert log_std.max().item() == pytest.approx(1, abs=1e-3)
    assert ((log_std >= -3) & (log_std <= 1)).all()


def test_log_std_of_a_zero_output_is_zero_clipped_or_the_middle_rescaled():
    for mode, expected in (("clip", 0.0), ("tanh", -1.5)):  # −5 + 7/2 (0 + 1) = −1.5
        actor = Actor(D, A, T, ActorConfig(hidden=(6,), log_std=mode), "none")
        with torch.no_grad():
            actor.net.stack.output.weight.zero_()
        mean, log_std = actor(torch.randn(2, D), torch.eye(T)[0])
        assert (mean == 0).all()
        assert log_std.unique().tolist() == [expected]


def test_squashed_log_probability_is_that_of_a_tanh_transformed_normal():
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = torch.randn(3, 500, A, generator=generator, dtype=torch.float64)
    action, log_prob = squashed_sample(mean, log_std, noise)
    reference = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    u = mean + log_std.exp() * noise
    near = (u.abs() < 12).all(-1)  # beyond, atanh of a rounded action loses it
    expected = reference.base_dist.log_prob(u) - TanhTransform().log_abs_det_jacobian(u, u.tanh())
    torch.testing.assert_close(action, u.tanh())
    torch.testing.assert_close(log_prob, expected.sum(-1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_prob[near], reference.log_prob(action).sum(-1)[near], rtol=1e-5, atol=1e-5)


def test_a_saturated_action_keeps_a_finite_log_probability_and_gradient():
    mean = torch.tensor([[30.0, -30.0]], requires_grad=True)
    action, log_prob = squashed_sample(mean, torch.zeros(1, A), torch.zeros(1, A))
    # log N(0; 0, 1) = −0.918939 each; −log(1 − tanh²u) → 2|u| − 2 log 2 = 58.613706 each
    assert log_prob.item() == pytest.approx(2 * (58.613706 - 0.918939), rel=1e-6)
    log_prob.sum().backward()
    assert action.abs().eq(1).all()
    assert mean.grad.tolist() == [[2.0, -2.0]]


def test_float64_parameters_compute_in_float64():
    critic = Critic(D, A, T, CriticConfig(hidden=(6,))).double()
    obs, action = torch.randn(7, D, dtype=torch.float64), torch.randn(7, A, dtype=torch.float64)
    assert critic(obs, action, torch.eye(T)[0]).dtype == torch.float64
