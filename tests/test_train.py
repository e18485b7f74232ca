"""The loop: what it stores, that it repeats itself, Stable-Baselines3's callbacks, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.callbacks as sb3
import torch
from stable_baselines3.common.vec_env import VecEnvWrapper, VecMonitor, VecNormalize

from mtrl.config import ConfigError
from mtrl.envs import Protocol, SuiteError, make_suite
from mtrl.evaluate import Scores, TaskScores, evaluate
from mtrl.policy import load_policy
from mtrl.replay import TaskReplay
from mtrl.run.callbacks import EvaluationCallback, LogCallback
from mtrl.sac import MTSAC
from mtrl.settings.train import parse_train
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
            names=envs.task_names,
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


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_plain_function_is_a_callback_and_only_false_ends_the_training(make_trainer):
    seen: list[int] = []

    def look(local: dict[str, Any], world: dict[str, Any]) -> None:
        seen.append(local["self"].num_timesteps)

    trainer = make_trainer()
    trainer.learn(50, look)
    assert seen == [5 * k for k in range(1, 11)]
    trainer.learn(100, [look, lambda local, world: local["self"].num_timesteps < 60])
    assert trainer.num_timesteps == 60
    with pytest.raises(ConfigError, match="callback: 'stop'"):
        trainer.learn(100, "stop")
    with pytest.raises(ConfigError, match="callback: 3"):
        trainer.learn(100, [look, 3])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size: 0"),
        ({"batch_size": 2.5}, "batch_size: 2.5"),
        ({"batch_size": -3}, "batch_size: -3"),
        ({"batch_size": float("nan")}, "batch_size: nan"),
        ({"batch_size": "8"}, "batch_size: '8'"),
        ({"batch_size": True}, "batch_size: True"),
        ({"warmup_steps": -1}, "warmup_steps: -1"),
        ({"warmup_steps": 1.5}, "warmup_steps: 1.5"),
        ({"warmup_updates": -1}, "warmup_updates: -1"),
        ({"updates_per_step": -1}, "updates_per_step: -1"),
        ({"updates_per_step": True}, "updates_per_step: True"),
        ({"diagnostics_every": -1}, "diagnostics_every: -1"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(make_trainer, options, words):
    with pytest.raises(ConfigError, match=words):
        make_trainer(**options)


def test_whole_numbers_of_numpy_train_as_pythons_do(make_trainer):
    numpy = make_trainer(batch_size=np.int64(8), warmup_steps=np.int32(20), updates_per_step=np.uint8(1))
    plain = make_trainer()
    for trainer, steps in ((numpy, np.int64(5 * 30)), (plain, 5 * 30)):
        trainer.learn(steps)
    assert numpy.agent.policy.to_bytes() == plain.agent.policy.to_bytes()
    with pytest.raises(ConfigError, match="total_timesteps"):
        plain.learn(-1)


def suite_and_replay(tasks: tuple[str, ...]) -> tuple[Any, TaskReplay]:
    envs = make_suite(Protocol("custom", tasks=tasks, horizon=10), workers=0)
    return envs, TaskReplay(len(tasks), 50, 4, 2)


def test_tasks_in_another_order_are_refused_with_both_orders(make_agent):
    envs, replay = suite_and_replay(("point-reach", "point-swap"))
    for names in (("point-swap", "point-reach"), ("a", "b")):
        agent = make_agent(2, names=names, obs_dim=4, action_dim=2)
        with pytest.raises(ConfigError, match=f"agent's are {', '.join(names)}, .* point-reach, point-swap"):
            Trainer(agent, envs, replay)
    twice = make_agent(2, names=("a", "a"), obs_dim=4, action_dim=2)
    with pytest.raises(ConfigError, match="a, a are not different names"):
        Trainer(twice, envs, replay)


@pytest.mark.parametrize(
    ("agent", "replay"),
    [((2, 3, 2), (2, 4, 2)), ((2, 4, 1), (2, 4, 2)), ((2, 4, 2), (3, 4, 2)), ((2, 4, 2), (2, 5, 2))],
)
def test_parts_of_other_sizes_are_refused(make_agent, agent, replay):
    envs, _ = suite_and_replay(("point-reach", "point-swap"))
    tasks, obs_dim, action_dim = agent
    learner = make_agent(tasks, names=envs.task_names, obs_dim=obs_dim, action_dim=action_dim)
    with pytest.raises(ConfigError, match="numbers per observation and per action differ: agent 2"):
        Trainer(learner, envs, TaskReplay(replay[0], 50, *replay[1:]))


@pytest.mark.parametrize("options", [{}, {"norm_obs": False}, {"norm_reward": False, "training": False}])
def test_a_vec_normalize_around_the_suite_is_refused(make_agent, options):
    envs, replay = suite_and_replay(("point-reach", "point-swap"))
    agent = make_agent(2, names=envs.task_names, obs_dim=4, action_dim=2)
    with pytest.raises(ConfigError, match="VecNormalize"):
        Trainer(agent, VecNormalize(envs, **options), replay)


def test_a_wrapper_that_changes_the_one_hot_is_refused_and_one_that_does_not_is_fine(make_agent):
    class Doubles(VecEnvWrapper):
        def reset(self):
            return 2 * self.venv.reset()

        def step_wait(self):
            return self.venv.step_wait()

    envs, replay = suite_and_replay(("point-reach", "point-swap"))
    agent = make_agent(2, names=envs.task_names, obs_dim=4, action_dim=2)
    with pytest.raises(ConfigError, match="one-hot"):
        Trainer(agent, Doubles(envs), replay).learn(10)
    Trainer(agent, VecMonitor(envs), replay).learn(10)


def test_a_state_of_the_tasks_in_another_order_changes_nothing(make_agent):
    def trainer(names: tuple[str, ...]) -> Trainer:
        envs, replay = suite_and_replay(names)
        agent = make_agent(2, names=names, obs_dim=4, action_dim=2)
        return Trainer(agent, envs, replay, batch_size=4, warmup_steps=3)

    forth, back = trainer(("point-reach", "point-swap")), trainer(("point-swap", "point-reach"))
    for one in (forth, back):
        one.learn(20)
    before = back.agent.policy.to_bytes()
    with pytest.raises(
        SuiteError, match="the state is of tasks point-reach, point-swap, the suite has point-swap"
    ):
        back.load_state_dict(forth.state_dict())
    assert back.agent.policy.to_bytes() == before
    assert back.num_timesteps == 20


# --- the evaluation callback -------------------------------------------------------------------------------------


def test_evaluation_in_another_order_records_every_task_under_its_name(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    names = trainer.task_names
    recorded: list[dict[str, float]] = []
    for order in (names, names[::-1]):
        envs = make_suite(Protocol("custom", tasks=order, horizon=10), workers=0, evaluation=True)
        callback = EvaluationCallback(envs, 0, 3, lambda *scores: None, tmp_path / "best.safetensors")
        callback.init_callback(trainer)
        callback.on_training_start({}, {})
        told: dict[str, float] = {}
        monkeypatch.setattr(callback, "record", told.__setitem__)
        callback.due()
        recorded.append(told)
    assert recorded[0] == recorded[1]
    assert len({recorded[0][f"eval_return/{name}"] for name in names}) == 5


def test_evaluation_on_the_envs_of_training_or_of_other_tasks_is_refused_at_the_start(make_trainer, tmp_path):
    trainer = make_trainer()
    others = make_suite(Protocol("custom", tasks=("point-reach",)), workers=0, evaluation=True)
    for envs, words in (
        (trainer.envs, "envs: evaluation would reset"),
        (others, "the policy knows point-reach, "),
    ):
        callback = EvaluationCallback(envs, 1, 1, lambda *scores: None, tmp_path / "best.safetensors")
        with pytest.raises(ConfigError, match=words):
            trainer.learn(10, callback)
    assert trainer.num_timesteps == 0


@pytest.mark.filterwarnings("ignore:task")
def test_tasks_that_tell_no_success_are_trained_and_logged_without_a_number(make_agent, tmp_path):
    class Silent(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.zeros(2, np.float32), 1.0, False, False, {}

    training, evaluation = (make_suite({"a": Silent}, horizon=2, evaluation=flag) for flag in (False, True))
    trainer = Trainer(
        make_agent(1, names=("a",), obs_dim=2, action_dim=1),
        training,
        TaskReplay(1, 50, 2, 1),
        warmup_steps=50,
    )
    rows: list[dict[str, Any]] = []
    trainer.dump_logs = lambda: rows.append(dict(trainer.logger.name_to_value))  # type: ignore[method-assign]
    best = tmp_path / "best.safetensors"
    callbacks = [LogCallback(4), EvaluationCallback(evaluation, 4, 2, lambda *scores: None, best)]
    trainer.learn(8, callbacks)
    assert rows
    assert rows[-1]["eval_return/a"] == 2.0
    assert not [key for row in rows for key in row if "success" in key]
    assert best.exists()  # the newest


def test_the_best_policy_is_by_success_from_the_first_evaluation_that_tells_it(
    make_trainer, tmp_path, monkeypatch
):
    def scored(success, returns):
        columns = (np.array([value]) for value in (success, success, returns, np.nan))
        return Scores({"a": TaskScores(*columns)})

    def made():
        trainer = make_trainer()
        trainer.save = lambda path: saved.append(len(shown))
        callback = EvaluationCallback(
            trainer.envs, 1, 1, lambda steps, seconds, scores: shown.append(scores), tmp_path / "best"
        )
        callback.init_callback(trainer)
        callback.on_training_start({}, {})
        monkeypatch.setattr(callback, "record_tasks", lambda *rows: None)
        return callback

    monkeypatch.setattr(EvaluationCallback, "_on_training_start", lambda self: None)
    monkeypatch.setattr(EvaluationCallback, "task_names", ("a",))
    results = [
        scored(np.nan, 20.0),
        scored(0.5, -5.0),
        scored(np.nan, 30.0),
        scored(0.4, 0.0),
        scored(0.7, -9.0),
    ]
    monkeypatch.setattr("mtrl.run.callbacks.evaluate", lambda *_: results.pop(0))
    saved, shown = [], []
    callback = made()
    for _ in range(3):
        callback.due()
    again = made()
    state = callback.state_dict()
    steps, tasks = state["last"]
    tensors = {n: {k: torch.from_numpy(v) for k, v in task.items()} for n, task in tasks.items()}
    again.load_state_dict({**state, "last": [steps, tensors]})
    for _ in range(2):
        again.due()
    assert saved == [1, 2, 5]
    # who tells success only when it is reached tells none in an evaluation without
    assert [s.tasks["a"].success.tolist() for s in shown[1:]] == [[0.5], [0.0], [0.4], [0.7]]


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


def test_envs_that_cannot_be_saved_begin_new_episodes_for_the_reward_scale_too(make_trainer):
    trainer = make_trainer(warmup_steps=20, horizon=30)
    trainer.learn(5 * 10)
    state = trainer.state_dict()
    assert trainer.agent.rewards.running.all()
    again = make_trainer(warmup_steps=20, horizon=30)
    again.load_state_dict({**state, "envs": None})
    assert not again.agent.rewards.running.any()
    assert torch.equal(again.agent.rewards.largest, trainer.agent.rewards.largest)
    assert not np.array_equal(
        again.envs.reset(), make_trainer().envs.reset()
    )  # nor the run's first ones again


# --- subnormal numbers ---------------------------------------------------------------------------------------


def test_moments_of_a_dead_unit_end_at_0_and_never_as_subnormal_numbers(make_trainer):
    trainer = make_trainer(agent={"critic": {"layer_norm": False}})
    critic = trainer.agent.learners["critic"]
    bias = critic.parameters.shared["nets.0.stack.hidden.0.bias"]
    moment = critic.moments["exp_avg"].parameters.shared["nets.0.stack.hidden.0.bias"]
    with torch.no_grad():
        bias[0] = -1e6  # a ReLU that never fires: its gradient is 0 from here on
    moment[0] = 2e-38  # normal for five updates more
    trainer.learn(5 * 40)
    assert trainer.num_updates == 20
    assert moment[0] == 0 < moment[1:].count_nonzero()


@pytest.mark.parametrize("flushed", [True, False])
def test_updates_flush_subnormal_numbers_and_leave_their_treatment_as_it_was(make_trainer, flushed):
    seen = []
    torch.set_flush_denormal(flushed)
    try:
        trainer = make_trainer()
        update = trainer.agent.update
        trainer.agent.update = lambda *a, **k: seen.append(float(torch.tensor(1e-40) * 1)) or update(*a, **k)
        trainer.learn(5 * 25)
        assert seen == [0.0] * 5
        assert (float(torch.tensor(1e-40) * 1) == 0) == flushed
    finally:
        torch.set_flush_denormal(False)
