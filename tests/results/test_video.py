"""`mtrl video`: what is shown is what is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import train

from mtrl import api, cli
from mtrl.config import ConfigError
from mtrl.envs import Protocol, make_suite
from mtrl.evaluate import evaluate
from mtrl.policy import load_policy
from mtrl.results import video
from mtrl.results.video import BAR, Tile, film, grid


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "seen"
    assert train(folder) == 0
    return folder


@pytest.mark.parametrize("suffix", ["gif", "png", "mp4"])
def test_a_run_becomes_a_file_of_each_kind_and_the_scores_of_evaluate(
    run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"film.{suffix}"
    assert cli.main(["video", str(run), "--out", str(out)]) == 0
    assert out.stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    shown = capsys.readouterr().out
    assert cli.main(["evaluate", str(run), "--episodes", "1", "--json", "-"]) == 0
    for name, task in json.loads(capsys.readouterr().out)["tasks"].items():
        row = next(line for line in shown.splitlines() if name in line)
        assert f"{task['return']:.1f}" in row


def test_a_film_is_written_through_no_link_and_over_no_other_file(run: Path, tmp_path: Path) -> None:
    precious = tmp_path / "a.tmp.png"
    precious.write_text("mine")
    (tmp_path / "b.png").symlink_to(precious)
    for name in ("a.png", "b.png"):
        assert cli.main(["video", str(run), "--out", str(tmp_path / name)]) == 0
        assert Image.open(tmp_path / name).size[0] > 0
    assert precious.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("key", "value"), [("tile", 0), ("tile", 65), ("tile", 10**5), ("episodes", "3")])
def test_a_size_that_no_film_has_is_refused_from_python_too(
    run: Path, tmp_path: Path, key: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=f"{key}: .* is not valid; it must be from"):
        api.video(run, tmp_path / "a.gif", **{key: value})


def test_filming_changes_no_number_and_two_films_are_the_same(run: Path, tmp_path: Path) -> None:
    policy, protocol = load_policy(run / "policy.safetensors"), Protocol("point", horizon=10, num_goals=2)
    plain = evaluate(policy, make_suite(protocol, evaluation=True), 2)
    files = [tmp_path / "a.gif", tmp_path / "b.gif"]
    for file in files:
        envs = make_suite(protocol, evaluation=True, render_mode="rgb_array")
        filmed = film(policy, envs, file, episodes=2)
        for name, task in plain.tasks.items():
            np.testing.assert_array_equal(filmed.tasks[name].returns, task.returns)
            np.testing.assert_array_equal(filmed.tasks[name].success, task.success)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert Image.open(files[0]).n_frames == 1 + 2 * 10


def test_a_tile_tells_the_numbers_of_the_episode_that_it_shows(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles: list[Tile] = []
    monkeypatch.setattr(video, "Tile", lambda *named: tiles.append(Tile(*named)) or tiles[-1])
    policy, protocol = load_policy(run / "policy.safetensors"), Protocol("point", horizon=30, num_goals=3)
    envs = make_suite(protocol, evaluation=True, render_mode="rgb_array")
    scores = film(policy, envs, tmp_path / "a.png", tasks=["point-turn", "point-reach"], episodes=2)
    assert [tile.name for tile in tiles] == ["point-turn", "point-reach"]
    for tile in tiles:
        assert tile.total == pytest.approx(scores.tasks[tile.name].returns[-1], rel=1e-6)
        assert tile.success == bool(scores.tasks[tile.name].success[-1])
    assert Image.open(tmp_path / "a.png").size == (2 * 240, 240 + BAR)


def test_ten_tiles_are_two_rows_of_five_and_a_success_is_green() -> None:
    tile = Tile("button-press-topdown-v3", 64)
    tile.picture = np.full((100, 50, 3), 200, np.uint8)
    assert grid([tile.drawn()] * 10).size == (5 * 64, 2 * (64 + BAR))
    assert tile.drawn().getpixel((60, 96)) == video.NOT_YET
    tile.step(1.5, True, True)
    assert tile.drawn().getpixel((60, 96)) == video.SUCCEEDED
    tile.step(2.0, False, False)
    assert (tile.total, tile.success) == (2.0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.avi"], "out: 'a.avi' is not valid; it must end in .mp4, .gif, .png"),
        (["--out", "nowhere/a.gif"], "out: nowhere/a.gif cannot be written (there is no folder nowhere)"),
        (["--task", "reach"], "task: 'reach' is not valid; it must be one of point-reach, point-mirror"),
        (["--episodes", "0"], "episodes: 0 is not valid; it must be from 1 to 100"),
        (["--episodes", "4"], "episodes: 4 is not valid; it must be <= 3"),
        (["--tile", "65"], "tile: 65 is not valid; it must be from 64 to 1024 and even"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["video", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_mp4_without_its_library_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["video", str(run)]) == 2
    assert "pip install 'mtrl-suite[video]'" in capsys.readouterr().err


UNDRAWN = """
from mtrl.envs.point import PointEnv


class Undrawn(PointEnv):
    def render(self):
        raise ImportError("pygame is not installed")


def make_tasks(render_mode=None):
    return {"seen": lambda: PointEnv(render_mode=render_mode), "blind": lambda: Undrawn(render_mode=render_mode)}
"""


def test_an_env_of_ones_own_that_cannot_be_drawn_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "undrawn.py").write_text(UNDRAWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["--protocol.suite=undrawn:make_tasks", "--video_every=60"]
    assert train(tmp_path / "run", *own) == 0  # without its films
    error = capsys.readouterr().err
    assert "no video at 60 steps per task: task blind: its env cannot be drawn (ImportError: pygame" in error
    (tmp_path / "films").mkdir()
    for suffix in ("gif", "png", "mp4"):
        command = ["video", str(tmp_path / "run"), "--import=undrawn", f"--out={tmp_path}/films/a.{suffix}"]
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "task blind: its env cannot be drawn (ImportError: pygame is not installed)" in error
    assert not list((tmp_path / "films").iterdir())
