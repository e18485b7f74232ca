"""What envs of one's own may be, return and be wrapped in; what else is refused in one line that names the task."""

import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeObservation, OrderEnforcing, RescaleAction, TimeLimit
from own_envs import OwnEnv, SavedEnv
from stable_baselines3.common.monitor import Monitor

from mtrl.envs import SuiteError, make_suite
from mtrl.envs.point import PointEnv

gym.register("Point-v0", PointEnv, max_episode_steps=5)
WRAPPED = {
    "gym.make": lambda: gym.make("Point-v0"),
    "TimeLimit": lambda: TimeLimit(PointEnv(), 5),
    "RescaleAction": lambda: RescaleAction(PointEnv(), np.float32(-1), np.float32(1)),
    "Monitor": lambda: Monitor(PointEnv()),
    "three": lambda: Monitor(OrderEnforcing(TimeLimit(PointEnv(), 5))),
}


def rollout(envs, steps):
    draws = np.random.default_rng(0)
    return [envs.step(draws.uniform(-1, 1, (envs.num_envs, 2)).astype(np.float32))[:3] for _ in range(steps)]


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_goals_reach_an_env_inside_wrappers(wrapped):
    bare, inside = (
        make_suite({"a": make}, horizon=5, evaluation=True) for make in (PointEnv, WRAPPED[wrapped])
    )
    np.testing.assert_array_equal(bare.reset(), inside.reset())
    for one, other in zip(rollout(bare, 23), rollout(inside, 23), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("steps", [0, 3, 7])
def test_an_env_inside_wrappers_goes_on_from_a_state_taken_at_any_time(wrapped, steps):
    original, copy = (make_suite({"a": WRAPPED[wrapped]}, seed=1) for _ in range(2))
    original.reset()
    copy.reset()
    if wrapped not in ("RescaleAction", "Monitor"):  # whose episodes do not end
        rollout(original, steps)
    copy.set_state(original.get_state())
    for one, other in zip(rollout(original, 9), rollout(copy, 9), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_wrapper_whose_state_is_no_plain_data_is_named_when_it_is_to_be_saved():
    envs = make_suite({"a": lambda: NormalizeObservation(SavedEnv())}, horizon=3)
    envs.reset()
    with pytest.raises(SuiteError, match=r"task a: its wrapper NormalizeObservation holds 'obs_rms'"):
        envs.get_state()


class Tells(OwnEnv):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def step(self, action):
        return (*super().step(action)[:4], {"success": self.value})


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (True, True), (np.True_, True), (1, True), (1.0, True), (np.float32(0), False), (np.array([False]), False),
        (torch.tensor(1), True), (torch.tensor([0.0]), False), (np.array(1), True),
    ],
)  # fmt: skip
def test_success_is_a_bool_0_or_1_of_any_library(value, meant):
    envs = make_suite({"a": lambda: Tells(value)}, horizon=2)
    envs.reset()
    info = envs.step(np.zeros((1, 2)))[3][0]
    assert (info["success"], info["is_success"]) == (meant, meant)
    assert type(info["success"]) is bool


@pytest.mark.parametrize(
    "value",
    [None, "False", "0", "1", float("nan"), [False], np.array([False, False]), -1, 0.3, 2, {"task": False}, 1j,
     torch.ones(2), np.array(["1"])],
)  # fmt: skip
def test_another_success_is_refused_by_task_value_and_step(value):
    envs = make_suite({"a": lambda: Tells(value)}, horizon=2)
    envs.reset()
    with pytest.raises(
        SuiteError, match=r"task a: success is .* at step 1 of the episode; it must be a bool, 0 or 1"
    ):
        envs.step(np.zeros((1, 2)))


class Returns(OwnEnv):
    """An env whose step is changed by a function."""

    def __init__(self, change, start=None):
        super().__init__(size=3)
        self.change, self.start = change, start

    def reset(self, *, seed=None, options=None):
        started = super().reset(seed=seed)
        return started if self.start is None else self.start(started)

    def step(self, action):
        return self.change(super().step(action))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: (0.5, *s[1:]), r"an observation of shape \(\)"),
        (lambda s: (np.array([0.5]), *s[1:]), r"an observation of shape \(1,\)"),
        (lambda s: (s[0][None], *s[1:]), r"an observation of shape \(1, 3\)"),
        (lambda s: (s[0].astype(complex), *s[1:]), r"an observation of shape \(3,\) and type complex128"),
        (lambda s: (s[0].astype(str), *s[1:]), r"an observation of shape \(3,\) and type <U"),
        (lambda s: (s[0], 1j, *s[2:]), "the reward is 1j"),
        (lambda s: (s[0], "1.0", *s[2:]), "the reward is '1.0'"),
        (lambda s: (s[0], None, *s[2:]), "the reward is None"),
        (lambda s: (s[0], np.ones(2), *s[2:]), "the reward is array"),
        (lambda s: (s[0], float("inf"), *s[2:]), "the reward is inf"),
        (lambda s: s[:4], "a step returns an observation, a reward, terminated"),
        (lambda s: (*s[:4], None), "a step returns an observation, a reward, terminated"),
        (lambda s: list(s), "a step returns an observation, a reward, terminated"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_step_that_is_none_is_refused_by_the_tasks_name(change, words, workers):
    envs = make_suite({"good": OwnEnv, "odd": lambda: Returns(change)}, workers=workers)
    try:
        envs.reset()
        with pytest.raises(SuiteError, match=f"task odd: {words}"):
            envs.step(np.zeros((2, 2)))
    finally:
        envs.close()


@pytest.mark.parametrize("start", [lambda s: s[0], lambda s: (s[0], None), lambda s: (*s, 1)])
def test_a_reset_that_is_none_is_refused_by_the_tasks_name(start):
    with pytest.raises(SuiteError, match="task odd: a reset returns an observation and an info"):
        make_suite({"odd": lambda: Returns(lambda s: s, start)}).reset()


class Box(gym.Env):
    """Refuses an action that is not in its box."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, low, high, dtype):
        self.action_space = gym.spaces.Box(np.full(3, low, dtype), np.full(3, high, dtype), dtype=dtype)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), (action, self.action_space)
        return np.zeros(2, np.float32), 0.0, False, False, {"success": False}


def test_every_action_lies_in_the_envs_box():
    draws = np.random.default_rng(0)
    for _ in range(200):
        low, high = np.sort(draws.normal(size=2) * 10 ** draws.uniform(-3, 3))
        dtype = [np.float32, np.float64][int(draws.integers(2))]
        envs = make_suite({"a": lambda low=low, high=high, dtype=dtype: Box(low, high, dtype)})
        envs.reset()
        for action in (np.ones(3), -np.ones(3), draws.uniform(-1, 1, 3), 7 * np.ones(3)):
            envs.step(action[None].astype(np.float32))


def test_a_box_of_whole_numbers_is_refused():
    with pytest.raises(SuiteError, match="holds whole numbers"):
        make_suite({"a": lambda: Box(0, 4, np.int64)})


def test_an_env_that_changes_its_action_changes_it_for_itself_alone():
    class Scales(OwnEnv):
        def step(self, action):
            action *= 0
            return super().step(action)

    envs = make_suite({"a": lambda: Scales(low=-1.0, high=1.0)})
    envs.reset()
    actions = np.full((1, 2), 0.5, np.float32)
    envs.step(actions)
    assert (actions == 0.5).all()


def test_one_env_object_serves_one_task_at_a_time():
    one = OwnEnv()
    with pytest.raises(SuiteError, match="task b: its env object is in use by task a already"):
        make_suite({"a": lambda: one, "b": lambda: TimeLimit(one, 3)})
    training = make_suite({"a": lambda: one})
    with pytest.raises(SuiteError, match="task a: its env object is in use"):
        make_suite({"a": lambda: one}, evaluation=True)
    training.close()
    make_suite({"a": lambda: one}, evaluation=True)


@pytest.mark.parametrize(
    ("suite", "words"),
    [
        ({"a": OwnEnv()}, "task a: OwnEnv is no function that makes an env"),
        ({"a": "Pendulum-v1"}, "task a: str is no function that makes an env"),
        ({"a": lambda seed: OwnEnv()}, "task a: its maker is called without arguments"),
        ({"a": lambda: 3}, "task a: its maker returned int, not a gymnasium env"),
        ({1: OwnEnv}, "task 1: a task's name is a string"),
        ([OwnEnv, OwnEnv], "neither a Protocol nor a mapping"),
    ],
)
def test_what_makes_no_env_is_refused(suite, words):
    with pytest.raises(SuiteError, match=words):
        make_suite(suite)


def test_whole_numbers_of_any_library_are_whole_numbers():
    envs = make_suite({"a": OwnEnv}, seed=np.int64(3), workers=np.int32(0), horizon=np.uint8(4))
    assert len(rollout(envs, 0)) == 0
    for bad in (True, 1.0, "1", np.float64(2)):
        with pytest.raises(SuiteError, match="seed"):
            make_suite({"a": OwnEnv}, seed=bad)


class Hangs(OwnEnv):
    def step(self, action):
        time.sleep(60)


def test_a_worker_that_hangs_is_ended_after_the_timeout_and_named():
    envs = make_suite({"a": OwnEnv, "b": Hangs}, workers=2, timeout=2.0)
    try:
        envs.reset()
        with pytest.raises(SuiteError, match="the worker process of b has not answered for 2 seconds"):
            envs.step(np.zeros((2, 2)))
        assert envs.restart_workers() == ("b",)
    finally:
        envs.close()


PARENT = """
import os, sys
sys.path[:0] = {path!r}
import numpy as np
from test_own_envs import Hangs
from mtrl.envs import make_suite
envs = make_suite({{"b": Hangs}}, workers=1)
envs.reset()
envs.step_async(np.zeros((1, 2)))
print(envs._groups[0].pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_worker_that_hangs_ends_with_its_killed_parent():
    path = [os.path.dirname(__file__), *sys.path]
    done = subprocess.run([sys.executable, "-c", PARENT.format(path=path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    worker = int(done.stdout)
    for _ in range(50):
        try:
            with open(f"/proc/{worker}/stat") as file:
                if file.read().split(")")[1].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {worker} goes on")


def test_a_worker_imports_nothing_of_the_current_folder(tmp_path):
    for name in ("envs", "mtrl", "numpy", "json", "random", "cloudpickle"):
        (tmp_path / f"{name}.py").write_text(f"open('EXECUTED-{name}', 'w')\n")
    code = (
        f"import sys; sys.path[:] = {[p for p in sys.path if p]!r}\n"
        "from mtrl.envs import Protocol, make_suite\n"
        "envs = make_suite(Protocol('point'), workers=1)\nenvs.reset()\nenvs.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.glob("EXECUTED*")] == []
