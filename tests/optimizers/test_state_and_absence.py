"""A restored optimizer goes on as the saved one would; a task may be absent from a batch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.optimizers import (
    OPTIMIZERS,
    GramianMethod,
    MultiTaskOptimizer,
    OptimizerError,
    RowMethod,
    Scalarization,
    make_optimizer,
    of_present,
)
from mtrl.run.checkpoint import pack, unpack

TASKS = 5
OPTIONS: dict[str, dict[str, Any]] = {"static": {"weights": [5, 4, 3, 2, 1]}, "gradvac": {"beta": 0.3}}
LEARNING_OR_DRAWING = ("rlw", "famo", "uncertainty", "gradvac", "pcgrad", "graddrop")
NAMES = [*OPTIMIZERS, "torchjd:GradVac", "torchjd:GradDrop", "torchjd:ConFIG"]


def make(name: str, seed: int = 0) -> MultiTaskOptimizer:
    if name.startswith("torchjd:"):
        pytest.importorskip("torchjd")
    return make_optimizer(name, TASKS, seed=seed, **OPTIONS.get(name, {}))


def update(optimizer: MultiTaskOptimizer, step: int, present: Tensor | None = None) -> Tensor:
    """What an agent does with it at one update: the weights, or the combined gradient."""
    generator = torch.Generator().manual_seed(step)
    jacobian = torch.randn(TASKS, 8, generator=generator) + 0.3
    losses = torch.rand(TASKS, generator=generator) + 0.1
    if present is not None:
        jacobian[~present] = torch.nan
        losses[~present] = torch.nan
    if isinstance(optimizer, Scalarization):
        weights = of_present(optimizer, losses, present)
        optimizer.after_step(losses * torch.rand(TASKS, generator=generator))
        return weights
    if isinstance(optimizer, GramianMethod):
        return of_present(optimizer, jacobian @ jacobian.T, present)
    assert isinstance(optimizer, RowMethod)
    return of_present(optimizer, jacobian, present)


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_continues_identically(name: str) -> None:
    whole = make(name)
    for step in range(5):
        update(whole, step)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    expected = [update(whole, step) for step in range(5, 10)]

    file.seek(0)
    restored = make(name, seed=99)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(update(restored, step), expected[step - 5]) for step in range(5, 10))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_holds_a_methods_state(name: str, tmp_path: Path) -> None:
    whole = make(name)
    for step in range(3):
        update(whole, step)
    (tmp_path / "state").write_bytes(pack(whole.state_dict()))
    restored = make(name, seed=99)
    restored.load_state_dict(unpack(tmp_path / "state"))
    for step in range(3, 6):
        assert torch.equal(update(restored, step), update(whole, step))


@pytest.mark.parametrize("aggregator", ["PCGrad", "GradDrop", "Sum", "GradVac", "Mean"])
def test_an_aggregator_of_torchjd_keeps_the_scale_of_the_mean_of_those_present(aggregator: str) -> None:
    pytest.importorskip("torchjd")
    gradient = torch.randn(8, generator=torch.Generator().manual_seed(3))
    present = torch.tensor([True, False, True, True, False])
    combined = of_present(make(f"torchjd:{aggregator}"), gradient.expand(TASKS, -1), present)
    assert torch.allclose(combined, gradient, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_is_a_copy_that_later_updates_leave_alone(name: str) -> None:
    optimizer = make(name)
    update(optimizer, 0)
    state = optimizer.state_dict()
    expected = update(optimizer, 1)
    update(optimizer, 2)
    restored = make(name)
    restored.load_state_dict(state)
    assert torch.equal(update(restored, 1), expected)
    restored.load_state_dict(state)  # nor has loading it once given it away
    assert torch.equal(update(restored, 1), expected)


@pytest.mark.parametrize("name", [n for n in NAMES if n.split(":")[-1].lower() in LEARNING_OR_DRAWING])
def test_the_state_matters(name: str) -> None:
    """Else the round trip above would pass without saving anything."""
    experienced = make(name)
    for step in range(5):
        update(experienced, step)
    fresh = make(name)
    assert any(not torch.equal(update(experienced, step), update(fresh, step)) for step in range(5, 10))


def test_a_state_of_another_method_or_number_of_tasks_is_refused() -> None:
    with pytest.raises(OptimizerError, match="GradVac needs"):
        make("gradvac").load_state_dict(make("famo").state_dict())
    with pytest.raises(OptimizerError, match="5 tasks, this optimizer has 3"):
        make_optimizer("pcgrad", 3).load_state_dict(make("pcgrad").state_dict())
    pytest.importorskip("torchjd")
    with pytest.raises(OptimizerError, match="not that of a GradVac"):
        make("torchjd:GradVac").load_state_dict(make("torchjd:GradDrop").state_dict())


def test_with_all_tasks_present_nothing_changes(name: str) -> None:
    plain = update(make(name), 0)
    assert torch.allclose(update(make(name), 0, torch.ones(TASKS, dtype=torch.bool)), plain, atol=1e-6)


def test_absent_tasks_get_nothing_and_the_rest_keep_the_scale_of_their_mean(name: str) -> None:
    """Their losses and gradients are NaN here: nothing of them may reach the result or the state."""
    optimizer = make(name)
    present = torch.tensor([True, False, True, True, False])
    for step in range(4):
        result = update(optimizer, step, present)
        assert result.isfinite().all()
        if not isinstance(optimizer, RowMethod):
            assert (result[~present] == 0).all()
    assert update(optimizer, 9).isfinite().all()

    # identical gradients of the present tasks give that gradient
    fresh = make_optimizer(name, TASKS)
    gradient = torch.randn(8, generator=torch.Generator().manual_seed(3))
    jacobian = gradient.expand(TASKS, -1).clone()
    jacobian[~present] = torch.nan
    if isinstance(fresh, RowMethod):
        combined = of_present(fresh, jacobian, present)
    elif isinstance(fresh, GramianMethod):
        combined = of_present(fresh, jacobian @ jacobian.T, present) @ jacobian.nan_to_num()
    else:
        assert of_present(fresh, torch.ones(TASKS), present).sum() == pytest.approx(1, rel=1e-5)
        return
    assert torch.allclose(combined, gradient, atol=1e-5)


def test_no_task_present_gives_no_step(name: str) -> None:
    method = make(name)
    seen = torch.ones(TASKS) if isinstance(method, Scalarization) else torch.ones(TASKS, TASKS)
    assert (of_present(method, seen, torch.zeros(TASKS, dtype=torch.bool)) == 0).all()


@pytest.mark.parametrize("name", [n for n, c in OPTIMIZERS.items() if issubclass(c, GramianMethod)])
def test_a_batch_without_some_tasks_is_a_smaller_problem(name: str) -> None:
    present = torch.tensor([True, True, False, True, False])
    jacobian = torch.randn(TASKS, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gramian = jacobian @ jacobian.T
    weights = of_present(make_optimizer(name, TASKS, seed=4), gramian, present)
    smaller = make_optimizer(name, 3, seed=4).weights(gramian[present][:, present])
    assert torch.allclose(weights[present], smaller)


@pytest.mark.parametrize(
    ("chosen", "present", "expected"),
    [
        ([3, 1, 0], [True, True, False], [0.75, 0.25, 0]),
        ([10, 1, 1], [False, True, True], [0, 0.5, 0.5]),
        ([1, 0, 0], [False, True, True], [0, 0, 0]),  # nothing that counts is there
    ],
)
def test_static_weights_of_the_present_tasks_keep_their_ratios_and_sum_to_1(
    chosen, present, expected
) -> None:
    method = make_optimizer("static", 3, weights=chosen)
    weights = of_present(method, torch.ones(3), torch.tensor(present))
    assert weights.tolist() == pytest.approx(expected)


def test_gradvac_keeps_the_targets_of_absent_pairs() -> None:
    optimizer = make_optimizer("gradvac", 3, beta=0.5)
    jacobian = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    optimizer.targets.fill_(0.25)
    of_present(optimizer, jacobian @ jacobian.T, torch.tensor([True, False, True]))
    # 0 and 2 are orthogonal: ½ · .25 + ½ · 0
    assert optimizer.targets[0, 2] == optimizer.targets[2, 0] == pytest.approx(0.125)
    assert (optimizer.targets[1] == 0.25).all()
    assert (optimizer.targets[:, 1] == 0.25).all()


@pytest.mark.parametrize("name", ["famo", "uncertainty"])
def test_an_absent_task_learns_nothing(name: str) -> None:
    optimizer = make(name)
    update(optimizer, 0)
    attribute = optimizer.saved[0]
    before = getattr(optimizer, attribute).clone()
    present = torch.tensor([True, False, True, True, True])
    update(optimizer, 1, present)
    after = getattr(optimizer, attribute)
    assert torch.equal(after[:, 1], before[:, 1])
    assert (after[0, present] != before[0, present]).all()


def test_famo_learns_nothing_from_an_update_that_no_task_was_in() -> None:
    optimizer, nobody = make("famo"), torch.zeros(TASKS, dtype=torch.bool)
    update(optimizer, 0)
    before = optimizer.logits.clone()
    of_present(optimizer, torch.ones(TASKS), nobody)
    optimizer.after_step(torch.full((TASKS,), 0.5))
    assert torch.equal(optimizer.logits, before)


def test_only_famo_asks_for_the_losses_after_the_step_and_two_methods_act_on_the_critic_only() -> None:
    assert [n for n, c in OPTIMIZERS.items() if c.needs_after_step] == ["famo"]
    assert [n for n, c in OPTIMIZERS.items() if c.critic_only] == ["uncertainty", "famo"]
