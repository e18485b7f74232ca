"""Each stabiliser does what it says: in the networks, the rewards, the update and the loop."""

from __future__ import annotations

import shutil
import signal

import pytest
import torch
from torch.func import functional_call

from mtrl.cli import main
from mtrl.config import ConfigError, NetworkConfig, ReplayConfig
from mtrl.envs import Protocol, make_suite
from mtrl.gradients import BY_LOOP, FACTORED, PLAIN
from mtrl.networks import Parameters, Stack
from mtrl.policy import load_policy
from mtrl.replay import TaskReplay
from mtrl.rewards import MovingAverage, RewardScale, RunningSigma, make_reward_scale
from mtrl.run.checkpoint import pack, unpack
from mtrl.run.guard import GuardCallback
from mtrl.sac import MTSAC, critic_loss, td_target
from mtrl.train import Trainer

NEVER = torch.tensor([False, False])

# --- residual blocks -----------------------------------------------------------------------------------------


def test_a_block_adds_linear_norm_activation_linear_norm_to_its_input():
    torch.manual_seed(0)
    net = Stack(3, 2, NetworkConfig(hidden=(5,), blocks=2, layer_norm=True))
    assert [tuple(layer.weight.shape) for layer in net.hidden] == [(5, 3), *[(5, 5)] * 4]
    for norm in net.norms:  # not the identity that a fresh LayerNorm nearly is
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(7, 3)
    relu = torch.nn.functional.relu
    h = relu(net.norms[0](net.hidden[0](x)))
    for i in (1, 3):
        h = h + net.norms[i + 1](net.hidden[i + 1](relu(net.norms[i](net.hidden[i](h)))))
    torch.testing.assert_close(net(x), net.output(h))


def test_blocks_of_zeros_pass_their_input_on():
    net = Stack(3, 2, NetworkConfig(hidden=(6, 5), blocks=3))
    plain_net = Stack(3, 2, NetworkConfig(hidden=(6, 5)))
    weights = dict(net.named_parameters())
    for i in (3, 5, 7):  # the second layer of each block
        for kind in ("weight", "bias"):
            weights[f"hidden.{i}.{kind}"] = torch.zeros_like(weights[f"hidden.{i}.{kind}"])
    kept = {k: weights[k] for k, _ in plain_net.named_parameters()}
    x = torch.randn(4, 3)
    torch.testing.assert_close(functional_call(net, weights, x), functional_call(plain_net, kept, x))


def test_a_blocks_masks_drop_behind_each_of_its_linear_layers(make_agent):
    agent = make_agent(2, hidden=(8,), critic={"dropout": 0.5, "blocks": 1}, actor={"blocks": 2})
    noise = agent.draw_noise(5)
    assert [m.shape for m in noise.critic_masks] == [(2, 5, 8)] * 3 * 2  # 1 + 2 layers of two critics
    net = Stack(3, 1, NetworkConfig(hidden=(4,), blocks=1))
    x, ones, zeros = torch.randn(5, 3), torch.ones(5, 4), torch.zeros(5, 4)
    first = net.output(torch.relu(net.hidden[0](x)))
    torch.testing.assert_close(net(x, (ones, ones, zeros)), first)  # the block adds nothing
    torch.testing.assert_close(net(x, (ones, ones, ones)), net(x))
    assert not torch.allclose(net(x), first)


def test_blocks_need_a_width():
    with pytest.raises(ConfigError, match="blocks: 1"):
        NetworkConfig(hidden=(), blocks=1)


VARIANTS = {
    "blocks": {"critic": {"blocks": 2, "layer_norm": True}, "actor": {"blocks": 1, "layer_norm": True}},
    "distributional": {"critic": {"loss": "distributional", "reduction": "mean", "atoms": 21}},
    "distributional min": {"critic": {"loss": "distributional", "atoms": 21}},
    "two_hot": {"critic": {"loss": "two_hot", "atoms": 21, "blocks": 1}},
    "hl_gauss": {"critic": {"loss": "hl_gauss", "atoms": 21}},
    "mean": {"critic": {"reduction": "mean", "ensemble": 3}},
    "heads": {"task_input": "heads", "critic": {"loss": "distributional", "atoms": 21, "blocks": 1}},
    "embedding": {"task_input": "embedding", "critic": {"loss": "hl_gauss", "blocks": 1, "dropout": 0.2}},
}


def critic_gradients(agent, batch, path):
    noise = agent.draw_noise(batch.rewards.shape[1])
    with torch.no_grad():
        target = path.over_tasks(
            lambda *args: td_target(*args, agent.nets, 0.9),
            agent.actor, agent.target, agent.alpha, agent.one_hot, batch, noise.next_action,
            noise.target_masks, None,
        )  # fmt: skip

    def loss(*args):
        return critic_loss(*args, nets=agent.nets)

    return path.per_task(loss, agent.critic, agent.one_hot, batch, target, noise.critic_masks)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradients_of_vmap_of_a_loop_and_of_the_fast_path_are_the_same(variant, make_agent, make_batch):
    found = []
    for path, kernels in ((PLAIN, "plain"), (BY_LOOP, "plain"), (FACTORED, "torch"), (FACTORED, "onednn")):
        agent = make_agent(3, **VARIANTS[variant], kernels=kernels)
        found.append(critic_gradients(agent, make_batch(), path))
    for other in found[1:]:
        torch.testing.assert_close(other.rows(), found[0].rows(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.private, found[0].private, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.losses, found[0].losses)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_agent_fits_a_batch_and_keeps_its_file(variant, precision, make_agent, make_batch, tmp_path):
    network = {"learning_rate": 1e-2}
    options = {**VARIANTS[variant], "precision": precision}
    options["critic"] = {**options.get("critic", {}), **network}
    agent, batch = make_agent(3, hidden=(16,), gamma=0.0, **options), make_batch(rows=16)
    losses = [agent.update(batch)["critic_loss"].mean().item() for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]  # γ = 0: the reward is all there is to fit
    agent.policy.save(tmp_path / "p.safetensors")
    rows = torch.cat((batch.obs[:, 0], agent.one_hot), dim=1)
    torch.testing.assert_close(load_policy(tmp_path / "p.safetensors").act(rows), agent.policy.act(rows))


def test_the_critics_values_stay_on_the_grid(make_agent, make_batch):
    agent = make_agent(
        3, critic={"loss": "distributional", "support": 2.0, "atoms": 11, "learning_rate": 0.1}
    )
    batch = make_batch()
    for _ in range(50):
        q = agent.update(batch._replace(rewards=batch.rewards + 100))["q"]
    assert (q <= 2).all()
    assert (q > 1.5).all()  # all mass went to the last atom


# --- weight decay --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decay_on", "spared"), [("matrices", {"bias", "norms", "embedding"}), ("as_published", set())]
)
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("task_input", ["embedding", "heads"])
def test_decay_shrinks_matrices_or_everything(decay_on, spared, decay, task_input, make_agent):
    config = {"decay_on": decay_on, "decay": decay, "weight_decay": 0.1, "learning_rate": 0.5}
    agent = make_agent(3, task_input=task_input, critic={**config, "layer_norm": True})
    with torch.no_grad():
        for _, p in agent.critic.tensors():
            p.fill_(1.0)
        for step_of_part in agent.learners["critic"].adam:  # without a gradient
            step_of_part()
    for name, p in agent.critic.tensors():
        if any(part in name for part in spared):
            assert (p == 1).all(), name
        else:  # decoupled: 1 − .5 · .1; coupled: Adam's first step is lr · sign
            torch.testing.assert_close(p, torch.full_like(p, 0.95 if decay == "decoupled" else 0.5))


# --- the moving average --------------------------------------------------------------------------------------


def test_the_moving_average_over_two_rewards():
    # c = ½ from m = 0, v = 1. Task 0: r = 2: m = 1, v = ½ + ½ (2 − 1)² = 1, stored 2.
    # r = 4: m = 2.5, v = ½ + ½ · 1.5² = 1.625, stored 4/√1.625. Task 1 has r = 0: v = ½, then ¼.
    scale = MovingAverage(2, coefficient=0.5)
    scale.observe(torch.tensor([2.0, 0.0]), NEVER)
    assert scale.on_store(torch.tensor([2.0, 0.0])).tolist() == pytest.approx([2, 0])
    scale.observe(torch.tensor([4.0, 0.0]), NEVER)
    assert scale.on_store(torch.tensor([4.0, 1.0])).tolist() == pytest.approx([4 / 1.625**0.5, 2])
    assert scale.scale(torch.ones(2)).tolist() == [1, 1]  # nothing is left to do when sampling


def test_stored_rewards_keep_the_scale_of_their_time(make_agent, scripted):
    envs = scripted([([3.0] * 6, [False] * 6, False)])
    agent = make_agent(1, obs_dim=1, action_dim=1, reward_scale="ema", ema_coefficient=0.5)
    trainer = Trainer(agent, envs, TaskReplay(1, 20, 1, 1), warmup_steps=100)
    guard = GuardCallback(1000, None)
    trainer.learn(3, [guard])
    # m = 1.5, 2.25, 2.625; v = ½ + ½ · 1.5², then halved and half of .75², .375² added
    variances = [1.625, 0.5 * 1.625 + 0.5 * 0.5625, 0.5 * (0.5 * 1.625 + 0.5 * 0.5625) + 0.5 * 0.140625]
    stored = trainer.replay_buffer.data["rewards"].flatten()[:3]
    assert stored.tolist() == pytest.approx([3 / v**0.5 for v in variances])
    assert agent.rewards.highest.item() == pytest.approx(max(stored.tolist()))
    assert guard.largest_reward.item() == pytest.approx(max(stored.tolist()))  # what values are bounded by


@pytest.mark.parametrize("kind", ["none", "sigma", "return"])
def test_all_other_kinds_store_raw_rewards(kind):
    scale = make_reward_scale(kind, 2, 0.9, 0.0)
    for rewards in (torch.tensor([3.0, -7.0]), torch.tensor([1.0, 5.0])):
        scale.observe(rewards, NEVER)
        assert torch.equal(scale.on_store(rewards), rewards)


def test_a_moving_average_and_the_highest_reward_go_on_from_a_saved_state():
    original, restored = MovingAverage(2, coefficient=0.1), MovingAverage(2, coefficient=0.1)
    original.observe(torch.tensor([5.0, -2.0]), NEVER)
    restored.load_state_dict(original.state_dict())
    for scale in (original, restored):
        scale.observe(torch.tensor([1.0, -1.0]), NEVER)
    for name, value in original.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name
    assert restored.highest[0] > 1  # the first one's


# --- target clipping -----------------------------------------------------------------------------------------


def test_the_largest_return_is_the_highest_reward_scaled_over_one_minus_gamma():
    scale = RunningSigma(2, gamma=0.5)
    assert scale.largest_return(torch.ones(2)).tolist() == [torch.inf, torch.inf]
    scale.observe(torch.tensor([1.0, -3.0]), NEVER)
    scale.observe(torch.tensor([5.0, -1.0]), NEVER)
    sigma = scale.scale(torch.ones(2))  # numpy: std(1, 5) = 2, std(−3, −1) = 1
    assert sigma.tolist() == [2, 1]
    assert scale.largest_return(sigma).tolist() == [5 / 2 / 0.5, -1 / 0.5]


def test_an_update_clips_each_tasks_targets_to_its_own_ceiling(make_agent, make_batch):
    agents = [make_agent(3, gamma=0.5, target_clip=clip) for clip in (True, False)]
    batch = make_batch()
    for agent in agents:
        agent.rewards.observe(torch.tensor([0.1, 50.0, -1.0]), torch.zeros(3, dtype=torch.bool))
    noise = agents[0].draw_noise(5)
    losses = [agent.update(batch, noise)["critic_loss"] for agent in agents]
    fresh = make_agent(3, gamma=0.5)
    for t, ceiling in enumerate([0.2, 100.0, -2.0]):  # max r / (1 − ½)
        one = Parameters(fresh.target.shared, {})
        own = batch._replace(**{k: v[t] for k, v in batch._asdict().items() if v is not None})
        target = td_target(
            fresh.actor, one, fresh.alpha[t], fresh.one_hot[t], own, noise.next_action[t], (), None, fresh.nets, 0.5
        )  # fmt: skip
        expected, _ = critic_loss(one, fresh.one_hot[t], own, target.clamp(max=ceiling), (), fresh.nets)
        torch.testing.assert_close(losses[0][t], expected)
        assert (losses[0][t] == losses[1][t]) == (t == 1)  # only the second ceiling is out of reach


# --- batches of a fraction -----------------------------------------------------------------------------------


def test_uniform_sampling_draws_the_rounded_total():
    replay = TaskReplay(50, 10, 1, 1, sampling="uniform")
    for _ in range(10):
        replay.add(
            *(torch.zeros(50, width) for width in (1, 1)),
            torch.zeros(50),
            torch.zeros(50, 1),
            torch.zeros(50),
        )
    assert replay.sample(25.6).weight.sum() == 1280


def test_balanced_sampling_refuses_a_fraction():
    assert ReplayConfig(batch_size=25.6, sampling="uniform").batch_size == 25.6
    with pytest.raises(ConfigError, match=r"batch_size: 25.6"):
        ReplayConfig(batch_size=25.6)


# --- the burst -----------------------------------------------------------------------------------------------


@pytest.fixture
def make_trainer(make_agent):
    def make(**options) -> Trainer:
        envs = make_suite(Protocol(suite="point", horizon=10), workers=0)
        agent = make_agent(5, names=envs.task_names, obs_dim=4, action_dim=2)
        return Trainer(
            agent, envs, TaskReplay(5, 100, 4, 2), **{"batch_size": 4, "warmup_steps": 6, **options}
        )

    return make


def test_the_burst_comes_at_once_behind_the_warm_up_and_only_once(make_trainer):
    trainer = make_trainer(warmup_updates=7, updates_per_step=2)
    updates = []
    for steps in (6, 7, 8, 9):
        trainer.learn(5 * steps)
        updates.append(trainer.num_updates)
    assert updates == [0, 7 + 2, 7 + 4, 7 + 6]


def test_a_run_stopped_in_the_burst_goes_on_as_if_it_had_not_been(make_trainer, tmp_path):
    whole = make_trainer(warmup_updates=9)
    whole.learn(5 * 12)
    stopped = make_trainer(warmup_updates=9)
    stopped.between_updates = lambda: stopped.num_updates < 4
    stopped.learn(5 * 12)
    assert (stopped.num_updates, stopped.num_timesteps) == (4, 5 * 6)
    (tmp_path / "state").write_bytes(pack(stopped.state_dict()))
    rows = stopped.replay_buffer.state_dict()
    resumed = make_trainer(warmup_updates=9)
    resumed.load_state_dict(unpack(tmp_path / "state"))
    resumed.replay_buffer.load_state_dict(rows)
    resumed.learn(5 * 12)
    assert resumed.num_updates == whole.num_updates == 9 + 6
    assert resumed.agent.policy.to_bytes() == whole.agent.policy.to_bytes()
    assert stopped.agent.policy.to_bytes() != whole.agent.policy.to_bytes()


def test_a_signal_in_the_burst_stops_with_a_checkpoint_and_the_same_command_goes_on(
    tmp_path, monkeypatch, capsys
):
    def train(name: str) -> int:
        return main([
            "train", "--config", "point", "--run_dir", str(tmp_path / name), "--total_steps_per_task", "40",
            "--warmup_steps", "20", "--warmup_updates", "15", "--eval_every", "0", "--eval_episodes", "1",
        ])  # fmt: skip

    assert train("whole") == 0
    calls, update = [], MTSAC.update

    def interrupted(self, *args, **kwargs):
        calls.append(0)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        return update(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MTSAC, "update", interrupted)
        assert train("stopped") == 4
    assert len(calls) == 5  # not the burst's other ten
    shutil.copytree(
        tmp_path / "stopped", tmp_path / "resumed"
    )  # this process still holds the lock of the first
    assert train("resumed") == 0
    files = [(tmp_path / name / "policy.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert files[0] == files[1]


def test_reward_scales_by_name():
    assert isinstance(make_reward_scale("ema", 2, 0.9, 0.0, 0.2), MovingAverage)
    assert make_reward_scale("ema", 2, 0.9, 0.0, 0.2).coefficient == 0.2
    assert type(make_reward_scale("none", 2, 0.9, 0.0)) is RewardScale
