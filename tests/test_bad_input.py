"""Bad, damaged and hostile input through the command line: one line that names it, exit code 2, nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from test_checkpoint import DAMAGE, rewrite
from tiny_runs import POINT, train, train_until

from mtrl import cli
from mtrl.envs.point import PointEnv
from mtrl.policy import checksum, load_policy

GIGABYTE = 2**30


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train(folder) == 0
    return folder


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run with one checkpoint, in the middle of training."""
    folder = tmp_path_factory.mktemp("runs") / "unfinished"
    train_until(50, folder)
    (folder / "checkpoint" / "manifest-0.json").unlink()
    return folder


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Run a command in an empty folder; it must end with 2 and one line, which is returned."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: str) -> str:
        capfd.readouterr()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of memory so far
        before = memory("VmRSS")
        assert cli.main(list(arguments)) == 2
        assert memory("VmHWM") - before < GIGABYTE
        captured = capfd.readouterr()
        lines = captured.err.splitlines()
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("mtrl: ")
        assert not (here / "executed").exists()
        assert not (here / "runs").exists()
        return lines[0]

    return run


def memory(key: str) -> int:
    """Bytes of this process: now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --config mt11", "'mt11' is neither a file nor a shipped config, did you mean 'mt10'?"),
        ("train --config", "config: a value is missing"),
        ("train --sed 3", "no setting 'sed', did you mean 'seed'?"),
        ("train --optimiser.name pcgrad", "no setting 'optimiser.name', did you mean 'optimizer.name'?"),
        ("train --gama 0.9", "no setting 'gama', did you mean 'agent.gamma'?"),
        ("train --agent.critic.lr 1e-3", "did you mean 'agent.critic.learning_rate'?"),
        ("train --steps 100", "no setting 'steps', did you mean 'total_steps_per_task'?"),
        ("train --zzz 1", "no setting 'zzz' (`mtrl train --print_config` shows all)"),
        ("train --optimizer pcgrad", "a mapping of names to values, did you mean optimizer.name?"),
        (
            "train --agent.actr.hidden [3]",
            "no setting 'agent.actr.hidden', did you mean 'agent.actor.hidden'?",
        ),
        ("train --protocol.suite mt11", "suite: 'mt11' is not a suite"),
        ("train --protocol.suite custom --protocol.tasks [reech-v3]", "did you mean 'reach-v3'?"),
        ("train --config point --optimizer.name pcgard", "no optimizer 'pcgard', did you mean 'pcgrad'?"),
        (
            "train --config point --optimizer.name cagrad --optimizer.options.k 1",
            "has no option 'k': its options are",
        ),
        (
            "train --config point --optimizer.name rlw --optimizer.options.seed 5",
            "optimizer.options.seed: 5 is not valid; the run sets it itself",
        ),
        (
            "train --config point --optimizer.name torchjd:UPGrad --optimizer.options.aggregator Krum",
            "optimizer.options.aggregator: 'Krum' is not valid",
        ),
        ("train --seed -1", "seed: -1 is not valid; it must be >= 0"),
        ("train --seed x", "seed: 'x' is not valid; it must be a whole number"),
        ("train --seed", "seed: a value is missing"),
        ("train --seed 99999999999999999999", "seed: 99999999999999999999 is not valid; it must be < 2**63"),
        ("train --agent.actor.hidden 64", "agent.actor.hidden: 64 is not valid; it must be a list"),
        (
            "train --agent.actor.activation foo",
            "agent.actor.activation: 'foo' is not valid; it must be one of 'relu'",
        ),
        ("train --agent.gamma 1.5", "agent.gamma: 1.5 is not valid; it must be in [0, 1)"),
        ("train --agent.gamma nan", "agent.gamma: nan is not valid"),
        ("train --replay.batch_size .inf", "batch_size: inf is not valid; it must be a finite number"),
        ("train --agent.temperature.target_entropy .nan", "target_entropy: nan is not valid"),
        ("train --agent.policy_tau 0", "agent.policy_tau: 0.0 is not valid; it must be in (0, 1]"),
        ("train --threads many", "threads: 'many' is not valid; it must be a whole number or one of 'auto'"),
        ("train --protocol.horizon 501", "horizon: 501 is not a whole number from 1 to 500"),
        ("train --agent 3", "agent: 3 is not valid; it must be a mapping"),
        ("train junk", "unrecognized arguments: 'junk'"),
        ("train --resume nowhere", "resume: 'nowhere' is no run's folder"),
        ("train --config point --device cuda", "device: 'cuda' is not available on this machine"),
        (
            "train --config point --replay.capacity 1000000000000 --total_steps_per_task 1000000000000",
            "replay.capacity",
        ),
        ("train --config point --run_dir /proc/nothing", "run_dir: /proc/nothing cannot be written"),
        ("trian", "no command 'trian', did you mean 'train'?"),
        ("evaluate nowhere", "run: nowhere does not exist"),
        ("evaluate .", "run: . is neither a run's folder nor a policy file"),
        ("compare nowhere", "nowhere does not exist"),
        ("evaluate", "run"),
    ],
)
def test_a_bad_command_line_is_answered_with_what_would_be_valid(refused, arguments, words):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert words in refused(*arguments.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--json=/nowhere/file"], "json: /nowhere/file cannot be written (No such file or directory)"),
        (["--episodes=0"], "episodes: 0 is not valid; it must be >= 1"),
        (["--episodes=4"], "episodes: 4 is not valid; it must be <= 3, the goals of each task in point-"),
        (["--seed=-1"], "seed: -1 is not valid; it must be from 0 to 2**63 - 1"),
        (["--workers=some"], "workers: 'some' is not valid"),
        (["--checkpoint=first"], "checkpoint"),
    ],
)
def test_a_bad_request_for_an_evaluation_is_refused_before_it_begins(refused, finished, options, words):
    assert words in refused("evaluate", str(finished), *options)


def test_a_run_folder_in_use_or_finished_is_left_as_it_is(refused, finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert "holds a finished run; nothing was changed: choose another --seed" in refused(
        "train", *POINT, f"--run_dir={finished}"
    )
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_nan_from_an_environment_ends_an_evaluation_with_a_line(refused, finished, monkeypatch):
    step = PointEnv.step
    monkeypatch.setattr(
        PointEnv, "step", lambda self, action: (step(self, action)[0], float("nan"), False, False, {})
    )
    assert "task point-reach: the reward is nan at step 1 of the episode" in refused(
        "evaluate", str(finished)
    )


def test_an_observation_of_another_size_is_refused_by_the_policy(refused, finished, monkeypatch):
    monkeypatch.setattr(PointEnv, "_observation", lambda self: torch.zeros(5).numpy())
    make = PointEnv.__init__

    def larger(self, *arguments, **named):
        make(self, *arguments, **named)
        self.observation_space = type(self.observation_space)(-1, 1, (5,))

    monkeypatch.setattr(PointEnv, "__init__", larger)
    assert "this policy takes 4 numbers and a one-hot" in refused("evaluate", str(finished))


def test_the_installed_command_answers_the_same_way(tmp_path):
    command = [str(Path(sys.executable).with_name("mtrl")), "train", "--sed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


CONFIGS = {
    "empty": "",
    "a list": "- seed",
    "no YAML": "{",
    "not text": b"\xff\xfe\x00\x01",
    "code": "!!python/object/apply:os.system ['touch executed']",
    "code in a value": "label: !!python/object/apply:os.system ['touch executed']",
    "a class to import": "agent: {class_path: os.system, init_args: {command: touch executed}}",
    "references that multiply": "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
    ),
    "merges that multiply": "a: &a {x: 1}\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{', '.join(['*' + chr(97 + i)] * 9)}]}}\n" for i in range(12)
    ),
    "a reference to itself": "optimizer: &a {options: {x: *a}}",
    "too deep": "[" * 100_000,
    "too long": "# " + "x" * 2**21,
    "an absurd width": "{protocol: {suite: point}, agent: {actor: {hidden: [1000000000, 1000000000]}}}",
    "absurdly many blocks": "{protocol: {suite: point}, agent: {critic: {hidden: [10000], blocks: 100000}}}",
    "an absurd ensemble": "{protocol: {suite: point}, agent: {critic: {ensemble: 1000000000}}}",
    "an absurd embedding": "{protocol: {suite: point}, agent: {task_input: embedding, embedding_dim: 1000000000000}}",
    "an absurd batch": "{protocol: {suite: point}, replay: {batch_size: 1000000000000}}",
    "an absurd capacity": (
        "{protocol: {suite: point}, total_steps_per_task: 1000000000000, replay: {capacity: 1000000000000}}"
    ),
    "absurdly many goals": "{protocol: {suite: point, num_goals: 1000000000000}}",
    "absurdly many threads": "threads: 1000000000",
    "a function of a module that is there": "{protocol: {suite: 'sys:exit'}}",
    "one that ends the process": "{protocol: {suite: 'os:abort'}}",
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_a_hostile_config_is_refused(refused, tmp_path, config):
    path, content = tmp_path / "config.yaml", CONFIGS[config]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused("train", f"--config={path}", "--run_dir=executed")


@pytest.mark.parametrize(
    "typed", ["--optimizer.name=unitary", "--protocol.suite=point", "--agent.network.name=mlp"]
)
def test_naming_one_of_ours_trusts_no_module_of_that_name(refused, tmp_path, monkeypatch, typed):
    key, _, name = typed.removeprefix("--").partition("=")
    (tmp_path / f"{name}.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    nests = {
        "optimizer.name": "agent: {network: {name: 'unitary:X'}}", "protocol.suite": "optimizer: {name: 'point:X'}",
        "agent.network.name": "protocol: {suite: 'mlp:X'}",
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(nests[key])
    assert f"no file may import; add --import {name}" in refused("train", "--config=config.yaml", typed)
    assert not Path("executed").exists()


def test_a_typed_function_lets_no_file_call_another_of_its_module(refused, tmp_path):
    assert "'os:getcwd' returned" in refused("train", "--protocol.suite=os:getcwd")
    (tmp_path / "config.yaml").write_text("protocol: {suite: 'os:getpid'}")
    assert "no file may import; add --import os" in refused("train", f"--config={tmp_path}/config.yaml")
    assert "'os:getpid' returned" in refused("train", f"--config={tmp_path}/config.yaml", "--import=os")


def test_a_damaged_config_of_a_run_is_refused(refused, unfinished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(unfinished, run)
    (run / "config.yaml").write_text("{")
    assert "config.yaml cannot be read as YAML" in refused("train", f"--resume={run}")
    assert "config.yaml cannot be read as YAML" in refused("train", *POINT, f"--run_dir={run}")
    resolved = (unfinished / "config.yaml").read_text()
    for line, told in (
        ("threads: abc", "config.yaml: threads: 'abc'"),
        ("threads: null", "config.yaml: threads: null"),
    ):
        (run / "config.yaml").write_text(re.sub(r"(?m)^threads: .*$", line, resolved))
        auto = [argument for argument in POINT if not argument.startswith("--threads")]
        assert told in refused("train", *auto, "--threads=auto", "--allow_changes", f"--run_dir={run}")


def made(change):
    """A policy file with other metadata or numbers, and their checksum."""

    def write(path: Path, policy: Path) -> None:
        raw = policy.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        metadata = json.loads(header["__metadata__"]["mtrl"])
        metadata.pop("sha256", None)
        tensors = load_file(policy)
        change(metadata, tensors)
        metadata["sha256"] = checksum(metadata, tensors)
        path.write_bytes(save(tensors, {"mtrl": json.dumps(metadata)}))

    return write


def damaged(change):
    return lambda path, policy: path.write_bytes(change(policy.read_bytes()))


def sparse(path: Path, policy: Path) -> None:
    path.write_bytes(policy.read_bytes())
    os.truncate(path, 2**42)


def pickled(path: Path, policy: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.system, ("touch executed",)

    torch.save({"mtrl": Bomb()}, path)


def header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


POLICIES = {
    "empty": damaged(lambda raw: b""),
    "text": damaged(lambda raw: b"this is no policy"),
    "a pickle": pickled,
    "half of one": damaged(lambda raw: raw[: len(raw) // 2]),
    "a bit flipped in the numbers": damaged(lambda raw: raw[:-2] + bytes([raw[-2] ^ 64]) + raw[-1:]),
    "a bit flipped in the header": damaged(lambda raw: raw[:40] + bytes([raw[40] ^ 64]) + raw[41:]),
    "a header of absurd length": damaged(lambda raw: (2**60).to_bytes(8, "little") + raw[8:]),
    "a tensor of absurd size": damaged(
        lambda raw: header('{"w":{"dtype":"F32","shape":[1000000000000,1000],"data_offsets":[0,4000000000000000]}}')
    ),
    "a file of absurd size": sparse,
    "somebody else's": damaged(lambda raw: save({"w": torch.zeros(2)})),
    "tasks that end the process": made(lambda metadata, _: metadata["info"]["protocol"].update(suite="sys:exit")),
    "half a seed": made(lambda metadata, _: metadata["info"].update(seed=1.9)),
    "metadata that is no JSON": damaged(lambda raw: save({"w": torch.zeros(2)}, {"mtrl": "{"})),
    "metadata too deep": damaged(lambda raw: save({"w": torch.zeros(2)}, {"mtrl": "[" * 10**5})),
    "an absurd width": made(lambda m, t: m["actor"].update(hidden=[10**12, 10**12])),
    "absurdly many blocks": made(lambda m, t: m["actor"].update(blocks=10**7)),
    "absurdly many layers": made(lambda m, t: m["actor"].update(hidden=[1] * 10**6)),
    "absurdly many tasks": made(lambda m, t: m.update(task_names=[str(i) for i in range(200_000)])),
    "a task twice": made(lambda m, t: m.update(task_names=["point-reach"] * 5)),
    "an endless horizon": made(lambda m, t: m["info"]["protocol"].update(horizon=10**12)),
    "an absurd observation": made(lambda m, t: m.update(obs_dim=float("inf"))),
    "no task names": made(lambda m, t: m.update(task_names="point")),
    "a number that is not finite": made(lambda m, t: next(iter(t.values())).view(-1).fill_(float("nan"))),
    "a tensor left out": made(lambda m, t: t.popitem()),
    "no protocol": made(lambda m, t: m.update(info={})),
    "an unknown protocol": made(lambda m, t: m["info"]["protocol"].update(suite="os.system")),
    "a protocol of absurdly many goals": made(lambda m, t: m["info"]["protocol"].update(num_goals=10**12)),
    "a seed that is none": made(lambda m, t: m["info"].update(seed="$(touch executed)")),
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_a_damaged_or_hostile_policy_is_refused_by_name(refused, finished, tmp_path, policy):
    path = tmp_path / "bad.safetensors"
    POLICIES[policy](path, finished / "policy.safetensors")
    assert "bad.safetensors" in refused("evaluate", str(path))


def test_the_changes_above_begin_with_a_policy_that_loads(finished, tmp_path):
    made(lambda metadata, tensors: None)(tmp_path / "same", finished / "policy.safetensors")
    assert load_policy(tmp_path / "same").task_names[0] == "point-reach"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_hostile_checkpoint_is_refused_and_the_run_left_as_it_is(
    refused, unfinished, tmp_path, damage
):
    run = tmp_path / "run"
    shutil.copytree(unfinished, run)
    change, _ = DAMAGE[damage]
    rewrite(run / "checkpoint", lambda manifest: change(run / "checkpoint", manifest))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "no checkpoint can be used (manifest-51.json" in refused("train", f"--resume={run}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
