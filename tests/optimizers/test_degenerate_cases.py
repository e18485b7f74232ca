"""Zero, identical and opposite gradients, one task, norms from 1e-12 to 1e12, NaN: for every method."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

from mtrl.optimizers import (
    OPTIMIZERS,
    GramianMethod,
    OptimizerError,
    RowMethod,
    Scalarization,
    make_optimizer,
)
from mtrl.optimizers.base import gramian_of, weighted_sum
from mtrl.optimizers.pcgrad import random_orders


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def choices(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return (False, True) if hint is bool else ()


def variants() -> list[tuple[str, dict]]:
    """Every method with every combination of the choices that its options are."""
    found: list[tuple[str, dict]] = [("cagrad", {"c": 0.99}), ("pe_ltr", {"c": 0.0})]
    for name, method in OPTIMIZERS.items():
        hints = get_type_hints(method.__init__)
        of_option = {key: choices(hint) for key, hint in hints.items() if choices(hint)}
        found += [
            (name, dict(zip(of_option, values, strict=True))) for values in product(*of_option.values())
        ]
    return found


def test_variants_are_all_that_there_are() -> None:
    assert variants().count(("rlw", {"distribution": "normal"})) == 1
    assert len([name for name, _ in variants() if name == "cagrad"]) == 1 + 2 * 4


CASES = {
    "all zero": torch.zeros(4, 6),
    "one zero": torch.cat([normal(3, 6), torch.zeros(1, 6)]),
    "all but one zero": torch.cat([normal(1, 6), torch.zeros(3, 6)]),
    "opposite": torch.stack([normal(6), -normal(6)]),
    "opposite, unequal": torch.stack([normal(6), -3 * normal(6)]),
    "sum zero": torch.cat([normal(3, 6), -normal(3, 6).sum(dim=0, keepdim=True)]),
    "two identical among others": normal(3, 6)[[0, 0, 1, 2]],
    "one task": normal(1, 6),
    "one parameter": normal(5, 1),
    "norms of 1e-12": normal(4, 6) * 1e-12,
    "norms of 1e12": normal(4, 6) * 1e12,
    "norms from 1e-12 to 1e12": normal(4, 6) * torch.tensor([[1e-12], [1.0], [1e6], [1e12]]),
    "two norms far apart, opposite": torch.stack([normal(6) * 1e12, -normal(6) * 1e-12]),
    "fifty tasks": normal(50, 60),
    "fifty tasks in three dimensions": normal(50, 3),
    "fifty tasks, half opposite": torch.cat([normal(25, 60), -normal(25, 60)]),
    "fifty tasks, nearly identical": normal(60) + 1e-6 * normal(50, 60, seed=1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "options"), variants(), ids=str)
def test_the_result_is_finite_and_no_longer_than_it_may_be(name: str, options: dict, case: str) -> None:
    jacobian = CASES[case]
    for dtype in (torch.float32, torch.float64):
        optimizer = make_optimizer(name, len(jacobian), **options)
        for _ in range(3):  # moving averages have something to say from the second time on
            combined = optimizer.combine(jacobian.to(dtype))
            assert combined.dtype == dtype
            assert combined.isfinite().all()
        if name not in ("imtl_g", "nash_mtl", "gradvac") and options.get("scale", "mean") == "mean":
            # these three may leave the convex hull's size: weights of both signs, or of unequal norms
            assert combined.norm() <= jacobian.norm(dim=1).max() * (1 + 1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [n for n, c in OPTIMIZERS.items() if issubclass(c, GramianMethod)])
def test_an_update_takes_what_combine_gives(name: str, case: str) -> None:
    jacobian = CASES[case].double()
    combined = make_optimizer(name, len(jacobian), seed=5).combine(jacobian)
    weights = make_optimizer(name, len(jacobian), seed=5).weights(gramian_of(jacobian))
    size = float(jacobian.norm(dim=1).max())
    assert weighted_sum(weights, jacobian).tolist() == pytest.approx(
        combined.tolist(), rel=1e-4, abs=1e-6 * size
    )


@pytest.mark.parametrize("c", [0.5, 0.9])
def test_cagrad_leaves_a_zero_gradient_to_the_mean(c: float) -> None:
    # of (g, 0) the mean is that of g times 3/4, and with it radius and step: no direction improves the zero one
    jacobian = CASES["one zero"].double()
    combined = make_optimizer("cagrad", 4, c=c).combine(jacobian)
    alone = make_optimizer("cagrad", 3, c=c).combine(jacobian[:3])
    assert combined.tolist() == pytest.approx((0.75 * alone).tolist())
    weights = make_optimizer("cagrad", 4, c=c).weights(jacobian @ jacobian.T)
    assert weights[3] == pytest.approx(0.25 / (1 + c))


def test_one_task_keeps_its_gradient(name: str) -> None:
    jacobian = normal(1, 6)
    assert torch.allclose(make_optimizer(name, 1).combine(jacobian), jacobian[0])


def test_no_gradient_gives_no_step(name: str) -> None:
    assert (make_optimizer(name, 4).combine(torch.zeros(4, 6)) == 0).all()


@pytest.mark.parametrize(
    "name",
    [
        "unitary", "pcgrad", "gradvac", "mgda", "pe_ltr", "cagrad", "imtl_g", "nash_mtl", "upgrad", "aligned_mtl",
    ],
)  # fmt: skip
def test_opposite_gradients_of_one_size_cancel(name: str) -> None:
    combined = make_optimizer(name, 2).combine(
        torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    )  # nothing improves both
    assert combined.abs().max() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", ["imtl_g", "nash_mtl"])
def test_a_zero_gradient_stays_out_of_the_game(name: str) -> None:
    jacobian = normal(3, 6)
    with_zero = torch.cat([jacobian, torch.zeros(1, 6)])
    alone = make_optimizer(name, 3).combine(jacobian)
    assert torch.allclose(make_optimizer(name, 4).combine(with_zero), alone, atol=1e-6)


@pytest.mark.parametrize("name", ["pcgrad", "upgrad", "gradvac"])
def test_a_zero_gradient_only_thins_the_mean(name: str) -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])
    with_zero = torch.cat([jacobian, torch.zeros(1, 2)])
    alone = make_optimizer(name, 2).combine(jacobian)
    assert torch.allclose(make_optimizer(name, 3).combine(with_zero), alone * 2 / 3, atol=1e-6)


def test_mgda_stands_still_where_one_gradient_is_zero() -> None:
    combined = make_optimizer("mgda", 4).combine(CASES["one zero"])
    assert combined.norm() <= 1e-11
    assert (make_optimizer("mgda", 4, normalize="l2").combine(CASES["one zero"]) == 0).all()


def test_upgrad_projects_small_gradients_beside_large_ones() -> None:
    # g₁ = (1e6, 0), g₂ = 1e-6 (−1, 1): g₁ alone loses its conflict, (½, ½) 1e6, whatever the size of g₂
    jacobian = torch.tensor([[1e6, 0.0], [-1e-6, 1e-6]])
    combined = make_optimizer("upgrad", 2).combine(jacobian)
    assert combined.tolist() == pytest.approx([0.25e6, 0.25e6], rel=1e-5)


def test_imtl_g_falls_back_to_the_mean_where_weights_cannot_sum_to_one() -> None:
    # norms chosen so that Σ yᵢ/nᵢ = 0 for C y = 1. With cosines .8, .8 and .4: y₁ + 1.6 y₂ = 1 and
    # .8 y₁ + 1.4 y₂ = 1 give y₂ = y₃ = 5/3, y₁ = −5/3; norms 1, 2, 2: −5/3 + 5/6 + 5/6 = 0
    norms = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    cosines = torch.tensor([[1, 0.8, 0.8], [0.8, 1, 0.4], [0.8, 0.4, 1]], dtype=torch.float64)
    weights = make_optimizer("imtl_g", 3).weights(norms[:, None] * cosines * norms)
    assert weights.tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_combine_names_the_tasks_whose_gradient_is_not_finite(name: str, bad: float) -> None:
    jacobian = normal(4, 6)
    jacobian[2, 3] = jacobian[3, 0] = bad
    with pytest.raises(OptimizerError, match=r"gradient of task 2, 3 is not finite") as error:
        make_optimizer(name, 4).combine(jacobian)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 6), (4,), (4, 2, 3)])
def test_combine_refuses_a_jacobian_of_another_shape(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(OptimizerError, match=r"Jacobian \[T, P\] of 4 rows"):
        make_optimizer(name, 4).combine(torch.zeros(shape))


def test_combine_refuses_integers(name: str) -> None:
    with pytest.raises(OptimizerError, match="floating-point"):
        make_optimizer(name, 2).combine(torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    ("name", "options"), [v for v in variants() if not issubclass(OPTIMIZERS[v[0]], Scalarization)], ids=str
)
def test_inside_an_update_no_number_neither_raises_nor_hangs_nor_hides(
    name: str, options: dict, bad: float
) -> None:
    jacobian = normal(4, 6)
    jacobian[1, 2] = bad
    optimizer = make_optimizer(name, 4, **options)
    if isinstance(optimizer, RowMethod):
        assert not optimizer.combine_rows(jacobian).isfinite().all()
    else:
        assert isinstance(optimizer, GramianMethod)
        weights = optimizer.weights(jacobian @ jacobian.T)
        assert not (weights @ jacobian).isfinite().all()


def test_pcgrad_takes_no_step_from_a_gramian_that_overflowed() -> None:
    gramian = torch.diag(torch.tensor([torch.inf, 1.0, 1.0])) - 0.1
    assert make_optimizer("pcgrad", 3).weights(gramian).isnan().all()


def test_gradvac_learns_nothing_from_a_gradient_that_it_has_cancelled() -> None:
    # with target 0, the first of g and −g takes all of g away; the third task then meets nothing
    jacobian = torch.tensor([[1.0], [-1.0], [-1.0]])
    optimizer = make_optimizer("gradvac", 3, seed=0, beta=0.5)
    generator, learnt = torch.Generator().manual_seed(0), torch.zeros(3, dtype=torch.float64)
    for _ in range(5):
        optimizer.combine(jacobian)
        first = random_orders(3, generator)[0, 0]  # either opposes task 0, and takes all of it away
        learnt[first] = 0.5 * learnt[first] + 0.5 * -1
    assert (learnt < 0).tolist() == [False, True, True]
    torch.testing.assert_close(optimizer.targets[0], learnt)


def test_aligned_mtl_takes_rounding_for_no_direction() -> None:
    # ten identical gradients, products rounded to 1e-7: one direction, so the result is that gradient
    noise = torch.randn(10, 10, generator=torch.Generator().manual_seed(0)) * 1e-7
    weights = make_optimizer("aligned_mtl", 10).weights(torch.ones(10, 10) + noise + noise.T)
    assert weights.tolist() == pytest.approx([0.1] * 10, abs=1e-5)


def test_gradvac_does_not_learn_a_nan() -> None:
    optimizer = make_optimizer("gradvac", 2)
    optimizer.weights(torch.full((2, 2), torch.nan))
    assert (optimizer.targets == 0).all()
