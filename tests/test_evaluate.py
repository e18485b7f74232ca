"""Evaluation: every goal once, scores by hand, intervals by the textbook."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from mtrl.config import ConfigError
from mtrl.envs import Protocol, make_suite
from mtrl.evaluate import Scores, TaskScores, evaluate, wilson_interval
from mtrl.policy import Policy
from mtrl.results.tables import scores_table


class Still:
    """A policy that does nothing, and keeps count."""

    def __init__(self, actions: int = 1) -> None:
        self.actions, self.calls = actions, 0

    def predict(self, observation, state=None, episode_start=None, deterministic=False) -> Any:
        assert deterministic
        self.calls += 1
        return np.zeros((len(observation), self.actions), np.float32), None


class Goals(VecEnvWrapper):
    """Notes the goal of every episode that ends, per task."""

    def __init__(self, envs) -> None:
        super().__init__(envs)
        self.seen: list[list[int]] = [[] for _ in range(envs.num_envs)]

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        for t in np.flatnonzero(dones):
            self.seen[t].append(infos[t]["goal"])
        return observations, rewards, dones, infos


N, Y = False, True


def test_scores_of_scripted_episodes(scripted):
    envs = scripted(
        # success in the second step, lost again, a time limit | never, terminated
        [([1, 2, 3], [N, Y, N], False), ([4], [N], True)],
        # success in the first and last | in the third
        [([1, 1], [Y, Y], True), ([0.5, 0, 0], [N, N, Y], False)],
    )
    scores = evaluate(Still(), envs, 2, ["a", "b"])
    a, b = scores.tasks["a"], scores.tasks["b"]
    assert a.success.tolist() == [1, 0]
    assert a.success_at_end.tolist() == [0, 0]
    assert a.returns.tolist() == [6, 4]
    assert a.steps_to_success[0] == 2
    assert math.isnan(a.steps_to_success[1])
    assert b.success.tolist() == [1, 1]
    assert b.success_at_end.tolist() == [1, 1]
    assert b.returns.tolist() == [2, 0.5]
    assert b.steps_to_success.tolist() == [1, 3]
    assert scores.mean_success == 0.75  # (1/2 + 1) / 2
    assert scores.mean_return == 3.125  # (5 + 1.25) / 2
    told = json.loads(json.dumps(scores.to_dict()))  # plain values, no NaN
    assert told["mean_success"] == 0.75
    assert told["tasks"]["a"] == {
        "success": 0.5, "success_at_end": 0.0, "ci": wilson_interval(0.5, 2), "return": 5.0,
        "steps_to_success": 2.0, "episodes": 2,
    }  # fmt: skip
    assert told["tasks"]["b"]["steps_to_success"] == 2.0


def test_a_task_with_short_episodes_plays_on_uncounted_until_all_have_theirs(scripted):
    envs = scripted([([1], [N], True)], [([1] * 7, [N] * 7, False)])
    policy = Still()
    scores = evaluate(policy, envs, 3, ["short", "long"])
    assert [scores.to_dict()["tasks"][name]["episodes"] for name in ("short", "long")] == [3, 3]
    assert policy.calls == 21
    assert scores.tasks["short"].returns.tolist() == [1, 1, 1]


def test_a_task_that_never_succeeds_has_no_steps_to_success(scripted):
    scores = evaluate(Still(), scripted([([1], [N], True)]), 2, ["a"])
    assert scores.to_dict()["tasks"]["a"]["steps_to_success"] is None


@pytest.mark.parametrize("workers", [0, 2])
def test_every_goal_is_met_exactly_once_in_order_at_every_evaluation(workers):
    protocol = Protocol(suite="point", horizon=3)
    envs = Goals(make_suite(protocol, workers=workers, evaluation=True))
    first = evaluate(Still(2), envs, 50, protocol.task_names)
    assert envs.seen == [list(range(50))] * 5
    envs.seen = [[] for _ in range(5)]
    for _ in range(2):  # leave it amid an episode
        envs.step(np.zeros((5, 2), np.float32))
    second = evaluate(Still(2), envs, 50, protocol.task_names)
    assert envs.seen == [list(range(50))] * 5
    for name in protocol.task_names:
        np.testing.assert_array_equal(first.tasks[name].returns, second.tasks[name].returns)
    envs.close()


class Dice(gym.Env):
    """One's own env without goals: the return is a draw of its generator."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), self.np_random.random(), True, False, {}


@pytest.mark.filterwarnings("ignore:task")
def test_envs_without_goals_are_evaluated_on_the_same_draws_each_time():
    envs = make_suite({"one": Dice, "two": Dice}, workers=0, evaluation=True)
    first, second = (evaluate(Still(), envs, 4, ["one", "two"]).tasks for _ in range(2))
    assert first["one"].returns.tolist() == second["one"].returns.tolist()
    assert len({*first["one"].returns, *first["two"].returns}) == 8
    envs.close()


@pytest.mark.filterwarnings("ignore:task")
def test_envs_without_goals_are_evaluated_on_draws_of_the_suites_seed():
    returns = []
    for seed in (0, 2**63 - 1, 2**63 - 1):
        envs = make_suite({"one": Dice}, seed=seed, workers=0, evaluation=True)
        returns.append(evaluate(Still(), envs, 4).tasks["one"].returns.tolist())
    assert returns[0] != returns[1] == returns[2]


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_success_of_any_step_counts_whatever_vec_env_tells_it(key):
    class Passing(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            self.steps = 0
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.steps += 1
            return np.zeros(2, np.float32), 1.0, self.steps == 5, False, {key: self.steps == 2}

    scores = evaluate(Still(), DummyVecEnv([Passing]), 2, ["a"]).tasks["a"]
    assert (scores.success.tolist(), scores.success_at_end.tolist()) == ([1, 1], [0, 0])
    assert scores.steps_to_success.tolist() == [2, 2]


@pytest.mark.parametrize(("successes", "episodes"), [(0, 10), (3, 10), (25, 50), (49, 50), (50, 50)])
def test_the_wilson_interval_is_the_textbooks(successes, episodes):
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964
    z, p, n = 1.959963984540054, successes / episodes, episodes
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [(middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)]
    assert wilson_interval(successes / episodes, episodes) == pytest.approx(expected, abs=1e-9)


def scores_of(*success: list[float]) -> Scores:
    arrays = [np.array(s, dtype=float) for s in success]
    return Scores(
        {f"task-{t}": TaskScores(s, s, s, np.where(s > 0, 1.0, np.nan)) for t, s in enumerate(arrays)}
    )


def test_the_interval_holds_the_mean_and_has_the_right_width():
    # 4 tasks, 50 episodes each at ½: the mean's standard deviation is √(¼ / 200) = 0.0354, ·1.96 = 0.0693
    scores = scores_of(*[[0, 1] * 25] * 4)
    low, high = scores.mean_success_interval()
    assert low < scores.mean_success < high
    assert (high - low) / 2 == pytest.approx(0.0693, rel=0.1)
    assert scores.mean_success_interval() == [low, high]  # the same each time


def test_for_one_task_the_interval_of_the_mean_is_wilsons():
    for successes in (0, 3, 20):
        (low, high) = scores_of([1] * successes + [0] * (20 - successes)).mean_success_interval()
        exact = binomtest(successes, 20).proportion_ci(0.95, method="wilson")
        assert (low, high) == pytest.approx((exact.low, exact.high))


def test_a_task_that_does_not_vary_adds_a_width_of_its_own():
    # 10 successes of 10, and 0 of 10: rates 10.5/11 and 0.5/11, each of variance 0.0433884 / 10; over T² = 4 their
    # sum is 0.0021694; m = ½, so n = 0.25 / 0.0021694 = 115.24, and Wilson's half width at ½ is
    # 1.96 / (1 + 3.8415/115.24) · √(0.25/115.24 + (1.96/230.48)²) = 0.0898
    low, high = scores_of([1] * 10, [0] * 10).mean_success_interval()
    assert (low, high) == pytest.approx((0.5 - 0.0898, 0.5 + 0.0898), abs=1e-4)


@pytest.mark.parametrize(
    ("rates", "episodes"),
    [
        ([0.5] * 10, 50),
        ([1.0] * 9 + [0.9], 50),
        ([0.0, 0.1, 0.3, 0.9, 1.0], 20),
        ([0.95] * 10, 10),
        ([0.3], 30),
    ],
)
def test_the_interval_of_the_mean_covers_it_in_95_of_100_draws(rates, episodes):
    generator = np.random.default_rng(0)
    draws = 3000
    covered = 0
    for _ in range(draws):
        outcomes = [(generator.random(episodes) < rate).astype(float) for rate in rates]
        low, high = scores_of(*outcomes).mean_success_interval()
        covered += low <= np.mean(rates) <= high
    assert 0.93 <= covered / draws <= 0.985  # 0.95 ± 0.02, and what 3000 draws leave open


@pytest.mark.parametrize(("tasks", "episodes"), [(1, 50), (10, 50), (50, 50), (10, 10), (10, 5)])
@pytest.mark.parametrize("kind", ["any", "ends", "learned"])
def test_over_tasks_of_many_kinds_the_interval_covers_95_plus_minus_2_at_50_goals_and_never_less(
    tasks, episodes, kind
):
    generator = np.random.default_rng(0)
    draws = 2000
    covered = 0
    for _ in range(draws):
        if kind == "learned":  # most tasks near 1, some near 0
            up, down = generator.beta(20, 1, tasks), generator.beta(1, 20, tasks)
            rates = np.where(generator.random(tasks) < 0.7, up, down)
        else:
            rates = generator.beta(*((1, 1) if kind == "any" else (0.3, 0.3)), tasks)
        outcomes = (generator.random((tasks, episodes)) < rates[:, None]).astype(float)
        low, high = scores_of(*outcomes).mean_success_interval()
        covered += low <= rates.mean() <= high
    share, noise = covered / draws, 2.5 * np.sqrt(0.95 * 0.05 / draws)
    assert share >= 0.93 - noise
    if episodes == 50:
        assert share <= 0.97 + noise


def test_one_episode_has_no_interval():
    scores = scores_of([1], [0, 1])
    assert scores.mean_success_interval() is None
    told = scores.to_dict()
    assert told["mean_success_ci"] is None
    assert told["tasks"]["task-0"]["ci"] is None
    assert told["tasks"]["task-1"]["ci"] is not None


def test_task_names_must_be_as_many_as_environments(scripted):
    with pytest.raises(ConfigError, match="task_names: a, b are not 1 different names"):
        evaluate(Still(), scripted([([1], [N], True)]), 1, ["a", "b"])


# --- names -------------------------------------------------------------------------------------------------------


POINTS = ("point-reach", "point-mirror", "point-swap", "point-turn", "point-opposite")


@pytest.fixture
def policy(make_agent) -> Policy:
    """An untrained one that tells its tasks apart."""
    return make_agent(5, names=POINTS, obs_dim=4, action_dim=2, task_input="heads").policy


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [1, 2, 0, 4, 3]])
@pytest.mark.parametrize("wrap", [lambda envs: envs, VecMonitor])
def test_a_policy_scores_the_same_on_its_tasks_in_any_order(policy, order, wrap):
    def scores(names):
        protocol = Protocol("custom", tasks=names, horizon=20)
        envs = wrap(make_suite(protocol, workers=0, evaluation=True))
        return evaluate(policy, envs, 5, protocol.task_names)

    ours, theirs = scores(POINTS), scores(tuple(POINTS[i] for i in order))
    assert list(theirs.tasks) == [POINTS[i] for i in order]
    for name in POINTS:
        np.testing.assert_array_equal(ours.tasks[name].returns, theirs.tasks[name].returns)
    assert len({float(task.returns.sum()) for task in ours.tasks.values()}) == 5


def test_names_that_contradict_are_refused_with_both(policy):
    envs = make_suite(Protocol("point"), workers=0, evaluation=True)
    for names in (POINTS[::-1], ("a", "b", "c", "d", "e"), POINTS[:4], POINTS[:4] + POINTS[:1]):
        with pytest.raises(ConfigError, match=r"task_names: .*point-reach"):
            evaluate(policy, envs, 1, names)
    others = make_suite(Protocol("custom", tasks=POINTS[:2]), workers=0, evaluation=True)
    with pytest.raises(
        ConfigError, match=r"the policy knows point-reach, .*point-opposite, and the envs are point-"
    ):
        evaluate(policy, others, 1, POINTS[:2])


@pytest.mark.parametrize("episodes", [0, -1, 2.0, True, None])
def test_episodes_are_a_whole_number(scripted, episodes):
    with pytest.raises(ConfigError, match="episodes"):
        evaluate(Still(), scripted([([1], [N], True)]), episodes, ["a"])


def test_episodes_may_be_counted_by_numpy(scripted):
    scores = evaluate(Still(), scripted([([1], [N], True)]), np.int64(3), ["a"])
    assert scores.to_dict()["tasks"]["a"]["episodes"] == 3


# --- envs that do not do as they should ----------------------------------------------------------------------------


class Endless(Dice):
    """Lasts for ever."""

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {"success": False}


class Short(Dice):
    """Ends at once, and tells so."""

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, True, False, {"success": True}


def test_an_episode_that_never_ends_is_told_by_its_task(monkeypatch):
    monkeypatch.setattr("mtrl.evaluate.MOST_STEPS", 200)
    envs = make_suite({"short": Short, "endless": Endless}, evaluation=True)
    with pytest.raises(ConfigError, match=r"task endless: an episode has not ended after 200 steps.*horizon"):
        evaluate(Still(), envs, 1, ["short", "endless"])


def test_an_episode_with_a_time_limit_may_be_longer(monkeypatch):
    monkeypatch.setattr("mtrl.evaluate.MOST_STEPS", 200)
    envs = make_suite({"endless": Endless}, horizon=300, evaluation=True)
    assert evaluate(Still(), envs, 1, ["endless"]).tasks["endless"].returns.tolist() == [300]


@pytest.mark.filterwarnings("ignore:task silent")
def test_a_task_that_tells_no_success_has_none_and_no_interval():
    envs = make_suite({"silent": Dice, "tells": Short}, horizon=3, evaluation=True)
    scores = evaluate(Still(), envs, 4, ["silent", "tells"])
    told = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert told["mean_success"] is None
    assert told["mean_success_ci"] is None
    silent = told["tasks"]["silent"]
    assert [silent[key] for key in ("success", "success_at_end", "ci", "steps_to_success")] == [None] * 4
    assert silent["episodes"] == 4
    assert told["tasks"]["tells"]["success"] == 1.0
    text = io.StringIO()
    Console(file=text, width=120).print(scores_table(scores, "scores"))
    rows = {line.split("│")[1].strip(): line for line in text.getvalue().splitlines() if line.count("│") > 3}
    assert "0.0" not in rows["silent"].partition("│")[2].split("│")[1]
    assert rows["silent"].count("–") == 4
    assert rows["mean"].count("–") == 2


@pytest.mark.filterwarnings("ignore:task a")
def test_episodes_that_tell_no_success_where_others_do_count_as_none_reached():
    class TellsWhenReached(Dice):
        episode = 0

        def step(self, action):
            self.episode += 1
            return np.zeros(2), 0.0, True, False, {"success": True} if self.episode % 2 else {}

    scores = evaluate(Still(), make_suite({"a": TellsWhenReached}, evaluation=True), 4, ["a"])
    assert scores.tasks["a"].success.tolist() == [1, 0, 1, 0]


def test_rewards_that_are_normalized_are_no_returns():
    for options in ({"norm_reward": True, "training": False}, {"norm_reward": False, "training": True}):
        envs = VecNormalize(make_suite({"a": Short}, evaluation=True), **options)
        with pytest.raises(ConfigError, match="VecNormalize"):
            evaluate(Still(), envs, 1, ["a"])
