"""Evaluation: every goal once, scores by hand, intervals by the textbook."""

from __future__ import annotations

import json
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecEnvWrapper

from mtrl.envs import Protocol, make_suite
from mtrl.evaluate import Scores, TaskScores, evaluate, wilson_interval


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
        "success": 0.5, "success_at_end": 0.0, "ci": wilson_interval(1, 2), "return": 5.0,
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


def test_envs_without_goals_are_evaluated_on_the_same_draws_each_time():
    envs = make_suite({"one": Dice, "two": Dice}, workers=0, evaluation=True)
    first, second = (evaluate(Still(), envs, 4, ["one", "two"]).tasks for _ in range(2))
    assert first["one"].returns.tolist() == second["one"].returns.tolist()
    assert len({*first["one"].returns, *first["two"].returns}) == 8
    envs.close()


@pytest.mark.parametrize(("successes", "episodes"), [(0, 10), (3, 10), (25, 50), (49, 50), (50, 50)])
def test_the_wilson_interval_is_the_textbooks(successes, episodes):
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964
    z, p, n = 1.959963984540054, successes / episodes, episodes
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [(middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)]
    assert wilson_interval(successes, episodes) == pytest.approx(expected, abs=1e-9)


def scores_of(*success: list[float]) -> Scores:
    arrays = [np.array(s, dtype=float) for s in success]
    return Scores(
        {f"task-{t}": TaskScores(s, s, s, np.where(s > 0, 1.0, np.nan)) for t, s in enumerate(arrays)}
    )


def test_the_bootstrap_interval_holds_the_mean_and_has_the_right_width():
    # 4 tasks, 50 episodes each at ½: the mean's standard deviation is √(¼ / 200) = 0.0354, ·1.96 = 0.0693
    scores = scores_of(*[[0, 1] * 25] * 4)
    low, high = scores.mean_success_interval()
    assert low < scores.mean_success < high
    assert (high - low) / 2 == pytest.approx(0.0693, rel=0.1)
    assert scores.mean_success_interval() == [low, high]  # the same each time


def test_the_bootstrap_resamples_within_tasks_and_tasks_that_do_not_vary_add_nothing():
    assert scores_of([1] * 10, [0] * 10).mean_success_interval() == [0.5, 0.5]
    low, high = scores_of([1] * 50, [0, 1] * 25).mean_success_interval()
    # only the second varies: √(¼ / 50) / 2 = 0.0354
    assert (high - low) / 2 == pytest.approx(1.96 * 0.0354, rel=0.1)


def test_one_episode_has_no_interval():
    scores = scores_of([1], [0, 1])
    assert scores.mean_success_interval() is None
    told = scores.to_dict()
    assert told["mean_success_ci"] is None
    assert told["tasks"]["task-0"]["ci"] is None
    assert told["tasks"]["task-1"]["ci"] is not None


def test_task_names_must_be_as_many_as_environments(scripted):
    with pytest.raises(ValueError, match="zip"):
        evaluate(Still(), scripted([([1], [N], True)]), 1, ["a", "b"])
