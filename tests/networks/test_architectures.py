"""Every network: its gradients on every path, what it equals, what is private, its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import own_networks
import pytest
import torch
from doubles import double
from torch import Tensor
from torch.utils._pytree import tree_map

from mtrl.config import ArchitectureConfig, ConfigError, NetworkConfig
from mtrl.gradients import BY_LOOP, FACTORED, PLAIN, Path, multitask_gradient
from mtrl.learner import decayed
from mtrl.networks import (
    NETWORKS,
    Network,
    Parameters,
    Spec,
    Stack,
    call,
    make_network,
)
from mtrl.networks.moore import orthonormal
from mtrl.networks.together import Together
from mtrl.optimizers import make_optimizer
from mtrl.policy import load_policy
from mtrl.sac import actor_loss, critic_loss, td_target

T, B = 3, 5
OWN = "own_networks:Mixture"
# every option away from its default where that adds a part
OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {}, "shared_bottom": {"tower": [5]}, "mmoe": {"experts": 3, "tower": [5]},
    "ple": {"levels": 2, "shared_experts": 2, "own_experts": 2, "tower": [5]},
    "small_towers": {"base": "mmoe", "gamma": 0.5, "tower": [5], "auxiliary": [4], "experts": 2},
    "soft_modules": {"modules": 3, "embedding": 6}, "paco": {"sets": 3}, "moore": {"experts": 3, "tower": [5]},
    "care": {"encoders": 3, "encoder": [5, 6], "context": [4, 5]}, "film": {}, OWN: {},
}  # fmt: skip
close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-11)


def test_every_network_is_tried_here():
    assert set(OPTIONS) == {*NETWORKS, OWN}


@pytest.fixture
def make(make_agent) -> Callable[..., Any]:
    """A stabilised agent in float64, whose private parameters differ between tasks."""

    def make_one(name: str, options: dict[str, Any] | None = None, num_tasks: int = T, **more: Any) -> Any:
        own = {"layer_norm": True, "dropout": 0.3, "init": "torch", "hidden": (8, 7), **more.pop("part", {})}
        architecture = ArchitectureConfig(name, OPTIONS[name] if options is None else options)
        more = {"task_input": "embedding", "embedding_dim": 4, "kernels": "plain", **more}
        agent = make_agent(num_tasks, network=architecture, actor=own, critic=own, **more)
        generator = torch.Generator().manual_seed(5)
        for parameters in (agent.actor, agent.critic):
            with torch.no_grad():
                for parameter in parameters.private.values():
                    parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        return agent

    return make_one


def single(x: Any) -> Any:
    return tree_map(lambda leaf: leaf.float() if isinstance(leaf, Tensor) else leaf, x)


def problem(agent: Any, batch: Any, part: str) -> tuple[Any, Parameters, tuple[Any, ...]]:
    """A loss, its parameters and inputs, in float64."""
    generator = torch.Generator().manual_seed(1)
    critic_masks = agent.nets.critic.draw_masks((T, B), generator)
    if part == "critic":
        target = torch.randn(T, B, generator=generator)
        inputs: tuple[Any, ...] = (agent.one_hot, batch, target, critic_masks)
        return partial(critic_loss, nets=agent.nets), double(agent.critic), double(inputs)
    noise = torch.randn(T, B, 2, generator=generator)
    masks = agent.nets.actor.draw_masks((T, B), generator)
    inputs = (
        agent.critic,
        torch.rand(T, generator=generator),
        agent.one_hot,
        batch,
        noise,
        masks,
        critic_masks,
    )
    critic, *others = double(inputs)
    return partial(actor_loss, nets=agent.nets), double(agent.actor), (critic.detach(), *others)


# without dropout an ensemble is called as one network
@pytest.mark.parametrize(("kernels", "dropout"), [(("torch", "onednn"), 0.3), (("torch",), 0.0)])
@pytest.mark.parametrize("method", ["unitary", "pcgrad", "graddrop"])
@pytest.mark.parametrize("part", ["critic", "actor"])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_networks_gradient_is_that_of_t_backward_passes_on_every_path(
    make, make_batch, name, part, method, kernels, dropout
):
    batch = make_batch(T, B)
    loss, params, inputs = problem(make(name, part={"dropout": dropout}), batch, part)
    ways = [(loss, PLAIN)]
    for kernel in kernels:
        fast = make(name, kernels=kernel, part={"dropout": dropout})
        assert fast.path is (PLAIN if name == OWN else FACTORED)
        ways.append((problem(fast, batch, part)[0], fast.path))
    expected = multitask_gradient(make_optimizer(method, T, seed=3), loss, params, *inputs, path=BY_LOOP)
    assert any(g.abs().sum() > 0 for g in expected.params.shared.values())
    for function, path in ways:
        found = multitask_gradient(make_optimizer(method, T, seed=3), function, params, *inputs, path=path)
        close(found.losses, expected.losses)
        for mine, reference in zip(found.params, expected.params, strict=True):
            assert mine.keys() == reference.keys()
            for key, value in mine.items():
                close(value, reference[key], msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != OWN])  # which has no fast path
def test_in_bfloat16_each_gradient_on_the_fast_path_is_that_of_plain_float32(make, make_batch, name):
    batch = make_batch(T, B)
    for part in ("critic", "actor"):
        found = []
        for kernels, precision in (("plain", "fp32"), ("onednn", "bf16")):
            agent = make(name, kernels=kernels, precision=precision, part={"dropout": 0.0})
            loss, params, inputs = problem(agent, batch, part)
            params, inputs = tree_map(lambda p: p.detach().float().requires_grad_(), params), single(inputs)
            gradient = multitask_gradient(
                make_optimizer("pcgrad", T, seed=3), loss, params, *inputs, path=agent.path
            )
            found.append(dict(gradient.params.tensors()))
        exact, rounded = found
        for key, reference in exact.items():
            assert (rounded[key] - reference).norm() <= 0.4 * reference.norm(), key


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != OWN])
def test_an_update_on_the_fast_path_has_the_gradients_of_plain_torch(make, make_batch, name):
    plain, fast = (
        make(name, kernels=kernels, optimizer="pcgrad", part={"dropout": 0.3})
        for kernels in ("plain", "torch")
    )
    noise, batch = plain.draw_noise(B), make_batch(T, B)
    for agent in (plain, fast):
        agent.update(batch, noise)
    for part in ("critic", "actor"):  # Adam's first step would not tell a gradient's size
        found, expected = (agent.learners[part].gradient.parameters for agent in (fast, plain))
        for (key, mine), (_, theirs) in zip(found.tensors(), expected.tensors(), strict=True):
            assert (mine - theirs).norm() <= 1e-3 * theirs.norm() + 1e-7, key


@pytest.mark.parametrize("method", ["unitary", "pcgrad", "graddrop"])
@pytest.mark.parametrize("name", OPTIONS)
def test_of_one_task_too_all_that_is_its_own_learns_as_in_plain_torch(make, make_batch, name, method):
    part = {"activation": "silu", "dropout": 0.0, "weight_decay": 0.0}
    agents = [
        make(name, None, 1, kernels=k, optimizer=method, part=part) for k in ("plain", "torch", "onednn")
    ]
    noise, batch, found = agents[0].draw_noise(B), make_batch(1, B), []
    for agent in agents:
        agent.update(batch, noise)
        found.append({key: p.grad for part in (agent.actor, agent.critic) for key, p in part.tensors()})
    for mine in found[1:]:
        for key, gradient in found[0].items():
            torch.testing.assert_close(mine[key], gradient, rtol=1e-3, atol=1e-5)
    assert all(gradient.abs().sum() > 0 for key, gradient in found[0].items() if "norms" in key)


@pytest.mark.parametrize("method", ["unitary", "pcgrad", "graddrop"])
@pytest.mark.parametrize("kernels", ["plain", "torch"])
def test_a_network_of_which_nothing_is_shared_trains_its_heads(make_agent, make_batch, kernels, method):
    agent = make_agent(task_input="heads", hidden=(), optimizer=method, kernels=kernels)
    assert not agent.critic.shared
    agent.update(make_batch())
    assert all(p.grad.abs().sum() > 0 for p in agent.critic.private.values())


def test_a_network_that_cannot_keep_its_promise_for_all_tasks_at_once_is_refused(make, monkeypatch):
    monkeypatch.setattr(own_networks.Mixture, "all_at_once", True)
    with pytest.raises(ConfigError, match="own_networks:Mixture says all_at_once, but does not give"):
        make(OWN, kernels="torch")
    make(OWN, kernels="plain")


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != OWN])
def test_a_forward_pass_takes_every_dropout_mask_in_its_place(make, name):
    agent = make(name)
    critic, parameters = agent.nets.critic, double(agent.critic)
    masks = tuple(m.double() for m in critic.draw_masks((T, B), torch.Generator().manual_seed(0)))
    inputs = (torch.randn(T, B, 3).double(), torch.randn(T, B, 2).double(), agent.one_hot.double())

    def outputs(masks: tuple[Tensor, ...]) -> list[Tensor]:
        def one(p: Parameters, *args: Any) -> list[Tensor]:
            return [output for _, output in call(critic, p, *args, method="with_auxiliary")]

        return torch.func.vmap(one, in_dims=(Parameters(None, 0), 0, 0, 0, 0))(parameters, *inputs, masks)

    before, seen = outputs(masks), []
    for i, mask in enumerate(masks):
        changed = outputs((*masks[:i], torch.zeros_like(mask), *masks[i + 1 :]))
        differs = [(x != y).any(2).any(0) for x, y in zip(before, changed, strict=True)]  # [T, N, B]
        seen.append(tuple(torch.stack(differs).any(0).tolist()))  # by network of the ensemble
    half = len(masks) // 2
    assert seen == [(True, False)] * half + [(False, True)] * half


@pytest.mark.parametrize("name", OPTIONS)
def test_a_permutation_of_the_tasks_permutes_what_is_private_and_nothing_else(make, make_batch, name):
    batch, order = make_batch(T, B), [2, 0, 1]
    agent = make(name)
    loss, params, inputs = problem(agent, batch, "critic")
    permuted = Parameters(
        params.shared, {k: v.detach()[order].requires_grad_() for k, v in params.private.items()}
    )

    def moved(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x[order]
        return (
            None if x is None else type(x)(*map(moved, x)) if hasattr(x, "_fields") else tuple(map(moved, x))
        )

    first = multitask_gradient(make_optimizer("unitary", T), loss, params, *inputs)
    second = multitask_gradient(make_optimizer("unitary", T), loss, permuted, *map(moved, inputs))
    close(second.losses, first.losses[order])
    for key, value in first.params.shared.items():
        close(second.params.shared[key], value)
    for key, value in first.params.private.items():
        close(second.params.private[key], value[order])


@pytest.mark.parametrize("name", OPTIONS)
def test_a_tasks_private_parameters_serve_it_alone(make, name):
    agent = make(name, part={"dropout": 0.0})
    rows = torch.cat((torch.randn(1, 3).expand(T, 3), torch.eye(T)), dim=1)
    before = agent.policy.act(rows)
    with torch.no_grad():
        for parameter in agent.actor.private.values():
            parameter[1] += torch.randn(parameter[1].shape)
    changed = (agent.policy.act(rows) != before).any(dim=1)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_policy_of_each_network_loads_without_its_config_and_acts_the_same(
    make, make_batch, tmp_path, name
):
    agent = make(name, policy_tau=0.1)
    agent.update(make_batch(T, B))
    agent.policy.save(tmp_path / "policy.safetensors")
    loaded = load_policy(tmp_path / "policy.safetensors")
    rows = np.hstack([np.random.default_rng(0).normal(size=(7, 3)), np.eye(T)[[0, 2, 1, 1, 0, 2, 2]]])
    np.testing.assert_array_equal(loaded.predict(rows)[0], agent.predict(rows)[0])
    names = {key for key, _ in loaded.parameters.tensors()}
    assert not any("auxiliary" in key for key in names)
    assert loaded.to_bytes() == agent.policy.to_bytes()
    for t in range(3):  # rows are independent of each other
        np.testing.assert_allclose(
            loaded.predict(rows[t])[0], loaded.predict(rows)[0][t], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", OPTIONS)
def test_an_agent_of_each_network_resumes_exactly(make, make_batch, name):
    agent, other = make(name, optimizer="pcgrad"), make(name, optimizer="pcgrad", seed=9)
    agent.update(make_batch(T, B))
    state = agent.state_dict()
    other.load_state_dict(tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, state))
    for step in (1, 2):
        agent.update(make_batch(T, B, seed=step))
        other.update(make_batch(T, B, seed=step))
    for first, second in ((agent.actor, other.actor), (agent.critic, other.critic)):
        for (key, mine), (_, theirs) in zip(first.tensors(), second.tensors(), strict=True):
            assert torch.equal(mine, theirs), key


# --- what a network equals ----------------------------------------------------------------------------------

CONFIG = NetworkConfig(hidden=(8, 7), layer_norm=True, init="torch")
SPEC = Spec(inputs=6, outputs=2, code=4, config=CONFIG)
X, CODE = torch.randn(B, 6, generator=torch.Generator().manual_seed(0)), torch.eye(4)[1]


def built(name: str, spec: Spec = SPEC, **options: Any) -> Network:
    torch.manual_seed(1)
    return make_network(ArchitectureConfig(name, options), spec)


def copied(network: Network, names: dict[str, str], source: Network) -> Network:
    """The network with parameters of another, by the beginning of their names."""
    state = source.state_dict()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            for old, new in names.items():
                if key.startswith(old):
                    parameter.copy_(state[new + key.removeprefix(old)])
    return network


def test_mmoe_with_one_expert_is_a_shared_bottom():
    one = built("mmoe", experts=1, tower=[5])
    same = copied(built("shared_bottom", tower=[5]), {"trunk": "experts.0", "tower": "tower"}, one)
    torch.testing.assert_close(one(X, CODE), same(X, CODE))


def test_shared_bottom_with_a_linear_tower_is_an_mlp_with_an_output_layer_for_each_task():
    mlp = built("mlp")
    same = copied(
        built("shared_bottom"),
        {"trunk.hidden": "stack.hidden", "trunk.norms": "stack.norms", "tower.output": "stack.output"}, mlp,
    )  # fmt: skip
    torch.testing.assert_close(mlp(X, CODE), same(X, CODE))
    assert same.private == {"tower.output.weight", "tower.output.bias"}


def test_paco_with_one_set_is_an_mlp():
    paco, mlp = built("paco", sets=1), built("mlp")
    assert paco.composition.tolist() == [1.0]
    linears = [*mlp.stack.hidden, mlp.stack.output]
    with torch.no_grad():
        for layer, linear in zip(paco.layers, linears, strict=True):
            layer.weight.copy_(linear.weight.reshape(-1, 1))
            layer.bias.copy_(linear.bias.reshape(-1, 1))
    torch.testing.assert_close(paco(X, CODE), mlp(X, CODE))


def test_paco_is_the_sum_over_its_sets_of_weight_times_layer():
    paco = built("paco", sets=3)
    w, h = paco.composition, X
    for i, layer in enumerate(paco.layers):
        out, inside = layer.shape
        parts = [h @ layer.weight[:, k].view(out, inside).T + layer.bias[:, k] for k in range(3)]
        h = sum(w[k] * parts[k] for k in range(3))
        if i < 2:
            h = torch.nn.functional.layer_norm(h, (out,), paco.norms[i].weight, paco.norms[i].bias).relu()
    torch.testing.assert_close(paco(X, CODE), h)


def test_cgc_without_own_experts_is_an_mmoe():
    cgc = built("ple", levels=1, shared_experts=3, own_experts=0, tower=[5])
    same = copied(
        built("mmoe", experts=3, tower=[5]),
        {"experts": "levels.0.shared_experts", "gate": "levels.0.gate", "tower": "tower"}, cgc,
    )  # fmt: skip
    torch.testing.assert_close(cgc(X, CODE), same(X, CODE))


def test_ple_is_its_formula_by_hand():
    ple = built("ple", levels=2, shared_experts=1, own_experts=1)
    first, second = ple.levels
    s, o = first.shared_experts[0](X), first.own_experts[0](X)

    def mixed(gate: Stack, x: Tensor, parts: list[Tensor]) -> Tensor:
        w = gate(x).softmax(-1)
        return sum(w[:, i, None] * part for i, part in enumerate(parts))

    own, shared = mixed(first.gate, X, [s, o]), mixed(first.shared_gate, X, [s, o])
    parts = [second.shared_experts[0](shared), second.own_experts[0](own)]
    torch.testing.assert_close(ple(X, CODE), ple.tower(mixed(second.gate, own, parts)))
    assert second.shared_gate is None


@pytest.mark.parametrize("method", ["unitary", "pcgrad"])
def test_films_gradient_without_a_norm_is_that_of_t_backward_passes(make, make_batch, method):
    batch, part = make_batch(T, B), {"layer_norm": False, "dropout": 0.0}

    def step(kernels: str, path: Path) -> Parameters:
        loss, params, inputs = problem(make("film", kernels=kernels, part=part), batch, "critic")
        return multitask_gradient(make_optimizer(method, T, seed=3), loss, params, *inputs, path=path).params

    expected = step("plain", BY_LOOP)
    for found in (step("plain", PLAIN), step("onednn", FACTORED)):
        for mine, reference in zip(found, expected, strict=True):
            for key, value in reference.items():
                assert value.abs().sum() > 0
                close(mine[key], value)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_film_starts_as_an_mlp_and_scales_channels_before_the_activation(layer_norm):
    spec = SPEC._replace(config=replace(SPEC.config, layer_norm=layer_norm))
    film, mlp = (built(name, spec) for name in ("film", "mlp"))
    names = {name: name for name in mlp.state_dict()}
    torch.testing.assert_close(film(X, CODE), copied(mlp, names, film)(X, CODE))
    with torch.no_grad():
        film.stack.norms[0].weight.fill_(0.0)
        film.stack.norms[0].bias.fill_(-1.0)  # relu makes 0 of all channels
    h = film.stack.hidden[1].bias
    h = torch.nn.functional.layer_norm(h, (7,)) if layer_norm else h
    torch.testing.assert_close(film(X, CODE), film.stack.output(h.relu()).expand(B, 2))


def test_soft_modules_with_one_module_are_a_chain():
    soft = built("soft_modules", modules=1)
    h = soft.encoder(X).relu()
    for layer in soft.layers:
        h = layer[0](h)
    torch.testing.assert_close(soft(X, CODE), soft.output(h))


def test_soft_modules_route_each_row_by_its_state_and_task():
    soft = built("soft_modules", modules=2)
    state = soft.encoder(X)
    e = state * soft.task(CODE[None])
    logits = soft.routes[0](e.relu())  # [B, 4]: to module 0 from 0 and 1, to module 1 from 0 and 1
    given = [soft.layers[0][j](state.relu()) for j in range(2)]
    p = logits.view(B, 2, 2).softmax(-1)
    inputs = [p[:, i, 0, None] * given[0] + p[:, i, 1, None] * given[1] for i in range(2)]
    outs = [soft.layers[1][j](inputs[j]) for j in range(2)]
    last = soft.routes[1]((e * soft.back[0](logits)).relu()).softmax(-1)
    torch.testing.assert_close(soft(X, CODE), soft.output(last[:, :1] * outs[0] + last[:, 1:] * outs[1]))
    assert not torch.allclose(soft(X, CODE), soft(X, torch.eye(4)[2]))


def test_every_unit_of_soft_modules_routing_fires_for_some_state():
    # a product of what a relu has passed has the sign of h(task) alone: half of its units would be dead for a task
    soft = built("soft_modules", modules=2)
    e = soft.encoder(torch.randn(500, X.shape[1])) * soft.task(CODE[None])
    assert (e > 0).any(0).all()


def test_cares_attention_reads_the_context_and_does_not_train_it():
    care = built("care")
    with torch.no_grad():
        care.torso.hidden[0].weight[:, -care.context.out_dim :] = (
            0  # what reads the context, but for the attention
        )
    care(X, CODE).square().sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in care.context.parameters())
    assert all(p.grad.any() for p in care.attention.parameters())
    assert not torch.allclose(care(X, CODE), care(X, torch.eye(4)[2]))


def test_moores_experts_are_orthonormal_in_every_row():
    vectors = [torch.randn(B, 9, dtype=torch.float64) for _ in range(4)]
    u = orthonormal(torch.stack(vectors)).transpose(0, 1)  # [B, 4, 9]
    torch.testing.assert_close(u @ u.mT, torch.eye(4, dtype=torch.float64).expand(B, 4, 4), rtol=0, atol=1e-9)
    for k in range(4):  # they span what the first vectors do
        inside = torch.stack(vectors[: k + 1], 1).mT
        residual = inside - u[:, : k + 1].mT @ (u[:, : k + 1] @ inside)
        assert residual.abs().max() < 1e-9


def test_dependent_experts_leave_the_result_and_its_gradient_finite():
    x = torch.randn(B, 9, requires_grad=True)
    first, second = orthonormal(torch.stack([x, 2 * x]))
    (first.sum() + second.sum()).backward()
    assert second.isfinite().all()
    assert x.grad.isfinite().all()


def test_care_attends_by_the_context_alone():
    care = built("care", encoders=3, encoder=[5, 6], context=[4, 5])
    context = care.context(CODE[None])
    shares = care.attention(context).softmax(-1)
    z = sum(shares[:, k, None] * encoder(X) for k, encoder in enumerate(care.encoders))
    torch.testing.assert_close(care(X, CODE), care.torso(torch.cat((z, context.expand(B, 5)), 1)))


@pytest.mark.parametrize("base", ["shared_bottom", "mmoe"])
def test_small_towers_train_bit_for_bit_as_their_base_without_gamma(make, make_batch, base):
    options = {"tower": [5]} | ({"experts": 3} if base == "mmoe" else {})
    plain = make(base, options, optimizer="pcgrad")
    small = make("small_towers", {"base": base, "gamma": 0.0, **options}, optimizer="pcgrad")
    for step in range(3):
        plain.update(make_batch(T, B, seed=step))
        small.update(make_batch(T, B, seed=step))
    for mine, theirs in (
        (small.actor, plain.actor),
        (small.critic, plain.critic),
        (small.target, plain.target),
    ):
        found = {k.replace(".base.", "."): v for k, v in mine.tensors()}
        for key, value in theirs.tensors():
            assert torch.equal(found[key], value), key


@pytest.mark.parametrize("part", ["critic", "actor"])
def test_a_small_tower_adds_gamma_times_its_own_loss(make, make_batch, part):
    options = {"base": "shared_bottom", "tower": [5], "auxiliary": []}
    agents = {
        gamma: make("small_towers", {**options, "gamma": gamma}, part={"dropout": 0.0})
        for gamma in (0.5, 2.0)
    }
    losses = {}
    for gamma, agent in agents.items():
        loss, params, inputs = problem(agent, make_batch(T, B), part)
        losses[gamma] = multitask_gradient(make_optimizer("unitary", T), loss, params, *inputs).losses
        swapped = Parameters(
            params.shared,
            {
                k: torch.zeros_like(v, requires_grad=True) if "auxiliary" in k else v
                for k, v in params.private.items()
            },
        )
        other = multitask_gradient(make_optimizer("unitary", T), loss, swapped, *inputs)
        assert not torch.allclose(other.losses, losses[gamma])
    # linear in gamma: L + 0.5 A and L + 2 A, so that the main loss is (4 L(0.5) − L(2)) / 3
    main = (4 * losses[0.5] - losses[2.0]) / 3
    agent = agents[2.0]
    loss, params, inputs = problem(agent, make_batch(T, B), part)
    net = agent.nets.critic.nets if part == "critic" else [agent.nets.actor.net]
    for one in net:
        one.auxiliary_weight = 0.0
    close(multitask_gradient(make_optimizer("unitary", T), loss, params, *inputs).losses, main)


def test_an_auxiliary_tower_enters_no_target_no_value_and_no_action(make, make_batch):
    first, second = (make("small_towers", part={"dropout": 0.0}) for _ in range(2))
    with torch.no_grad():
        for parameters in (second.actor, second.critic, second.target):
            for key, value in parameters.private.items():
                if "auxiliary" in key:
                    value.mul_(-3.0).add_(1.0)
    rows = torch.cat((torch.randn(T, 3), torch.eye(T)), 1)
    assert torch.equal(first.policy.act(rows), second.policy.act(rows))
    batch, noise = make_batch(T, B), first.draw_noise(B)
    target = [
        agent.path.over_tasks(
            partial(td_target, nets=agent.nets, gamma=0.9), agent.actor, agent.target, agent.alpha, agent.one_hot,
            batch, noise.next_action, noise.target_masks, None,
        )
        for agent in (first, second)
    ]  # fmt: skip
    assert torch.equal(*target)


@pytest.mark.parametrize("name", OPTIONS)
def test_decay_on_matrices_spares_every_networks_biases(make, name):
    agent = make(name)
    config = replace(agent.config.critic, decay_on="matrices")
    for parameters in (agent.actor, agent.critic):
        names = decayed(parameters, config)
        assert names
        assert not [n for n in names if n.endswith("bias") or n == "embedding"]
        assert {n for n, _ in parameters.tensors() if n.endswith("hidden.0.weight")} <= names


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("mmoe", {"expert": 3}, "agent.network.options.expert: network 'mmoe' has no option 'expert', did you mean"),
        ("mmoe", {"experts": 0}, "agent.network.options.experts: 0 is not valid; it must be from 1 to"),
        ("mmoe", {"experts": "many"}, "experts = 'many' is not valid: must be a whole number"),
        ("mmoe", {"experts": True}, "must be a whole number"),
        ("mlp", {"tower": []}, "it has none"),
        ("shared_bottom", {"tower": [0]}, "agent.network.options.tower: [0] is not valid"),
        ("small_towers", {"gamma": -1.0}, "agent.network.options.gamma: -1.0 is not valid"),
        ("small_towers", {"gamma": float("nan")}, "agent.network.options.gamma: nan is not valid"),
        ("small_towers", {"experts": 2}, "agent.network.options.experts: 2 is not valid"),
        ("small_towers", {"base": "ple"}, "'shared_bottom', 'mmoe'"),
        ("ple", {"levels": 3}, "levels: 3 is not valid; it must be from 1 to the number of hidden layers, 2"),
        ("moore", {"experts": 9}, "experts: 9 is not valid; it must be at most the last hidden width, 8"),
        ("mmo", {}, "agent.network.name: no network 'mmo', did you mean 'mmoe'?"),
        ("nowhere:Net", {}, "--import nowhere"),
        ("os:path", {}, "os has no Network called 'path'"),
        ("own_networks:Nothing", {}, "own_networks has no Network called 'Nothing'; it has Mixture"),
    ],
)  # fmt: skip
def test_a_bad_name_or_option_is_refused_by_key_and_value(make_agent, name, options, part):
    with pytest.raises(ConfigError) as caught:
        make_agent(T, network=ArchitectureConfig(name, options))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ple", "soft_modules", "paco", "moore", "film"])
def test_a_network_without_residual_blocks_refuses_them(make_agent, name):
    with pytest.raises(
        ConfigError, match=r"agent\.actor\.blocks: 1 is not valid; it must be 0 for the network"
    ):
        make_agent(T, network=ArchitectureConfig(name), actor={"blocks": 1})


@pytest.mark.parametrize("name", ["soft_modules", "care"])
def test_a_network_that_reads_the_tasks_code_refuses_to_have_none(make_agent, name):
    with pytest.raises(ConfigError, match=r"agent\.task_input: 'none' is not valid"):
        make_agent(T, network=ArchitectureConfig(name), task_input="none")


def test_actor_and_critic_may_have_networks_of_their_own(make_agent):
    agent = make_agent(T, network=ArchitectureConfig("mmoe"), actor={"network": ArchitectureConfig("film")})
    assert agent.nets.actor.architecture.name == "film"
    assert agent.nets.critic.architecture.name == "mmoe"
    assert agent.config.architecture(agent.config.critic) == ArchitectureConfig("mmoe")


def test_a_policy_names_the_module_that_it_needs(make, tmp_path, monkeypatch):
    make(OWN).policy.save(tmp_path / "policy.safetensors")
    import sys

    monkeypatch.delitem(sys.modules, "own_networks")
    with pytest.raises(ValueError, match="needs the module own_networks"):
        load_policy(tmp_path / "policy.safetensors")


def test_what_a_network_says_of_itself_is_complete():
    for cls in NETWORKS.values():
        assert cls.paper
        assert cls.formula
        assert "\n" not in cls.formula


def test_what_differs_between_the_networks_of_an_ensemble_is_refused_by_name():
    one, other = built("mmoe"), built("mmoe")
    one.depth, other.depth = 1, 2
    both = Together([one, other])
    assert torch.equal(both(X[None], CODE[None])[1], other(X, CODE))
    with pytest.raises(TypeError, match=r"MMoE\.depth differs between networks of an ensemble"):
        both.depth  # noqa: B018
