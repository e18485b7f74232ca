"""Chains against stock torch: the same function, the same gradients, as close in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtrl.fast.chain import Chains, Factors, gramian, taped
from mtrl.fast.rows import norm_forward
from mtrl.layers import Layer, PlainLayers

T, B, IN, OUT = 3, 6, 5, 4
CHAINS = [Chains(onednn=False), Chains(onednn=True), Chains(onednn=True, mkl=True)]
SHAPES = {
    "linear": [{}],
    "relu": [{"activation": "relu"}],
    "norm": [{"norm": True}],
    "norm, relu": [{"norm": True, "activation": "relu"}],
    "three layers": [{"norm": True, "activation": "relu"}, {"activation": "relu"}, {}],
    "dropout": [{"mask": True, "norm": True, "activation": "relu"}, {"mask": True, "activation": "tanh"}, {}],
    "another activation": [{"norm": True, "activation": "silu"}, {"activation": "gelu"}],
    "a layer per task": [{"norm": True, "activation": "relu"}, {"private": True}],
}


def make_layers(shape: str, dtype: torch.dtype, width: int = IN) -> list[Layer]:
    layers = []
    for own in SHAPES[shape]:
        many = (T,) if own.get("private") else ()

        def draw(*size: int) -> Tensor:
            return torch.randn(size, dtype=dtype).requires_grad_()

        gamma, beta = (draw(OUT), draw(OUT)) if own.get("norm") else (None, None)
        mask = (torch.rand(T, B, OUT) < 0.7).to(dtype) / 0.7 if own.get("mask") else None
        layers.append(
            Layer(draw(*many, OUT, width), draw(*many, OUT), gamma, beta, own.get("activation"), mask)  # type: ignore[arg-type]
        )
        width = OUT
    return layers


def parameters(layers: list[Layer]) -> list[Tensor]:
    return [tensor for layer in layers for tensor in layer[:4] if tensor is not None]


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chains", CHAINS)
def test_a_chain_and_its_gradients_are_those_of_stock_torch(chains, dtype, shape):
    layers, x = make_layers(shape, dtype), torch.randn(T, B, IN, dtype=dtype).requires_grad_()
    outputs, gradients = [], []
    for run in (PlainLayers(), chains):
        y = run(x, layers)
        outputs.append(y)
        gradients.append(torch.autograd.grad((y * y.detach().cos()).sum(), [x, *parameters(layers)]))
    assert outputs[1].dtype == dtype
    torch.testing.assert_close(outputs[1], outputs[0], **tolerance(dtype))
    torch.testing.assert_close(gradients[1], gradients[0], **tolerance(dtype))


@pytest.mark.parametrize("chains", CHAINS)
def test_a_layer_with_a_weight_per_task_gives_each_task_its_own(chains):
    x, weight, bias = torch.randn(T, B, IN), torch.randn(T, OUT, IN), torch.randn(T, OUT)
    y = chains(x, [Layer(weight, bias)])
    for t in range(T):
        torch.testing.assert_close(y[t], F.linear(x[t], weight[t], bias[t]))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "a layer per task"])
@pytest.mark.parametrize(
    ("dtype", "chains"),
    [(torch.float64, CHAINS[0]), (torch.float32, CHAINS[0]), (torch.float32, CHAINS[1])],
)
def test_a_tape_has_what_each_tasks_own_backward_pass_gives(dtype, chains, shape):
    layers, x = make_layers(shape, dtype), torch.randn(T, B, IN, dtype=dtype)
    with taped() as tape:
        losses = chains(x, layers).square().sum((1, 2))
    tape.num_tasks = T
    found = torch.autograd.grad(losses.sum(), parameters(layers), allow_unused=True)
    assert found == (None,) * len(found)
    for t in range(T):
        own = [layer if layer.mask is None else layer._replace(mask=layer.mask[t]) for layer in layers]
        loss = PlainLayers()(x[t], own).square().sum()
        for parameter, alone in zip(
            parameters(layers), torch.autograd.grad(loss, parameters(layers)), strict=True
        ):
            left = tape.left[id(parameter)]
            row = (left.rows() if isinstance(left, Factors) else left)[t]
            torch.testing.assert_close(row, alone, **tolerance(dtype))


@pytest.mark.parametrize("chains", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_in_a_row_stays_so_in_this_row_alone(chains, dtype):
    # oneDNN's tiles of bfloat16 hold pairs: of an odd number of inputs the last is paired with the next row's first
    layers = make_layers("three layers", torch.float32, width=IN + 1)
    x = torch.randn(T, B, IN + 1)
    x[1, 2, 0] = torch.nan
    y = replace(chains, dtype=dtype)(x, layers)
    assert y[1, 2].isnan().all()
    y[1, 2] = 0
    assert y.isfinite().all()


def test_rounding_to_bfloat16_is_torchs():
    x = torch.randn(2, 7, 64).bfloat16()
    bias, gamma, beta = torch.randn(2, 64), torch.rand(2, 64), torch.randn(2, 64)
    ours, *_ = norm_forward(x, bias, gamma, beta, relu=True, compiled=True)
    exact, *_ = norm_forward(x.float(), bias, gamma, beta, relu=True, compiled=True)
    assert torch.equal(ours, exact.bfloat16())


@pytest.mark.parametrize("tasks", [1, 10, 20, 21, 50])
@pytest.mark.parametrize("onednn", [False, True])
def test_a_gramian_in_parts_is_the_gramian(tasks, onednn):
    rows = torch.randn(tasks, 70)
    torch.testing.assert_close(gramian(rows, onednn), rows @ rows.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(T, 1, 3), (T, B, 3)], ids=str)
def test_a_compiled_mixture_and_its_gradients_are_torchs(shape):
    shares, parts = torch.randn(shape, requires_grad=True), torch.randn(3, T, B, 7, requires_grad=True)
    exact = torch.einsum("...k,k...n->...n", shares.expand(T, B, 3), parts)
    d = torch.randn_like(exact)
    expected = torch.autograd.grad(exact, (shares, parts), d)
    for run in (PlainLayers(), Chains(onednn=True)):
        mixed = run.mixture(shares, parts)
        torch.testing.assert_close(mixed, exact)
        for found, gradient in zip(torch.autograd.grad(mixed, (shares, parts), d), expected, strict=True):
            torch.testing.assert_close(found, gradient)


@pytest.mark.parametrize("tasks", [3, 20, 21])
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_gramian_of_pairs_of_rows_is_the_gramian_of_the_tasks_gradients(dtype, onednn, tasks):
    x, d = torch.randn(tasks, 4, 6, dtype=dtype), torch.randn(tasks, 4, 5, dtype=dtype)
    gradients = torch.einsum("tbn,tbk->tnk", d.double(), x.double()).flatten(1)
    found = Factors(x, d, onednn and dtype == torch.float32).gramian().double()
    size = (x.double().norm(dim=2) * d.double().norm(dim=2)).sum(1)
    error = (found - gradients @ gradients.T).abs() / (size.unsqueeze(1) * size)
    # in bfloat16 three numbers of eight bits are rounded: the two inner products and theirs
    assert error.max() < (3 * 2**-9 if dtype == torch.bfloat16 else 1e-6)


def test_pairs_of_rows_are_taken_in_bfloat16_where_they_are_fewer_numbers():
    def factors(rows: int, dtype: torch.dtype = torch.bfloat16) -> Factors:
        return Factors(torch.zeros(10, rows, 256, dtype=dtype), torch.zeros(10, rows, 256, dtype=dtype))

    # 2 · 10² · 57² pairs and 10 · 256² numbers are 649,800 and 655,360
    assert factors(57).few
    assert not factors(58).few
    assert not factors(57, torch.float32).few


def test_a_parameter_in_two_layers_is_refused_on_a_tape():
    x, weight, bias = torch.randn(T, B, IN), torch.randn(IN, IN, requires_grad=True), torch.randn(IN)
    with taped() as tape:
        y = Chains()(x, [Layer(weight, bias), Layer(weight, bias)])
    tape.num_tasks = T
    with pytest.raises(ValueError, match="two layers"):
        y.sum().backward()


def errors_of_bfloat16(measure: Callable[[str, str, int], Tensor]) -> tuple[float, float, float]:
    """How far the plain and the fused bfloat16 path are from float32, and its norm; sums over five seeds."""
    plain = fused = whole = 0.0
    for seed in range(5):
        exact = measure("plain", "fp32", seed)
        whole += exact.norm().item()
        plain += (measure("plain", "bf16", seed) - exact).norm().item()
        fused += (measure("onednn", "bf16", seed) - exact).norm().item()
    return plain, fused, whole


@pytest.mark.parametrize("network", ["critic", "actor"])
@pytest.mark.parametrize("stabilised", [{}, {"layer_norm": True}, {"dropout": 0.2}, {"blocks": 1}], ids=str)
def test_in_bfloat16_the_fused_gradient_is_as_near_to_float32_as_the_plain_one(
    make_agent, make_batch, network, stabilised
):
    def gradient(kernels: str, precision: str, seed: int) -> Tensor:
        own = {"init": "torch", "layer_norm": False, **stabilised}
        agent = make_agent(
            3, hidden=(64,), actor=own, critic=own, kernels=kernels, precision=precision, seed=seed
        )
        agent.update(make_batch(3, 32, seed), agent.draw_noise(32))
        return torch.cat([p.grad.flatten() for _, p in getattr(agent, network).tensors()])

    plain, fused, whole = errors_of_bfloat16(gradient)
    assert 0 < plain < 0.1 * whole
    assert fused < 1.3 * plain


def test_in_bfloat16_the_factored_gramian_is_as_near_to_float32_as_the_plain_one(make_agent, make_batch):
    def gramian_of(kernels: str, precision: str, seed: int) -> Tensor:
        agent = make_agent(20, hidden=(64,), kernels=kernels, precision=precision, seed=seed)
        batch, noise = make_batch(20, 16, seed), agent.draw_noise(16)
        return agent.update(batch, noise, diagnose=True)["conflict_critic"].gramian

    plain, fused, whole = errors_of_bfloat16(gramian_of)
    assert 0 < plain < 0.05 * whole
    assert fused < 1.5 * plain + 0.005 * whole  # each layer's share is rounded once, to 8 bits


def test_outputs_of_a_bfloat16_network_are_float32_whatever_the_kernels(make_agent, make_batch):
    for kernels in ("plain", "torch", "onednn"):
        agent = make_agent(kernels=kernels, precision="bf16")
        metrics = agent.update(make_batch())
        assert metrics["critic_loss"].dtype == torch.float32
        assert all(p.dtype == torch.float32 for _, p in agent.critic.tensors())


GROUPS = [shape for shape in SHAPES if shape != "a layer per task"]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("shape", [*GROUPS, "all of each task's own"])
@pytest.mark.parametrize(
    ("dtype", "chains"),
    [(torch.float64, CHAINS[0]), (torch.float32, CHAINS[0]), (torch.float32, CHAINS[1])],
)
def test_stacks_next_to_each_other_give_what_each_gives_alone(dtype, chains, shape, own):
    if shape in GROUPS:
        stacks = [make_layers(shape, dtype) for _ in range(3)]
    else:
        stacks = [per_task(make_layers("three layers", dtype)) for _ in range(3)]
    x = torch.randn(3, T, B, IN, dtype=dtype) if own else torch.randn(T, B, IN, dtype=dtype)
    x.requires_grad_()
    leaves = [x, *(p for layers in stacks for p in parameters(layers))]
    outputs, gradients = [], []
    for run in (PlainLayers(), chains):
        y = run.each(x, stacks, own)
        outputs.append(y)
        gradients.append(torch.autograd.grad((y * y.detach().cos()).sum(), leaves))
    torch.testing.assert_close(outputs[1], outputs[0], **tolerance(dtype))
    torch.testing.assert_close(gradients[1], gradients[0], **tolerance(dtype))


def per_task(layers: list[Layer]) -> list[Layer]:
    """The same with weights, biases and layer norms for each task."""
    return [
        Layer(*(None if t is None else torch.randn(T, *t.shape, dtype=t.dtype).requires_grad_() for t in layer[:4]),
              layer.activation)
        for layer in layers
    ]  # fmt: skip


def test_stacks_next_to_each_other_leave_each_its_own_on_the_tape():
    stacks, x = [make_layers("three layers", torch.float64) for _ in range(2)], torch.randn(T, B, IN).double()
    left = []
    for run in (lambda: Chains().each(x, stacks), lambda: torch.stack([Chains()(x, s) for s in stacks])):
        with taped() as tape:
            losses = run().square().sum((0, 2, 3))
        tape.num_tasks = T
        losses.sum().backward()
        rows = [tape.left[id(p)] for layers in stacks for p in parameters(layers)]
        left.append([part.rows() if isinstance(part, Factors) else part for part in rows])
    torch.testing.assert_close(left[0], left[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("missing", range(1, 4))
@pytest.mark.parametrize("chains", CHAINS)
def test_a_layer_learns_what_it_may_learn_where_some_of_its_tensors_are_constants(chains, missing):
    (layer,) = make_layers("norm, relu", torch.float32)
    layer = layer._replace(**{("weight", "bias", "gamma", "beta")[missing]: layer[missing].detach()})
    x, leaves = torch.randn(T, B, IN), [tensor for tensor in layer[:4] if tensor.requires_grad]
    found = [torch.autograd.grad(run(x, [layer]).square().sum(), leaves) for run in (PlainLayers(), chains)]
    torch.testing.assert_close(found[1], found[0], **tolerance(torch.float32))


def test_a_stack_that_only_scales_is_no_group_of_one_that_normalises():
    stacks = [make_layers("norm", torch.float64) for _ in range(2)]
    stacks[1] = [layer._replace(norm=False) for layer in stacks[1]]
    x = torch.randn(T, B, IN).double()
    torch.testing.assert_close(Chains().each(x, stacks), PlainLayers().each(x, stacks))


@pytest.mark.parametrize("chains", CHAINS)
def test_inputs_in_bfloat16_are_no_layer_norms_in_float32(chains):
    layers, x = make_layers("norm", torch.bfloat16), torch.randn(T, B, IN).bfloat16()
    exact = PlainLayers()(x.float(), [Layer(*(tensor.detach().float() for tensor in layers[0][:4]))])
    assert (chains(x, layers).float() - exact).norm() < 0.03 * exact.norm()


def test_a_tape_hears_nothing_of_other_threads():
    (layer,), x = make_layers("linear", torch.float64), torch.randn(T, B, IN).double()
    with taped(), ThreadPoolExecutor(1) as thread:
        y = thread.submit(Chains(), x, [layer]).result()
    weight, _ = torch.autograd.grad(y.sum(), layer[:2])
    torch.testing.assert_close(weight, x.sum((0, 1)).expand(OUT, IN))


def test_a_weight_that_is_computed_is_refused_on_a_tape():
    x, weight = torch.randn(T, B, IN), torch.randn(IN, IN, requires_grad=True)
    with taped() as tape:
        y = Chains()(x, [Layer(2 * weight, None)])
    tape.num_tasks = T
    with pytest.raises(ValueError, match="computed from parameters"):
        y.sum().backward()


@pytest.mark.parametrize("own", [False, True])
def test_in_bfloat16_groups_are_as_near_to_float32_as_stacks_alone(own):
    stacks = [make_layers("three layers", torch.float32) for _ in range(2)]
    x = torch.randn(2, T, B, IN) if own else torch.randn(T, B, IN)
    exact = PlainLayers().each(x, stacks, own)
    alone = PlainLayers(torch.bfloat16).each(x, stacks, own)
    groups = Chains(torch.bfloat16, onednn=True).each(x, stacks, own)
    assert 0 < (groups - exact).norm() < 1.5 * (alone - exact).norm() + 0.01 * exact.norm()
