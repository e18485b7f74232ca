"""One's own envs inside gymnasium's wrappers: goals, states, and one object for one task."""

import itertools
import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from own_envs import OwnEnv, SavedEnv
from stable_baselines3.common.monitor import Monitor

from mtrl.envs import Protocol, SuiteError, make_suite
from mtrl.envs.point import PointEnv
from mtrl.evaluate import evaluate
from mtrl.sac import MTSAC

gym.register("Saved-v0", SavedEnv, max_episode_steps=5)


class Halves(gym.Wrapper):
    """A wrapper of a user, with state of its own: every second reward counts half."""

    def __init__(self, env):
        super().__init__(env)
        self.turn = np.int64(0)
        self.draws = np.random.default_rng(1)
        self.last = [(1, "x"), {"a": np.arange(2)}]

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        self.turn += 1
        self.last = [(int(self.turn), "y"), {"a": observation.copy()}]
        return observation, reward / (1 + self.turn % 2) + self.draws.random(), *rest


class Squares(gym.Wrapper):
    """A wrapper that holds what cannot be saved."""

    def __init__(self, env):
        super().__init__(env)
        self.log = open("/dev/null")  # noqa: SIM115


class Delegates(Squares):
    """And one that can save it for itself and all within."""

    def get_state(self):
        return {"inner": self.env.get_state()}

    def set_state(self, state):
        self.env.set_state(state["inner"])


class Forwards(gym.Wrapper):
    """As many write them: what it has not is asked of the env; and it has a state of its own."""

    def __init__(self, env):
        super().__init__(env)
        self.steps = 0

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.env, name)

    def step(self, action):
        self.steps += 1
        observation, reward, *rest = self.env.step(action)
        return observation, reward + self.steps, *rest


class Samples(gym.Wrapper):
    """Adds what it draws from its action space."""

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        return observation, reward + float(self.action_space.sample()[0]), *rest


class Adaptor(gym.Env):
    """An env that asks another object for what it has not."""

    def __init__(self):
        self.inner = SavedEnv(length=5)
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space

    def __getattr__(self, name):
        return getattr(vars(self)["inner"], name)

    def reset(self, *, seed=None, options=None):
        return self.inner.reset(seed=seed, options=options)

    def step(self, action):
        return self.inner.step(action)


def still(wrapper):
    wrapper.update_running_mean = False
    return wrapper


def counted(env):
    """A reward that a function changes, which keeps a variable of the one around it."""
    steps = 0

    def scale(reward):
        nonlocal steps
        steps += 1
        return reward * steps

    return wrappers.TransformReward(env, scale)


WRAPPED = {
    "gym.make": lambda: gym.make("Saved-v0"),
    "TimeLimit": lambda: wrappers.TimeLimit(SavedEnv(), 5),
    "RescaleAction": lambda: wrappers.RescaleAction(SavedEnv(), np.float32(-2), np.float32(3)),
    "Monitor": lambda: Monitor(SavedEnv(length=5)),
    "RecordEpisodeStatistics": lambda: wrappers.RecordEpisodeStatistics(SavedEnv(length=5), buffer_length=2),
    "NormalizeObservation": lambda: still(wrappers.NormalizeObservation(SavedEnv())),
    "NormalizeReward": lambda: still(wrappers.NormalizeReward(SavedEnv())),
    "TimeAwareObservation": lambda: wrappers.TimeAwareObservation(wrappers.TimeLimit(SavedEnv(), 5)),
    "DelayObservation": lambda: wrappers.DelayObservation(SavedEnv(), 2),
    "FrameStack": lambda: wrappers.FlattenObservation(wrappers.FrameStackObservation(SavedEnv(), 3)),
    "TransformReward": lambda: wrappers.TransformReward(SavedEnv(), lambda reward: 2 * reward),
    "an adaptor": lambda: wrappers.TimeLimit(Adaptor(), 5),
    "forwarding": lambda: wrappers.TimeLimit(Forwards(SavedEnv()), 5),
    "sampling": lambda: wrappers.TimeLimit(Samples(SavedEnv()), 5),
    "a closure": lambda: counted(SavedEnv()),
    "one's own": lambda: Halves(wrappers.TimeLimit(SavedEnv(), 5)),
    "delegating": lambda: wrappers.TimeLimit(Delegates(SavedEnv()), 5),
}


def steps_of(envs, number, seed):
    actions = np.random.default_rng(seed).uniform(-1, 1, (number, 1, 2))
    seen = []
    for action in actions:
        observations, rewards, dones, infos = envs.step(action)
        seen.append([*observations.ravel(), *rewards, *dones, infos[0].get("episode", {}).get("l", 0)])
    return np.array(seen)


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("steps", [0, 2, 8])
def test_an_env_in_a_wrapper_goes_on_bit_for_bit_from_a_state_taken_mid_episode(name, steps):
    original, copy = (make_suite({"a": WRAPPED[name]}, seed=seed, horizon=7) for seed in (2, 9))
    original.reset()
    steps_of(original, steps, seed=0)
    state = original.get_state()
    # the copy has a past of its own, which must leave nothing
    copy.reset()
    steps_of(copy, 3, seed=5)
    copy.set_state(state)
    np.testing.assert_array_equal(steps_of(copy, 12, seed=1), steps_of(original, 12, seed=1))
    # and a state is a copy: what was stepped since did not change it
    copy.set_state(state)
    again = steps_of(copy, 12, seed=1)
    copy.set_state(state)
    np.testing.assert_array_equal(steps_of(copy, 12, seed=1), again)


def test_a_wrapped_envs_state_is_plain_data():
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.tolist() if type(value) is np.ndarray else value

    own = ("TimeAwareObservation", "FrameStack")  # observations of other sizes
    envs = make_suite({name: make for name, make in WRAPPED.items() if name not in own}, horizon=7)
    envs.reset()
    json.dumps(plain(envs.get_state()))


def test_a_wrapper_that_cannot_be_saved_is_named():
    envs = make_suite({"a": SavedEnv, "b": lambda: wrappers.TimeLimit(Squares(SavedEnv()), 5)})
    envs.reset()
    with pytest.raises(
        SuiteError, match=r"task b: its wrapper Squares cannot be saved .attribute log of type"
    ):
        envs.get_state()
    bare = make_suite({"a": lambda: wrappers.TimeLimit(OwnEnv(), 5)})
    with pytest.raises(SuiteError, match="task a: its env has no get_state and set_state"):
        bare.get_state()


@pytest.mark.parametrize("wrapper", [wrappers.NormalizeObservation, wrappers.NormalizeReward])
def test_a_wrapper_that_learns_as_it_goes_is_refused_and_the_env_is_free_again(wrapper):
    env = wrappers.TimeLimit(wrapper(SavedEnv()), 5)
    with pytest.raises(
        SuiteError, match=f"task a: its wrapper {wrapper.__name__} learns as it goes"
    ) as caught:
        make_suite({"a": lambda: env})
    still(env.env)
    make_suite({"a": lambda: env})  # though the exception, with all that it refers to, is still there
    assert caught.value


def test_an_env_whose_metadata_have_no_frame_rate_is_taken():
    class Silent(SavedEnv):
        metadata = {"render_modes": [], "render_fps": None}  # noqa: RUF012

    assert make_suite({"a": Silent}).metadata["render_fps"] == 30


def test_a_state_of_other_wrappers_is_refused():
    state = make_suite({"a": WRAPPED["TimeLimit"]}).get_state()
    with pytest.raises(
        SuiteError, match=r"task a: the state is of an env in wrappers .*TimeLimit.* has \[\]"
    ):
        make_suite({"a": SavedEnv}).set_state(state)


@pytest.mark.parametrize("wrap", [lambda env: wrappers.TimeLimit(env, 4), Monitor])
def test_goals_reach_an_env_through_its_wrappers(wrap):
    bare, wrapped = (
        make_suite({"a": make}, horizon=4, evaluation=True) for make in (PointEnv, lambda: wrap(PointEnv()))
    )
    np.testing.assert_array_equal(wrapped.reset(), bare.reset())
    goals = []
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 1, 2)):
        expected, got = bare.step(action), wrapped.step(action)
        for k in range(3):
            np.testing.assert_array_equal(got[k], expected[k])
        goals += [got[3][0]["goal"]] if got[2][0] else []
    assert goals == [0, 1, 2, 3, 4]


def test_an_untrained_policy_scores_the_same_in_and_out_of_a_wrapper():
    rates = []
    for make in (PointEnv, lambda: wrappers.TimeLimit(PointEnv(), 30)):
        envs = make_suite({"point": make}, horizon=30, evaluation=True)
        agent = MTSAC(envs.observation_dim, envs.action_dim, envs.task_names)
        rates.append(evaluate(agent, envs, 20, envs.task_names).mean_success)
    assert rates[0] == rates[1] < 0.5


def test_an_env_may_change_the_goal_that_it_is_given():
    class Spoils(PointEnv):
        def set_goal(self, goal):
            super().set_goal(goal)
            goal[:] = 0.0

    spoilt, kept = (make_suite({"a": kind}, horizon=1, evaluation=True) for kind in (Spoils, PointEnv))
    for _ in range(2):
        for envs in (spoilt, kept):
            envs.set_options({"goal": 3})
        np.testing.assert_array_equal(spoilt.reset(), kept.reset())


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: wrappers.TimeLimit(env, 3)])
def test_one_env_for_two_tasks_is_refused(wrap):
    one = OwnEnv()
    with pytest.raises(SuiteError, match="task b: its env is the same object as that of task a"):
        make_suite({"a": lambda: one, "b": lambda: wrap(one)})


def test_one_env_for_training_and_evaluation_is_refused_until_the_first_suite_is_closed():
    one = OwnEnv()
    training = make_suite({"a": lambda: one})
    with pytest.raises(SuiteError, match="task a: its env is the same object as that of task a"):
        make_suite({"a": lambda: one}, evaluation=True)
    training.close()
    make_suite({"a": lambda: one}, evaluation=True).reset()


def test_two_envs_of_one_class_are_two():
    for _ in range(3):  # ids of objects that are gone come again
        envs = make_suite({"a": OwnEnv, "b": OwnEnv})
        envs.reset()


def test_a_protocol_may_be_made_twice():
    suites = [make_suite(Protocol("point"), evaluation=flag) for flag in (False, True)]
    assert all(a is not b for a, b in itertools.combinations(suites, 2))
