"""Pictures of a suite: the right env's, in turn, the right way up; and nothing of an episode changes by them."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecVideoRecorder

from mtrl.envs import Protocol, SuiteError, make_suite, screen
from mtrl.envs.point import PointEnv

TASKS = ("reach-v3", "drawer-open-v3", "peg-insert-side-v3")


@pytest.fixture(scope="module")
def needs_screen() -> None:
    try:
        screen.drawing()
    except SuiteError as error:
        pytest.skip(str(error))


def play(tasks: tuple[str, ...], steps: int, **named: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Observations of some steps of the same actions, and the pictures at each."""
    envs = make_suite(Protocol("custom", tasks=tasks, num_goals=2), evaluation=True, **named)
    try:
        envs.seed(0)
        observations, pictures = [envs.reset()], []
        for step in range(steps):
            action = np.random.default_rng(step).uniform(-1, 1, 4).astype(np.float32)
            observations.append(envs.step(np.tile(action, (len(tasks), 1)))[0])
            if envs.render_mode:
                pictures.append(np.stack(envs.get_images()))
    finally:
        envs.close()
    return observations, pictures


@pytest.mark.usefixtures("needs_screen")
def test_each_simulated_env_in_turn_shows_what_it_shows_alone_and_steps_as_without_pictures() -> None:
    plain, _ = play(TASKS, 2, workers=0)
    seen, together = play(TASKS, 2, render_mode="rgb_array", workers=1)
    np.testing.assert_array_equal(plain, seen)
    for t, task in enumerate(TASKS):
        _, alone = play((task,), 2, render_mode="rgb_array")
        np.testing.assert_array_equal([pictures[t] for pictures in together], [p[0] for p in alone])
    assert len({pictures.tobytes() for pictures in together[0]}) == len(TASKS)
    assert (together[0] != together[-1]).any()


@pytest.mark.usefixtures("needs_screen")
def test_simulated_pictures_are_the_right_way_up() -> None:
    _, pictures = play(("reach-v3",), 1, render_mode="rgb_array")
    picture = pictures[0][0].astype(int)
    red = (picture[..., 0] > 100) & (picture[..., 1] < 60) & (picture[..., 2] < 60)
    brown = (picture[..., 0] - picture[..., 2] > 30) & ~red
    assert red.sum() > 1000
    assert brown.sum() > 1000
    assert np.nonzero(red)[0].mean() < np.nonzero(brown)[0].mean()  # the arm is above the table


def test_no_picture_sets_a_variable_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(screen, "_works", lambda way: True)
    screen.drawing.cache_clear()
    screen.drawing()
    screen.drawing.cache_clear()
    assert "MUJOCO_GL" not in os.environ


def test_a_way_of_drawing_that_does_not_work_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(screen, "_works", lambda way: False)
    screen.drawing.cache_clear()
    with pytest.raises(SuiteError, match=r"MUJOCO_GL=osmesa; .*libosmesa6"):
        make_suite(Protocol("reach-v3"), render_mode="rgb_array")
    screen.drawing.cache_clear()


def test_a_way_of_drawing_that_is_not_there_keeps_nobody_from_training() -> None:
    step = (
        "import os; from mtrl.envs import Protocol, make_suite; envs = make_suite(Protocol('reach-v3'), workers=0); "
        "envs.reset(); print(os.environ['MUJOCO_GL'])"
    )
    variables = {**os.environ, "MUJOCO_GL": "nothing", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", step], env=variables, capture_output=True, text=True)
    assert done.stdout == "nothing\n", done.stderr


def test_the_point_is_blue_on_its_place_and_green_where_it_has_to_go() -> None:
    env = PointEnv(sign=-1.0, render_mode="rgb_array")
    env.set_goal(np.array([0.5, 0.5, 0.4, -0.6]))
    env.reset()
    picture = env.render()

    def at(x: float, y: float) -> list[int]:
        return picture[round((1.05 - y) / 2.1 * 239), round((x + 1.05) / 2.1 * 239)].tolist()

    assert at(0.5, 0.5) == [30, 80, 200]
    assert at(-0.4, 0.6) == [150, 210, 150]
    assert at(0.4, -0.6) == [255, 255, 255]
    assert at(0.5, -0.6) == [90, 90, 90]


def test_a_suite_without_a_mode_gives_no_pictures_and_says_what_to_do() -> None:
    envs = make_suite(Protocol("point"))
    envs.reset()
    with pytest.raises(
        SuiteError, match="render_mode: None gives no pictures; make the suite with 'rgb_array'"
    ):
        envs.get_images()
    with pytest.raises(SuiteError, match="render_mode: 'human' is neither"):
        make_suite(Protocol("point"), render_mode="human")  # type: ignore[arg-type]


def test_own_envs_are_seen_when_they_were_made_so() -> None:
    own = {f"p{i}": partial(gym.make, "Pendulum-v1") for i in range(2)}
    with pytest.raises(SuiteError, match="task p0: its env was made with render_mode None; make it with"):
        make_suite(own, render_mode="rgb_array")
    own["p1"] = partial(gym.make, "Pendulum-v1", render_mode="rgb_array")
    with pytest.raises(
        SuiteError, match="task p1: its env has render_mode 'rgb_array', that of task p0 None"
    ):
        make_suite(own)


@pytest.mark.parametrize("workers", [0, 2])
def test_stable_baselines3s_recorder_writes_a_video(tmp_path: Any, workers: int) -> None:
    pytest.importorskip("moviepy")
    envs = make_suite(Protocol("point", horizon=5), render_mode="rgb_array", workers=workers)
    assert [image.shape for image in envs.get_images()] == [(240, 240, 3)] * 5
    recorder = VecVideoRecorder(envs, str(tmp_path), lambda step: step == 0, video_length=4)
    recorder.reset()
    for _ in range(6):
        recorder.step(np.zeros((5, 2), np.float32))
    recorder.close()
    assert [path.stat().st_size > 0 for path in tmp_path.glob("*.mp4")] == [True]
