"""Every Meta-World task: equal to stock Meta-World, goals without simulating, state to the last bit."""

import pickle
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.types import Task

from mtrl.envs import Protocol, SuiteError, make_suite
from mtrl.envs.simulator import MetaWorldTask
from mtrl.envs.wrappers import TaskEnv, TaskSpec

HORIZON = 12


def spec(name):
    return TaskSpec(
        name=name,
        make=partial(MetaWorldTask, name, "v2"),
        index=1,
        num_tasks=3,
        horizon=HORIZON,
        num_goals=4,
        goal_seed=0,
        seed=0,
        evaluation=False,
    )


@pytest.fixture(scope="module", params=list(ALL_V3_ENVIRONMENTS))
def task(request, compiled_once):
    """One task three times: ours, ours again, and stock."""
    ours, fresh = TaskEnv(spec(request.param)), TaskEnv(spec(request.param))
    return SimpleNamespace(
        name=request.param, ours=ours, fresh=fresh, stock=ALL_V3_ENVIRONMENTS[request.param]()
    )


def set_stock_goal(stock, goal):
    data = {"rand_vec": goal, "env_cls": type(stock), "partially_observable": False}
    stock.set_task(Task(stock.task_name, pickle.dumps(data)))


@pytest.mark.parametrize("reward", ["v2", "v1"])
def test_state_goes_on_bit_for_bit_in_a_fresh_env(task, reward):
    for env in (task.ours, task.fresh):
        env.unwrapped.reward_function_version = reward
    actions = np.random.default_rng(1).uniform(-1, 1, (7 + 20, 4)).astype(np.float32)

    def step(env, action):
        observation, value, _, truncated, info = env.step(action)
        seen = [observation, [value, truncated, info["success"], info["is_success"], info["goal"]]]
        if truncated:
            observation, info = env.reset()
            seen += [[info["goal"]], observation]
        return np.concatenate(seen)

    task.ours.reset()
    for action in actions[:7]:
        step(task.ours, action)
    state = task.ours.get_state()
    expected = [step(task.ours, action) for action in actions[7:]]
    task.fresh.set_state(plain(state))
    for action, seen in zip(actions[7:], expected, strict=True):
        np.testing.assert_array_equal(step(task.fresh, action), seen)
    assert sum(len(seen) > 42 + 5 for seen in expected) == 2  # two episodes ended on the way


def plain(value):
    """A copy of plain data; a failure when there is anything else in it."""
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        assert value.dtype != object
        return value.copy()
    assert value is None or type(value) in (bool, int, float, str), type(value)
    return value


@pytest.mark.parametrize("reward", ["v2", "v1"])
def test_a_step_is_stock_meta_worlds(task, reward):
    task.ours.unwrapped.reward_function_version = task.stock.reward_function_version = reward
    actions = np.random.default_rng(2).uniform(-1, 1, (HORIZON, 4)).astype(np.float32)
    for k in (2, 1):
        observation, _ = task.ours.reset(options={"goal": k})
        set_stock_goal(task.stock, task.ours._goals[k])
        expected, _ = task.stock.reset()
        np.testing.assert_array_equal(observation[:39], expected.astype(np.float32))
        for action in actions:
            observation, value, terminated, truncated, info = task.ours.step(action)
            expected, stock_value, _, _, stock_info = task.stock.step(action)
            np.testing.assert_array_equal(observation[:39], expected.astype(np.float32))
            np.testing.assert_array_equal(observation[39:], [0, 1, 0])
            assert value == stock_value
            assert info["success"] == bool(stock_info["success"])
            assert not terminated
        assert truncated


def test_goals_are_those_that_whole_resets_draw(task):
    stock = task.stock
    set_stock_goal(stock, task.ours._goals[0])
    stock.reset()
    stock._freeze_rand_vec, stock.seeded_rand_vec = False, True
    stock._np_random = np.random.default_rng((5, 6))
    expected = []
    for _ in range(6):
        stock.reset_model()
        expected.append(stock._last_rand_vec.copy())
    np.testing.assert_array_equal(task.ours.env.draw_goals(6, (5, 6)), expected)


def test_drawing_goals_leaves_no_trace(task):
    before = plain(task.ours.get_state())
    task.ours.env.draw_goals(3, (7, 8))
    np.testing.assert_equal(plain(task.ours.get_state()), before)


def test_resets_change_no_field_of_the_model_but_those_that_are_saved(task):
    def fields():
        model = task.fresh.unwrapped.model
        arrays = {name: getattr(model, name, None) for name in dir(model) if not name.startswith("_")}
        return {name: array.copy() for name, array in arrays.items() if isinstance(array, np.ndarray)}

    task.fresh.reset(options={"goal": 0})
    before = fields()
    task.fresh.reset(options={"goal": 3})
    for _ in range(3):
        task.fresh.step(np.ones(4, np.float32))
    after = fields()
    changed = {name for name in before if not np.array_equal(after[name], before[name], equal_nan=True)}
    assert changed <= {"body_pos", "site_pos"}


def test_the_two_rewards_differ_and_there_is_no_third():
    first, second = (make_suite(Protocol("push", reward=version), workers=0) for version in ("v1", "v2"))
    np.testing.assert_array_equal(first.reset(), second.reset())
    action = np.full((1, 4), 0.5)
    assert first.step(action)[1] != second.step(action)[1]
    with pytest.raises(SuiteError, match="reward: 'v4'"):
        Protocol("push", reward="v4")


def test_live_views_of_the_simulator_stay_live():
    # basketball-v3 keeps its target, and every task two finger positions, as views that move with the hand.
    original, copy = (MetaWorldTask("basketball-v3", "v2") for _ in range(2))
    original.set_goal(original.draw_goals(1, (0,))[0])
    original.reset()
    copy.set_state(original.get_state())
    raw = copy.unwrapped
    before = raw.init_left_pad.copy()
    for _ in range(5):
        copy.step(np.ones(4, np.float32))
    assert not np.array_equal(raw.init_left_pad, before)
    np.testing.assert_array_equal(raw.init_left_pad, raw.data.body("leftpad").xpos)
    assert np.shares_memory(raw._target_pos, raw.data.site_xpos)


def test_an_attribute_that_cannot_be_saved_is_named():
    env = MetaWorldTask("reach-v3", "v2")
    env.unwrapped.something = object()
    with pytest.raises(TypeError, match=r"something.*object"):
        env.get_state()


@pytest.mark.filterwarnings("ignore:Constant")  # the experts' actions are larger than the bounds
def test_the_scripted_experts_succeed_in_evaluation():
    envs = make_suite(Protocol("mt10"), seed=0, workers=0, evaluation=True)
    policies = [ENV_POLICY_MAP[name]() for name in envs.task_names]
    solved = []
    for _ in range(8):
        observations = envs.reset()
        for _ in range(300):
            own = observations[:, :39].astype(np.float64)
            actions = [policy.get_action(o) for policy, o in zip(policies, own, strict=True)]
            observations, _, _, infos = envs.step(np.clip(actions, -1, 1))
            done = [info["is_success"] for info in infos]
            if all(done):
                break
        solved.append(done)
    rates = np.mean(solved, axis=0)
    assert rates.mean() >= 0.9, dict(zip(envs.task_names, rates, strict=True))
    assert rates.min() >= 0.8, dict(zip(envs.task_names, rates, strict=True))
