"""What holds for every Jacobian, method by method: hypothesis looks for one for which it doesn't."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtrl.optimizers import OPTIMIZERS, GramianMethod, Scalarization, make_optimizer
from mtrl.optimizers.base import weighted_sum

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
DETERMINISTIC = [
    "unitary",
    "static",
    "mgda",
    "pe_ltr",
    "cagrad",
    "imtl_g",
    "nash_mtl",
    "upgrad",
    "aligned_mtl",
]
NON_CONFLICTING = ["mgda", "nash_mtl", "upgrad"]
MEAN_WITHOUT_CONFLICT = ["unitary", "pcgrad", "upgrad"]


@st.composite
def jacobians(draw: st.DrawFn, most: int = 8) -> Tensor:
    """[T, P] in float64, of full rank or not, with norms up to 30 times apart."""
    tasks = draw(st.integers(1, most))
    parameters = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    common = draw(st.sampled_from([0.0, 0.5, 2.0])) * rng.normal(size=parameters)
    spread = np.exp(draw(st.sampled_from([0.0, 0.7])) * rng.normal(size=(tasks, 1)))
    return torch.from_numpy(spread * (rng.normal(size=(tasks, parameters)) + common))


def close(actual: Tensor, expected: Tensor, size: Tensor, tolerance: float = 1e-6) -> bool:
    """Equal within `tolerance` of the gradients' size."""
    return float((actual - expected).norm()) <= tolerance * float(size.norm())


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@SETTINGS
@given(jacobian=jacobians(), tasks=st.sampled_from([1, 2, 10, 50]), exponent=st.integers(-12, 12))
def test_identical_gradients_give_that_gradient(
    name: str, jacobian: Tensor, tasks: int, exponent: int
) -> None:
    gradient = jacobian[0] * 10.0**exponent
    combined = make_optimizer(name, tasks, seed=1).combine(gradient.expand(tasks, -1))
    assert close(combined, gradient, gradient)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_identical_gradients_give_that_gradient_in_float32(name: str) -> None:
    gradient = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for tasks in (2, 10, 50):
        combined = make_optimizer(name, tasks).combine(gradient.expand(tasks, -1))
        assert combined.dtype == torch.float32
        assert close(combined, gradient, gradient, 1e-5)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@SETTINGS
@given(jacobian=jacobians(), exponent=st.integers(-12, 12))
def test_scaling_all_gradients_scales_the_result(name: str, jacobian: Tensor, exponent: int) -> None:
    factor = 2.0 ** (3 * exponent)  # a power of two, so that only the method itself can differ
    plain = make_optimizer(name, len(jacobian), seed=3).combine(jacobian)
    scaled = make_optimizer(name, len(jacobian), seed=3).combine(jacobian * factor)
    assert close(scaled / factor, plain, plain, 1e-6)


@pytest.mark.parametrize("name", DETERMINISTIC)
@SETTINGS
@given(jacobian=jacobians(), seed=st.integers(0, 1000))
def test_the_order_of_the_tasks_does_not_matter(name: str, jacobian: Tensor, seed: int) -> None:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(jacobian)))
    plain = make_optimizer(name, len(jacobian)).combine(jacobian)
    permuted = make_optimizer(name, len(jacobian)).combine(jacobian[order])
    assert close(permuted, plain, jacobian, 1e-4)


@pytest.mark.parametrize("name", NON_CONFLICTING)
@SETTINGS
@given(jacobian=jacobians())
def test_the_result_of_a_non_conflicting_method_harms_no_task(name: str, jacobian: Tensor) -> None:
    combined = make_optimizer(name, len(jacobian)).combine(jacobian)
    products = (jacobian @ combined) / jacobian.norm(dim=1)
    assert products.min() >= -1e-5 * jacobian.norm()


@pytest.mark.parametrize("name", NON_CONFLICTING)
@settings(SETTINGS, max_examples=100)
@given(jacobian=jacobians(most=20), seed=st.integers(0, 2**32))
def test_nor_does_it_where_gradients_repeat_or_oppose_each_other(
    name: str, jacobian: Tensor, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    few = torch.from_numpy(rng.integers(0, max(1, len(jacobian) // 2), len(jacobian)))
    signs = torch.from_numpy(rng.choice([-1.0, 1.0, 2.0], size=(len(jacobian), 1)))
    repeated = jacobian[few] * signs
    combined = make_optimizer(name, len(jacobian)).combine(repeated)
    products = (repeated @ combined) / repeated.norm(dim=1)
    assert products.min() >= -1e-4 * repeated.norm()


@pytest.mark.parametrize("name", MEAN_WITHOUT_CONFLICT)
@SETTINGS
@given(jacobian=jacobians())
def test_without_a_negative_product_the_result_is_the_mean(name: str, jacobian: Tensor) -> None:
    harmless = jacobian.abs()  # all products are non-negative
    combined = make_optimizer(name, len(jacobian)).combine(harmless)
    assert close(combined, harmless.mean(dim=0), harmless, 1e-12)


@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "gradvac"])
def test_methods_that_may_conflict_do_for_some_jacobian(name: str) -> None:
    """So that the documentation's table doesn't promise too little without our noticing."""
    generator = torch.Generator().manual_seed(0)
    lowest = 0.0
    for _ in range(200):
        jacobian = torch.randn(6, 4, generator=generator)
        combined = make_optimizer(name, 6).combine(jacobian)
        lowest = min(lowest, float((jacobian @ combined).min()))
    assert lowest < -0.01


@SETTINGS
@given(jacobian=jacobians(), c=st.sampled_from([0.1, 0.5, 0.9]))
def test_cagrad_stays_in_its_ball_and_its_worst_product_is_the_dual_value(jacobian: Tensor, c: float) -> None:
    optimizer = make_optimizer("cagrad", len(jacobian), c=c, scale="as_published")
    combined = optimizer.combine(jacobian)
    mean = jacobian.mean(dim=0)
    assert (combined - mean).norm() <= c * mean.norm() * (1 + 1e-9)
    # any w bounds the worst product from above by g_w·g₀ + c ‖g₀‖ ‖g_w‖; the solver's own has to meet it
    weights = optimizer.weights(jacobian @ jacobian.T) - 1 / len(jacobian)
    shortest = weights / weights.sum() @ jacobian
    bound = shortest @ mean + c * mean.norm() * shortest.norm()
    size = jacobian.norm() ** 2
    assert (jacobian @ combined).min() == pytest.approx(float(bound), abs=1e-4 * float(size))


@SETTINGS
@given(jacobian=jacobians(most=20))
def test_mgda_is_no_longer_than_its_product_with_any_gradient(jacobian: Tensor) -> None:
    """The condition that is true of the shortest point of the hull only."""
    combined = make_optimizer("mgda", len(jacobian)).combine(jacobian)
    assert (jacobian @ combined).min() >= combined @ combined - 1e-7 * jacobian.norm() ** 2


@SETTINGS
@given(jacobian=jacobians())
def test_imtl_g_has_equal_projections_on_all_unit_gradients(jacobian: Tensor) -> None:
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    if torch.linalg.matrix_rank(unit, tol=1e-2) < len(unit):
        return  # dependent directions need not have a combination with equal projections
    weights = make_optimizer("imtl_g", len(jacobian)).weights(jacobian @ jacobian.T)
    projections = unit @ (weights @ jacobian)
    assert weights.sum() == pytest.approx(1)
    assert projections.max() - projections.min() <= 1e-5 * weights.abs().max() * jacobian.norm()


@SETTINGS
@given(jacobian=jacobians())
def test_nash_bargain_solves_its_equation(jacobian: Tensor) -> None:
    gramian = jacobian @ jacobian.T
    norms = jacobian.norm(dim=1)
    if torch.linalg.eigvalsh(gramian / norms / norms[:, None])[0] < 1e-3:
        return  # opposed or dependent: the ridge decides there
    alpha = make_optimizer("nash_mtl", len(jacobian), scale="as_published").weights(gramian)
    assert torch.allclose(gramian @ alpha * alpha, torch.ones_like(alpha), atol=1e-4)


@SETTINGS
@given(
    losses=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=10),
    name=st.sampled_from([n for n, c in OPTIMIZERS.items() if issubclass(c, Scalarization)]),
)
def test_weights_of_a_scalarization_are_positive_and_sum_to_one(losses: list[float], name: str) -> None:
    optimizer = make_optimizer(name, len(losses))
    for _ in range(3):
        weights = optimizer.weights(torch.tensor(losses))
        optimizer.after_step(torch.tensor(losses) * 0.9)
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["unitary", "static", "uncertainty", "famo"])
def test_before_any_loss_a_scalarization_combines_with_the_mean(name: str) -> None:
    jacobian = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(make_optimizer(name, 3).combine(jacobian), jacobian.mean(dim=0))


@pytest.mark.parametrize("name", ["rlw", "graddrop"])
def test_a_random_method_draws_anew_at_every_combination(name: str) -> None:
    optimizer, jacobian = make_optimizer(name, 3), torch.randn(3, 50)
    first, second = optimizer.combine(jacobian), optimizer.combine(jacobian)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, jacobian.mean(0))


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cagrad_stays_in_its_ball_however_small_the_mean_is_beside_the_gradients(apart: float, dtype) -> None:
    rows = torch.randn(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = (rows - rows.mean(0) + apart * rows.norm(dim=1).mean() * torch.ones(30) / 30**0.5).to(dtype)
    mean = rows.double().mean(0)
    optimizer = make_optimizer("cagrad", 4, c=0.5, scale="as_published")
    distance = (optimizer.combine(rows).double() - mean).norm()
    assert float(distance) == pytest.approx(
        0.5 * float(mean.norm()), rel=1e-5 if dtype == torch.float64 else 0.05
    )


def test_the_published_solver_of_cagrad_counts_gradients_far_below_its_constant_as_zero() -> None:
    rows = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    exact, published = (make_optimizer("cagrad", 3, solver=s) for s in ("exact", "as_published"))
    small = 1e-6 * rows
    assert torch.allclose(exact.combine(small) * 1e6, exact.combine(rows))
    assert not torch.allclose(published.combine(small) * 1e6, published.combine(rows), rtol=1e-2)


def test_weights_that_cancel_are_summed_in_float64() -> None:
    # 1e6 (a + e) − 1e6 a = 1e6 e: in float32 the products alone are off by 1e6 · 1e-7 of a
    a, e = torch.ones(5), torch.tensor([0.0, 1e-6, 2e-6, 3e-6, 4e-6])
    rows = torch.stack([a + e, a])
    exact = 1e6 * (rows[0].double() - rows[1].double())
    assert torch.equal(weighted_sum(torch.tensor([1e6, -1e6], dtype=torch.float64), rows), exact.float())


@pytest.mark.parametrize("name", [n for n, c in OPTIMIZERS.items() if issubclass(c, Scalarization)])
def test_a_scalarization_combines_with_its_weights_of_the_losses(name: str) -> None:
    optimizer, twin = (make_optimizer(name, 3, seed=2) for _ in range(2))
    losses = torch.tensor([1.0, 2.0, 7.0])
    for _ in range(5):
        weights = optimizer.weights(losses)
        assert torch.allclose(twin.combine(torch.eye(3), losses), weights)


@pytest.mark.parametrize(("distribution", "variance"), [("dirichlet", 1 / 18), ("normal", 0.0494)])
def test_random_weights_have_mean_one_over_t_and_the_distributions_spread(
    distribution: str, variance: float
) -> None:
    # Dirichlet(1, 1, 1): variance (1/3)(2/3)/4 = 1/18; the softmax of three normal numbers: .0494, by numpy
    # over 10⁶ draws. 5000 draws: the mean is within 4 σ = .0134
    optimizer = make_optimizer("rlw", 3, distribution=distribution)
    draws = torch.stack([optimizer.weights(torch.ones(3)) for _ in range(5000)])
    assert draws.mean(dim=0).tolist() == pytest.approx([1 / 3] * 3, abs=0.0134)
    assert draws.var(dim=0).mean() == pytest.approx(variance, rel=0.1)


def test_graddrop_is_the_mean_in_expectation() -> None:
    # 4000 draws of a ±-valued coordinate of size ≤ 1.5: the mean is within 4 σ = 4 · 1.5 / √4000 = .095
    jacobian = torch.tensor([[1.0, -2.0, 0.5], [-0.5, 1.0, 0.5]])
    optimizer = make_optimizer("graddrop", 2)
    average = torch.stack([optimizer.combine(jacobian) for _ in range(4000)]).mean(dim=0)
    assert average.tolist() == pytest.approx(jacobian.mean(dim=0).tolist(), abs=0.095)


@pytest.mark.parametrize("name", ["pcgrad", "gradvac", "graddrop", "rlw"])
def test_draws_come_from_the_own_generator(name: str) -> None:
    jacobian = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))

    def results(seed: int) -> Tensor:
        optimizer = make_optimizer(name, 6, seed=seed)
        if isinstance(optimizer, Scalarization):
            return torch.stack([optimizer.weights(torch.ones(6)) for _ in range(5)])
        return torch.stack([optimizer.combine(jacobian) for _ in range(5)])

    before = torch.get_rng_state()
    first = results(seed=0)
    torch.rand(3)
    torch.set_rng_state(before)
    assert torch.equal(results(seed=0), first)
    assert not torch.equal(results(seed=1), first)
    results(seed=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [n for n, c in OPTIMIZERS.items() if issubclass(c, GramianMethod)])
@SETTINGS
@given(jacobian=jacobians())
def test_a_float32_gramian_gives_nearly_the_same_weights_and_its_dtype(name: str, jacobian: Tensor) -> None:
    """Even where rounding leaves the Gramian indefinite."""
    gramian = jacobian @ jacobian.T
    noise = torch.rand(gramian.shape, generator=torch.Generator().manual_seed(0)) * 1e-6
    weights = make_optimizer(name, len(jacobian)).weights((gramian * (1 + noise)).float())
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    exact = make_optimizer(name, len(jacobian)).weights(gramian)
    if torch.linalg.matrix_rank(jacobian, rtol=1e-2) == len(jacobian):
        assert close(weights.double() @ jacobian, exact @ jacobian, jacobian, 1e-2)
