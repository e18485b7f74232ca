"""What a run tells TensorBoard, read back from its events."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tiny_runs import STEPS, train

from mtrl import cli
from mtrl.envs import SuiteError, screen
from mtrl.results.figures import cosine_figure, short_number
from mtrl.run import session


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "told"
    assert train(folder, "--optimizer.name=pcgrad", "--seed=3", "--video_every=60") == 0
    return folder


def text(folder: Path) -> str:
    return events(folder).Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()


def test_the_text_tells_command_commit_protocol_and_only_what_differs(run: Path) -> None:
    told = text(run)
    for row in (
        "| command | `mtrl",
        "| commit | `",
        "| protocol | `point-v2-h30-random3` |",
        "| seed | `3` |",
    ):
        assert row in told
    assert "| optimizer.name | `pcgrad` |" in told
    assert "| agent.gamma | `0.9` |" in told
    for left_out in ("agent.tau", "updates_per_step", "run_dir", "threads"):
        assert f"| {left_out} |" not in told


def test_hyper_parameters_are_what_a_comparison_is_about(run: Path) -> None:
    content = events(run).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    found = dict(metadata.parse_session_start_info_plugin_data(content).hparams)
    assert found["optimizer"].string_value == "pcgrad"
    assert found["network"].string_value == "[8], [8]"
    assert found["seed"].number_value == 3
    assert found["protocol"].string_value == "point-v2-h30-random3"
    assert found["agent.gamma"].number_value == pytest.approx(0.9)
    assert "agent.tau" not in found
    assert not any(key.startswith("protocol.") for key in found)


def test_one_chart_has_all_tasks_of_a_quantity(run: Path) -> None:
    content = events(run).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    charts = layout_pb2.Layout.FromString(content).category[0].chart
    assert [chart.title for chart in charts] == ["success", "return", "Q", "temperature"]
    tags = events(run).Tags()["scalars"]
    for chart in charts:
        prefix = chart.multiline.tag[0].removesuffix(".*")
        assert len([tag for tag in tags if tag.startswith(prefix)]) == 5


def test_the_axis_is_steps_per_task_the_total_is_beside_it_and_eval_comes_first(run: Path) -> None:
    found = events(run)
    assert [event.step for event in found.Scalars("eval/success_rate")] == [60, STEPS]
    assert [(e.step, e.value) for e in found.Scalars("time/total_timesteps")][-1] == (STEPS, 5 * STEPS)
    groups = {tag.split("/")[0] for tag in found.Tags()["scalars"] if not tag.startswith("run")}
    assert min(groups) == "eval"
    assert "train_conflict_critic" in groups


def test_a_film_is_among_the_images_and_moves(run: Path) -> None:
    films = events(run).Images("eval/video")
    assert [film.step for film in films] == [60, STEPS]
    with Image.open(io.BytesIO(films[0].encoded_image_string)) as film:
        assert (film.format, film.n_frames, film.size) == ("GIF", 31, (films[0].width, films[0].height))
    assert sorted(path.name for path in (run / "videos").iterdir()) == ["step120.gif", "step60.gif"]


def test_filming_changes_no_number_of_a_run(run: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "r", "--optimizer.name=pcgrad", "--seed=3") == 0
    assert (tmp_path / "r/policy.safetensors").read_bytes() == (run / "policy.safetensors").read_bytes()


def test_a_film_that_fails_is_said_and_trained_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise SuiteError("rendering: none")

    monkeypatch.setattr(session, "make_suite", refuse)
    assert train(tmp_path / "r", "--video_every=60") == 0
    assert "warning: no video at 60 steps per task: rendering: none" in capsys.readouterr().err


def test_a_resumed_run_tells_what_it_is_once(tmp_path: Path) -> None:
    assert train(tmp_path / "r") == 0
    assert train(tmp_path / "r", "--total_steps_per_task=140", "--allow_changes") == 0
    assert len(events(tmp_path / "r").Tensors("run/text_summary")) == 1


def test_cosines_are_written_short_and_never_as_minus_nought() -> None:
    values = [-0.001, 0.0, 0.05, -0.04, 0.1, -0.3, 1.0, float("nan")]
    assert [short_number(value) for value in values] == ["0", "0", ".05", "-.04", ".1", "-.3", "1.0", ""]


def test_a_cosine_of_a_tenth_is_seen() -> None:
    figure = cosine_figure({"critic": np.array([[1, 0.1], [0.1, 1]])}, ["a-v3", "b-v3"])
    image = figure.axes[0].get_images()[0]
    faint, full = image.norm(0.1) - image.norm(0), image.norm(1) - image.norm(0)
    assert faint > full / 3


def test_films_that_cannot_be_made_are_refused_before_a_run_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(screen, "_works", lambda way: False)
    screen.drawing.cache_clear()
    arguments = ["--protocol.suite=reach-v3", "--video_every=60", f"--run_dir={tmp_path / 'r'}"]
    assert cli.main(["train", *arguments, "--total_steps_per_task=1"]) == 2
    screen.drawing.cache_clear()
    assert "libosmesa6" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
