"""Runs as a table and back, and what others published."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtrl import cli
from mtrl.config import ConfigError
from mtrl.envs import SUITES
from mtrl.results.baselines import names, read_baseline
from mtrl.results.export import read_table
from mtrl.results.reading import read_curve

MT10 = SUITES["mt10"]


@pytest.fixture
def grid(tmp_path):
    """An experiment of two arms of six seeds on MT10, one run diverged, one never evaluated."""
    for arm, shift in (("unitary", 0.0), ("pcgrad", 0.05)):
        for seed in range(6):
            generator = np.random.default_rng([seed, len(arm)])
            run = tmp_path / "grid" / arm / f"seed{seed}"
            run.mkdir(parents=True)
            (run / "config.yaml").write_text(
                f"seed: {seed}\ntotal_steps_per_task: 100000\noptimizer: {{name: {arm}}}\n"
            )
            protocol = {"name": "mt10-v2-h200-fixed", "goals": "fixed"}
            (run / "meta.json").write_text(json.dumps({"protocol": protocol, "commit": "abc"}))
            lost = arm == "pcgrad" and seed in (3, 4)
            (run / "STATUS").write_text("DIVERGED critic\n" if lost else "DONE\n")
            (run / "progress.csv").write_text(
                "timesteps,train/critic_loss,rollout/success_rate\n1,9,0\n2,1.25,0\n3,,0.5\n4,1.75,0.25\n"
            )
            lines = [
                {
                    "steps_per_task": steps, "seconds": steps / 7,
                    "tasks": {
                        task: {
                            "success": float(np.clip(generator.normal(0.3 + steps / 4e5 + shift, 0.1), 0, 1)),
                            "success_at_end": 0.1, "return": float(generator.normal(0, 1e3)), "episodes": 5,
                        } for task in MT10
                    },
                } for steps in range(25_000, 100_001, 25_000)
            ]  # fmt: skip
            kept = lines[: {3: 2, 4: 0}.get(seed, 4) if lost else 4]
            if kept:
                (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
            cosines = np.clip(generator.normal(0, 0.3, (10, 10)), -1, 1)
            cosines = np.triu(cosines, 1) + np.triu(cosines, 1).T + np.eye(10)
            cosines[2, 5] = cosines[5, 2] = np.nan
            record = {
                "network": "critic", "cosine_to_mean": 0.9, "norm_ratio": 1.0, "negative_pairs": 0.25,
                "steps_per_task": 50_000,
                "cosines": [[None if np.isnan(x) else x for x in row] for row in cosines],
            }  # fmt: skip
            same = {**record, "cosine_to_mean": 1.0}
            (run / "conflict.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(same) + "\n")
    return tmp_path / "grid"


def compared(capsys, *arguments):
    assert cli.main(["compare", *map(str, arguments), "--json=-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_comparison_of_folders_equals_that_of_their_table(grid, tmp_path, capsys):
    table = tmp_path / "elsewhere" / "grid.csv"
    table.parent.mkdir()
    assert cli.main(["export", str(grid), str(table)]) == 0
    assert capsys.readouterr().out == f"12 runs in {table}\n"
    folders = compared(capsys, grid, "--reference", "unitary")
    again = compared(capsys, table, "--reference", "unitary")
    text = json.dumps(again).replace(
        str(table.with_suffix("")), str(grid)
    )  # arms are grid/unitary, grid/pcgrad
    assert json.loads(text) == folders
    assert folders["pcgrad"]["diverged"] == [f"{grid}/pcgrad/seed3", f"{grid}/pcgrad/seed4"]
    assert folders["pcgrad"]["against"]["paired"]
    assert folders["unitary"]["acting"] == {
        "critic": {
            "cosine": pytest.approx(0.95),
            "norm_ratio": 1,
            "unchanged": 0.5,
            "conflict": 0.25,
            "measured": 12,
        }
    }


def test_a_table_holds_every_number_of_the_runs(grid, tmp_path):
    table = tmp_path / "grid.csv"
    cli.main(["export", str(grid), str(table)])
    found = {(curve.folder.name, curve.seed): curve for curve in read_table(table)}
    for arm, seed in (("unitary", 2), ("pcgrad", 3)):
        ours, theirs = found[arm, seed], read_curve(grid / arm / f"seed{seed}")
        for key in ("steps", "minutes", "success", "at_end", "returns"):
            np.testing.assert_array_equal(getattr(ours, key), getattr(theirs, key))
        for key in (
            "status",
            "protocol",
            "task_names",
            "episodes",
            "settings",
            "acting",
            "critic_loss",
            "training_success",
        ):
            assert getattr(ours, key) == getattr(theirs, key)
        np.testing.assert_array_equal(ours.cosines["critic"], theirs.cosines["critic"])
        assert np.isnan(ours.cosines["critic"]).sum() == 2
        np.testing.assert_array_equal(ours.conflict["critic"], theirs.conflict["critic"])
        np.testing.assert_array_equal(
            ours.conflict["critic"], [np.nan, 0.25, np.nan, np.nan][: len(ours.steps)]
        )
    assert found["unitary", 0].critic_loss == 1.75
    assert found["unitary", 0].training_success == 0.375
    assert found["unitary", 0].settings["config"] == found["unitary", 1].settings["config"]
    assert found["unitary", 0].settings["config"] != found["pcgrad", 0].settings["config"]
    twice = table.read_text()
    cli.main(["export", str(table), str(tmp_path / "again.csv")])
    assert (tmp_path / "again.csv").read_text() == twice


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("# mtrl-runs-1", "# other", "is no table of `mtrl export`"),
        ('"status": "DONE"', '"status": 3', "status is 3"),
        ('"arm": "grid/pcgrad"', '"arm": "../x"', "is no name"),
        ('{"run": 0,', '{"run": 0, "run": 0,', "the key 'run' comes twice"),
        ("reach-v3,", "push-v3,", "task reach-v3 was expected"),
        ("\n0,25000,", "\n99,25000,", "is no row of a run"),
        ('"cosines": {"critic": [', '"cosines": {"critic": [0.1, ', "cosines: not a list of 45 numbers"),
        ('"cosines": {"critic": [', '"cosines": {"critic": [7, 8], "x": [', "cosines: 'x' is no network"),
        ('"conflict": {"critic": [null, 0.25,', '"conflict": {"critic": [null, 25,', "conflict: it is 25"),
        ('"conflict": {"critic": [null,', '"conflict": {"critic": [', "conflict: not a list of 4 numbers"),
        (",0.1,", ",7,", "success_at_end is 7.0"),
        (",0.1,", ",nonsense,", "'nonsense' is no number"),
        ('"training_success": 0.375', '"training_success": 2', "training_success of grid/"),
        ("run,steps", "run,leaps", "the columns run,steps,"),
    ],
)
def test_a_damaged_table_is_refused_in_one_line(grid, tmp_path, capsys, old, new, words):
    table = tmp_path / "grid.csv"
    cli.main(["export", str(grid), str(table)])
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new, 1))
    capsys.readouterr()
    assert cli.main(["compare", str(table)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_table_that_grows_run_by_run_is_the_table_of_all_runs(grid, tmp_path, capsys):
    """Whatever it is called, and wherever it lies meanwhile."""
    runs = sorted(grid.glob("*/seed*"), key=lambda run: (run.name, run.parent.name))
    whole, grown = tmp_path / "whole.csv", tmp_path / "there" / "grown.csv"
    grown.parent.mkdir()
    assert cli.main(["export", *map(str, runs), str(whole)]) == 0
    assert cli.main(["export", str(runs[0]), str(grown)]) == 0
    for number, run in enumerate(runs[1:]):
        if number == 4:
            grown = grown.rename(tmp_path / "moved.csv")
        assert cli.main(["export", str(grown), str(run), str(grown)]) == 0
    before = grown.read_text()
    found, expected = ({curve.path: curve for curve in read_table(table)} for table in (grown, whole))
    assert found.keys() == expected.keys() == {tmp_path / "grid" / run.relative_to(grid) for run in runs}
    for path, curve in expected.items():
        assert curve.status == found[path].status
        assert np.array_equal(curve.success, found[path].success)
    assert cli.main(["export", str(grown), str(runs[0]), str(grown)]) == 2
    assert "seed0 comes twice; each run counts once" in capsys.readouterr().err
    assert grown.read_text() == before
    assert cli.main(["compare", str(grown), str(whole)]) == 2
    assert "comes twice; each run counts once" in capsys.readouterr().err


def test_runs_that_a_table_would_not_tell_apart_and_other_files_are_refused(grid, tmp_path, capsys):
    config = grid / "unitary/seed1/config.yaml"
    config.write_text(config.read_text().replace("seed: 1", "seed: 0"))
    assert cli.main(["export", str(grid), str(tmp_path / "x.csv")]) == 2
    assert "grid/unitary/seed0 (the arm and the seed are equal)" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()
    assert cli.main(["export", str(grid), str(grid / "unitary")]) == 2
    assert "ends in .csv" in capsys.readouterr().err


def test_a_key_that_comes_twice_in_a_runs_file_is_refused(grid, capsys):
    path = grid / "unitary/seed0/eval.jsonl"
    path.write_text(path.read_text().replace('"seconds"', '"steps_per_task": 1, "seconds"', 1))
    assert cli.main(["compare", str(grid)]) == 2
    assert "eval.jsonl line 1: the key 'steps_per_task' comes twice" in capsys.readouterr().err


def test_every_baseline_can_be_read_and_brcs_means_are_the_published_ones():
    assert set(names()) == {"brc", "kurin2022", "metaworld_plus"}
    curves = read_baseline("brc", MT10, "mt10").curves["BRC, one agent for 50 tasks"]
    assert len(curves) == 5
    means = dict(zip(curves[0].steps, np.mean([c.success.mean(1) for c in curves], axis=0), strict=True))
    for steps, mean in {50: 0.304, 100: 0.702, 200: 0.920, 300: 0.980}.items():
        assert means[1000 * steps] == pytest.approx(mean, abs=5e-4)
    assert read_baseline("kurin2022", MT10, "mt10").numbers["Kurin 2022, unitary"] == [0.875, 0.825, 0.92]
    with pytest.raises(ConfigError, match="baseline: kurin2022 has numbers of mt10 and mt50 only"):
        read_baseline("kurin2022", MT10[:3], "custom")
    with pytest.raises(ConfigError, match="baseline: brc has no other"):
        read_baseline("brc", ("other",), "custom")


def test_baselines_are_tabulated_and_drawn_and_what_makes_them_unlike_is_said(grid, tmp_path, capsys):
    figure = tmp_path / "x.svg"
    arguments = [str(grid), "--baseline=brc", "--baseline=kurin2022", f"--figure={figure}", "--json=-"]
    assert cli.main(["compare", *arguments]) == 0
    captured = capsys.readouterr()
    row = json.loads(captured.out)["BRC, one agent for 50 tasks"]
    assert (row["mean"], row["steps_per_task"], row["seeds"]) == (pytest.approx(0.702), 100_000, 5)
    assert "baseline brc: one agent for 50 tasks" in captured.err
    assert "kurin2022 is v1-h150-fixed, the runs are mt10-v2-h200-fixed: other protocols" in captured.err
    assert "brc is" not in captured.err
    for text in ("BRC, one agent for 50 tasks (5 seeds)", "Kurin 2022: 7 methods, best at 2M steps"):
        assert f"<!-- {text} -->" in figure.read_text()


def test_the_committed_runs_are_compared_as_their_page_says(capsys):
    table = compared(capsys, Path(__file__).parents[2] / "docs/results/mt10_fast/runs.csv")
    assert {arm: row["seeds"] for arm, row in table.items()} == {
        "first_recipe": [100, 101], "second_recipe": [102, 103], "mt10_fast": [104, 105], "mt10_fast_min": [104, 105],
    }  # fmt: skip
    assert table["mt10_fast"]["area"]["mean"] > table["first_recipe"]["area"]["mean"]
    assert table["mt10_fast"]["area"]["no_ci"] == "fewer than 3 seeds"


def test_arms_are_named_and_ordered_in_tables_csv_and_latex(grid, tmp_path, capsys):
    named = ["--names=unitary=Plain & simple,pcgrad=PC_Grad 100%", "--reference=unitary"]
    outputs = [f"--csv={tmp_path}/x.csv", f"--latex={tmp_path}/x.tex"]
    assert list(compared(capsys, grid, *named, *outputs)) == ["Plain & simple", "PC_Grad 100%"]
    assert "PC_Grad 100%,area minus Plain & simple," in (tmp_path / "x.csv").read_text()
    latex = (tmp_path / "x.tex").read_text()
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    columns = latex.split(r"\begin{tabular}{")[1].split("}")[0]
    bare = [row.replace(r"\&", "") for row in rows]
    assert {row.count("&") + 1 for row in bare} == {len(columns)}
    assert all(row.count("{") == row.count("}") and row.count("$") % 2 == 0 for row in rows)
    assert r"Plain \& simple" in rows[1]
    assert r"PC\_Grad 100\%" in rows[2]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--names=nobody", "names: 'nobody' is none of the arms"),
        ("--names=unitary=x,pcgrad=x", "gives two arms one name"),
        ("--size=big", "size: 'big' is not valid"),
        ("--margin=2", "margin: 2.0 is not valid"),
        ("--baseline=brd", "did you mean 'brc'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(grid, capsys, option, words):
    assert cli.main(["compare", str(grid), option]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["list", "configs"], ["list", "suites"], ["compare", "GRID", "--json=-"], ["claims"]],
)
def test_commands_that_only_read_load_no_torch(grid, arguments):
    code = (
        "import sys, mtrl.cli; code = mtrl.cli.main(sys.argv[1:]); "
        "loaded = {'torch', 'stable_baselines3', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'{code} {loaded}' if code or loaded else 0)"
    )
    line = [str(grid) if a == "GRID" else a for a in arguments]
    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_younger_run_of_the_same_seed_does_not_replace_an_older_one(grid, tmp_path, capsys):
    table = tmp_path / "t.csv"
    assert cli.main(["export", str(grid), str(table)]) == 0
    before = table.read_bytes()
    evaluations = grid / "unitary/seed2/eval.jsonl"
    evaluations.write_text(evaluations.read_text().splitlines(keepends=True)[0])
    assert cli.main(["export", str(grid), str(table)]) == 2
    assert "has grid/unitary, seed 2, with 100000 steps per task, which " in capsys.readouterr().err
    assert table.read_bytes() == before


def test_runs_of_two_folders_that_become_one_arm_are_named(grid, tmp_path, capsys):
    other = tmp_path / "elsewhere/grid/unitary"
    other.mkdir(parents=True)
    (grid / "unitary/seed5").rename(other / "seed5")
    assert cli.main(["export", str(grid), str(other.parent), str(tmp_path / "t.csv")]) == 0
    told = capsys.readouterr().err
    assert f"grid/unitary is one arm in the table, of the runs in {grid / 'unitary'}, {other}" in told
    assert cli.main(["export", str(tmp_path / "t.csv"), str(tmp_path / "u.csv")]) == 0
    assert cli.main(["export", str(tmp_path / "t.csv"), str(tmp_path / "u.csv")]) == 0
    assert "is one arm" not in capsys.readouterr().err


def test_a_table_is_never_written_over_what_it_does_not_hold(grid, tmp_path, capsys):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    assert cli.main(["export", str(grid / "unitary"), str(one)]) == 0
    assert cli.main(["export", str(grid / "pcgrad"), str(other)]) == 0
    notes = tmp_path / "notes.csv"
    notes.write_text("mine\n")
    before = {path: path.read_bytes() for path in (one, other, notes)}
    for target, words in (
        (other, "has runs that would be lost (grid/pcgrad, seed 0)"),
        (notes, "is no table of mtrl"),
    ):
        capsys.readouterr()
        assert cli.main(["export", str(one), str(target)]) == 2
        assert words in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert cli.main(["export", str(one), str(other), str(tmp_path / "both.csv")]) == 0
    assert cli.main(["export", str(grid / "unitary"), str(one)]) == 0  # what it holds may be written anew
