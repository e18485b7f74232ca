"""The loop: what it stores, that it repeats itself, Stable-Baselines3's callbacks, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import stable_baselines3.common.callbacks as sb3
import torch
from stable_baselines3.common.vec_env import VecNormalize

from mtrl.config import ConfigError
from mtrl.envs import Protocol, make_suite
from mtrl.evaluate import evaluate
from mtrl.policy import load_policy
from mtrl.replay import TaskReplay
from mtrl.sac import MTSAC
from mtrl.settings import parse_train
from mtrl.train import Trainer

N, Y = False, True


@pytest.fixture
def make_trainer(make_agent) -> Callable[..., Trainer]:
    """A small agent on the point suite."""

    def make(
        seed: int = 0, horizon: int = 10, agent: dict[str, Any] | None = None, **options: Any
    ) -> Trainer:
        envs = make_suite(Protocol(suite="point", horizon=horizon), seed=seed, workers=0)
        learner = make_agent(
            5,
            names=Protocol("point").task_names,
            obs_dim=4,
            action_dim=2,
            seed=seed,
            reward_scale="return",
            **(agent or {}),
        )
        replay = TaskReplay(5, 100, 4, 2, seed=seed)
        return Trainer(learner, envs, replay, **{"batch_size": 8, "warmup_steps": 20, **options})

    return make


# --- what is stored ------------------------------------------------------------------------------------------


@pytest.fixture
def stored(make_agent, scripted) -> dict[str, torch.Tensor]:
    """Eight steps of two tasks: one is ended by time limits of 3, the other ends for real every 2."""
    envs = scripted([([1, 2, 3], [N] * 3, False)], [([10, 20], [N] * 2, True)])
    agent = make_agent(2, obs_dim=1, action_dim=1)
    trainer = Trainer(agent, envs, TaskReplay(2, 20, 1, 1), batch_size=4, warmup_steps=100)
    trainer.learn(16)
    assert trainer.replay_buffer.size == 8
    return {name: column[:, :8].squeeze(-1) for name, column in trainer.replay_buffer.data.items()}


def test_a_time_limit_is_stored_as_no_termination_and_a_termination_as_one(stored):
    assert stored["terminated"].tolist() == [[0] * 8, [0, 1] * 4]


def test_the_next_observation_at_an_episodes_end_is_the_true_last_one(stored):
    # an observation is 100 · episode + step
    assert stored["obs"].tolist() == [
        [0, 1, 2, 100, 101, 102, 200, 201],
        [0, 1, 100, 101, 200, 201, 300, 301],
    ]
    assert torch.equal(stored["next_obs"], stored["obs"] + 1)


def test_rewards_are_stored_raw(stored):
    assert stored["rewards"].tolist() == [[1, 2, 3, 1, 2, 3, 1, 2], [10, 20] * 4]


def test_the_one_hot_is_not_stored(make_trainer):
    trainer = make_trainer()
    trainer.learn(5 * 12)
    assert trainer.replay_buffer.data["obs"].shape == (5, 100, 4)
    goals = trainer.replay_buffer.data["obs"][:, :12, 2:]
    assert goals.abs().max() < 0.81  # the last two of a point's numbers are its goal


def test_the_return_bound_sees_time_limits_as_ends(make_agent, scripted):
    envs = scripted([([1, 1], [N, N], False)])
    agent = make_agent(1, obs_dim=1, action_dim=1, gamma=0.5, reward_scale="return")
    Trainer(agent, envs, TaskReplay(1, 20, 1, 1), warmup_steps=100).learn(10)
    assert agent.rewards.largest.tolist() == [1.5]  # 1 + ½, never 1 + ½ · 1.5


def test_actions_are_stored_as_they_were_sent(make_agent, scripted, monkeypatch):
    envs = scripted([([1] * 4, [N] * 4, False)])
    sent = []
    monkeypatch.setattr(envs, "step_async", lambda actions: sent.append(actions.copy()))
    trainer = Trainer(
        make_agent(1, obs_dim=1, action_dim=1), envs, TaskReplay(1, 20, 1, 1), batch_size=4, warmup_steps=5
    )
    trainer.learn(12)
    np.testing.assert_array_equal(trainer.replay_buffer.data["actions"][0, :12], np.concatenate(sent))


def test_warm_up_is_random_and_without_updates_then_every_step_updates(make_trainer):
    trainer = make_trainer(warmup_steps=20, updates_per_step=3, agent={"actor": {"log_std_max": -4.9}})
    trainer.learn(5 * 20)
    assert trainer.num_updates == 0
    actions = trainer.replay_buffer.data["actions"][:, :20]
    assert actions.std() == pytest.approx(3**-0.5, rel=0.15)  # uniform on [−1, 1]
    trainer.learn(5 * 24)
    assert trainer.num_updates == 4 * 3
    actions = trainer.replay_buffer.data["actions"][:, 20:24]
    assert actions.abs().max() < 0.3  # a fresh orthogonal actor's mean is near 0, σ = e^−5


def test_conflict_is_measured_every_so_many_updates(make_trainer, monkeypatch):
    trainer = make_trainer(diagnostics_every=4)
    asked, update = [], trainer.agent.update
    monkeypatch.setattr(
        trainer.agent,
        "update",
        lambda batch, diagnose: asked.append(diagnose) or update(batch, diagnose=diagnose),
    )
    trainer.learn(5 * 30)
    assert asked == [True, False, False, False] * 2 + [True, False]
    assert trainer.metrics["conflict_critic"].gramian.shape == (5, 5)


# --- repetition ------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_policy_and_another_seed_another(make_trainer):
    def policy(seed: int, workers_noise: int) -> bytes:
        torch.manual_seed(workers_noise)  # the global generators decide nothing
        np.random.seed(workers_noise)
        trainer = make_trainer(seed)
        trainer.learn(5 * 40)
        return trainer.agent.policy.to_bytes()

    first = policy(0, 1)
    assert first == policy(0, 2)
    assert first != policy(1, 1)


def test_learning_in_two_calls_is_learning_in_one(make_trainer):
    once, twice = make_trainer(), make_trainer()
    once.learn(5 * 45)
    twice.learn(5 * 27)  # amid an episode
    assert twice.num_timesteps == 5 * 27
    twice.learn(5 * 45)
    assert twice.num_timesteps == 5 * 45
    assert once.agent.policy.to_bytes() == twice.agent.policy.to_bytes()
    assert torch.equal(once.replay_buffer.sample(50).rewards, twice.replay_buffer.sample(50).rewards)


def test_asking_for_no_more_than_was_done_does_nothing(make_trainer):
    trainer = make_trainer()
    trainer.learn(50)
    trainer.learn(50)
    assert trainer.num_timesteps == 50


def test_the_time_spent_is_split_into_parts_that_fit_in_the_whole(make_trainer):
    trainer = make_trainer()
    trainer.learn(5 * 60)
    seconds = trainer.seconds
    assert min(seconds["env"], seconds["update"]) > 0
    assert seconds["env"] + seconds["update"] <= seconds["total"]


# --- Stable-Baselines3's callbacks, unchanged --------------------------------------------------------------------


def test_its_eval_callback_evaluates_and_saves_the_best(make_trainer, tmp_path):
    envs = make_suite(Protocol(suite="point", horizon=10), workers=0, evaluation=True)
    callback = sb3.EvalCallback(
        envs, n_eval_episodes=10, eval_freq=15, log_path=str(tmp_path), best_model_save_path=str(tmp_path),
        verbose=0, warn=False,
    )  # fmt: skip
    trainer = make_trainer()
    trainer.learn(5 * 30, callback)
    saved = np.load(tmp_path / "evaluations.npz")
    assert saved["timesteps"].tolist() == [75, 150]
    assert saved["results"].shape == (2, 10)
    assert saved["successes"].shape == (2, 10)
    assert callback.best_mean_reward == saved["results"].mean(1).max()
    assert load_policy(tmp_path / "best_model.safetensors").task_names == trainer.agent.policy.task_names


def test_its_checkpoint_callback_saves_policies_and_the_replay(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.learn(
        5 * 30, sb3.CheckpointCallback(10, str(tmp_path), name_prefix="run", save_replay_buffer=True)
    )
    policies = {path.name for path in tmp_path.glob("*.safetensors")}
    assert policies == {f"run_{steps}_steps.safetensors" for steps in (50, 100, 150)}
    assert load_policy(tmp_path / "run_150_steps.safetensors").to_bytes() == trainer.agent.policy.to_bytes()
    (last,) = tmp_path.glob("run_replay_buffer_150_steps*")
    other = TaskReplay(5, 100, 4, 2, seed=5)
    other.load_state_dict(torch.load(last, weights_only=True))
    assert torch.equal(other.sample(9).obs, trainer.replay_buffer.sample(9).obs)


def test_its_episode_counter_stops_the_training(make_trainer):
    trainer = make_trainer(horizon=10)
    trainer.learn(5 * 1000, sb3.StopTrainingOnMaxEpisodes(2))
    assert trainer.num_timesteps == 5 * 20  # two episodes of ten steps of each task


def test_its_progress_bar_is_told_every_step(make_trainer, monkeypatch):
    class Bar:
        """What the callback uses of tqdm."""

        made: list[Bar] = []  # noqa: RUF012

        def __init__(self, total: int) -> None:
            self.total, self.done, self.closed = total, 0, False
            self.made.append(self)

        def update(self, steps: int) -> None:
            self.done += steps

        def refresh(self) -> None: ...

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(sb3, "tqdm", Bar)
    trainer = make_trainer()
    trainer.learn(60, sb3.ProgressBarCallback())
    trainer.learn(160, sb3.ProgressBarCallback())
    assert [(bar.total, bar.done, bar.closed) for bar in Bar.made] == [(60, 60, True), (100, 100, True)]


def test_several_callbacks_and_its_helpers_run_together(make_trainer):
    steps: list[int] = []

    def collect(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        steps.append(len(locals_["infos"]))
        return True

    make_trainer().learn(
        100, [sb3.EveryNTimesteps(25, sb3.ConvertCallback(collect)), sb3.StopTrainingOnMaxEpisodes(9)]
    )
    assert steps == [5] * 4


def test_a_callback_that_says_no_ends_the_loop_and_learning_can_go_on(make_trainer):
    class Stop(sb3.BaseCallback):
        ended = False

        def _on_step(self) -> bool:
            return self.n_calls < 7

        def _on_training_end(self) -> None:
            self.ended = True

    trainer, stop = make_trainer(), Stop()
    trainer.learn(5 * 100, stop)
    assert trainer.num_timesteps == 35
    assert stop.ended
    trainer.learn(5 * 30)
    straight = make_trainer()
    straight.learn(5 * 30)
    assert trainer.agent.policy.to_bytes() == straight.agent.policy.to_bytes()


def test_a_trainer_has_what_callbacks_touch(make_trainer, tmp_path):
    trainer = make_trainer()
    assert trainer.get_env() is trainer.envs
    assert trainer.get_vec_normalize_env() is None
    observations = trainer.envs.reset()
    np.testing.assert_array_equal(trainer.predict(observations)[0], trainer.agent.predict(observations)[0])
    for name in ("model", "model.zip"):
        trainer.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    trainer.dump_logs()


# --- learning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0])
def test_the_agent_learns_the_point_suite(seed):
    """The one slow test: the shipped config, in process."""
    request = parse_train(["--config", "point", "--seed", str(seed)])
    config, protocol, names = request.config, request.protocol, request.protocol.task_names
    envs = make_suite(protocol, seed=seed, workers=0)
    evaluation = make_suite(protocol, seed=seed, workers=0, evaluation=True)
    agent = MTSAC(4, 2, names, config.agent, optimizer=config.optimizer.name, seed=seed)
    trainer = Trainer(
        agent, envs, TaskReplay(len(names), config.replay.capacity, 4, 2, seed=seed),
        batch_size=config.replay.batch_size, warmup_steps=config.warmup_steps,
        updates_per_step=config.updates_per_step,
    )  # fmt: skip
    before = evaluate(agent, evaluation, 50, names)
    trainer.learn(config.total_steps_per_task * len(names))
    after = evaluate(agent, evaluation, 50, names)
    assert before.mean_success < 0.3
    assert after.mean_success >= 0.9, {name: scores.success.mean() for name, scores in after.tasks.items()}


def test_envs_whose_tasks_are_others_or_in_another_order_are_refused(make_agent):
    names = Protocol("point").task_names
    envs = make_suite(Protocol("point", horizon=5))
    replay = TaskReplay(5, 10, 4, 2)
    for wrong in (tuple(reversed(names)), tuple("abcde")):
        with pytest.raises(ConfigError, match="are not the agent's in its order"):
            Trainer(make_agent(5, names=wrong, obs_dim=4, action_dim=2), envs, replay)
    with pytest.raises(ConfigError, match="are not the agent's"):
        Trainer(make_agent(3, obs_dim=4, action_dim=2), envs, replay)


def test_a_wrapper_that_scales_the_one_hot_is_refused(make_agent):
    names = Protocol("point").task_names
    envs = VecNormalize(make_suite(Protocol("point", horizon=5)))
    trainer = Trainer(make_agent(5, names=names, obs_dim=4, action_dim=2), envs, TaskReplay(5, 10, 4, 2))
    with pytest.raises(ConfigError, match="do not end with the one-hots of 5 tasks"):
        trainer.learn(5)


def test_a_plain_function_is_a_callback_that_may_end_training(make_agent):
    names = Protocol("point").task_names
    agent = make_agent(5, names=names, obs_dim=4, action_dim=2)
    trainer = Trainer(
        agent, make_suite(Protocol("point", horizon=5)), TaskReplay(5, 99, 4, 2), warmup_steps=90
    )
    trainer.learn(5 * 50, lambda local, glob: local["self"].num_timesteps < 5 * 7)
    assert trainer.num_timesteps == 5 * 7
