"""The errors found in published code: each shown with the switch that reproduces it, and absent without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtrl.optimizers import make_optimizer


def normal(tasks: int, parameters: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, parameters, generator=generator, dtype=torch.float64)


def spread_of_projections(jacobian: Tensor, **options: bool) -> float:
    combined = make_optimizer("imtl_g", len(jacobian), **options).combine(jacobian)
    projections = (jacobian @ combined) / jacobian.norm(dim=1)
    return float((projections.max() - projections.min()) / combined.norm())


def test_imtl_g_with_the_transposed_matrix_is_right_for_two_tasks() -> None:
    jacobian = normal(2, 10)
    assert spread_of_projections(jacobian, as_published=True) < 1e-5


def test_imtl_g_with_the_transposed_matrix_has_unequal_projections_for_three() -> None:
    jacobian = normal(3, 10) * torch.tensor([[1.0], [3.0], [0.3]])
    assert spread_of_projections(jacobian) < 1e-8
    assert spread_of_projections(jacobian, as_published=True) > 0.1


def test_imtl_g_as_published_stands_still_where_a_gradient_is_zero() -> None:
    jacobian = normal(3, 10)
    jacobian[1] = 0
    assert (make_optimizer("imtl_g", 3, as_published=True).combine(jacobian) == 0).all()
    assert make_optimizer("imtl_g", 3).combine(jacobian).norm() > 0.1


def test_pcgrad_on_one_number_per_task_is_zero_whenever_two_signs_differ() -> None:
    """Why the temperatures take the plain mean: on log α every conflict cancels all of both gradients."""
    log_alpha = torch.tensor([[3.0], [2.0], [-0.1]])
    # each positive number loses itself against −0.1, and −0.1 loses itself against either
    assert make_optimizer("pcgrad", 3).combine(log_alpha).item() == pytest.approx(0, abs=1e-7)
    assert make_optimizer("unitary", 3).combine(log_alpha).item() == pytest.approx(4.9 / 3)


def test_summing_methods_multiply_the_gradient_by_the_number_of_tasks() -> None:
    """With Adam and L2 in the loss, that divides the effective L2 by T."""
    gradient = normal(1, 6)
    for name in ("pcgrad", "gradvac", "graddrop", "aligned_mtl"):
        published = make_optimizer(name, 10, scale="as_published").combine(gradient.expand(10, -1))
        assert torch.allclose(published, 10 * gradient[0])


def test_graddrop_rescales_to_the_sum_in_code_only() -> None:
    jacobian = normal(5, 40)
    published = make_optimizer("graddrop", 5, seed=1, scale="as_published").combine(jacobian)
    ours = make_optimizer("graddrop", 5, seed=1).combine(jacobian)
    assert published.norm() == pytest.approx(float(jacobian.sum(dim=0).norm()))
    assert (ours * 5).norm() != pytest.approx(float(jacobian.sum(dim=0).norm()), rel=0.05)
    assert torch.cosine_similarity(published, ours, dim=0) == pytest.approx(1)


def test_cagrad_has_four_published_scales_of_which_one_keeps_identical_gradients() -> None:
    gradient = normal(1, 6)
    lengths = {
        scale: float(make_optimizer("cagrad", 4, c=0.5, scale=scale).combine(gradient.expand(4, -1)).norm())
        for scale in ("mean", "1+c^2", "1+lambda", "as_published")
    }
    # identical gradients: d = (1 + c) g, and λ = c
    size = float(gradient.norm())
    assert lengths == pytest.approx(
        {"mean": size, "1+c^2": 1.5 / 1.25 * size, "1+lambda": size, "as_published": 1.5 * size}
    )


def test_the_lambda_scale_of_cagrad_is_not_a_scale_where_gradients_conflict() -> None:
    # g₀ = (−1.5, .5), ‖g₀‖ = 1.58; g₁ is the worst off, so g_w = g₁ and λ = ½ · 1.58 / 1 = .79, not ½
    jacobian = torch.tensor([[1.0, 0.0], [-4.0, 1.0]])
    mean = make_optimizer("cagrad", 2).combine(jacobian)
    by_lambda = make_optimizer("cagrad", 2, scale="1+lambda").combine(jacobian)
    assert torch.cosine_similarity(mean, by_lambda, dim=0) == pytest.approx(1)
    assert by_lambda.norm() / mean.norm() == pytest.approx(1.5 / (1 + 2.5**0.5 / 2))


def test_famo_as_published_multiplies_where_the_paper_divides() -> None:
    # z = (½, ½), losses (1, 4): z/loss = (.5, .125), sum .625
    losses = torch.tensor([1.0, 4.0])
    paper = make_optimizer("famo", 2).weights(losses)
    code = make_optimizer("famo", 2, scale="as_published").weights(losses)
    assert paper.tolist() == pytest.approx([0.5 / 0.625, 0.125 / 0.625])
    assert code.tolist() == pytest.approx([0.5 * 0.625, 0.125 * 0.625])


def test_mgda_as_published_forgets_how_large_the_gradients_are() -> None:
    jacobian = normal(3, 10)
    published = make_optimizer("mgda", 3, normalize="l2", scale="as_published")
    assert torch.allclose(published.combine(jacobian), published.combine(jacobian * 1e6))
    assert published.combine(jacobian).norm() <= 1
    ours = make_optimizer("mgda", 3, normalize="l2")
    assert torch.allclose(ours.combine(jacobian) * 1e6, ours.combine(jacobian * 1e6))


def test_nash_as_published_has_the_same_length_whatever_the_gradients() -> None:
    jacobian = normal(3, 10)
    published = make_optimizer("nash_mtl", 3, scale="as_published")
    for factor in (1.0, 1e4):
        assert published.combine(jacobian * factor).norm() ** 2 == pytest.approx(3)  # ‖d‖² = T
