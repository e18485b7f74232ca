"""Reward scales: against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtrl.rewards import ReturnBound, RewardScale, RunningSigma, make_reward_scale

NEVER = torch.tensor([False, False])


def test_sigma_is_numpys_standard_deviation_of_all_rewards_so_far():
    generator = np.random.default_rng(0)
    rewards = generator.normal([0.0, 1e4], [1.0, 0.01], (500, 2)).astype(np.float32)
    scale = RunningSigma(2)
    for count, row in enumerate(rewards, start=1):
        scale.observe(torch.from_numpy(row), torch.tensor([count % 7 == 0, False]))
        if count in (2, 50, 500):
            expected = rewards[:count].astype(np.float64).std(axis=0)
            np.testing.assert_allclose(scale.scale(torch.ones(2)).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["none", "sigma", "return"])
def test_before_any_reward_the_scale_is_one(kind):
    scale = make_reward_scale(kind, 2, 0.9, 0.0).scale(torch.tensor([0.1, 0.2]))
    assert scale.tolist() == [1, 1]
    assert scale.dtype == torch.float32


@pytest.mark.parametrize("kind", ["sigma", "return"])
def test_rewards_that_tell_nothing_leave_the_scale_one(kind):
    scale = make_reward_scale(kind, 2, 0.9, 0.0)
    for _ in range(3):
        scale.observe(torch.tensor([0.0, 0.0]), NEVER)
    assert scale.scale(torch.ones(2)).tolist() == [1, 1]


def test_sigma_of_one_reward_is_one():
    scale = RunningSigma(2)
    scale.observe(torch.tensor([5.0, -3.0]), NEVER)
    assert scale.scale(torch.ones(2)).tolist() == [1, 1]


def test_the_return_bound_over_three_steps_and_an_end():
    # γ = ½, no entropy. Task 0: R = 1, 2 + ½ = 2.5 (largest; the episode ends), 2.
    # Task 1: R = −4 (largest), −4/2 + 1 = −1, −½ + 1 = ½. Over 10: 0.25 and 0.4.
    scale = ReturnBound(2, gamma=0.5)
    scale.observe(torch.tensor([1.0, -4.0]), NEVER)
    assert scale.scale(torch.zeros(2)).tolist() == pytest.approx([0.1, 0.4])
    scale.observe(torch.tensor([2.0, 1.0]), torch.tensor([True, False]))
    assert scale.scale(torch.zeros(2)).tolist() == pytest.approx([0.25, 0.4])
    scale.observe(torch.tensor([2.0, 1.0]), NEVER)
    assert scale.running.tolist() == pytest.approx([2.0, 0.5])
    assert scale.scale(torch.zeros(2)).tolist() == pytest.approx([0.25, 0.4])


def test_the_return_bound_adds_what_entropy_can():
    # largest 2.5; α · bonus / (1 − γ) = 0.1 · 2 / 0.5 = 0.4 and 0.3 · 2 / 0.5 = 1.2
    scale = ReturnBound(2, gamma=0.5, entropy_bonus=2.0)
    scale.observe(torch.tensor([2.5, 2.5]), NEVER)
    assert scale.scale(torch.tensor([0.1, 0.3])).tolist() == pytest.approx([0.29, 0.37])


def test_scaled_a_constant_rewards_value_exceeds_ten_by_what_lies_behind_the_time_limit():
    # γ = ½ and rewards of 3 and 300. Task 0 ends every second step: its largest return is 3 + 1.5. Task 1
    # never does. Bootstrapped at time limits, both values are r / (1 − γ).
    scale = ReturnBound(2, gamma=0.5)
    rewards = torch.tensor([3.0, 300.0])
    for step in range(60):
        scale.observe(rewards, torch.tensor([step % 2 == 1, False]))
    values = rewards / scale.scale(torch.zeros(2)) / (1 - 0.5)
    assert values.tolist() == pytest.approx([10 / (1 - 0.5**2), 10])


@pytest.mark.parametrize("kind", ["none", "sigma", "return"])
def test_a_saved_scale_goes_on_as_the_original(kind):
    original, copy = (make_reward_scale(kind, 2, 0.9, 1.0) for _ in range(2))
    generator = torch.Generator().manual_seed(0)

    def observe(*scales: RewardScale) -> None:
        rewards = 10 ** len(scales) * torch.randn(2, generator=generator)
        for scale in scales:
            scale.observe(rewards, torch.tensor([True, False]))

    for _ in range(3):
        observe(original)
    saved = original.state_dict()
    copy.load_state_dict(saved)
    for _ in range(3):
        observe(original, copy)
    alpha = torch.tensor([0.1, 0.2])
    assert torch.equal(original.scale(alpha), copy.scale(alpha))
    untouched = make_reward_scale(kind, 2, 0.9, 1.0)
    untouched.load_state_dict(saved)  # what was saved did not follow the original
    assert torch.equal(untouched.scale(alpha), original.scale(alpha)) == (kind == "none")


@pytest.mark.parametrize("after", ["none", "sigma", "ema", "return"])
@pytest.mark.parametrize("before", ["none", "sigma", "ema", "return"])
def test_a_scale_goes_on_from_its_own_kinds_state_alone(before, after):
    state = make_reward_scale(before, 2, 0.9, 0.0).state_dict()
    scale = make_reward_scale(after, 2, 0.9, 0.0)
    if before == after:
        scale.load_state_dict(state)
    else:
        with pytest.raises(ValueError, match="rewards: the state has highest"):
            scale.load_state_dict(state)


def test_an_episode_that_begins_anew_adds_nothing_to_the_one_before():
    scale = ReturnBound(2, gamma=0.5)
    scale.observe(torch.tensor([4.0, 4.0]), NEVER)
    scale.begin_episodes()
    scale.observe(torch.tensor([4.0, 4.0]), NEVER)
    assert scale.largest.tolist() == [4, 4]  # never 4 + 2
