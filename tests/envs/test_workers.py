"""Worker processes: what they load, how they die, how they start again."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from own_envs import HangingEnv, OwnEnv
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


def test_a_task_that_hangs_is_named_and_its_worker_is_ended_and_can_be_restarted():
    envs = make_suite(
        {"good": OwnEnv, "hangs": HangingEnv, "other": OwnEnv}, workers=1, horizon=9, step_timeout=1
    )
    try:
        envs.reset()
        envs.step(np.zeros((3, 2)))
        with pytest.raises(SuiteError, match=r"task hangs: its env has not gone on for 1 s \(step_timeout\)"):
            envs.step(np.zeros((3, 2)))
        assert envs.restart_workers() == ("good", "hangs", "other")
        envs.reset()
        envs.step(np.zeros((3, 2)))
    finally:
        envs.close()


@pytest.mark.parametrize("value", [0, -1, None, "1", True, float("nan")])
def test_a_step_timeout_is_a_number_of_seconds(value):
    with pytest.raises(SuiteError, match="step_timeout"):
        make_suite(Protocol("point"), step_timeout=value)


PARENT = """
import sys, threading
sys.path.insert(0, {tests!r})
from own_envs import HangingEnv
from mtrl.envs import make_suite
import numpy as np
made = []
def make():
    made.append(make_suite({{"hangs": HangingEnv}}, workers=1))
if {thread}:
    maker = threading.Thread(target=make)
    maker.start()
    maker.join()  # the workers of a thread that ends go on
else:
    make()
envs = made[0]
envs.reset()
envs.step(np.zeros((1, 2)))
print(envs._groups[0].pid, flush=True)
envs.step(np.zeros((1, 2)))
"""


@pytest.mark.parametrize("thread", [False, True])
def test_a_worker_that_hangs_does_not_outlive_its_killed_parent(thread):
    program = PARENT.format(tests=str(Path(__file__).parent), thread=thread)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    assert alive(pid)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, and waits for an init to notice


NAMES = (
    "envs",
    "mtrl",
    "torch",
    "random",
    "json",
    "ctypes",
    "struct",
    "numpy",
    "cloudpickle",
    "mujoco",
    "site",
)


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """The current folder holds modules that leave a mark when they are imported; returns the mark."""
    mark = tmp_path / "IMPORTED"
    for name in (*NAMES, "sitecustomize", "usercustomize"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [os.path.abspath(entry) for entry in sys.path if entry])
    return mark


@pytest.mark.parametrize("variable", [None, "", ":", ":/nowhere:"])
def test_a_worker_imports_nothing_from_the_current_folder(trap, variable, monkeypatch):
    if variable is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", variable)
    envs = make_suite({"a": OwnEnv}, workers=1)
    try:
        envs.reset()
        assert envs.get_attr("pythonpath") == [variable]  # for what the env starts itself
        assert "" not in envs.get_attr("path")[0]
        assert os.getcwd() not in envs.get_attr("path")[0]
    finally:
        envs.close()
    assert not trap.exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="glfw's own subprocess has no safe path before")
def test_a_meta_world_worker_and_the_doctor_import_nothing_from_the_current_folder(trap):
    from mtrl.commands import doctor

    envs = make_suite(Protocol("reach"), workers=1)
    envs.close()
    with contextlib.suppress(RuntimeError):  # this machine may have no OpenGL
        doctor.render()
    assert not trap.exists()


def test_a_worker_finds_a_module_that_the_parent_can_import(tmp_path, monkeypatch):
    (tmp_path / "my:envs").mkdir()  # a colon would end an entry of PYTHONPATH
    (tmp_path / "my:envs" / "of_a_user.py").write_text(
        "from own_envs import OwnEnv\nclass Mine(OwnEnv): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("my:envs")  # relative
    from of_a_user import Mine

    envs = make_suite({"a": Mine}, workers=1)
    envs.reset()
    envs.close()
