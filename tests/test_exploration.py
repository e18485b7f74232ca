"""Held actions: which steps they take, what is taken, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch

from mtrl.config import AgentConfig, ExplorationConfig
from mtrl.exploration import HeldActions
from mtrl.sac import MTSAC

CPU = torch.device("cpu")


def overridden(probability: float, hold_steps: int, steps: int, tasks: int = 3) -> torch.Tensor:
    """``[steps, tasks, 2]``: the policy's own actions are 5, which no drawn one is."""
    generator = torch.Generator().manual_seed(0)
    held = HeldActions(ExplorationConfig(probability, hold_steps), (tasks, 2), CPU)
    return torch.stack([held.override(torch.full((tasks, 2), 5.0), generator) for _ in range(steps)])


def test_without_held_actions_nothing_is_changed_and_nothing_drawn():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    actions = torch.ones(3, 2)
    assert HeldActions(ExplorationConfig(), (3, 2), CPU).override(actions, generator) is actions
    assert torch.equal(generator.get_state(), before)


def test_held_actions_take_the_share_of_steps_that_renewal_theory_gives():
    # A hold begins after (1 − p) / p = 9 free steps on average and lasts (1 + 4) / 2 = 2.5: 2.5 / 11.5
    share = (overridden(0.1, 4, 3000, tasks=50) != 5).double().mean()
    assert share == pytest.approx(2.5 / 11.5, abs=0.005)


def test_a_held_action_lasts_from_one_step_to_the_most_that_is_allowed_each_as_often():
    actions = overridden(0.02, 3, 4000)
    lengths = []
    for task in range(3):
        last, length = None, 0
        for action in [*map(tuple, actions[:, task].tolist()), None]:
            if action == last:
                length += 1
            else:
                if last is not None and last != (5.0, 5.0):
                    lengths.append(length)
                last, length = action, 1
    counts = torch.bincount(torch.tensor(lengths), minlength=4)
    assert len(counts) == 4
    assert counts[0] == 0
    assert ((counts[1:] / counts.sum() - 1 / 3).abs() < 0.12).all()  # some 200 holds: three deviations are .1


def test_held_actions_are_uniform_in_the_box_and_each_task_holds_its_own():
    drawn = overridden(1.0, 1, 2000)
    assert drawn.abs().max() <= 1
    assert drawn.mean().abs() < 0.02
    assert drawn.std() == pytest.approx(3**-0.5, abs=0.01)  # of a uniform distribution on [-1, 1]
    assert not (drawn[:, 0] == drawn[:, 1]).any()


def test_a_loaded_agent_holds_what_was_held():
    def agent(seed: int) -> MTSAC:
        return MTSAC(3, 2, ("a", "b"), AgentConfig(exploration=ExplorationConfig(0.5, 9)), seed=seed)

    obs = torch.cat((torch.zeros(2, 3), torch.eye(2)), dim=1)
    first, second = agent(0), agent(1)
    for _ in range(5):
        first.act(obs)
    assert first.exploration.remaining.any()
    second.load_state_dict(first.state_dict())
    for _ in range(9):
        assert torch.equal(first.act(obs), second.act(obs))
