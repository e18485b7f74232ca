"""Values as distributions: by hand, against C51's loop and scipy, and through the losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mtrl.categorical import HL_GAUSS_WIDTH, atoms_on, cross_entropy, expectation, hl_gauss, project, two_hot
from mtrl.config import ActorConfig, CriticConfig
from mtrl.networks import Actor, Critic, Parameters
from mtrl.replay import Batch
from mtrl.sac import Networks, actor_loss, critic_loss, td_target

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
ATOMS = torch.tensor([-2.0, 0.0, 2.0])


def test_atoms_are_even_between_the_ends():
    assert atoms_on(3, 4, torch.zeros(1, dtype=torch.float64)).tolist() == [-3, -1, 1, 3]
    assert atoms_on(3, 4, torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_a_value_is_the_expectation_under_the_softmax():
    logits = torch.tensor([[1.0, 1.0, 2.0], [0.0, 0.0, 0.0]]).log1p()
    # weights 2, 2, 3 of 7: (−4 + 6)/7; equal weights: 0
    assert expectation(logits, ATOMS).tolist() == pytest.approx([2 / 7, 0], abs=1e-6)


def test_two_hot_shares_a_value_between_its_neighbours_and_cuts_it_to_the_ends():
    values = torch.tensor([0.0, 0.5, -2.0, -1.5, 7.0, -7.0])
    expected = [[0, 1, 0], [0, 0.75, 0.25], [1, 0, 0], [0.75, 0.25, 0], [0, 0, 1], [1, 0, 0]]
    assert two_hot(values, ATOMS).tolist() == expected


def c51_loop(positions: np.ndarray, probabilities: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Algorithm 1 of Bellemare et al. 2017, atom by atom."""
    step = atoms[1] - atoms[0]
    mass = np.zeros_like(probabilities)
    for row in range(len(positions)):
        for position, probability in zip(positions[row], probabilities[row], strict=True):
            b = (np.clip(position, atoms[0], atoms[-1]) - atoms[0]) / step
            low, high = int(np.floor(b)), int(np.ceil(b))
            if low == high:
                mass[row, low] += probability
            else:
                mass[row, low] += probability * (high - b)
                mass[row, high] += probability * (b - low)
    return mass


def test_the_projection_is_c51s_loop():
    generator = np.random.default_rng(0)
    atoms = np.linspace(-10, 10, 51)
    positions = generator.normal(0, 8, (20, 1)) + 0.9 * atoms  # some beyond both ends
    probabilities = generator.dirichlet(np.ones(51), 20)
    ours = project(*(torch.from_numpy(x) for x in (positions, probabilities, atoms)))
    np.testing.assert_allclose(ours.numpy(), c51_loop(positions, probabilities, atoms), atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(-15, 15), min_size=1, max_size=6))
def test_projections_are_probabilities_and_keep_the_mean_within_the_grid(values):
    atoms = torch.linspace(-10, 10, 21, dtype=torch.float64)
    values = torch.tensor(values, dtype=torch.float64)
    for target in (two_hot(values, atoms), hl_gauss(values, atoms)):
        assert (target >= 0).all()
        torch.testing.assert_close(target.sum(-1), torch.ones_like(values))
    torch.testing.assert_close(two_hot(values, atoms) @ atoms, values.clamp(-10, 10))


def test_hl_gauss_is_the_gaussians_mass_in_the_bin_around_each_atom():
    atoms = torch.linspace(-10, 10, 21, dtype=torch.float64)
    for value in (0.0, 0.3, -4.7):
        sigma = HL_GAUSS_WIDTH * 1.0
        expected = norm.cdf(atoms.numpy() + 0.5, value, sigma) - norm.cdf(atoms.numpy() - 0.5, value, sigma)
        ours = hl_gauss(torch.tensor(value, dtype=torch.float64), atoms)
        np.testing.assert_allclose(ours.numpy(), expected / expected.sum(), atol=1e-12)
        assert (ours @ atoms).item() == pytest.approx(value, abs=1e-3)
    # two atoms are 1.33 σ apart, so that the peak's own bin holds Φ(2/3) − Φ(−2/3) = .495
    assert (
        ours.max().item()
        < hl_gauss(torch.tensor(0.0, dtype=torch.float64), atoms).max().item()
        == (pytest.approx(0.4950, abs=1e-4))
    )


def test_cross_entropy_is_torchs_and_least_at_the_target():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5, generator=generator)
    target = torch.randn(7, 5, generator=generator).softmax(-1)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, target), expected)
    assert (cross_entropy(target.log(), target) < cross_entropy(logits, target)).all()


# --- in the losses: D = A = 1, critics that are constants, K = 3 atoms −2, 0, 2 ------------------------


def constant_critics(**options: object) -> tuple[Networks, Parameters]:
    """Q₁'s probabilities ¼, ¼, ½ (value ½); Q₂'s ½, ½, 0 + 1e-9 (value −1); whatever they see."""
    config = CriticConfig(hidden=(), layer_norm=False, **{"atoms": 3, "support": 2.0, **options})
    with torch.device("meta"):
        nets = Networks(
            Actor(1, 1, 1, ActorConfig(hidden=(), log_std="clip"), "none"), Critic(1, 1, 1, config, "none")
        )
    parameters = {}
    for i, p in enumerate(([0.25, 0.25, 0.5], [0.5, 0.5, 1e-9])):
        parameters[f"nets.{i}.stack.output.weight"] = torch.zeros(3, 2)
        parameters[f"nets.{i}.stack.output.bias"] = torch.tensor(p).log()
    return nets, Parameters(parameters, {})


ACTOR = Parameters(
    {"net.stack.output.weight": torch.zeros(2, 1), "net.stack.output.bias": torch.zeros(2)}, {}
)
TASK = torch.ones(1)


def batch() -> Batch:
    """Two rows; r = 0 and goes on, r = 1 and ends."""
    s = torch.zeros(2, 1)
    return Batch(s, s, torch.tensor([0.0, 1.0]), s, torch.tensor([0.0, 1.0]))


def target_of(nets, critic, alpha=0.0, ceiling=None):
    noise = torch.zeros(2, 1)
    return td_target(
        ACTOR, critic, torch.tensor(alpha), TASK, batch(), noise, (), ceiling, nets, 0.5
    ).tolist()


def test_the_distributional_target_of_the_mean_is_the_averaged_and_shifted_distribution():
    nets, critic = constant_critics(loss="distributional", reduction="mean")
    # average ⅜, ⅜, ¼ at γ·atoms = −1, 0, 1: −1 shares ⅜ between −2 and 0, 1 shares ¼ between 0 and 2.
    # The end: all at 1, half and half.
    rows = target_of(nets, critic)
    assert rows[0] == pytest.approx([3 / 16, 3 / 16 + 3 / 8 + 1 / 8, 1 / 8], abs=1e-6)
    assert rows[1] == pytest.approx([0, 0.5, 0.5], abs=1e-6)


def test_the_distributional_target_of_the_minimum_is_the_smaller_critics():
    nets, critic = constant_critics(loss="distributional", reduction="min")
    assert target_of(nets, critic)[0] == pytest.approx([0.25, 0.25 + 0.5, 0], abs=1e-6)  # of ½, ½, 0


@pytest.mark.parametrize("loss", ["distributional", "two_hot", "hl_gauss", "squared"])
@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_every_target_has_the_scalar_bellman_targets_mean(loss, reduction):
    nets, _ = constant_critics(loss=loss, reduction=reduction, atoms=201, support=20.0)
    wide = {}
    for i, value in enumerate((0.5, -1.0)):  # two-hot critics of these values, or the values themselves
        grid = torch.linspace(-20, 20, 201)
        wide[f"nets.{i}.stack.output.weight"] = torch.zeros(201 if loss != "squared" else 1, 2)
        bias = (two_hot(torch.tensor(value), grid) + 1e-12).log()
        wide[f"nets.{i}.stack.output.bias"] = bias if loss != "squared" else torch.tensor([value])
    target = torch.tensor(target_of(nets, Parameters(wide, {}), alpha=0.5))
    means = target if loss == "squared" else target @ torch.linspace(-20, 20, 201)
    value = {"min": -1.0, "mean": -0.25}[reduction]
    # γ = ½, entropy α · .918939 with α = ½; the second row ended: its reward alone
    assert means.tolist() == pytest.approx([0.5 * (value + 0.5 * HALF_LOG_2PI), 1.0], abs=2e-4)


@pytest.mark.parametrize("loss", ["distributional", "two_hot", "hl_gauss", "squared"])
def test_no_target_lies_above_the_ceiling(loss):
    nets, critic = constant_critics(loss=loss)
    if loss == "squared":
        critic = Parameters(
            {
                f"nets.{i}.stack.output.{kind}": torch.zeros(1, 2)
                if kind == "weight"
                else torch.tensor([5.0])
                for i in range(2)
                for kind in ("weight", "bias")
            },
            {},
        )
    target = torch.tensor(target_of(nets, critic, ceiling=torch.tensor(-2.0)))
    if loss == "squared":
        assert target.tolist() == [-2, -2]
    elif loss == "hl_gauss":
        torch.testing.assert_close(target, hl_gauss(torch.tensor([-2.0, -2.0]), ATOMS))
    else:
        assert target.tolist() == [[1, 0, 0], [1, 0, 0]]  # all mass on the atom at −2


def test_the_critic_loss_sums_cross_entropies_and_reports_expectations():
    nets, critic = constant_critics(loss="two_hot")
    target = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    loss, value = critic_loss(critic, TASK, batch(), target, (), nets)
    # row 1: log 4 + log 2; row 2: log 4 + log 2
    assert loss.item() == pytest.approx(math.log(8), rel=1e-5)
    assert value.item() == pytest.approx((0.5 - 1) / 2, rel=1e-5)


@pytest.mark.parametrize(("reduction", "value"), [("min", -1.0), ("mean", -0.25)])
def test_the_actor_takes_the_reduced_expectation(reduction, value):
    nets, critic = constant_critics(loss="distributional", reduction=reduction)
    loss, _ = actor_loss(ACTOR, critic, torch.tensor(0.5), TASK, batch(), torch.zeros(2, 1), (), (), nets)
    assert loss.item() == pytest.approx(-0.5 * HALF_LOG_2PI - value, rel=1e-5)
