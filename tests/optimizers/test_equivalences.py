"""Two ways to the same result: Gramian and vectors, ours and torchjd's, exact and by brute force.

Where torchjd computes something else: its PCGrad, GradVac and GradDrop return sums; its GradVac and PCGrad
draw other orders, so they are compared for two tasks, which have one order; its MGDA is 100 rounds of
Frank-Wolfe, so it is compared loosely; its Aligned-MTL takes the rank of the Gramian, the same at norms near
1; its CAGrad, Nash-MTL and UPGrad need solvers that this project does not install, so a general solver or the
defining equation stands in for them.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from mtrl.optimizers import OPTIMIZERS, GramianMethod, make_optimizer, of_present
from mtrl.optimizers.adam import adam_start, adam_step
from mtrl.optimizers.gradvac import vaccinate
from mtrl.optimizers.pcgrad import project, random_orders
from mtrl.optimizers.pe_ltr import onto_simplex


def normal(tasks: int, parameters: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, parameters, generator=generator, dtype=torch.float64)


def pcgrad_on_vectors(jacobian: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The paper's algorithm 1, word by word; summed."""
    total = np.zeros(jacobian.shape[1])
    for i, others in enumerate(order):
        row = jacobian[i].copy()
        for j in others:
            product = row @ jacobian[j]
            if product < 0:
                row -= product / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total += row
    return total


def gradvac_on_vectors(
    jacobian: np.ndarray, order: np.ndarray, targets: np.ndarray, beta: float
) -> np.ndarray:
    """The paper's algorithm 1, word by word; summed; `targets` is updated."""
    total = np.zeros(jacobian.shape[1])
    for i, others in enumerate(order):
        row = jacobian[i].copy()
        for j in others:
            size, other = np.linalg.norm(row), np.linalg.norm(jacobian[j])
            cosine, target = row @ jacobian[j] / size / other, targets[i, j]
            if cosine < target:
                wanted = target * np.sqrt(1 - cosine**2) - cosine * np.sqrt(1 - target**2)
                row += size * wanted / (other * np.sqrt(1 - target**2)) * jacobian[j]
            targets[i, j] = (1 - beta) * target + beta * cosine
        total += row
    return total


@pytest.mark.parametrize("tasks", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("seed", range(3))
def test_pcgrad_on_the_gramian_is_pcgrad_on_vectors(tasks: int, seed: int) -> None:
    jacobian = normal(tasks, max(2, tasks // 2), seed)
    order = random_orders(tasks, torch.Generator().manual_seed(seed))
    expected = pcgrad_on_vectors(jacobian.numpy(), order.numpy())
    gramian = jacobian @ jacobian.T
    on_host = project(gramian.numpy(), order.numpy()) @ jacobian.numpy()
    on_device = project(gramian, order) @ jacobian
    assert on_host == pytest.approx(expected, abs=1e-9)
    assert on_device.numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("tasks", [2, 3, 10])
def test_gradvac_on_the_gramian_is_gradvac_on_vectors_over_many_updates(tasks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = np.zeros((tasks, tasks)), np.zeros((tasks, tasks))
    for step in range(20):
        jacobian = (normal(tasks, 6, step) + 0.5).numpy()
        order = random_orders(tasks, generator).numpy()
        combined = vaccinate(jacobian @ jacobian.T, order, ours, beta=0.3) @ jacobian
        assert combined == pytest.approx(gradvac_on_vectors(jacobian, order, theirs, 0.3), abs=1e-8)
        assert ours == pytest.approx(theirs, abs=1e-10)


def test_random_orders_are_uniform_and_leave_the_task_itself_out() -> None:
    # each of the 2 orders of the others: 2000 draws, within 4 σ = 4 √(.25/2000) = .045 of a half
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([random_orders(3, generator) for _ in range(2000)])
    for task in range(3):
        others = [i for i in range(3) if i != task]
        assert orders[:, task].sort(dim=1).values.unique(dim=0).tolist() == [others]
        assert (orders[:, task, 0] == others[0]).double().mean() == pytest.approx(0.5, abs=0.045)


def test_pcgrad_is_in_expectation_the_average_over_all_orders() -> None:
    # 3000 draws of a vector whose spread is at most ‖J‖: within 4 ‖J‖ / √3000 of the average of the 8 orders
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    gramian = (jacobian @ jacobian.T).numpy()
    others = [[1, 2], [0, 2], [0, 1]]
    all_orders = itertools.product(*(list(itertools.permutations(o)) for o in others))
    expected = np.mean([project(gramian, np.array(o)) @ jacobian.numpy() / 3 for o in all_orders], axis=0)
    optimizer = make_optimizer("pcgrad", 3)
    average = torch.stack([optimizer.combine(jacobian) for _ in range(3000)]).mean(dim=0)
    assert average.tolist() == pytest.approx(expected, abs=4 * float(jacobian.norm()) / 3000**0.5)


@pytest.mark.parametrize("name", [n for n, c in OPTIMIZERS.items() if issubclass(c, GramianMethod)])
def test_combine_is_weights_of_the_gramian_times_the_jacobian(name: str) -> None:
    jacobian = normal(6, 20, seed=1)
    combined = make_optimizer(name, 6, seed=5).combine(jacobian)
    weights = make_optimizer(name, 6, seed=5).weights(jacobian @ jacobian.T)
    assert torch.allclose(combined, weights @ jacobian, atol=1e-9)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_combine_agrees_between_float32_and_float64(name: str) -> None:
    jacobian = normal(6, 20, seed=2)
    exact = make_optimizer(name, 6, seed=5).combine(jacobian)
    assert torch.allclose(
        make_optimizer(name, 6, seed=5).combine(jacobian.float()).double(), exact, atol=1e-4
    )


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_is_the_best_direction_that_a_general_solver_finds(seed: int, c: float) -> None:
    jacobian = normal(4, 3, seed).numpy()
    mean = jacobian.mean(axis=0)
    ours = make_optimizer("cagrad", 4, c=c, scale="as_published").combine(torch.from_numpy(jacobian)).numpy()
    # maximise s over (d, s) with g·d ≥ s for all tasks and ‖d − g₀‖² ≤ c² ‖g₀‖²
    constraints = [
        {"type": "ineq", "fun": lambda x: jacobian @ x[:-1] - x[-1]},
        {"type": "ineq", "fun": lambda x: c**2 * mean @ mean - np.sum((x[:-1] - mean) ** 2)},
    ]
    start = np.append(mean, (jacobian @ mean).min())
    found = minimize(lambda x: -x[-1], start, constraints=constraints, method="SLSQP", tol=1e-12)
    assert (jacobian @ ours).min() == pytest.approx(found.x[-1], abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_upgrad_projects_as_a_general_solver_does(seed: int) -> None:
    jacobian = normal(5, 4, seed).numpy()

    def projection(gradient: np.ndarray) -> np.ndarray:
        result = minimize(
            lambda d: np.sum((d - gradient) ** 2) / 2,
            np.zeros(4),
            jac=lambda d: d - gradient,
            constraints={"type": "ineq", "fun": lambda d: jacobian @ d, "jac": lambda d: jacobian},
            method="SLSQP",
            tol=1e-14,
        )
        return np.asarray(result.x)

    expected = np.mean([projection(g) for g in jacobian], axis=0)
    combined = make_optimizer("upgrad", 5).combine(torch.from_numpy(jacobian))
    assert combined.numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_published_cagrad_comes_near_the_exact_optimum(seed: int) -> None:
    """Twenty steps are no solution: at norms near 1 they come within a tenth of the mean's square."""
    jacobian = normal(5, 20, seed)
    mean = jacobian.mean(dim=0)
    worst = []
    for solver in ("exact", "as_published"):
        optimizer = make_optimizer("cagrad", 5, solver=solver, scale="as_published")
        worst.append(float((jacobian @ optimizer.combine(jacobian)).min()))
    assert worst[1] <= worst[0] + 1e-3
    assert worst[1] >= worst[0] - 0.1 * float(mean @ mean)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("name", "oracle", "tolerance"),
    [
        ("unitary", "Mean", 1e-12),
        ("imtl_g", "IMTLG", 1e-6),
        ("aligned_mtl", "AlignedMTL", 1e-6),
        ("mgda", "MGDA", 0.1),
    ],
)
def test_torchjd_computes_the_same(name: str, oracle: str, tolerance: float, seed: int) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    jacobian = normal(5, 30, seed)
    jacobian /= jacobian.norm(dim=1).mean()
    expected = getattr(aggregation, oracle)()(jacobian)
    combined = make_optimizer(name, 5).combine(jacobian)
    assert (combined - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(
    ("name", "oracle", "options"), [("pcgrad", "PCGrad", {}), ("gradvac", "GradVac", {"beta": 0.5})]
)
def test_torchjd_computes_the_same_sum_for_two_tasks(name: str, oracle: str, options: dict) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    theirs = getattr(aggregation, oracle)(**options)
    ours = make_optimizer(name, 2, scale="as_published", **options)
    with torch.random.fork_rng():
        for seed in range(20):
            jacobian = normal(2, 3, seed)
            assert torch.allclose(ours.combine(jacobian), theirs(jacobian), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_pe_ltr_lies_between_mgda_and_the_mean(seed: int) -> None:
    jacobian = normal(5, 7, seed)
    for c, same in ((0.0, "mgda"), (0.2, "unitary")):
        ours = make_optimizer("pe_ltr", 5, c=c).combine(jacobian)
        assert torch.allclose(ours, make_optimizer(same, 5).combine(jacobian), atol=1e-6)
    lengths = [
        float(make_optimizer("pe_ltr", 5, c=c).combine(jacobian).norm()) for c in (0.0, 0.05, 0.1, 0.2)
    ]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(lengths))


@pytest.mark.parametrize("seed", range(10))
def test_pe_ltr_finds_the_shortest_combination_with_these_least_weights(seed: int) -> None:
    jacobian = normal(6, 4 + seed, seed) * torch.logspace(-1, 1, 6).double().unsqueeze(1)
    gram, c = (jacobian @ jacobian.T).numpy(), 0.04
    scale = gram.max()
    found = minimize(
        lambda w: w @ gram @ w / scale, np.full(6, 1 / 6), jac=lambda w: 2 * gram @ w / scale, method="SLSQP",
        bounds=[(c, 1)] * 6, constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )  # fmt: skip
    weights = make_optimizer("pe_ltr", 6, c=c).weights(torch.from_numpy(gram)).numpy()
    assert weights.min() >= c - 1e-12
    assert weights.sum() == pytest.approx(1)
    assert weights @ gram @ weights <= (found.x @ gram @ found.x) * (1 + 1e-6)
    published = make_optimizer("pe_ltr", 6, c=c, as_published=True).weights(torch.from_numpy(gram)).numpy()
    assert published.min() >= c - 1e-9
    assert published.sum() == pytest.approx(1)
    assert published @ gram @ published >= (weights @ gram @ weights) * (1 - 1e-9)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("tasks", [2, 3, 7, 10])
def test_pe_ltrs_weights_sum_to_1_and_at_the_largest_least_weight_are_the_means(tasks, as_published) -> None:
    gram = torch.from_numpy(np.cov(np.random.default_rng(tasks).normal(size=(tasks, 30))))
    for share in (0.0, 0.3, 0.999, 1.0):
        method = make_optimizer("pe_ltr", tasks, c=share / tasks, as_published=as_published)
        weights = method.weights(gram)
        assert weights.sum().item() == pytest.approx(1)
        assert weights.min().item() >= share / tasks - 1e-12
    np.testing.assert_allclose(weights, 1 / tasks)


def test_pe_ltr_of_fewer_tasks_keeps_to_the_same_share_of_the_mean() -> None:
    jacobian = normal(4, 6, 0)
    present = torch.tensor([True, False, True, True])
    weights = of_present(make_optimizer("pe_ltr", 4, c=0.25), jacobian @ jacobian.T, present)
    assert weights.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])


def test_what_a_weighting_learns_by_is_torchs_adam() -> None:
    value = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.Adam([value], lr=0.1, weight_decay=0.3)
    ours = adam_start(3)
    for gradient in normal(20, 3, seed=0):
        value.grad = gradient.clone()
        theirs.step()
        ours = adam_step(ours, gradient, 0.1, 0.3, None)
        assert ours[0].tolist() == pytest.approx(value.tolist(), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_projection_onto_the_simplex_is_the_nearest_of_all_faces_points(seed: int) -> None:
    point, candidates = 2 * normal(1, 6, seed)[0].numpy(), []
    for k in range(1, 7):
        for face in map(list, itertools.combinations(range(6), k)):
            nearest = np.zeros(6)
            nearest[face] = point[face] - (point[face].sum() - 0.6) / k
            if nearest.min() >= 0:
                candidates.append(nearest)
    best = min(candidates, key=lambda x: float(((x - point) ** 2).sum()))
    assert onto_simplex(point, 0.6) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_pe_ltr_as_published_takes_rounding_for_no_direction(seed: int) -> None:
    # three directions in five gradients: their Gramian in float32 has a direction more, of rounding alone
    rows = normal(5, 1000, seed)
    rows[3], rows[4] = rows[0] + rows[1], 2 * rows[2]
    exact, rounded = (
        make_optimizer("pe_ltr", 5, as_published=True).weights(r @ r.T).double() @ rows
        for r in (rows, rows.float())
    )
    assert float((exact - rounded).norm()) <= 1e-3 * float(exact.norm())
