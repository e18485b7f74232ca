"""Statistics over runs: by hand, against scipy, and what cannot be compared."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import bootstrap

from mtrl import cli
from mtrl.config import ConfigError
from mtrl.results.compare import (
    bootstrap_interval,
    group,
    interquartile_mean,
    mean_conflict,
    probability_of_improvement,
    read_curve,
    summarise,
)

TASKS = ("a", "b")


@pytest.fixture
def make_run(tmp_path):
    """Write a run folder of evaluations ``{steps: success of each task}``."""

    def make(place, evaluations, tasks=TASKS, cosine=0.0):
        path = tmp_path / place
        path.mkdir(parents=True)
        (path / "meta.json").write_text(json.dumps({"protocol": {"name": "p"}}))
        (path / "STATUS").write_text("DONE\n")
        lines = [
            {
                "steps_per_task": steps,
                "seconds": 60 * steps,
                "tasks": {name: {"success": s} for name, s in zip(tasks, success, strict=True)},
            }
            for steps, success in evaluations.items()
        ]
        (path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        records = [
            {"network": network, "cosines": [[1, c], [c, 1]]}
            for network in ("critic", "actor")
            for c in (9, cosine)  # the first half is left out
        ]
        (path / "conflict.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
        return path

    return make


def test_a_runs_statistics_are_those_by_hand(make_run):
    evaluations = {s: (m, m) for s, m in zip(range(1, 8), (0.9, 0, 0.1, 0.2, 0.3, 0.4, 0.5), strict=True)}
    found = read_curve(make_run("x/seed0", evaluations)).statistics()
    assert found == pytest.approx({"final": 0.5, "last5": 0.3, "best": 0.9, "area": 2.4 / 7})


def test_runs_are_scored_at_the_evaluations_that_all_have(make_run):
    often = make_run("often/seed0", {1: (1, 1), 2: (0, 0), 3: (0.5, 0), 4: (1, 1), 6: (0, 1)})
    seldom = make_run("seldom/seed0", {2: (1, 1), 4: (0, 1), 5: (1, 1)})
    groups = group([read_curve(often), read_curve(seldom)])
    assert {label: [c.steps.tolist() for c in curves] for label, curves in groups.items()} == {
        "often": [[2, 4]],
        "seldom": [[2, 4]],
    }
    table = summarise(groups)
    assert [table[label]["area"]["mean"] for label in groups] == [0.5, 0.75]
    assert table["seldom"]["tasks"] == {"a": 0.5, "b": 1}
    assert table["seldom"]["minutes"] == 4


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"evaluations": {5: (1, 1)}}, "no evaluation at the same number of steps per task"),
        ({"evaluations": {1: (1, 1, 1)}, "tasks": ("a", "b", "c")}, "has other tasks than"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(make_run, capsys, other, words):
    runs = [make_run("x/seed0", {1: (1, 1)}), make_run("x/seed1", **other)]
    assert cli.main(["compare", *map(str, runs)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_run_that_was_not_evaluated_yet_is_told_from_no_run(make_run, capsys):
    run = make_run("x/seed0", {})
    (run / "eval.jsonl").unlink()
    assert cli.main(["compare", str(run)]) == 2
    assert "is no run's folder" in capsys.readouterr().err
    (run / "config.yaml").write_text("")
    assert cli.main(["compare", str(run)]) == 2
    assert capsys.readouterr().err.endswith("x/seed0 has no evaluation yet (it is DONE)\n")


def test_seeds_are_grouped_by_their_folder_and_labels_tell_equal_names_apart(make_run):
    places = ["mt10/pcgrad/seed0", "mt10/pcgrad/seed1", "mt50/pcgrad/seed0", "mt10/unitary/seed0"]
    curves = [read_curve(make_run(place, {1: (1, 1)})) for place in places]
    assert {label: len(runs) for label, runs in group(curves).items()} == {
        "mt10/pcgrad": 2, "mt50/pcgrad": 1, "mt10/unitary": 1,
    }  # fmt: skip
    assert list(group([curves[0], curves[3]])) == ["pcgrad", "unitary"]


def test_the_interval_over_seeds_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(1).random(8)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    assert bootstrap_interval(values) == pytest.approx([theirs.low, theirs.high], abs=0.01)
    assert bootstrap_interval(values[:1]) is None


def test_the_interquartile_mean_and_the_probability_of_improvement_are_those_by_hand():
    assert interquartile_mean(np.array([0, 1, 2, 9])) == 1.5
    # of the six pairs three are above, one is equal
    assert probability_of_improvement(np.array([1, 3, 2]), np.array([2, 0])) == pytest.approx(4.5 / 6)
    assert probability_of_improvement(np.array([1.0]), np.array([1.0])) == 0.5


def test_conflicts_are_averaged_over_seeds_and_over_the_second_half_of_each(make_run):
    runs = [make_run(f"x/seed{n}", {1: (1, 1)}, cosine=c) for n, c in enumerate((0.2, 0.4))]
    found = mean_conflict(runs)
    assert set(found) == {"critic", "actor"}
    np.testing.assert_allclose(found["actor"], [[1, 0.3], [0.3, 1]])
    (runs[1] / "conflict.jsonl").unlink()
    with pytest.raises(ConfigError, match="seed1 has no conflict measurement that can be read"):
        mean_conflict(runs)


def test_every_figure_is_drawn_for_two_labels_and_a_bad_format_is_named(make_run, tmp_path, capsys):
    runs = [str(make_run(f"{x}/seed{n}", {1: (0, 1), 2: (1, 1)})) for x in "xy" for n in (0, 1)]
    for option in ("figure", "tasks_figure", "conflict_figure"):
        file = tmp_path / f"{option}.svg"
        assert cli.main(["compare", *runs, f"--{option}={file}", "--json=-"]) == 0
        drawn = file.read_text()
        assert "<svg" in drawn
        for label in "xy":  # matplotlib writes texts as comments beside their paths
            assert f"<!-- {label}" in drawn
    capsys.readouterr()
    assert cli.main(["compare", *runs, f"--figure={tmp_path}/x.nonsense"]) == 2
    assert "x.nonsense cannot be written: Format 'nonsense' is not supported" in capsys.readouterr().err
