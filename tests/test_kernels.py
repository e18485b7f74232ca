"""The fused layers against stock torch: the same function, the same gradients, as close in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtrl.kernels import FusedKernels, PlainKernels, gramian, make_kernels, taped

T, B, IN, OUT = 3, 6, 5, 4
KERNELS = [FusedKernels(onednn=False), FusedKernels(onednn=True)]


def leaves(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {"x": (T, B, IN), "weight": (OUT, IN), "bias": (OUT,), "gain": (OUT,), "shift": (OUT,)}
    return {k: torch.randn(shape, dtype=dtype).requires_grad_() for k, shape in shapes.items()}


def layers(kernels: Any, p: dict[str, Tensor], relu: bool, norm: bool) -> Tensor:
    y = kernels.linear(p["x"], p["weight"], p["bias"], relu and not norm)
    y = kernels.layer_norm(y, p["gain"], p["shift"], relu) if norm else y
    return y.to(p["x"].dtype)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernels", KERNELS)
def test_fused_layers_and_their_gradients_are_those_of_stock_torch(kernels, dtype, relu, norm):
    p = leaves(dtype)
    used = ["x", "weight", "bias", *(["gain", "shift"] if norm else [])]
    outputs, gradients = [], []
    for kind in (PlainKernels(), kernels):
        y = layers(kind, p, relu, norm)
        outputs.append(y)
        gradients.append(torch.autograd.grad((y * y.detach().cos()).sum(), [p[k] for k in used]))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(outputs[1], outputs[0], **tolerance)
    torch.testing.assert_close(gradients[1], gradients[0], **tolerance)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_layer_with_a_weight_per_task_gives_each_task_its_own(kernels):
    x, weight, bias = torch.randn(T, B, IN), torch.randn(T, OUT, IN), torch.randn(T, OUT)
    y = kernels.linear(x, weight, bias)
    for t in range(T):
        torch.testing.assert_close(y[t], F.linear(x[t], weight[t], bias[t]))


@pytest.mark.parametrize("norm", [False, True])
def test_a_tape_has_what_each_tasks_own_backward_pass_gives(norm):
    p = leaves(torch.float64)
    with taped() as tape:
        losses = layers(FusedKernels(), p, True, norm).square().sum((1, 2))
    tape.num_tasks = T
    assert torch.autograd.grad(losses.sum(), [p["weight"]], allow_unused=True) == (None,)
    for name in ("weight", "bias", *(["gain", "shift"] if norm else [])):
        left = tape.left[id(p[name])]
        rows = left.rows() if name == "weight" else left
        for t in range(T):
            alone = {**p, "x": p["x"][t : t + 1]}
            loss = layers(PlainKernels(), alone, True, norm).square().sum()
            torch.testing.assert_close(rows[t], torch.autograd.grad(loss, p[name])[0])


@pytest.mark.parametrize("tasks", [1, 10, 20, 21, 50])
@pytest.mark.parametrize("onednn", [False, True])
def test_a_gramian_in_parts_is_the_gramian(tasks, onednn):
    rows = torch.randn(tasks, 70)
    torch.testing.assert_close(gramian(rows, onednn), rows @ rows.T, rtol=1e-4, atol=1e-4)


def test_a_parameter_in_two_layers_is_refused_on_a_tape():
    x, weight, bias = torch.randn(T, B, IN), torch.randn(IN, IN, requires_grad=True), torch.randn(IN)
    with taped() as tape:
        y = FusedKernels().linear(FusedKernels().linear(x, weight, bias), weight, bias)
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


def test_kernels_are_made_by_name():
    assert make_kernels("plain", torch.bfloat16) == PlainKernels(torch.bfloat16)
    assert make_kernels("onednn", torch.float32) == FusedKernels(torch.float32, onednn=True)
    assert make_kernels("torch", torch.float32) == FusedKernels(torch.float32, onednn=False)
