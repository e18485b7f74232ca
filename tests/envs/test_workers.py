"""Worker processes: what they load, how they die, how they start again."""

import os
import signal

import numpy as np
import pytest
from own_envs import OwnEnv
from stable_baselines3.common.monitor import Monitor

from mtrl.envs import Protocol, SuiteError, make_suite


def pids(envs):
    return [group.pid for group in envs._groups]


def test_a_worker_loads_no_torch_and_has_one_thread():
    envs = make_suite({"a": OwnEnv, "b": OwnEnv}, workers=2)
    try:
        envs.reset()
        assert envs.env_is_wrapped(Monitor) == [False, False]
        for modules in envs.get_attr("modules"):
            assert "mtrl.envs.wrappers" in modules
            assert "torch" not in modules
            assert "stable_baselines3" not in modules
        for pid in pids(envs):
            with open(f"/proc/{pid}/environ", "rb") as environment:
                assert b"OMP_NUM_THREADS=1" in environment.read().split(b"\0")
    finally:
        envs.close()


def test_a_meta_world_worker_loads_no_torch():
    envs = make_suite(Protocol("reach"), workers=1)
    try:
        with open(f"/proc/{pids(envs)[0]}/maps") as maps:
            libraries = maps.read()
        assert "libmujoco" in libraries
        assert "libtorch" not in libraries
    finally:
        envs.close()


def test_a_killed_worker_is_told_by_its_tasks_and_can_be_restarted_from_a_state():
    protocol = Protocol("point", horizon=7)
    envs, undisturbed = make_suite(protocol, workers=2), make_suite(protocol, workers=0)
    try:
        envs.reset()
        undisturbed.reset()
        actions = np.random.default_rng(0).uniform(-1, 1, (20, 5, 2))
        for action in actions[:4]:
            envs.step(action)
            undisturbed.step(action)
        state = envs.get_state()
        os.kill(pids(envs)[1], signal.SIGKILL)
        with pytest.raises(SuiteError, match="worker process of point-turn, point-opposite has died"):
            envs.step(actions[4])
        with pytest.raises(SuiteError, match="has died"):
            envs.get_state()
        assert envs.restart_workers() == ("point-turn", "point-opposite")
        assert envs.restart_workers() == ()
        envs.set_state(state)
        for action in actions[4:]:
            got, expected = envs.step(action), undisturbed.step(action)
            for a, b in zip(got[:3], expected[:3], strict=True):
                np.testing.assert_array_equal(a, b)
    finally:
        envs.close()


def test_an_error_in_one_worker_leaves_the_others_in_step():
    envs = make_suite({"good": OwnEnv, "wrong": lambda: OwnEnv(bad="crash")}, workers=2)
    try:
        envs.reset()
        for _ in range(2):
            envs.step(np.zeros((2, 2)))
        with pytest.raises(ZeroDivisionError, match="the third step"):
            envs.step(np.zeros((2, 2)))
        assert envs.get_attr("steps") == [3, 3]
    finally:
        envs.close()


def test_an_error_while_a_worker_builds_its_tasks_arrives():
    def broken():
        raise FileNotFoundError("the model of the task")

    with pytest.raises(FileNotFoundError, match="the model of the task"):
        make_suite({"a": broken}, workers=1)


def test_workers_outlive_the_signals_that_end_a_run_and_end_with_it():
    envs = make_suite(Protocol("point", horizon=7), workers=2)
    envs.reset()
    processes = [group._process for group in envs._groups]
    for pid in pids(envs):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGUSR1)
        assert os.getsid(pid) != os.getsid(0)
    assert len(envs.get_state()) == 5
    envs.close()
    envs.close()
    assert [process.returncode for process in processes] == [0, 0]
