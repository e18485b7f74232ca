"""Parameters in one buffer."""

from __future__ import annotations

import torch

from mtrl.config import CriticConfig
from mtrl.networks import Critic, Parameters, layer_groups
from mtrl.parameters import ALIGN, Weights

PARAMETERS = Parameters(
    {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0]), "c": torch.tensor([[4.0, 5.0]])},
    {"own": torch.tensor([[6.0], [7.0]])},
)


def test_a_groups_parameters_follow_each_other_and_groups_begin_aligned():
    weights = Weights.laid_out(PARAMETERS, [["a", "c"]], [["own"], ["b"]])
    assert weights.buffer[:4].tolist() == [1, 2, 4, 5]
    assert weights.buffer[ALIGN : ALIGN + 2].tolist() == [6, 7]
    assert weights.buffer[2 * ALIGN].item() == 3
    assert weights.buffer.sum() == 1 + 2 + 3 + 4 + 5 + 6 + 7  # zero in between
    assert weights.parts == (slice(0, ALIGN), slice(ALIGN, 3 * ALIGN))
    assert [name for name, _ in weights.parameters.tensors()] == ["a", "b", "c", "own"]
    for (_, ours), (_, theirs) in zip(weights.parameters.tensors(), PARAMETERS.tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_copy_has_the_same_places_and_follows():
    weights = Weights.laid_out(PARAMETERS, [["a"], ["c"]], [["own"], ["b"]])
    average = weights.copy()
    weights.parameters.shared["b"].fill_(5.0)
    assert average.parameters.shared["b"].item() == 3
    average.follow(weights, 0.25)  # 0.75 · 3 + 0.25 · 5
    assert average.parameters.shared["b"].item() == 3.5
    assert average.parameters.private["own"].tolist() == [[6], [7]]
    average.load(weights.parameters._asdict())
    assert torch.equal(average.buffer, weights.buffer)


def test_the_same_layer_of_twin_critics_is_one_group():
    critic = Critic(3, 2, 4, CriticConfig(hidden=(5, 5), layer_norm=True))
    groups = layer_groups(critic, critic.private)
    assert sorted(name for group in groups for name in group) == sorted(
        name for name, _ in critic.named_parameters()
    )
    assert ["nets.0.stack.hidden.1.weight", "nets.1.stack.hidden.1.weight"] in groups
    assert all(len(group) == 2 for group in groups)
