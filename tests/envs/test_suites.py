"""The VecEnv of a suite: seeds, goals, episodes, one's own envs."""

import numpy as np
import pytest
from own_envs import OwnEnv, SavedEnv

from mtrl.envs import Protocol, SuiteError, make_suite
from mtrl.envs.point import POINT_TASKS

POINT = Protocol("point", horizon=10)
PAIR = Protocol("custom", tasks=("reach", "drawer-close"), horizon=12, num_goals=5)


def rollout(envs, steps, seed=0):
    """Observations, rewards, dones and goals of random actions, flattened."""
    generator = np.random.default_rng(seed)
    seen = [envs.reset()]
    for _ in range(steps):
        actions = generator.uniform(-1, 1, (envs.num_envs, *envs.action_space.shape))
        observations, rewards, dones, infos = envs.step(actions)
        seen += [observations, rewards, dones, np.array([info["goal"] for info in infos])]
    return np.concatenate([np.ravel(array).astype(np.float64) for array in seen])


@pytest.mark.parametrize("protocol", [POINT, PAIR], ids=["point", "metaworld"])
def test_the_same_seed_gives_the_same_trajectories_for_any_number_of_workers(protocol):
    in_process, other_seed = (make_suite(protocol, seed=seed, workers=0) for seed in (3, 4))
    one, two = make_suite(protocol, seed=3, workers=1), make_suite(protocol, seed=3, workers=2)
    try:
        expected = rollout(in_process, 30)
        np.testing.assert_array_equal(rollout(make_suite(protocol, seed=3, workers=0), 30), expected)
        np.testing.assert_array_equal(rollout(one, 30), expected)
        np.testing.assert_array_equal(rollout(two, 30), expected)
        assert not np.array_equal(rollout(other_seed, 30), expected)
    finally:
        one.close()
        two.close()


def test_global_generators_are_neither_read_nor_moved():
    import random

    expected = rollout(make_suite(PAIR, seed=3, workers=0), 15)
    np.random.seed(1)
    random.seed(1)
    before = np.random.get_state()[1].copy(), random.getstate()
    np.testing.assert_array_equal(rollout(make_suite(PAIR, seed=3, workers=0), 15), expected)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert random.getstate() == before[1]


def test_a_tasks_goals_do_not_depend_on_the_other_tasks_nor_on_the_run_when_they_have_a_seed():
    def goals(envs, task):
        return envs.get_attr("_goals", indices=envs.task_names.index(task))[0]

    base = goals(make_suite(Protocol("custom", tasks=("reach", "push")), seed=0, workers=0), "push-v3")
    alone = goals(make_suite(Protocol("push"), seed=0, workers=0, evaluation=True), "push-v3")
    other = goals(make_suite(Protocol("push"), seed=1, workers=0), "push-v3")
    seeded = goals(make_suite(Protocol("push", goal_seed=0), seed=1, workers=0), "push-v3")
    fixed = goals(make_suite(Protocol("push", goals="fixed"), seed=0, workers=0), "push-v3")
    assert base.shape == (50, 6)
    assert len(np.unique(base, axis=0)) == 50
    np.testing.assert_array_equal(alone, base)
    np.testing.assert_array_equal(seeded, base)
    np.testing.assert_array_equal(fixed, base[:1])
    assert not np.array_equal(other, base)


def test_evaluation_meets_every_goal_exactly_once_in_order():
    envs = make_suite(Protocol("point", horizon=2), evaluation=True)
    envs.reset()
    met = []
    for _ in range(100):
        _, _, dones, infos = envs.step(np.zeros((5, 2)))
        met += [[info["goal"] for info in infos]] if dones.all() else []
    assert met == [[k] * 5 for k in range(50)]


def test_training_meets_goals_at_random_and_each_task_its_own():
    envs = make_suite(Protocol("point", horizon=1), seed=0)
    envs.reset()
    met = np.array([[info["goal"] for info in envs.step(np.zeros((5, 2)))[3]] for _ in range(400)])
    assert all(set(met[:, t]) == set(range(50)) for t in range(5))
    assert not any(np.array_equal(met[:, 0], met[:, t]) for t in range(1, 5))


def test_a_goal_can_be_asked_for_and_the_order_goes_on_from_there():
    envs = make_suite(Protocol("point", horizon=1), evaluation=True)
    envs.set_options({"goal": 48})
    first = envs.reset()
    assert [info["goal"] for info in envs.reset_infos] == [48] * 5
    met = []
    for _ in range(4):
        infos = envs.step(np.zeros((5, 2)))[3]
        met.append(infos[0]["goal"])
    assert met == [48, 49, 0, 1]
    assert envs.reset_infos[0]["goal"] == 2
    envs.set_options([{"goal": 48}, {}, {}, {}, {}])
    again = envs.reset()
    np.testing.assert_array_equal(again[0], first[0])
    assert [info["goal"] for info in envs.reset_infos] == [48, 3, 3, 3, 3]
    envs.set_options({"goal": 50})
    with pytest.raises(SuiteError, match=r"point-reach.*50.*0 to 49"):
        envs.reset()


def test_a_fixed_goal_is_the_same_in_training_and_evaluation():
    protocol = Protocol("point", horizon=1, goals="fixed")
    training, evaluation = make_suite(protocol, seed=5), make_suite(protocol, seed=5, evaluation=True)
    expected = training.reset()
    np.testing.assert_array_equal(evaluation.reset(), expected)
    for envs in (training, evaluation):
        for _ in range(3):
            observations, _, dones, infos = envs.step(np.zeros((5, 2)))
            assert dones.all()
            assert [info["goal"] for info in infos] == [0] * 5
            np.testing.assert_array_equal(observations, expected)


def test_observations_end_with_an_exact_one_hot_also_after_an_episode():
    envs = make_suite(PAIR, workers=0)
    assert envs.observation_space.shape == (41,)
    assert envs.action_space.shape == (4,)
    assert (envs.num_envs, envs.task_dim, envs.task_names) == (2, 2, ("reach-v3", "drawer-close-v3"))
    assert envs.protocol == PAIR
    observations = envs.reset()
    for _ in range(14):
        assert observations.dtype == np.float32
        assert observations.shape == (2, 41)
        np.testing.assert_array_equal(observations[:, 39:], np.eye(2))
        assert np.abs(observations[:, 36:39]).sum(axis=1).min() > 0.1  # the goal is visible
        observations, rewards, dones, _ = envs.step(np.zeros((2, 4)))
    assert rewards.dtype == np.float32
    assert dones.dtype == np.bool_


def test_an_episode_that_ends_hands_over_its_true_last_observation():
    envs, witness = make_suite(PAIR, seed=1, workers=0), make_suite(PAIR, seed=1, workers=0)
    first = envs.reset()
    witness.reset()
    plain = witness.get_attr("step")  # steps one task, without the reset at the end
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 2, 4)).astype(np.float32)
    for k, action in enumerate(actions):
        observations, rewards, dones, infos = envs.step(action)
        expected = [step(a) for step, a in zip(plain, action, strict=True)]
        for t in range(2):
            last = k == 11
            assert dones[t] == last
            assert infos[t]["TimeLimit.truncated"] == last
            assert ("terminal_observation" in infos[t]) == last
            seen = infos[t]["terminal_observation"] if last else observations[t]
            np.testing.assert_array_equal(seen, expected[t][0])
            assert rewards[t] == np.float32(expected[t][1])
    for t in range(2):
        assert infos[t]["episode"]["l"] == 12
        goal = envs.reset_infos[t]["goal"]
        witness.set_options({"goal": goal})
        np.testing.assert_array_equal(observations[t], witness.reset()[t])
    assert not np.array_equal(observations, first)


def test_the_episodes_return_is_the_sum_of_its_rewards():
    envs = make_suite(POINT)
    envs.reset()
    for _ in range(2):
        total = np.zeros(5)
        for _ in range(10):
            _, rewards, _, infos = envs.step(np.full((5, 2), 0.3))
            total += rewards
        np.testing.assert_allclose([info["episode"]["r"] for info in infos], total, rtol=1e-5)


def test_success_so_far_latches_and_starts_anew_with_the_episode():
    envs = make_suite({"own": OwnEnv}, horizon=4)
    envs.reset()
    now, so_far = [], []
    for _ in range(8):
        info = envs.step(np.zeros((1, 2)))[3][0]
        now.append(info["success"])
        so_far.append(info["is_success"])
    assert now == [False, True, False, False] * 2
    assert so_far == [False, True, True, True] * 2


def test_a_termination_is_not_a_time_limit():
    envs = make_suite({"ends": lambda: OwnEnv(length=3), "lasts": OwnEnv}, horizon=3)
    envs.reset()
    for _ in range(3):
        _, _, dones, infos = envs.step(np.zeros((2, 2)))
    assert dones.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [False, True]


@pytest.mark.parametrize("workers", [0, 2])
def test_ones_own_envs_make_a_suite_with_unit_actions(workers):
    envs = make_suite({"a": OwnEnv, "b": lambda: OwnEnv(low=-1.0, high=1.0)}, seed=2, workers=workers)
    try:
        observations = envs.reset()
        assert envs.protocol is None
        assert observations.shape == (2, 5)
        assert observations[0, 0] != observations[1, 0]
        stepped, *_ = envs.step(np.array([[-1.0, 0.5], [-1.0, 0.5]]))
        np.testing.assert_array_equal(stepped[:, :2], [[0.0, 7.5], [-1.0, 0.5]])
        np.testing.assert_array_equal(stepped[:, 3:], np.eye(2))
        again = make_suite({"a": OwnEnv, "b": lambda: OwnEnv(low=-1.0, high=1.0)}, seed=2, workers=0)
        np.testing.assert_array_equal(again.reset(), observations)
        assert envs.env_method("get_wrapper_attr", "size", indices=[1]) == [3]
        assert envs.get_attr("size") == [3, 3]
        envs.set_attr("bad", "reward", indices=0)
        assert envs.get_attr("bad") == ["reward", None]
        assert envs.env_is_wrapped(OwnEnv, indices=[1, 0]) == [True, True]
        assert envs.env_is_wrapped(str) == [False, False]
        assert not envs.has_attr("nonsense")
    finally:
        envs.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OwnEnv(size=4), "task b: its observations have 4 numbers, those of task a 3"),
        (lambda: OwnEnv(high=np.inf), "task b: its action space .* is not a bounded"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_envs_that_do_not_fit_together_are_refused(make, words, workers):
    with pytest.raises(SuiteError, match=words):
        make_suite({"a": OwnEnv, "b": make}, workers=workers)


def test_tasks_of_two_simulators_do_not_fit_together():
    with pytest.raises(SuiteError, match=r"task reach-v3: its observations have 39 numbers"):
        make_suite(Protocol("custom", tasks=("point-reach", "reach")), workers=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"protocol": {}}, "empty"),
        ({"protocol": "mt10"}, "'mt10' is neither a Protocol"),
        ({"protocol": POINT, "horizon": 3}, "horizon"),
        ({"protocol": {"a": OwnEnv}, "horizon": 0}, "horizon: 0"),
        ({"protocol": POINT, "seed": -1}, "seed: -1"),
        ({"protocol": POINT, "seed": None}, "seed: None"),
        ({"protocol": POINT, "workers": "many"}, "workers: 'many'"),
        (
            {"protocol": POINT, "workers": -1},
            "workers: -1 is neither 'auto' nor a whole number of at least 0",
        ),
        ({"protocol": POINT, "workers": True}, "workers: True"),
        ({"protocol": POINT, "workers": 1.0}, "workers: 1.0"),
        ({"protocol": POINT, "seed": 2**63}, "seed: 9223372036854775808"),
        ({"protocol": POINT, "seed": 10**5000}, "seed: a value of type int"),
        ({"protocol": POINT, "seed": np.float64(1)}, "seed: "),
        ({"protocol": POINT, "seed": np.True_}, "seed: "),
        ({"protocol": POINT, "evaluation": "no"}, "evaluation: 'no'"),
        ({"protocol": {"a": OwnEnv}, "horizon": 10**12}, "horizon: 1000000000000"),
        ({"protocol": {"a": OwnEnv}, "horizon": True}, "horizon: True"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments, words):
    with pytest.raises(SuiteError, match=words):
        make_suite(**arguments)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("quantity", ["observation", "reward"])
def test_a_number_that_is_not_finite_is_refused_by_task_quantity_and_step(workers, quantity):
    envs = make_suite({"good": OwnEnv, "wrong": lambda: OwnEnv(bad=quantity)}, workers=workers)
    try:
        envs.reset()
        for _ in range(2):
            envs.step(np.zeros((2, 2)))
        with pytest.raises(SuiteError, match=f"task wrong: the {quantity} is .* at step 3"):
            envs.step(np.zeros((2, 2)))
    finally:
        envs.close()


def test_large_finite_numbers_are_no_alarm():
    class Large(OwnEnv):
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.full(3, 3e38), {}

    assert make_suite({"large": Large}).reset()[0, 0] == np.float32(3e38)


def test_seeding_the_vec_env_starts_the_goals_anew():
    envs = make_suite(Protocol("point", horizon=1), seed=0)
    seen = []
    for _ in range(2):
        envs.seed(11)
        envs.reset()
        seen.append([[info["goal"] for info in envs.step(np.zeros((5, 2)))[3]] for _ in range(10)])
    assert seen[0] == seen[1]
    envs.seed(12)
    envs.reset()
    assert seen[0] != [[info["goal"] for info in envs.step(np.zeros((5, 2)))[3]] for _ in range(10)]


def test_the_observations_of_a_step_outlive_the_next():
    envs = make_suite(POINT)
    observations = envs.reset()
    copy = observations.copy()
    envs.step(np.ones((5, 2)))
    np.testing.assert_array_equal(observations, copy)


def test_the_point_suite_is_what_its_mapping_makes():
    as_mapping = make_suite(dict(POINT_TASKS), seed=4, horizon=10)
    np.testing.assert_array_equal(rollout(as_mapping, 25), rollout(make_suite(POINT, seed=4), 25))


def test_evaluation_does_not_repeat_the_training_of_ones_own_env():
    training, evaluation = (make_suite({"a": OwnEnv}, seed=2, evaluation=flag) for flag in (False, True))
    assert training.reset()[0, 0] != evaluation.reset()[0, 0]


@pytest.mark.parametrize("steps", [None, 0, 5])
def test_ones_own_envs_go_on_from_a_state_taken_at_any_time(steps):
    original, copy = (make_suite({"a": SavedEnv, "b": SavedEnv}, seed=seed, horizon=4) for seed in (2, 9))
    if steps is not None:
        original.reset()
        for _ in range(steps):
            original.step(np.zeros((2, 2)))
    copy.set_state(original.get_state())
    if steps is None:
        np.testing.assert_array_equal(copy.reset(), original.reset())
    for _ in range(6):
        expected, got = original.step(np.zeros((2, 2))), copy.step(np.zeros((2, 2)))
        for k in range(3):
            np.testing.assert_array_equal(got[k], expected[k])
        assert got[3][0].get("episode") == expected[3][0].get("episode")


def test_whole_numbers_of_numpy_are_whole_numbers():
    plain = make_suite({"a": OwnEnv}, seed=3, horizon=4, workers=0)
    numpy = make_suite({"a": OwnEnv}, seed=np.int64(3), horizon=np.int16(4), workers=np.uint8(0))
    np.testing.assert_array_equal(rollout(numpy, 9), rollout(plain, 9))
    envs = make_suite(POINT, evaluation=True)
    envs.set_options({"goal": np.int32(7)})
    envs.reset()
    assert envs.reset_infos[0]["goal"] == 7
    envs.set_options({"goal": True})
    with pytest.raises(SuiteError, match="task point-reach: goal: True"):
        envs.reset()


def test_a_state_of_the_tasks_in_another_order_is_refused_before_anything_changes():
    forth, back = (make_suite(dict.fromkeys(names, SavedEnv), seed=1) for names in ("ab", "ba"))
    for envs in (forth, back):
        envs.reset()
    before = back.get_state()
    with pytest.raises(SuiteError, match="the state is of tasks a, b, the suite has b, a"):
        back.set_state(forth.get_state())
    with pytest.raises(SuiteError, match="1 tasks"):
        back.set_state(forth.get_state()[:1])
    assert back.get_state() == before
