"""A hundred bad command lines: exit code 2, one line, nothing changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mtrl import cli

LONG, DIGITS = "x" * 300, "9" * 5000
SECTIONS = ("agent", "agent.actor", "agent.critic", "agent.temperature", "replay", "optimizer", "protocol")
FILES = {
    **{f"{section}: text": f"{'{'.join(f'{p}: ' for p in section.split('.'))}os.system{'}' * section.count('.')}"
       for section in SECTIONS},
    **{f"{section}: null": f"{'{'.join(f'{p}: ' for p in section.split('.'))}null{'}' * section.count('.')}"
       for section in SECTIONS},
    **{f"{section}: a list": f"{'{'.join(f'{p}: ' for p in section.split('.'))}[1]{'}' * section.count('.')}"
       for section in SECTIONS},
    "seed: null": "seed:",
    "seed: text": "seed: three",
    "seed: a mapping": "seed: {a: 1}",
    "seed: a fraction": "seed: 1.5",
    "seed: a flag": "seed: true",
    "seed: 5000 digits": f"seed: {DIGITS}",
    "seed: 400 digits": f"seed: {DIGITS[:400]}",
    "horizon: 400 digits": f"protocol: {{suite: point, horizon: {DIGITS[:400]}}}",
    "horizon: endless": "protocol: {suite: point, horizon: 1000000000000}",
    "a key twice": "seed: 1\nseed: 2",
    "a key twice below": "agent: {gamma: 0.5, gamma: 0.6}",
    "a key that is no name": "1: 2",
    "a key that is no name below": "agent: {1: 2}",
    "resume": "resume: runs/x",
    "allow_changes": "allow_changes: true",
    "config": "config: point",
    "a bomb as text": 'agent: "a: &a [x,x,x,x,x]\\nb: &b [*a,*a,*a,*a,*a]\\nc: &c [*b,*b,*b]\\nd: [*c,*c]"',
    "a file as a section": "agent: bomb.yaml",
    "a class path": "agent: {class_path: os.system}",
    "options: text": "optimizer: {options: os.system}",
    "a label above": "label: ../../x",
    "a label of dots": "label: ..",
    "an empty label": "label: ''",
    "a long label": f"label: {LONG}",
    "a label with a line": 'label: "a\\nb"',
    "a label with NUL": 'label: "a\\0b"',
    "a label that is no text": "label: [a]",
    "a path with NUL": 'run_dir: "a\\0b"',
    "a long path": f"run_dir: {LONG}",
    "a variable that is not set": "run_dir: $NO_SUCH_VARIABLE/x",
    "a user that there is not": "run_dir: ~nobody-of-this-name/x",
    "too many layers": f"agent: {{actor: {{hidden: [{', '.join(['1'] * 1001)}]}}}}",
    "a layer too wide": "agent: {actor: {hidden: [100000000000]}}",
    "too many blocks": "agent: {critic: {blocks: 100000000}}",
    "too many critics": "agent: {critic: {ensemble: 100000000}}",
    "too many atoms": "agent: {critic: {atoms: 100000000000, loss: two_hot}}",
    "tasks that are no names": "protocol: {suite: custom, tasks: [1, 2]}",
    "tasks twice": "protocol: {suite: custom, tasks: [reach-v3, reach-v3]}",
    "a suite that is no name": "protocol: {suite: [point]}",
    "nested too deep": "optimizer: {options: " + "{a: " * 30 + "1" + "}" * 30 + "}",
    "hidden: one number": "agent: {actor: {hidden: 64}}",
    "hidden: text": "agent: {actor: {hidden: 'ab'}}",
    "hidden: fractions": "agent: {actor: {hidden: [1.5]}}",
    "hidden: flags": "agent: {actor: {hidden: [true]}}",
    "gamma: text": "agent: {gamma: high}",
    "gamma: infinite": "agent: {gamma: .inf}",
    "layer_norm: a number": "agent: {actor: {layer_norm: 1}}",
    "layer_norm: text": "agent: {actor: {layer_norm: 'yes'}}",
    "a date": "seed: 2020-01-01",
    "a dotted key": "agent.gamma: 0.5",
    "a dotted key below": "agent: {actor.blocks: 3}",
    "a tag": "seed: !!int",
    "a tag of time": "seed: !!timestamp x",
    "a tag of truth": "agent: {target_clip: !!bool x}",
}  # fmt: skip
LINES = [
    ["train", "--seed"], ["train", "--seed", ""], ["train", "--seed", DIGITS], ["train", "--seed", "²"],
    ["train", "--agent.critic.temperature", "1"], ["train", "--agent.temperature.hidden", "1"],
    ["train", "--seed", "!!int"], ["train", "--seed", "!!timestamp x"], ["train", "--agent", "{actor.blocks: 3}"],
    ["train", "--seed", "1:30"], ["train", "--seed", "2020-01-01"], ["train", "--eval_every", "1e13"],
    ["train", "--replay.capacity", "1e15"], ["train", "--total_steps_per_task", "1e300"],
    ["train", "--seed", "1 2"], ["train", "--seed", "[1]"], ["train", "--seed", "{a: 1}"], ["train", "--seed", "*a"],
    ["train", "--seed", "!!python/name:os.system"], ["train", "--seed", "'"], ["train", "--seed", "\0"],
    ["train", "--agent", "os.system"], ["train", "--agent", "{gama: 0.5}"], ["train", "--agent=mine.X"],
    ["train", "--agent.actor", "mine.X"], ["train", "--agent.temperature.initial", "0"],
    ["train", "--agent.actor.learning_rate", "0"], ["train", "--agent.critic.learning_rate", "-1"],
    ["train", "--optimizer.options", "os.system"], ["train", "--optimizer.options", "[1]"],
    ["train", "--optimizer", "pcgrad"], ["train", "--optimizer.nam", "pcgrad"], ["train", "--protocol", "mt10"],
    ["train", "--protocol.goals", "some"], ["train", "--protocol.horizon", "1.5"], ["train", "--protocol.preset", "x"],
    ["train", "--label", "../x"], ["train", "--label", "\udcff"], ["train", "--label", LONG], ["train", "--label="],
    ["train", "--run_dir", ""], ["train", "--run_dir", LONG], ["train", "--run_dir", "a\0b"],
    ["train", "--run_dir", "\udcff"], ["train", "--run_dir", "$NO_SUCH_VARIABLE/x"], ["train", "--resume", LONG],
    ["train", "--resume", ""], ["train", "--resume", "a\0b"], ["train", "--config", LONG], ["train", "--config", "\0"],
    ["train", "--config", "."], ["train", "--config", "/dev/null"], ["train", "--config", "/dev/zero"],
    ["train", "--allow_changes=true"], ["train", "--print_config=1"], ["train", "-x"], ["train", "--"],
    ["train", "---seed", "3"], ["train", "--see", "3"], ["train", "--SEED", "3"],
    ["train", "--print_config", "--seed=-1"],
    ["train", "--print_config", "--agent.gamma=2"], ["train", "--print_config", "--optimizer.name=x"],
    ["train", "--threads", "0.5"], ["train", "--workers", "-1"], ["train", "--workers", "1000000000"],
    ["train", "--device", "tpu"], ["train", "--total_steps_per_task", "1e-3"], ["train", "--eval_every", "never"],
    ["evaluate"], ["evaluate", LONG], ["evaluate", "a\0b"], ["evaluate", "\udcff"], ["evaluate", ""],
    ["evaluate", "[/b]"], ["evaluate", ".", "--workers", "²"], ["evaluate", ".", "--workers", DIGITS],
    ["evaluate", ".", "--json", "/nowhere/x"], ["evaluate", ".", "--json", LONG],
    ["evaluate", "nowhere", "--json", "new"],
    ["evaluate", ".", "--episodes", "many"], ["evaluate", ".", "--seed", "1.5"], ["evaluate", ".", "--check", "best"],
    ["compare"], ["compare", "nowhere"], ["compare", LONG], ["compare", "a\0b"], ["compare", "[/b]"],
    ["compare", "\udcff"],
    ["compare", "nowhere", "--json", "new"], ["compare", "nowhere", "--figure", "new.png"],
    ["list", "nothing"], ["list", "[/b]"], ["doctor", "junk"], ["bench", "--rounds", "²"], ["bench", "--threads", "²"],
    ["bench", "--tune", "--config", LONG], ["no\0thing"], ["\udcff"], ["[/b]"], [LONG], ["-x"],
]  # fmt: skip


def answered(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert cli.main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("mtrl: ")
    assert len(line) < 1500
    return line


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "mine.py").write_text("open('EXECUTED', 'w')\n")
    (folder / "bomb.yaml").write_text("a: &a [x, x]\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize("arguments", LINES, ids=lambda a: ascii(" ".join(a))[:60])
def test_a_bad_command_line_is_one_line_and_changes_nothing(arguments, here, capfd):
    before = sorted(os.listdir(here))
    answered(arguments, capfd)
    assert sorted(os.listdir(here)) == before


@pytest.mark.parametrize("file", FILES)
def test_a_bad_file_is_one_line_and_changes_nothing(file, here, capfd):
    (here / "bad.yaml").write_text(FILES[file])
    before = sorted(os.listdir(here))
    answered(["train", "--config", "bad.yaml"], capfd)
    assert sorted(os.listdir(here)) == before


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("--agent.temperature.initial=0", "agent.temperature.initial"),
        ("--agent.actor.learning_rate=0", "agent.actor.learning_rate"),
        ("--agent.critic.hidden=[0]", "agent.critic.hidden"),
        ("--agent.gamma=1", "agent.gamma"),
        ("--replay.capacity=0", "replay.capacity"),
        ("--protocol.horizon=0", "protocol.horizon"),
        ("--protocol.suite=mt11", "protocol.suite"),
        ("--optimizer.name=pcgard", "optimizer.name"),
        ("--optimizer={name: cagrad, options: {c: 2}}", "optimizer.options.c"),
        ("--optimizer={name: cagrad, options: {k: 2}}", "optimizer.options.k"),
    ],
)
def test_an_error_names_the_whole_key(option, key, here, capfd):
    assert answered(["train", option], capfd).startswith(f"mtrl: {key}: ")


def test_a_whole_number_may_be_written_with_an_exponent(capfd):
    assert cli.main(["train", "--print_config", "--total_steps_per_task", "3e2", "--seed=1e1"]) == 0
    text = capfd.readouterr().out
    assert "total_steps_per_task: 300\n" in text
    assert "seed: 10\n" in text


def test_a_number_may_begin_with_a_dot_or_a_nought(capfd):
    assert cli.main(["train", "--print_config", "--agent.gamma=.9e0", "--seed=007"]) == 0
    text = capfd.readouterr().out
    assert "  gamma: 0.9\n" in text
    assert "seed: 7\n" in text


def test_every_setting_is_explained(capfd):
    assert cli.main(["train", "--help"]) == 0
    text = capfd.readouterr().out
    assert cli.main(["train", "--print_config"]) == 0
    from mtrl.settings.keys import SECTIONS, known_names

    sections = {
        "agent",
        "agent.actor",
        "agent.critic",
        "agent.network",
        "agent.actor.network",
        "agent.critic.network",
        "agent.temperature",
        "replay",
        "optimizer",
        "protocol",
    }
    for name in set(known_names(SECTIONS)) - sections:
        (at,) = [i for i, line in enumerate(text.splitlines()) if line.startswith(f"--{name} ")]
        assert text.splitlines()[at + 1].strip(), name


def test_paths_are_spelt_out(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS_OF_MINE", str(tmp_path / "mine"))
    for given, meant in (("~/x", tmp_path / "x"), ("$RUNS_OF_MINE/x", tmp_path / "mine" / "x")):
        assert cli.main(["train", "--print_config", f"--run_dir={given}"]) == 0
        assert f"run_dir: {meant}\n" in capfd.readouterr().out
