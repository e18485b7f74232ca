"""`mtrl train`: where a run lies."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny_runs import POINT, STEPS

from mtrl.cli import main
from mtrl.commands.train import folder_of
from mtrl.settings.train import parse_train


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({}, "unitary"),
        ({"optimizer.name": "pcgrad", "agent.network.name": "mmoe"}, "pcgrad-mmoe"),
        ({"agent.actor.network.name": "mmoe"}, "unitary-actor_mmoe"),
        ({"agent.network.name": "ple", "agent.actor.network.name": "mlp"}, "unitary-critic_ple"),
        ({"agent.network.name": "ple", "agent.critic.network.name": "care"}, "unitary-actor_ple-critic_care"),
        ({"agent.network.name": "ple", "agent.critic.network.name": "ple"}, "unitary-ple"),
        ({"optimizer.name": "torchjd:Mean"}, "torchjd.Mean"),
        ({"agent.network.name": "own_networks:Mixture"}, "unitary-own_networks.Mixture"),
        ({"label": "mine", "agent.network.name": "ple"}, "mine"),
    ],
)
def test_a_run_s_folder_is_named_by_optimizer_and_network(settings: dict[str, str], label: str) -> None:
    request = parse_train(
        [f"--{key}={value}" for key, value in {"protocol.suite": "point", **settings}.items()]
    )
    assert folder_of(request) == Path("runs/point") / label / "seed0"


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        (["--config=mt10_fast"], "mt10_fast"),
        (["--config=mt10_fast", "--optimizer.name=unitary"], "mt10_fast"),
        (["--config=mt10_fast", "--optimizer.name=pcgrad"], "mt10_fast-pcgrad"),
        (["--config=mt10_fast", "--agent.critic.network.name=mmoe"], "mt10_fast-critic_mmoe"),
        (["--config=mt10_fast_mmoe", "--config=mt10_fast_random"], "mt10_fast_random-mmoe"),
        (
            ["--config=mt10_fast_mmoe", "--config=mt10_fast_random", "--agent.network.name=mlp"],
            "mt10_fast_random",
        ),
        (["--config=paper/mt10_pcgrad", "--optimizer.name=torchjd:Mean"], "paper_mt10_pcgrad-torchjd.Mean"),
        (["--config=mt10_fast", "--optimizer.name=pcgrad", "--label=mine"], "mine"),
    ],
)
def test_a_config_s_label_does_not_stand_for_another_method_or_network(
    arguments: list[str], label: str
) -> None:
    request = parse_train(arguments)
    assert folder_of(request).parent.name == label
    assert yaml.safe_load(request.text)["label"] == label  # a resumed run keeps it


def test_two_networks_train_side_by_side_and_the_same_command_finds_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--agent.network.name=mmoe"]):
        assert main(["train", *POINT, *more]) == 0
    assert {path.parent.name for path in Path("runs/point").glob("*/seed0")} == {"unitary", "unitary-mmoe"}
    longer = [
        "train",
        *POINT,
        "--agent.network.name=mmoe",
        f"--total_steps_per_task={STEPS + 20}",
        "--allow_changes",
    ]
    capsys.readouterr()
    assert main(longer) == 0
    assert f"going on from step {STEPS} per task" in capsys.readouterr().out
