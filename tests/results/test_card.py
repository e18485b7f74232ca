"""`mtrl card`: a folder that evaluates elsewhere to the numbers that it tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_runs import train

from mtrl import cli
from mtrl.commands import card
from mtrl.envs import SuiteError
from mtrl.policy import load_policy

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert train(folder, "--seed=4") == 0
    return folder


@pytest.fixture(scope="module")
def made(run: Path) -> Path:
    folder = run.parent / "my-policy"
    assert cli.main(["card", str(run), str(folder)]) == 0
    return folder


def test_a_card_has_all_that_a_reader_needs_and_nothing_is_left_beside_it(made: Path) -> None:
    names = {"README.md", "policy.safetensors", "config.yaml", "evaluation.json", "picture.png"}
    assert {path.name for path in made.iterdir()} == names
    assert {path.name for path in made.parent.iterdir()} == {"done", "my-policy"}
    assert Image.open(made / "picture.png").width == 5 * 240
    assert load_policy(made / "policy.safetensors").task_names[0] == "point-reach"


def test_the_folder_evaluates_to_the_numbers_that_it_tells(
    made: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = made.rename(tmp_path / "elsewhere")
    try:
        told = json.loads((elsewhere / "evaluation.json").read_text())
        capsys.readouterr()
        for place in (elsewhere, run):
            assert cli.main(["evaluate", str(place), "--json", "-"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert found | {"run_status": told["run_status"]} == told
    finally:
        elsewhere.rename(made)


def test_a_card_of_the_best_policy_says_that_its_number_is_biased(
    made: Path, run: Path, tmp_path: Path
) -> None:
    assert cli.main(["card", str(run), str(tmp_path / "best"), "--checkpoint", "best"]) == 0
    told = "It is the policy of the best evaluation in training"
    assert told in (tmp_path / "best/README.md").read_text()
    assert told not in (made / "README.md").read_text()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert cli.main(["card", str(run), str(tmp_path / "link")]) == 2


def test_the_hub_reads_the_card(made: Path) -> None:
    loaded = hub.ModelCard.load(made / "README.md")
    told = json.loads((made / "evaluation.json").read_text())
    assert loaded.data.library_name == "mtrl"
    assert loaded.data.model_name == "my-policy"
    found = {result.dataset_name: result.metric_value for result in loaded.data.eval_results}
    assert found.pop(told["protocol"]["name"]) == pytest.approx(told["mean_success"], abs=1e-4)
    assert found == {name: pytest.approx(task["success"], abs=1e-4) for name, task in told["tasks"].items()}
    for words in ("mtrl evaluate .", "point-v2-h30-random3", "| seed | `4` |", "![an episode", "commit `"):
        assert words in loaded.text


def test_the_config_repeats_the_run(made: Path, run: Path, tmp_path: Path) -> None:
    assert "run_dir: null" in (made / "config.yaml").read_text()
    assert cli.main(["train", "--config", str(made / "config.yaml"), "--run_dir", str(tmp_path / "r")]) == 0
    assert (tmp_path / "r/policy.safetensors").read_bytes() == (run / "policy.safetensors").read_bytes()


def test_nothing_is_overwritten_and_what_is_no_run_is_refused(
    made: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ([run, made], "exists already; nothing was changed"),
        ([tmp_path, tmp_path / "a"], "is no run's folder (it has no config.yaml)"),
        ([run, tmp_path / "no/a"], "cannot be made (there is no"),
    ):
        assert cli.main(["card", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err


def test_where_nothing_can_be_drawn_the_card_has_no_picture(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise SuiteError("rendering: none")

    monkeypatch.setattr(card, "shoot", refuse)
    assert cli.main(["card", str(run), str(tmp_path / "a")]) == 0
    assert "the card has no picture: rendering: none" in capsys.readouterr().err
    assert "![" not in (tmp_path / "a/README.md").read_text()
