"""Replay: whose rows, which rows, how many, and that a saved buffer goes on as it would have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtrl import replay
from mtrl.config import ConfigError
from mtrl.replay import Batch, TaskReplay

T, D, A = 3, 2, 1


def filled(steps: int, capacity: int = 10, **options) -> TaskReplay:
    """Row k of task t has 100·t + k in every column, negative where it is of the next state."""
    buffer = TaskReplay(T, capacity, D, A, **options)
    for k in range(steps):
        code = 100.0 * torch.arange(T) + k
        wide = code.view(T, 1).expand(T, D)
        buffer.add(wide, code.view(T, 1) / 1000, code, -wide, torch.tensor([k % 2 == 0] * T))
    return buffer


def test_a_balanced_batch_has_exactly_b_rows_of_each_task_whole_and_in_place():
    batch = filled(6).sample(50)
    assert batch.rewards.shape == (T, 50)
    assert (batch.obs.shape, batch.actions.shape) == ((T, 50, D), (T, 50, A))
    assert batch.weight is None
    assert batch.present is None
    for t in range(T):
        assert set(batch.rewards[t].tolist()) == {100.0 * t + k for k in range(6)}
    code = batch.rewards.unsqueeze(-1)  # one row's columns are of one transition
    assert (batch.obs == code).all()
    assert (batch.next_obs == -code).all()
    torch.testing.assert_close(batch.actions, code / 1000)
    assert torch.equal(batch.terminated, ((batch.rewards % 100) % 2 == 0).float())


def test_rows_are_drawn_uniformly():
    rewards = filled(10).sample(20_000).rewards % 100
    # a count of 20 000 draws at p = 0.1 has standard deviation 42: four of them
    assert (torch.stack([(rewards == k).sum(1) for k in range(10)]) - 2000).abs().max() < 170


def test_unwritten_rows_are_never_drawn():
    for sampling in ("balanced", "uniform"):
        buffer = filled(3, capacity=1000, sampling=sampling)
        assert set(buffer.sample(500).rewards[2].tolist()) == {200.0, 201.0, 202.0}
        assert buffer.size == 3


@pytest.mark.parametrize("steps", [10, 11, 25, 30])
def test_a_full_ring_keeps_the_newest_capacity_rows(steps):
    buffer = filled(steps)
    assert buffer.size == 10
    for sampling in (buffer, filled(steps, sampling="uniform")):
        batch = sampling.sample(500)
        for t in range(T):
            assert set(batch.rewards[t].tolist()) == {100.0 * t + k for k in range(steps - 10, steps)}


def test_a_uniform_batch_has_t_times_b_rows_in_all_and_padding_of_weight_zero():
    buffer = filled(10, sampling="uniform")
    counts = []
    for _ in range(400):
        batch = buffer.sample(8)
        count = batch.weight.sum(1)
        counts.append(count)
        assert count.sum() == T * 8
        assert batch.weight.shape == batch.rewards.shape == (T, int(count.max()))
        # rows first, padding behind
        expected = (torch.arange(batch.weight.shape[1]) < count.unsqueeze(1)).float()
        assert torch.equal(batch.weight, expected)
        assert torch.equal(batch.rewards // 100, torch.arange(T).view(T, 1).expand_as(batch.rewards).float())
    counts = torch.stack(counts)
    # multinomial(24, 1/3): mean 8, variance 24 · 1/3 · 2/3 = 5.33, covariance −24/9 = −2.67
    covariance = torch.cov(counts.T)
    torch.testing.assert_close(counts.mean(0), torch.full((T,), 8.0), rtol=0, atol=0.5)
    torch.testing.assert_close(covariance.diagonal(), torch.full((T,), 16 / 3), rtol=0, atol=1.5)
    assert covariance[0, 1].item() == pytest.approx(-8 / 3, abs=1.2)


def test_a_task_without_a_row_of_weight_is_absent():
    column = torch.zeros(3, 2)
    batch = Batch(column, column, column, column, column, torch.tensor([[1.0, 0], [0, 0], [1, 1]]))
    assert batch.present.tolist() == [True, False, True]
    seen = {tuple(filled(5, sampling="uniform", seed=seed).sample(1).present.tolist()) for seed in range(20)}
    assert len(seen) > 1  # three rows for three tasks: some task has none
    assert all(any(present) for present in seen)


def test_the_same_seed_draws_the_same_rows_whatever_the_global_generator():
    first, second, other = filled(10, seed=4), filled(10, seed=4), filled(10, seed=5)
    torch.manual_seed(1)
    a = first.sample(20).rewards
    torch.manual_seed(2)
    assert torch.equal(second.sample(20).rewards, a)
    assert not torch.equal(other.sample(20).rewards, a)
    assert not torch.equal(first.sample(20).rewards, a)


@pytest.mark.parametrize("sampling", ["balanced", "uniform"])
@pytest.mark.parametrize("steps", [4, 10, 27])
def test_a_saved_buffer_draws_and_fills_as_the_original(tmp_path, steps, sampling):
    original, copy = filled(steps, sampling=sampling), TaskReplay(T, 10, D, A, sampling=sampling, seed=9)
    original.sample(7)
    torch.save(original.state_dict(), tmp_path / "replay.pt")
    copy.load_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True))
    for k in range(13):
        one, other = original.sample(6), copy.sample(6)
        for name in Batch._fields:
            ours, theirs = getattr(one, name), getattr(other, name)
            assert ours is theirs is None or torch.equal(ours, theirs)
        for buffer in (original, copy):
            row = torch.full((T, D), 1000.0 + k)
            buffer.add(row, row[:, :A], row[:, 0], row, torch.zeros(T))


def test_rows_since_gives_the_kept_rows_in_their_order():
    buffer = filled(13)  # keeps 3 … 12
    first, rows = buffer.rows_since(0)
    assert (first, rows["rewards"][0, :, 0].tolist()) == (3, [float(k) for k in range(3, 13)])
    first, rows = buffer.rows_since(11)
    assert (first, rows["rewards"][2, :, 0].tolist()) == (11, [211.0, 212.0])
    assert buffer.rows_since(13)[1]["rewards"].shape == (T, 0, 1)


def test_a_sample_is_a_copy():
    buffer = filled(1)
    batch = buffer.sample(1)
    batch.rewards.fill_(77)
    assert buffer.sample(1).rewards[0, 0] == 0


def test_an_empty_buffer_says_so():
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        TaskReplay(T, 10, D, A).sample(1)


def test_memory_that_is_not_there_is_refused_with_the_sizes(monkeypatch):
    # 4 bytes · 3 tasks · 10⁶ rows · (2 + 1 + 1 + 2 + 1) numbers = 84 MB
    monkeypatch.setattr(replay, "free_memory", lambda device: 50_000_000)
    monkeypatch.setattr(torch, "empty", None)  # nothing is taken before the refusal
    with pytest.raises(ConfigError) as error:
        TaskReplay(T, 10**6, D, A)
    # 0.9 · 50 / 84 · 10⁶ = 535 714
    assert str(error.value) == (
        "replay.capacity: 1000000 transitions for each of 3 tasks take 0.1 GB and 0.1 GB are free; "
        "at most 535714 would fit"
    )


def test_what_it_takes_is_told_and_fits_when_there_is_room(monkeypatch):
    monkeypatch.setattr(replay, "free_memory", lambda device: 94_000)
    buffer = TaskReplay(T, 1000, D, A)  # 84 kB, 89 % of what is free
    assert buffer.nbytes == 84_000 == sum(4 * column.numel() for column in buffer.data.values())
    monkeypatch.setattr(replay, "free_memory", lambda device: 93_000)
    with pytest.raises(ConfigError):
        TaskReplay(T, 1000, D, A)


def test_this_machine_has_some_free_memory():
    assert 10**6 < replay.free_memory(torch.device("cpu")) < 10**14


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampling": "balancd"}, "sampling: 'balancd' .*did you mean 'balanced'"),
        ({"sampling": None}, "sampling: None"),
        ({"num_tasks": 0}, "num_tasks: 0"),
        ({"num_tasks": -2}, "num_tasks: -2"),
        ({"capacity": -1}, "capacity: -1"),
        ({"capacity": 1.5}, "capacity: 1.5"),
        ({"obs_dim": True}, "obs_dim: True"),
        ({"action_dim": 0}, "action_dim: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": None}, "seed: None"),
    ],
)
def test_a_bad_argument_is_refused_by_name(options, words):
    sizes = {"num_tasks": 2, "capacity": 5, "obs_dim": 3, "action_dim": 1}
    with pytest.raises(ConfigError, match=words):
        TaskReplay(**{**sizes, **options})
    TaskReplay(**{name: np.int64(size) for name, size in sizes.items()}, seed=np.uint8(3))


@pytest.mark.parametrize(
    ("sampling", "rows"), [("balanced", 2.5), ("balanced", 0), ("uniform", 0.1), ("uniform", -1)]
)
def test_a_batch_without_whole_rows_is_refused(sampling, rows):
    replay = TaskReplay(2, 5, 1, 1, sampling=sampling)
    one = torch.zeros(2, 1)
    replay.add(one, one, one, one, one)
    with pytest.raises(ConfigError, match=f"batch_size: {rows}"):
        replay.sample(rows)
