"""Policies: one file without code in it, whole or refused; predict as Stable-Baselines3 calls it."""

from __future__ import annotations

import json
import pickle
import re
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from stable_baselines3.common.evaluation import evaluate_policy

from mtrl.envs import Protocol, make_suite
from mtrl.errors import PolicyError
from mtrl.policy import Policy, load_policy

TASK_INPUTS = ["one_hot", "embedding", "heads", "none"]


def observations(rows: int = 6, tasks: int = 3) -> np.ndarray:
    generator = np.random.default_rng(0)
    one_hot = np.eye(tasks)[generator.integers(tasks, size=rows)]
    return np.concatenate((generator.normal(size=(rows, 3)), one_hot), axis=1).astype(np.float32)


@pytest.fixture
def policy(make_agent) -> Policy:
    return make_agent(actor={"init": "torch"}, info={"protocol": {"suite": "point"}, "seed": 0}).policy


def refused(path) -> str:
    """The message of a refusal: one line that starts with the file's name."""
    with pytest.raises(PolicyError) as error:
        load_policy(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("task_input", TASK_INPUTS)
def test_a_loaded_policy_acts_as_the_saved_one(make_agent, make_batch, tmp_path, task_input):
    agent = make_agent(
        task_input=task_input, actor={"layer_norm": True, "activation": "silu", "log_std": "clip"}
    )
    agent.update(make_batch())
    agent.policy.save(tmp_path / "policy.safetensors")
    loaded = load_policy(tmp_path / "policy.safetensors")
    rows = observations()
    np.testing.assert_array_equal(loaded.predict(rows)[0], agent.predict(rows)[0])
    torch.manual_seed(1)
    noisy = agent.predict(rows, deterministic=False)[0]
    torch.manual_seed(1)
    np.testing.assert_array_equal(loaded.predict(rows, deterministic=False)[0], noisy)
    assert not np.array_equal(noisy, agent.predict(rows)[0])
    assert loaded.task_names == ("task-0", "task-1", "task-2")
    assert (loaded.obs_dim, loaded.action_dim) == (3, 2)
    assert loaded.to_bytes() == agent.policy.to_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["policy.safetensors"]


@pytest.mark.parametrize("task_input", TASK_INPUTS)
def test_rows_of_any_tasks_in_any_order_act_as_each_alone(make_agent, task_input):
    policy = make_agent(task_input=task_input, actor={"init": "torch"}).policy
    rows = observations()
    together, _ = policy.predict(rows)
    for row, action in zip(rows, together, strict=True):
        np.testing.assert_allclose(policy.predict(row)[0], action, rtol=1e-5, atol=1e-6)


def test_one_observation_gives_one_action_and_rows_give_rows(policy):
    action, state = policy.predict(observations()[0])
    assert action.shape == (2,)
    assert state is None
    assert policy.predict(observations()[:1], state="kept")[0].shape == (1, 2)
    assert np.abs(policy.predict(observations())[0]).max() <= 1


def test_the_deterministic_action_is_the_squashed_mean(policy):
    rows = torch.as_tensor(observations())
    assert torch.equal(policy.act(rows), policy.act(rows, torch.zeros(6, 2)))


def test_info_and_names_travel_in_the_file(policy, tmp_path):
    policy.save(tmp_path / "p.safetensors")
    assert load_policy(tmp_path / "p.safetensors").info == {"protocol": {"suite": "point"}, "seed": 0}


def test_equal_training_gives_equal_bytes_and_other_training_others(make_agent, make_batch):
    def trained(seed: int) -> bytes:
        agent = make_agent(seed=seed, info={"seed": 0})
        agent.update(make_batch())
        return agent.policy.to_bytes()

    assert trained(0) == trained(0)
    assert trained(0) != trained(1)


def test_the_file_tells_neither_time_nor_place(policy, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    first, second = tmp_path / "a.safetensors", tmp_path / "elsewhere" / "b.safetensors"
    policy.save(first)
    policy.save(second)
    assert first.read_bytes() == second.read_bytes()
    header = first.read_bytes()[: 8 + struct.unpack("<Q", first.read_bytes()[:8])[0]]
    assert str(tmp_path).encode() not in header
    assert not re.search(rb"20\d\d-|\d\d:\d\d|/home|/tmp", header)


def test_a_policy_follows_its_agents_training_and_a_loaded_one_does_not(make_agent, make_batch, tmp_path):
    agent = make_agent()
    agent.policy.save(tmp_path / "p.safetensors")
    loaded, before = load_policy(tmp_path / "p.safetensors"), agent.predict(observations())[0]
    agent.update(make_batch())
    assert not np.array_equal(agent.policy.predict(observations())[0], before)
    np.testing.assert_array_equal(loaded.predict(observations())[0], before)


@pytest.mark.parametrize("shape", [(5,), (7,), (2, 5), (2, 7), (1, 2, 6), ()])
def test_an_observation_of_another_size_is_refused_by_name(policy, shape):
    with pytest.raises(PolicyError) as error:
        policy.predict(np.zeros(shape))
    assert str(error.value) == (
        f"observation of shape {shape}: this policy takes 3 numbers and a one-hot of its 3 tasks "
        "(task-0, task-1, task-2), so 6 per row"
    )


@pytest.mark.parametrize("code", [[0, 0, 0], [1, 1, 0], [0.5, 0.5, 0], [2, -1, 0], [np.nan, 1, 0]])
def test_an_observation_without_a_one_hot_is_refused(policy, code):
    for rows in (np.array([0, 0, 0, *code]), np.array([observations()[0], [0, 0, 0, *code]])):
        with pytest.raises(PolicyError, match="must be its task's one-hot"):
            policy.predict(rows)


# --- damaged and foreign files ---------------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert refused(tmp_path / "nothing.safetensors") == "no such policy file"
    assert refused(tmp_path) == "no such policy file"


def test_a_file_cut_anywhere_is_refused(policy, tmp_path):
    path, content = tmp_path / "p.safetensors", policy.to_bytes()
    for size in [0, 1, 7, 8, 9, *range(50, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:size])
        assert refused(path).startswith("not a whole safetensors file")
    path.write_bytes(content + b"\0")
    refused(path)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    path = tmp_path / "p.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    refused(path)
    torch.save({"w": torch.zeros(3)}, path)
    refused(path)
    assert not (tmp_path / "exploded").exists()


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
        assert refused(path) == "a safetensors file, but not a policy of mtrl (no 'mtrl' metadata)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "null",
        "{}",
        "not json",
        '{"format": "mtrl-policy-1"}',
        '{"format": "mtrl-policy-9"}',
        "[" * 5000,
    ],
    ids=lambda text: text[:30] or "empty",
)
def test_metadata_that_is_no_policys_is_refused(tmp_path, text):
    path = tmp_path / "p.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={"mtrl": text})
    assert refused(path).startswith("damaged policy metadata or tensors")


def test_tensors_that_do_not_fit_the_architecture_are_refused_by_name(make_agent, tmp_path):
    policy = make_agent().policy
    policy.parameters.shared["net.stack.output.bias"] = torch.zeros(5)
    policy.save(tmp_path / "p.safetensors")
    assert refused(tmp_path / "p.safetensors").endswith(
        "network 'mlp': it is of another version or damaged (net.stack.output.bias)"
    )


def test_weights_that_are_not_finite_are_refused_by_name(make_agent, tmp_path):
    policy = make_agent().policy
    with torch.no_grad():
        policy.parameters.shared["net.stack.hidden.0.weight"][1, 2] = torch.nan
    policy.save(tmp_path / "p.safetensors")
    assert refused(tmp_path / "p.safetensors").endswith("(non-finite numbers in net.stack.hidden.0.weight)")


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(make_agent, tmp_path):
    policy = make_agent(hidden=(2,)).policy
    path, content = tmp_path / "p.safetensors", policy.to_bytes()
    survived = 0
    for position in range(0, len(content), 2):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position // 2 % 8)
        path.write_bytes(damaged)
        try:
            loaded = load_policy(path)
        except PolicyError:
            continue
        survived += 1  # the checksum's own name was hit
        assert loaded.to_bytes() == content
    assert survived < 10


def test_a_file_of_another_format_is_refused_by_it(policy, tmp_path):
    policy.save(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        metadata = json.loads(file.metadata()["mtrl"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for other in ("mtrl-policy-1", "mtrl-policy-9"):
        metadata["format"] = other
        save_file(tensors, tmp_path / "other.safetensors", metadata={"mtrl": json.dumps(metadata)})
        assert f"(format '{other}', this version reads 'mtrl-policy-3')" in refused(
            tmp_path / "other.safetensors"
        )


def test_tensors_of_another_type_are_refused(policy, tmp_path):
    policy.save(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        metadata = json.loads(file.metadata()["mtrl"])
        tensors = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "other.safetensors", metadata={"mtrl": json.dumps(metadata)})
    assert "tensors of type F64, not F32" in refused(tmp_path / "other.safetensors")


# --- Stable-Baselines3 ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
@pytest.mark.parametrize("device", ["cuda:99", "tpuu"])
def test_a_device_that_is_not_there_is_named_and_the_file_is_not_called_damaged(make_agent, tmp_path, device):
    make_agent().policy.save(tmp_path / "p.safetensors")
    with pytest.raises(PolicyError, match=f"^device: '{device}' is not available on this machine; use cpu$"):
        load_policy(tmp_path / "p.safetensors", device)


def test_stable_baselines3s_evaluate_policy_takes_agents_and_policies(make_agent):
    envs = make_suite(Protocol(suite="point", horizon=20), evaluation=True)
    agent = make_agent(5, obs_dim=4, action_dim=2)
    results = []
    for model in (agent, agent.policy):
        envs.seed(0)
        returns, lengths = evaluate_policy(model, envs, n_eval_episodes=10, return_episode_rewards=True)
        assert lengths == [20] * 10
        results.append(returns)
    assert results[0] == results[1]
    assert all(value < 0 for value in results[0])  # minus a distance
    envs.close()
