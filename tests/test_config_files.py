"""Config files that stand on others, and protocols by name."""

from __future__ import annotations

import re

import pytest
import yaml

from mtrl.cli import main
from mtrl.config import AgentConfig, ConfigError
from mtrl.envs import PRESETS, Protocol, SuiteError
from mtrl.settings.files import load_yaml
from mtrl.settings.train import parse_train


@pytest.fixture
def write(tmp_path):
    def write(**files: str) -> str:
        """Config files by name; the first one's path."""
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return str(tmp_path / f"{next(iter(files))}.yaml")

    return write


def test_a_config_holds_what_differs_from_its_base(write):
    path = write(
        top="base: middle.yaml\nagent: {actor: {hidden: [8]}}\nseed: 4",
        middle="base: point\nseed: 3\nagent: {actor: {learning_rate: 0.5}}\nlabel: middle\nrun_dir: runs/middle",
    )
    config, base = parse_train(["--config", path]).config, parse_train(["--config", "point"]).config
    assert (config.seed, config.agent.actor.hidden, config.agent.actor.learning_rate) == (4, (8,), 0.5)
    assert config.agent.critic == base.agent.critic
    assert parse_train(["--config", path]).protocol == parse_train(["--config", "point"]).protocol
    assert config.label is None  # a base's runs are its own
    assert config.run_dir is None


def test_the_command_line_goes_above_config_and_base(write):
    path = write(top="base: point\nagent: {gamma: 0.5}")
    request = parse_train(["--config", path, "--agent.gamma", "0.25"])
    assert request.config.agent.gamma == 0.25
    assert request.config.agent.tau == parse_train(["--config", "point"]).config.agent.tau
    assert request.config.agent.tau != AgentConfig().tau


def test_merges_are_yamls_own_keys_first_then_the_earlier_mappings():
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, z: 3}\nd: {<<: [*a, *b], z: 4}\ne: {f: {<<: *b}}"
    read = load_yaml(text, "text")
    assert read["b"] == {"x": 2, "y": 1}
    assert read["c"] == {"x": 2, "y": 1, "z": 3}
    assert read["d"] == {"x": 1, "y": 1, "z": 4}
    assert read["e"] == {"f": {"x": 2, "y": 1}}
    for bad, told in (("{x: 1, x: 2}", "'x' comes twice"), ("{a: 1, <<: 3}", "a merge (<<) is of mappings")):
        with pytest.raises(ConfigError, match=re.escape(told)):
            load_yaml(bad, "text")


def test_a_base_that_is_the_file_itself_by_another_way_is_a_circle(write, tmp_path):
    with pytest.raises(ConfigError, match="configs that are each other's base"):
        parse_train(["--config", write(top=f"base: ../{tmp_path.name}/top.yaml")])


def test_another_optimizer_drops_the_options_of_the_bases(write):
    base = "optimizer: {name: cagrad, options: {c: 0.3, solver: as_published}}"
    other = parse_train(["--config", write(top="base: below.yaml\noptimizer: {name: pcgrad}", below=base)])
    assert other.config.optimizer.options == {}
    same = parse_train(
        ["--config", write(top="base: below.yaml\noptimizer: {options: {c: 0.4}}", below=base)]
    )
    assert same.config.optimizer.options == {"c": 0.4, "solver": "as_published"}
    named = write(top="base: below.yaml\noptimizer: {name: cagrad, options: {c: 0.4}}", below=base)
    assert parse_train(["--config", named]).config.optimizer.options == {"c": 0.4, "solver": "as_published"}


def test_a_resolved_config_needs_no_base_and_gives_itself(write, tmp_path):
    text = parse_train(["--config", "paper/mt50_imtl", "--protocol.preset", "brc"]).text
    assert not {"base", "preset"} & {*yaml.safe_load(text), *yaml.safe_load(text)["protocol"]}
    again = write(again=text)
    assert parse_train(["--config", again]).text == text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": "base: b.yaml", "b": "base: c.yaml", "c": "base: b.yaml"}, ["b.yaml -> ", "c.yaml -> ", "base"]),
        ({"a": "base: a.yaml"}, ["a.yaml -> ", "base"]),
        ({"a": "base: 3"}, ["base", "3", "a.yaml"]),
        ({"a": "base: piont"}, ["'piont'", "did you mean 'point'"]),
        ({"a": "base: b.yaml", "b": "agent: {gama: 0.9}"}, ["agent.gama", "did you mean 'agent.gamma'"]),
    ],
)  # fmt: skip
def test_a_bad_base_is_refused_in_one_line(files, words, write, capsys):
    path = write(**files)
    with pytest.raises(ConfigError) as refusal:
        parse_train(["--config", path])
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert main(["train", "--config", path]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- protocols by name ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "name"),
    [("paper", "v2-h150-fixed"), ("brc", "v2-h200-fixed"), ("metaworld_plus", "v2-h500-random50")],
)
@pytest.mark.parametrize("suite", ["mt10", "mt50", "point", "reach-v3"])
def test_a_preset_serves_every_suite_in_python_yaml_and_on_the_command_line(preset, name, suite, write):
    protocol = Protocol.named(preset, suite=suite)
    assert protocol.name == f"{suite}-{name}"
    path = write(top=f"protocol: {{preset: {preset}, suite: {suite}}}")
    assert parse_train(["--config", path]).protocol == protocol
    assert parse_train([f"--protocol.suite={suite}", "--protocol.preset", preset]).protocol == protocol
    assert Protocol.from_dict(protocol.to_dict()) == protocol


def test_explicit_fields_override_the_preset_of_their_file_and_a_preset_its_base(write):
    assert Protocol.named("paper", horizon=100).horizon == 100
    path = write(
        top="protocol: {horizon: 100, preset: brc}", twin="base: top.yaml\nprotocol: {preset: paper}"
    )
    assert parse_train(["--config", path]).protocol == Protocol.named("brc", horizon=100)
    twin = path.replace("top", "twin")
    assert parse_train(["--config", twin]).protocol == Protocol.named(
        "paper", reward="v2"
    )  # as on a command line
    preset, own = ["--protocol.preset=brc"], ["--protocol.horizon", "90"]
    for arguments in (preset + own, own + preset):
        assert parse_train(arguments).protocol == Protocol.named("brc", horizon=90)


def test_a_preset_on_the_command_line_goes_above_a_config():
    protocol = parse_train(["--protocol.preset", "brc", "--config", "point"]).protocol
    assert protocol == Protocol.named("brc", suite="point")


@pytest.mark.parametrize("arguments", [["--protocol.preset", "bcr"], ["--protocol.preset"]])
def test_an_unknown_preset_is_refused(arguments):
    with pytest.raises(SuiteError, match=r"protocol.preset.*paper, brc, metaworld_plus"):
        parse_train(arguments)
    with pytest.raises(SuiteError, match="did you mean 'brc'"):
        Protocol.named("bcr")


def test_compare_warns_of_different_presets(tmp_path, capsys):
    runs = []
    for preset in PRESETS:
        runs.append(str(tmp_path / preset / "seed0"))
        assert main([
            "train", "--config", "point", "--protocol.preset", preset, "--run_dir", runs[-1],
            "--total_steps_per_task", "2", "--eval_episodes", "1", "--warmup_steps", "2",
        ]) == 0  # fmt: skip
    capsys.readouterr()
    main(["compare", *runs])
    error = capsys.readouterr().err
    assert "different protocols: point-v2-h150-fixed, point-v2-h200-fixed, point-v2-h500-random50" in error
