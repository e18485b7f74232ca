"""Any aggregator of torchjd by name: at our scale, with its draws and state under control."""

from __future__ import annotations

import sys

import pytest
import torch

from mtrl.optimizers import OptimizerError, make_optimizer, of_present

aggregation = pytest.importorskip("torchjd.aggregation")

WORKING = ["AlignedMTL", "ConFIG", "GradDrop", "GradVac", "IMTLG", "Mean", "MGDA", "PCGrad", "Random", "Sum"]


def normal(tasks: int, parameters: int) -> torch.Tensor:
    return torch.randn(tasks, parameters, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("aggregator", WORKING)
@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_identical_gradients_give_that_gradient_at_any_norm(aggregator: str, factor: float) -> None:
    gradient = normal(1, 20)[0] * factor
    combined = make_optimizer(f"torchjd:{aggregator}", 10).combine(gradient.expand(10, -1))
    assert (combined - gradient).norm() <= 1e-4 * gradient.norm()


@pytest.mark.parametrize("aggregator", WORKING)
def test_scaling_all_gradients_scales_the_result(aggregator: str) -> None:
    jacobian = normal(4, 20)
    plain = make_optimizer(f"torchjd:{aggregator}", 4).combine(jacobian)
    for factor in (2.0**-30, 2.0**30):
        scaled = make_optimizer(f"torchjd:{aggregator}", 4).combine(jacobian * factor)
        assert torch.allclose(scaled / factor, plain, atol=1e-5)


def test_imtl_g_alone_is_zero_at_norms_for_which_the_adapter_makes_it_work() -> None:
    jacobian = normal(4, 20) * 1e12
    assert (aggregation.IMTLG()(jacobian) == 0).all()
    assert make_optimizer("torchjd:IMTLG", 4).combine(jacobian).norm() > 1e10


def test_a_sum_is_divided_by_the_number_of_tasks_and_a_mean_is_not() -> None:
    jacobian = normal(4, 20)
    for aggregator in ("Sum", "Mean"):
        combined = make_optimizer(f"torchjd:{aggregator}", 4).combine(jacobian)
        assert torch.allclose(combined, jacobian.mean(dim=0), atol=1e-6)


def test_options_reach_the_aggregator() -> None:
    # the median of three numbers is what trimming one from each end leaves
    jacobian = normal(3, 20)
    combined = make_optimizer("torchjd:TrimmedMean", 3, trim_number=1).combine(jacobian)
    assert torch.allclose(combined, jacobian.median(dim=0).values, atol=1e-6)


@pytest.mark.parametrize("aggregator", ["GradDrop", "Random", "PCGrad"])
def test_draws_leave_the_global_generator_alone_and_follow_the_seed(aggregator: str) -> None:
    jacobian = normal(5, 20)
    before = torch.get_rng_state()

    def draws(seed: int) -> torch.Tensor:
        optimizer = make_optimizer(f"torchjd:{aggregator}", 5, seed=seed)
        return torch.stack([optimizer.combine(jacobian) for _ in range(5)])

    first = draws(seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert torch.equal(draws(seed=0), first)
    assert not torch.equal(draws(seed=1), first)
    assert not torch.equal(first[0], first[1])


def test_an_unknown_aggregator_gets_the_nearest_valid_one() -> None:
    with pytest.raises(OptimizerError, match=r"did you mean 'ConFIG'\? valid: .*UPGrad"):
        make_optimizer("torchjd:Config", 3)


def test_an_unknown_option_gets_the_valid_ones() -> None:
    with pytest.raises(OptimizerError, match="ConFIG has no option 'x': its options are pref_vector"):
        make_optimizer("torchjd:ConFIG", 3, x=1)


def test_a_missing_option_or_too_few_tasks_are_one_line() -> None:
    with pytest.raises(OptimizerError, match=r"TrimmedMean: .*trim_number") as missing:
        make_optimizer("torchjd:TrimmedMean", 3)
    with pytest.raises(OptimizerError, match="Krum: ") as few:
        make_optimizer("torchjd:Krum", 2, n_byzantine=1)
    assert "\n" not in str(missing.value) + str(few.value)


def test_without_torchjd_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(OptimizerError, match=r"pip install 'mtrl-suite\[torchjd\]'"):
        make_optimizer("torchjd:ConFIG", 3)


def test_a_state_of_pairs_is_never_that_of_other_tasks() -> None:
    used, fresh = (make_optimizer("torchjd:GradVac", 4, beta=0.5) for _ in range(2))
    jacobian = normal(4, 20)
    for _ in range(5):
        of_present(used, jacobian, torch.tensor([True, True, True, False]))
    others = torch.tensor([False, True, True, True])
    used.generator.set_state(fresh.generator.get_state())
    torch.testing.assert_close(of_present(used, jacobian, others), of_present(fresh, jacobian, others))
    again = make_optimizer("torchjd:GradVac", 4, beta=0.5)
    again.load_state_dict(used.state_dict())
    torch.testing.assert_close(of_present(again, jacobian, others), of_present(used, jacobian, others))
