"""Conflict diagnostics, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mtrl.conflict import Conflict, measure_conflict
from mtrl.gradients import Rows, WholeRows


def measure(rows: Rows, applied: Rows, weights: torch.Tensor) -> Conflict:
    share = torch.full_like(weights, 1 / len(weights))
    return measure_conflict(WholeRows(rows, {}, torch.zeros(len(weights)), None), applied, weights, share)


def test_two_tasks_by_hand():
    # g₁ = (3, 0 | 0), g₂ = (−1, 0 | 1): G = [[9, −3], [−3, 2]], norms 3 and √2, cosine −3/(3√2) = −0.7071.
    # Mean (1, 0 | ½), norm √1.25. Applied (0, 0 | 2): cosine 1/(2 √1.25) = 0.4472, ratio 2/√1.25 = 1.7889.
    rows = {"a": torch.tensor([[3.0, 0.0], [-1.0, 0.0]]), "b": torch.tensor([[0.0], [1.0]])}
    applied = {"a": torch.zeros(2), "b": torch.tensor([2.0])}
    conflict = measure(rows, applied, torch.tensor([0.25, 0.75]))
    assert conflict.gramian.tolist() == [[9, -3], [-3, 2]]
    assert conflict.norms.tolist() == pytest.approx([3, math.sqrt(2)])
    assert conflict.cosines.flatten().tolist() == pytest.approx([1, -0.707107, -0.707107, 1], rel=1e-6)
    assert conflict.weights.tolist() == [0.25, 0.75]
    assert conflict.summary() == {
        "cosine_mean": pytest.approx(-0.707107, rel=1e-6),
        "negative_pairs": 1.0,
        "cosine_to_mean": pytest.approx(0.447214, rel=1e-6),
        "norm_ratio": pytest.approx(1.788854, rel=1e-6),
    }


def test_the_summary_is_over_distinct_pairs():
    # (1, 0), (0, 1), (−1, −1)/√2·2: cosines 0, −0.7071, −0.7071: mean −0.4714, two of three below zero
    rows = {"a": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-math.sqrt(2), -math.sqrt(2)]])}
    conflict = measure(rows, {"a": rows["a"].mean(0)}, torch.full((3,), 1 / 3))
    summary = conflict.summary()
    assert summary["cosine_mean"] == pytest.approx(-0.471405, rel=1e-5)
    assert summary["negative_pairs"] == pytest.approx(2 / 3)
    assert summary["cosine_to_mean"] == pytest.approx(1)
    assert summary["norm_ratio"] == pytest.approx(1)


def test_a_zero_gradient_has_no_cosine_and_is_left_out_of_the_summary():
    rows = {"a": torch.tensor([[1.0, 0.0], [0.0, 0.0], [-2.0, 0.0]])}
    conflict = measure(rows, {"a": torch.tensor([1.0, 0.0])}, torch.ones(3))
    assert conflict.cosines[1].isnan().all()
    assert conflict.summary()["cosine_mean"] == -1
    assert conflict.summary()["negative_pairs"] == 1


def test_one_task_has_no_pairs_and_says_nan():
    conflict = measure({"a": torch.ones(1, 2)}, {"a": torch.ones(2)}, torch.ones(1))
    assert math.isnan(conflict.summary()["cosine_mean"])
    assert math.isnan(conflict.summary()["negative_pairs"])


def test_cosines_never_leave_minus_one_to_one():
    row = torch.rand(1, 1000)
    conflict = measure({"a": torch.cat((row, 3 * row, -row))}, {"a": row[0]}, torch.ones(3))
    assert conflict.cosines.abs().max() <= 1


@pytest.mark.parametrize("optimizer", ["unitary", "mgda", "graddrop"])
def test_the_agent_measures_every_optimizer_alike(make_agent, make_batch, optimizer):
    agent, plain = make_agent(optimizer=optimizer), make_agent(optimizer=optimizer)
    batch, noise = make_batch(), agent.draw_noise(5)
    measured, unmeasured = agent.update(batch, noise, diagnose=True), plain.update(batch, noise)
    for network in ("critic", "actor"):
        conflict = measured[f"conflict_{network}"]
        assert torch.equal(conflict.weights, measured[f"{network}_weights"]) or optimizer == "graddrop"
        assert conflict.gramian.diagonal().gt(0).all()
        if optimizer == "unitary":  # applied is the mean
            assert conflict.cosine_to_mean.item() == pytest.approx(1, rel=1e-4)
            assert conflict.norm_ratio.item() == pytest.approx(1, rel=1e-4)
        else:
            assert conflict.norm_ratio.item() != pytest.approx(1, rel=1e-4)
        assert f"conflict_{network}" not in unmeasured
    for (_, one), (_, other) in zip(agent.actor.tensors(), plain.actor.tensors(), strict=True):
        assert torch.equal(one, other)  # looking changes nothing
