"""The point suite: what an action does in each task, and that the tasks conflict."""

import numpy as np
import pytest

from mtrl.envs import Protocol, make_suite
from mtrl.envs.point import POINT_TASKS

# The unit action that moves each task's point to the right: the matrix of the task, solved by hand.
TO_THE_RIGHT = {
    "point-reach": (1, 0),
    "point-mirror": (-1, 0),
    "point-swap": (0, 1),
    "point-turn": (0, -1),
    "point-opposite": (1, 0),
}


@pytest.mark.parametrize("name", POINT_TASKS)
def test_one_step_moves_the_point_by_a_tenth(name):
    env = POINT_TASKS[name]()
    env.set_goal(np.array([0.2, -0.3, 0.5, 0.5]))
    env.reset()
    observation, *_ = env.step(np.array(TO_THE_RIGHT[name], np.float32))
    np.testing.assert_allclose(observation, [0.3, -0.3, 0.5, 0.5], atol=1e-6)


def test_the_reward_is_minus_the_distance_times_the_scale():
    # From (0, 0), one step right to (0.1, 0): 0.3 from the goal (0.4, 0), 0.5 from its opposite.
    expected = {
        "point-reach": -0.3,
        "point-mirror": -3.0,
        "point-swap": -0.03,
        "point-turn": -0.9,
        "point-opposite": -0.15,
    }
    for name, make in POINT_TASKS.items():
        env = make()
        env.set_goal(np.array([0.0, 0.0, 0.4, 0.0]))
        env.reset()
        _, reward, *_ = env.step(np.array(TO_THE_RIGHT[name], np.float32))
        assert reward == pytest.approx(expected[name], abs=1e-6)


def test_the_point_stays_in_the_arena():
    env = POINT_TASKS["point-reach"]()
    env.set_goal(np.array([0.95, -0.95, 0.0, 0.0]))
    env.reset()
    observation, *_ = env.step(np.array([1.0, -1.0], np.float32))
    np.testing.assert_array_equal(observation[:2], [1.0, -1.0])


def test_knowing_the_task_solves_every_goal_and_one_rule_for_all_does_not():
    inverse = {
        "point-reach": np.eye(2),
        "point-mirror": -np.eye(2),
        "point-swap": np.array([[0, 1], [1, 0]]),
        "point-turn": np.array([[0, 1], [-1, 0]]),
        "point-opposite": np.eye(2),
    }
    solved = {}
    for rule in ("by task", "one for all"):
        envs = make_suite(Protocol("point", horizon=50, num_goals=20), evaluation=True)
        observations, successes = envs.reset(), []
        for _ in range(20 * 50):
            position, goal = observations[:, :2], observations[:, 2:4].copy()
            if rule == "by task":
                goal[envs.task_names.index("point-opposite")] *= -1
            wanted = np.clip((goal - position) / 0.1, -1, 1)
            if rule == "by task":
                rules = [inverse[name] for name in envs.task_names]
                wanted = np.stack([matrix @ w for matrix, w in zip(rules, wanted, strict=True)])
            observations, _, dones, infos = envs.step(wanted)
            successes += [[info["is_success"] for info in infos]] if dones.all() else []
        solved[rule] = np.mean(successes, axis=0)
    assert solved["by task"].min() == 1.0
    assert (solved["one for all"] < 0.5).sum() >= 3
