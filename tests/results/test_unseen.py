"""Success on goals that a run never trained on: measured, recorded, exported, compared, refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_runs import train

from mtrl import cli
from mtrl.envs import Protocol, make_suite
from mtrl.evaluate import evaluate
from mtrl.policy import load_policy
from mtrl.results.reading import read_curve

SEED = 7 + 1_000_003


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unseen") / "arm/seed7"
    assert train(folder, "--seed=7") == 0
    return folder


def test_it_is_what_an_evaluation_on_those_goals_gives_and_compare_reads_it_from_folder_and_table(
    run, tmp_path, capsys
):
    assert cli.main(["evaluate", str(run), "--goals=unseen"]) == 0
    assert f"Goals of seed {SEED}, on which it never trained: recorded in {run}" in capsys.readouterr().out
    envs = make_suite(Protocol("point", horizon=30, num_goals=50), seed=SEED, evaluation=True)
    scores = evaluate(load_policy(run / "policy.safetensors"), envs, 50)
    found = read_curve(run).unseen
    assert (found.goal_seed, found.episodes) == (SEED, 50)
    assert found.success == tuple(scores.tasks[name].success.mean() for name in envs.task_names)
    assert max(found.success) > 0
    assert cli.main(["export", str(run), str(tmp_path / "table.csv")]) == 0
    for place in (run, tmp_path / "table.csv"):
        capsys.readouterr()
        assert cli.main(["compare", str(place), "--json=-"]) == 0
        assert json.loads(capsys.readouterr().out)["arm"]["unseen"]["mean"] == np.mean(found.success)
    assert cli.main(["compare", str(run)]) == 0
    assert "unseen" in capsys.readouterr().out
    assert train(run, "--seed=7") == 2  # as any finished run
    assert "holds a finished run" in capsys.readouterr().err


def test_the_goals_are_others_than_the_runs_for_point_and_metaworld():
    for suite in ("point", "reach-v3"):
        starts = []
        for seed in (7, SEED):
            envs = make_suite(Protocol(suite, num_goals=3), seed=seed, workers=0, evaluation=True)
            envs.reset()
            horizon = envs.horizon
            for _ in range(3):  # the first goal, then one for each episode
                starts.append(envs.reset()[0])
            envs.close()
            assert horizon == 500
        assert len({tuple(start) for start in starts[:3]} & {tuple(start) for start in starts[3:]}) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--episodes=3"], "leave out --episodes"),
        (["--seed=3"], "leave out --seed"),
        (["--checkpoint=best"], "leave out --checkpoint"),
    ],
)
def test_it_is_measured_in_one_way(run, capsys, options, words):
    assert cli.main(["evaluate", str(run), "--goals=unseen", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_fixed_goals_files_and_unfinished_runs_are_refused_in_one_line_and_nothing_is_written(
    run, tmp_path, capsys
):
    fixed = tmp_path / "fixed"
    assert train(fixed, "--protocol.goals=fixed") == 0
    (fixed / "STATUS").write_text("DONE\n")
    policy = tmp_path / "policy.safetensors"
    policy.write_bytes((run / "policy.safetensors").read_bytes())
    young = tmp_path / "young"
    assert train(young) == 0
    (young / "STATUS").write_text("INTERRUPTED\n")
    for place, words in (
        (fixed, "point-v2-h30-fixed has one fixed goal per task"),
        (policy, "is for the folder of a run that is DONE"),
        (young, "it is INTERRUPTED"),
    ):
        capsys.readouterr()
        assert cli.main(["evaluate", str(place), "--goals=unseen"]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("unseen.json"))


def test_a_record_of_earlier_steps_is_not_taken_and_one_of_the_trained_goals_is_refused(tmp_path, capsys):
    folder = tmp_path / "arm/seed7"
    assert train(folder, "--seed=7") == 0
    assert cli.main(["evaluate", str(folder), "--goals=unseen"]) == 0
    record = folder / "unseen.json"
    whole = json.loads(record.read_text())
    record.write_text(json.dumps({**whole, "steps_per_task": 60}))
    assert read_curve(folder).unseen is None
    whole["protocol"]["goal_seed"] = 7
    record.write_text(json.dumps(whole))
    capsys.readouterr()
    assert cli.main(["compare", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is of goal seed 7, which the run trained on" in line


def test_a_table_with_a_damaged_record_is_refused(run, tmp_path, capsys):
    table = tmp_path / "table.csv"
    assert cli.main(["evaluate", str(run), "--goals=unseen"]) == 0
    assert cli.main(["export", str(run), str(table)]) == 0
    whole = table.read_text()
    for old, new, words in (
        ('"episodes": 50', '"episodes": "x"', "episodes is 'x'"),
        ('"success": [', '"success": [9, ', "not a number per task"),
        ('"goal_seed": ', '"goal_seed": -', "goal_seed is -"),
    ):
        assert old in whole
        table.write_text(whole.replace(old, new))
        capsys.readouterr()
        assert cli.main(["compare", str(table)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
