"""Values worked out by hand, the arithmetic beside them.

Unless said otherwise g₁ = (1, 0), g₂ = (−1, 2): ‖g₁‖² = 1, ‖g₂‖² = 5, g₁·g₂ = −1, mean g₀ = (0, 1).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl.optimizers import make_optimizer
from mtrl.optimizers.cagrad import descend_logits
from mtrl.optimizers.pcgrad import project

SQRT5 = math.sqrt(5)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # ((1, 0) + (−1, 2)) / 2
        ("unitary", {}, (0.0, 1.0)),
        # weights 3/4 and 1/4: (3/4 − 1/4, 2/4)
        ("static", {"weights": [3, 1]}, (0.5, 0.5)),
        # p₁ = g₁ + (1/5) g₂ = (0.8, 0.4); p₂ = g₂ + (1/1) g₁ = (0, 2); mean
        ("pcgrad", {}, (0.4, 1.2)),
        ("pcgrad", {"scale": "as_published"}, (0.8, 2.4)),
        # all targets are 0 at first, where a GradVac step is a PCGrad step
        ("gradvac", {}, (0.4, 1.2)),
        ("gradvac", {"scale": "as_published"}, (0.8, 2.4)),
        # w₁ = g₂·(g₂ − g₁) / ‖g₁ − g₂‖² = (5 + 1) / 8 = 3/4; d = (3/4 − 1/4, 2/4)
        ("mgda", {}, (0.5, 0.5)),
        # that w₁ = 3/4 leaves the other task less than 0.3, which it gets: (0.7 − 0.3, 0.6)
        ("pe_ltr", {"c": 0.0}, (0.5, 0.5)),
        ("pe_ltr", {"c": 0.2}, (0.5, 0.5)),
        ("pe_ltr", {"c": 0.3}, (0.4, 0.6)),
        ("pe_ltr", {"c": 0.5}, (0.0, 1.0)),
        # x₁ = w₁ − 0.3 minimises without a bound, and is 0.45: beyond 1 − 0.6 = 0.4, onto which it is projected
        ("pe_ltr", {"c": 0.3, "as_published": True}, (0.4, 0.6)),
        # unit gradients are met half-way: (u₁ + u₂)/2 = ((1 − 1/√5)/2, 1/√5); times the mean norm (1 + √5)/2
        ("mgda", {"normalize": "l2"}, ((1 - 1 / SQRT5) * (1 + SQRT5) / 4, (1 + SQRT5) / (2 * SQRT5))),
        ("mgda", {"normalize": "l2", "scale": "as_published"}, ((1 - 1 / SQRT5) / 2, 1 / SQRT5)),
        # the ball of radius ½ round (0, 1) contains (½, 1), where d·g₁ = ½ is the largest it can be and
        # d·g₂ = 1½ is more: so g_w = g₁, d = g₀ + ½ g₁ = (½, 1), and λ = ½ · 1 / 1 = ½
        ("cagrad", {"scale": "as_published"}, (0.5, 1.0)),
        ("cagrad", {}, (0.5 / 1.5, 1.0 / 1.5)),
        ("cagrad", {"scale": "1+lambda"}, (0.5 / 1.5, 1.0 / 1.5)),
        ("cagrad", {"scale": "1+c^2"}, (0.5 / 1.25, 1.0 / 1.25)),
        ("cagrad", {"c": 0}, (0.0, 1.0)),
        # two tasks: w ~ 1/‖g‖ = (1, 1/√5), so w₁ = √5/(√5 + 1), w₂ = 1/(√5 + 1); d = (w₁ − w₂, 2 w₂)
        ("imtl_g", {}, ((SQRT5 - 1) / (SQRT5 + 1), 2 / (SQRT5 + 1))),
        # two tasks: α ~ 1/‖g‖ too
        ("nash_mtl", {}, ((SQRT5 - 1) / (SQRT5 + 1), 2 / (SQRT5 + 1))),
        # two tasks: each gradient has one constraint to meet, so the projections are PCGrad's
        ("upgrad", {}, (0.4, 1.2)),
    ],
)
def test_two_conflicting_tasks_by_hand(
    name: str, options: dict, expected: tuple[float, float], two_tasks: Tensor
) -> None:
    combined = make_optimizer(name, num_tasks=2, **options).combine(two_tasks)
    assert combined.tolist() == pytest.approx(expected, abs=1e-9)


def test_nash_as_published_solves_gramian_alpha_equals_one_over_alpha(two_tasks: Tensor) -> None:
    # cosine −1/√5: in units of the norms β (1 − 1/√5) β = 1, β = 1/√(1 − 1/√5); d = β (u₁ + u₂)
    beta = 1 / math.sqrt(1 - 1 / SQRT5)
    combined = make_optimizer("nash_mtl", num_tasks=2, scale="as_published").combine(two_tasks)
    assert combined.tolist() == pytest.approx([beta * (1 - 1 / SQRT5), beta * 2 / SQRT5], abs=1e-8)
    assert combined.norm() ** 2 == pytest.approx(2, abs=1e-8)  # ‖d‖² = αᵀGα = T


def test_aligned_mtl_shortens_orthogonal_gradients_to_the_shortest() -> None:
    # G = diag(1, 4), σ_min = 1: w = (1 · ½, ½ · ½), d = ½ (1, 0) + ¼ (0, 2)
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert make_optimizer("aligned_mtl", 2).combine(jacobian).tolist() == pytest.approx([0.5, 0.5])
    published = make_optimizer("aligned_mtl", 2, scale="as_published").combine(jacobian)
    assert published.tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("third", "expected"),
    [
        # g₁ = (1, 0), g₂ = (−1, 1), g₃ = (0, −1)
        # row 1 meets 2: (1, 0) + ½ (−1, 1) = (½, ½); meets 3: (½, ½) + ½ (0, −1) = (½, 0)
        # row 2 meets 1: (−1, 1) + (1, 0) = (0, 1); meets 3: (0, 0)
        # row 3 meets 1: product 0, stays; meets 2: (0, −1) + ½ (−1, 1) = (−½, −½)
        ([0, 1], (0.0, -0.5)),
        # row 3 meets 2 first: (−½, −½); then 1: (−½, −½) + ½ (1, 0) = (0, −½)
        ([1, 0], (0.5, -0.5)),
    ],
)
def test_pcgrad_of_three_tasks_depends_on_the_order_as_by_hand(
    third: list[int], expected: tuple[float, float]
) -> None:
    jacobian = np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]])
    weights = project(jacobian @ jacobian.T, np.array([[1, 2], [0, 2], third]))
    assert weights @ jacobian == pytest.approx(expected)


def test_upgrad_of_three_tasks_meets_two_constraints_at_once() -> None:
    # g₁ = (1, 0), g₂ = (−1, 1), g₃ = (0, 1); the cone is 0 ≤ x ≤ y.
    # g₁ → the nearest of it lies on y = x: (½, ½); g₂ → on x = 0: (0, 1); g₃ is inside: (0, 1)
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, 1.0]])
    assert make_optimizer("upgrad", 3).combine(jacobian).tolist() == pytest.approx([0.5 / 3, 2.5 / 3])


def test_gradvac_raises_a_cosine_to_its_target_and_moves_the_target() -> None:
    # g₁ = (1, 0), g₂ = (0, 1), target .6: p₁ = g₁ + (.6 · 1 − 0) / .8 g₂ = (1, .75), whose cosine with g₂ is
    # .75 / 1.25 = .6; p₂ = (.75, 1); the targets become .99 · .6 + .01 · 0
    optimizer = make_optimizer("gradvac", 2)
    optimizer.targets.fill_(0.6)
    assert optimizer.combine(torch.eye(2)).tolist() == pytest.approx([0.875, 0.875])
    assert optimizer.targets[0, 1] == pytest.approx(0.594)
    assert optimizer.targets[1, 0] == pytest.approx(0.594)


def test_graddrop_keeps_one_sign_of_a_contested_coordinate_and_all_of_another(two_tasks: Tensor) -> None:
    # first coordinate 1 or −1, one of them kept, over 2; second 0 + 2, over 2
    optimizer = make_optimizer("graddrop", 2)
    seen = {tuple(optimizer.combine(two_tasks).tolist()) for _ in range(50)}
    assert seen == {(0.5, 1.0), (-0.5, 1.0)}


def test_graddrop_as_published_has_the_norm_of_the_sum(two_tasks: Tensor) -> None:
    # kept (±1, 2), norm √5; the sum (0, 2), norm 2
    combined = make_optimizer("graddrop", 2, scale="as_published").combine(two_tasks)
    assert combined.abs().tolist() == pytest.approx([2 / SQRT5, 4 / SQRT5])


def test_uncertainty_gives_the_larger_loss_less_weight() -> None:
    # s = 0 at first: ½ each. Slopes ½ (1 − loss) = (−1.5, .375); Adam's first step is lr · sign: s = ±.5
    optimizer = make_optimizer("uncertainty", 2, lr=0.5)
    losses = torch.tensor([4.0, 0.25])
    assert optimizer.weights(losses).tolist() == [0.5, 0.5]
    expected = math.exp(-0.5) / (math.exp(-0.5) + math.exp(0.5))
    assert optimizer.weights(losses).tolist() == pytest.approx([expected, 1 - expected])


def test_uncertainty_as_published_is_half_the_inverse_variance() -> None:
    optimizer = make_optimizer("uncertainty", 2, lr=0.5, scale="as_published")
    optimizer.weights(torch.tensor([4.0, 0.25]))
    assert optimizer.weights(torch.ones(2)).tolist() == pytest.approx([math.exp(-0.5) / 2, math.exp(0.5) / 2])


def test_uncertainty_settles_where_weights_are_inverse_to_losses() -> None:
    # at rest exp(s) = loss: weights ~ (1/2, 1/8) -> (.8, .2)
    optimizer = make_optimizer("uncertainty", 2, lr=0.02)
    for _ in range(2000):
        weights = optimizer.weights(torch.tensor([2.0, 8.0]))
    assert weights.tolist() == pytest.approx([0.8, 0.2], abs=1e-3)


def test_famo_takes_a_loss_of_zero_for_one_of_1e_8() -> None:
    # z = (½, ½): w ~ (½ / 1e-8, ½ / 1) -> (1, 1e-8)
    weights = make_optimizer("famo", 2).weights(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert weights.tolist() == pytest.approx([1.0, 1e-8], rel=1e-6)


def test_famo_weighs_by_inverse_loss_then_favours_the_task_that_improved_less() -> None:
    # z = (½, ½): w ~ (½ / 1, ½ / 4) -> (.8, .2)
    optimizer = make_optimizer("famo", 2, lr=0.5, gamma=0.0)
    losses = torch.tensor([1.0, 4.0])
    assert optimizer.weights(losses).tolist() == pytest.approx([0.8, 0.2])
    # δ = (log 2, 0), slope ½ (δ − ½ log 2) = (+, −): Adam's first step is lr · sign, ξ = (−.5, .5)
    optimizer.after_step(torch.tensor([0.5, 4.0]))
    z = [math.exp(-0.5) / (math.exp(-0.5) + math.exp(0.5)), 1 / (1 + math.exp(-1))]
    total = z[0] / 1 + z[1] / 4
    expected = [z[0] / total, z[1] / 4 / total]
    assert optimizer.weights(losses).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_published_cagrad_solver_finds_the_optimum_it_can_reach(two_tasks: Tensor) -> None:
    # the exact optimum is w = (1, 0), λ = ½ (see above); logits can only approach it
    gramian = (two_tasks @ two_tasks.T).numpy()
    weights, factor = descend_logits(gramian, 0.5, lr=25.0)
    assert weights == pytest.approx([1, 0], abs=1e-3)
    assert factor == pytest.approx(0.5, abs=1e-3)
