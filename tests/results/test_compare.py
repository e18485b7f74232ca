"""Statistics over runs: by hand, against scipy, and what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mtrl import cli
from mtrl.config import ConfigError
from mtrl.results.compare import (
    group,
    mean_conflict,
    read_curves,
    statistics,
    summarise,
    warnings,
)
from mtrl.results.figures import conflict_curves, curves_figure
from mtrl.results.reading import read_curve

TASKS = ("a", "b")


@pytest.fixture
def make_run(tmp_path):
    """Write a run folder of evaluations ``{steps: success of each task}``."""

    def make(place, evaluations, tasks=TASKS, cosine=0.0, status="DONE", episodes=1, config="", **meta):
        path = tmp_path / place
        path.mkdir(parents=True)
        (path / "meta.json").write_text(json.dumps({"protocol": {"name": "p", "goals": "fixed"}, **meta}))
        (path / "STATUS").write_text(f"{status}\n")
        (path / "config.yaml").write_text(config)
        lines = [
            {
                "steps_per_task": steps,
                "seconds": 60 * steps,
                "tasks": {
                    name: {"success": s, "episodes": episodes} for name, s in zip(tasks, success, strict=True)
                },
            }
            for steps, success in evaluations.items()
        ]
        (path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        records = [
            {"network": network, "cosines": [[1, c], [c, 1]], "steps_per_task": 1, "negative_pairs": 0.5}
            for network in ("critic", "actor")
            for c in (9, cosine)  # the first half is left out
        ]
        (path / "conflict.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
        return path

    return make


def test_a_runs_statistics_are_those_by_hand(make_run):
    evaluations = {s: (m, m) for s, m in zip(range(1, 8), (0.9, 0, 0.1, 0.2, 0.3, 0.4, 0.5), strict=True)}
    found = statistics(read_curve(make_run("x/seed0", evaluations)))
    assert found == pytest.approx(
        {
            "final": 0.5, "last3": 0.4, "last5": 0.3, "best": 0.9, "area": 2.4 / 7, "worst3": 0.3,
            "unseen": np.nan,
        }, nan_ok=True,
    )  # fmt: skip


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


def test_a_run_that_was_not_evaluated_yet_is_told_from_no_run_and_left_out_beside_others(make_run, capsys):
    run, other = make_run("x/seed0", {}), make_run("x/seed1", {1: (1, 1)})
    (run / "eval.jsonl").unlink()
    (run / "config.yaml").unlink()
    assert cli.main(["compare", str(run)]) == 2
    assert "is no run's folder" in capsys.readouterr().err
    (run / "config.yaml").write_text("")
    assert cli.main(["compare", str(run)]) == 2
    assert capsys.readouterr().err.endswith("x/seed0 has no evaluation yet (it is DONE)\n")
    assert cli.main(["compare", str(run), str(other), "--json=-"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"mtrl: warning: run: {run} has no evaluation yet (it is DONE): left out\n"
    assert json.loads(captured.out)["x"]["runs"] == [str(other)]


def test_a_run_counts_once(make_run, capsys, monkeypatch, tmp_path):
    run = make_run("x/seed0", {1: (1, 1)})
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(run.parent)
    for again in (str(run), "./seed0/", str(tmp_path / "link")):
        assert cli.main(["compare", "seed0", again]) == 2
        assert "is named twice (also as seed0); each run counts once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            {"steps_per_task": 2, "seconds": 1, "tasks": {"a": {"success": 17}, "b": {"success": 0}}},
            "success is 17",
        ),
        (
            {"steps_per_task": 2, "seconds": 1, "tasks": {"a": {"success": -3}, "b": {"success": 0}}},
            "success is -3",
        ),
        ({"steps_per_task": 2, "seconds": 1, "tasks": {"a": {"success": "1"}, "b": {}}}, "success is '1'"),
        (
            {"steps_per_task": 2, "seconds": 1, "tasks": {"a": {"success": float("nan")}, "b": {}}},
            "success is nan",
        ),
        ({"steps_per_task": 1, "seconds": 1, "tasks": {"a": {}, "b": {}}}, "the line before at 1"),
        ({"steps_per_task": 10**400, "seconds": 1, "tasks": {"a": {}, "b": {}}}, "steps_per_task is 1000"),
        ({"steps_per_task": 2, "seconds": 1, "tasks": {"b": {}, "a": {}}}, "has other tasks than line 1"),
        ({"steps_per_task": 2, "seconds": 1, "tasks": []}, "a mapping was expected"),
        ([1], "a mapping was expected"),
    ],
)
def test_what_no_run_writes_is_refused_by_file_and_line(make_run, capsys, line, words):
    run = make_run("x/seed0", {1: (1, 1)})
    with (run / "eval.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert cli.main(["compare", str(run)]) == 2
    (text,) = capsys.readouterr().err.splitlines()
    assert "eval.jsonl line 2" in text
    assert words in text


@pytest.mark.parametrize("content", ["[" * 100_000, '{"protocol": 3}', "\x00", '{"protocol": {}}', "null"])
def test_a_meta_file_that_no_run_writes_is_refused_in_one_line(make_run, capsys, content):
    run = make_run("x/seed0", {1: (1, 1)})
    (run / "meta.json").write_text(content)
    assert cli.main(["compare", str(run)]) == 2
    (text,) = capsys.readouterr().err.splitlines()
    assert "meta.json" in text


def test_a_run_that_diverged_counts_as_a_failure_from_its_end_on(make_run, capsys):
    good = make_run("good/seed0", {1: (1, 1), 2: (1, 1), 3: (1, 1), 4: (1, 1)})
    bad = make_run("bad/seed0", {1: (1, 1), 2: (1, 0)}, status="DIVERGED critic")
    assert cli.main(["compare", str(good), str(bad), "--json=-"]) == 0
    captured = capsys.readouterr()
    table = json.loads(captured.out)
    assert table["bad"]["area"]["mean"] == (1 + 0.5 + 0 + 0) / 4
    assert table["bad"]["final"]["mean"] == 0
    assert table["bad"]["diverged"] == [str(bad)]
    assert table["good"]["area"]["mean"] == 1
    assert "is marked DIVERGED critic: its success after 2 steps per task counts as 0" in captured.err


def test_what_makes_runs_unlike_is_said_in_a_line_each(make_run):
    one = {"commit": "a", "versions": {"torch": "1"}}
    two = {"commit": "b", "versions": {"torch": "2"}}
    runs = [
        make_run("x/seed0", {1: (1, 1)}, config="seed: 0\ntotal_steps_per_task: 5", **one),
        make_run(
            "y/seed7", {1: (1, 1), 2: (1, 1)}, episodes=5, config="seed: 7\ntotal_steps_per_task: 9", **two
        ),
    ]
    told = warnings([read_curve(run) for run in runs])
    for words in (
        "numbers of episodes per evaluation: 1, 5", "total steps per task: 5, 9", "commits: a, b",
        "runs end at 1 to 2 steps per task: all are compared up to the end of ",
        "versions: {'torch': '1'}", "the labels have goals of different seeds (x: 0; y: 7)",
    ):  # fmt: skip
        assert sum(words in line for line in told) == 1, words
    alike = [make_run(f"{x}/seed3", {1: (1, 1)}, config="seed: 3", **one) for x in "vw"]
    assert warnings([read_curve(run) for run in alike]) == []


def test_runs_that_are_not_finished_are_told_by_their_status_in_one_line_each(make_run):
    runs = [
        make_run(f"x/seed{n}", {1: (1, 1)}, config=f"seed: {n}", status=status)
        for n, status in enumerate(("INTERRUPTED by SIGINT", "DONE", "KILLED", "KILLED"))
    ]
    told = [line for line in warnings([read_curve(run) for run in runs]) if "not finished" in line]
    assert told == [
        f"not finished: {runs[0]} (INTERRUPTED by SIGINT)",
        f"not finished: {runs[2]} and 1 more (KILLED)",
    ]


@pytest.mark.parametrize(
    ("first", "second", "unlike"),
    [
        ("agent: {kernels: onednn, gamma: 0.9}", "agent: {kernels: compiled, gamma: 0.9}", False),
        ("agent: {kernels: onednn, gamma: 0.9}", "agent: {kernels: onednn, gamma: 0.99}", True),
    ],
)
def test_kernels_are_a_matter_of_the_machine_and_other_settings_of_the_arm(make_run, first, second, unlike):
    runs = [
        make_run(f"x/seed{n}", {1: (1, 1)}, config=f"seed: {n}\n{own}")
        for n, own in enumerate((first, second))
    ]
    told = warnings([read_curve(run) for run in runs])
    assert told == ["the runs of x have different settings, not only seeds"] * unlike


def test_seeds_are_grouped_by_their_folder_and_labels_tell_equal_names_apart(make_run):
    places = ["mt10/pcgrad/seed0", "mt10/pcgrad/seed1", "mt50/pcgrad/seed0", "mt10/unitary/seed0"]
    curves = [read_curve(make_run(place, {1: (1, 1)})) for place in places]
    assert {label: len(runs) for label, runs in group(curves).items()} == {
        "mt10/pcgrad": 2, "mt50/pcgrad": 1, "mt10/unitary": 1,
    }  # fmt: skip
    assert list(group([curves[0], curves[3]])) == ["pcgrad", "unitary"]


def test_differences_are_from_the_reference_that_is_named(make_run, capsys):
    runs = [str(make_run(f"{x}/seed{n}", {1: (s, s)})) for x, s in (("a", 0.2), ("b", 0.5)) for n in range(3)]
    assert cli.main(["compare", *runs, "--reference", "b", "--json=-"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["a"]["against"]["mean"] == pytest.approx(-0.3)
    assert cli.main(["compare", *runs, "--reference", "c"]) == 2
    assert "reference: 'c' is none of the labels a, b" in capsys.readouterr().err


def test_runs_without_a_pair_are_named_where_a_difference_is_paired(make_run, capsys):
    for seed, mean in enumerate((0.7, 0.69, 0.7, 0.1)):
        make_run(f"all/a/seed{seed}", {1: (mean, mean), 2: (mean, mean)})
    make_run("all/a/seed4", {1: (0, 0)}, status="DIVERGED critic")
    folder = [
        make_run(f"all/b/seed{seed}", {1: (m, m), 2: (m, m)}) for seed, m in enumerate((0.62, 0.6, 0.64))
    ]
    assert cli.main(["compare", str(folder[0].parents[1]), "--reference", "b", "--json=-"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["a"]["against"]
    assert (found["runs"], len(found["left_out"])) == (3, 2)
    assert "the difference of a from b is over the 3 seeds that both have, without " in captured.err
    assert "a/seed4 (DIVERGED critic)" in captured.err


def test_a_diverged_run_has_no_minutes_after_its_end(make_run):
    make_run("all/a/seed0", {1: (1, 1), 2: (1, 1), 3: (1, 1)})
    lost = make_run("all/a/seed1", {1: (1, 1)}, status="DIVERGED critic")
    groups = group(read_curves([str(lost.parents[1])])[0])
    assert summarise(groups)["a"]["minutes"] == 3
    figure = curves_figure(groups, "minutes")
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 2, 3]


def test_unseen_goals_that_nobody_tried_are_unknown_for_a_diverged_run_too(make_run):
    make_run("all/a/seed0", {1: (1, 1)})
    lost = make_run("all/b/seed0", {1: (1, 1)}, status="DIVERGED critic")
    found = summarise(group(read_curves([str(lost.parents[1])])[0]))
    assert [row["unseen"]["mean"] for row in found.values()] == [None, None]


def test_conflicts_are_averaged_over_seeds_and_over_the_second_half_of_each(make_run):
    runs = [make_run(f"x/seed{n}", {1: (1, 1)}, cosine=c) for n, c in enumerate((0.2, 0.4))]
    found = mean_conflict([read_curve(run) for run in runs])
    assert set(found) == {"critic", "actor"}
    np.testing.assert_allclose(found["actor"], [[1, 0.3], [0.3, 1]])
    (runs[1] / "conflict.jsonl").unlink()
    np.testing.assert_allclose(
        mean_conflict([read_curve(run) for run in runs])["actor"], [[1, 0.2], [0.2, 1]]
    )
    with pytest.raises(ConfigError, match="seed1 has no conflict measurement that can be read"):
        mean_conflict([read_curve(runs[1])])


def test_conflict_over_training_is_the_mean_of_what_was_measured_since_the_evaluation_before(
    make_run, capsys
):
    run = make_run("x/seed0", {10: (1, 1), 20: (1, 1), 30: (1, 1)}, cosine=0.1)
    measured = [(4, "critic", 0.5), (10, "critic", 1), (11, "critic", 0.2), (12, "critic", None), (5, "actor", 0),
                (31, "critic", 0.9)]  # fmt: skip
    records = [
        dict(zip(("steps_per_task", "network", "negative_pairs"), row, strict=True)) for row in measured
    ]
    (run / "conflict.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    curve = read_curve(run)
    np.testing.assert_array_equal(curve.conflict["critic"], [0.75, 0.2, np.nan])
    np.testing.assert_array_equal(curve.conflict["actor"], [0, np.nan, np.nan])
    np.testing.assert_array_equal(curve.at(np.array([20.0])).conflict["critic"], [0.2])
    assert curve.of_tasks(("b",)).conflict == {}
    lost = replace(curve, status="DIVERGED", steps=np.zeros(0), conflict={}).at(curve.steps)
    unknown = replace(curve, conflict={name: shares * np.nan for name, shares in curve.conflict.items()})
    figure = conflict_curves({"x": [curve, unknown, lost]}, (8, 3))
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [0.75, 0.2, np.nan])
    (run / "conflict.jsonl").unlink()
    assert cli.main(["compare", str(run), "--conflict_curves=x.png", "--json=-"]) == 2
    assert "conflict_curves: no run of x has its conflict over training" in capsys.readouterr().err


def test_an_evaluation_in_which_a_task_told_no_success_had_none_if_another_told_some(make_run):
    curve = read_curve(make_run("x/seed0", {1: (None, None), 2: (0.5, None)}))
    np.testing.assert_array_equal(curve.success, [[0, np.nan], [0.5, np.nan]])


def test_the_margin_is_the_metrics_unless_it_is_given(make_run, capsys):
    runs = [str(make_run(f"{x}/seed{n}", {1: (0.3 + n / 20, 0.5)})) for x in "ab" for n in range(3)]
    for options, margin in (([], 0.05), (["--metric=last3"], 0.1), (["--metric=last3", "--margin=0.2"], 0.2)):
        assert cli.main(["compare", *runs, "--reference=a", "--json=-", *options]) == 0
        assert json.loads(capsys.readouterr().out)["b"]["against"]["margin"] == margin


def test_success_in_training_is_of_the_runs_that_have_it(make_run):
    runs = [read_curve(make_run(f"a/seed{n}", {1: (1, 1)})) for n in range(3)]
    runs = [replace(run, training_success=value) for run, value in zip(runs, (0.2, None, 0.4), strict=True)]
    found = summarise({"a": runs})["a"]["training_success"]
    assert (found["mean"], found["runs"]) == (pytest.approx(0.3), 2)
    assert summarise({"a": runs[1:2]})["a"]["training_success"] == {"mean": None, "runs": 0}
    lost = [replace(runs[0], status="DIVERGED", training_success=None), runs[2]]
    found = summarise({"a": lost})["a"]["training_success"]
    assert (found["mean"], found["runs"]) == (pytest.approx(0.2), 2)
    assert summarise({"a": [lost[0], runs[1]]})["a"]["training_success"] == {"mean": None, "runs": 0}
    stopped = replace(runs[0], status="FAILED disk")
    assert stopped.at(stopped.steps).training_success is None  # half of its log is not half of a run's


def test_the_legend_of_the_conflict_curves_is_not_cut(make_run):
    curve = replace(
        read_curve(make_run("a/seed0", {1: (1, 1)})), conflict={n: np.ones(1) for n in ("critic", "actor")}
    )
    figure = conflict_curves(
        {name: [curve] * 5 for name in ("bare_unitary", "no_layer_norm", "bare_pcgrad", "bare_cagrad")},
        (8, 3.4),
    )
    FigureCanvasAgg(figure).draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_every_figure_is_drawn_for_two_labels_and_a_bad_format_is_named(make_run, tmp_path, capsys):
    runs = [str(make_run(f"{x}/seed{n}", {1: (0, 1), 2: (1, 1)})) for x in "xy" for n in (0, 1)]
    table = tmp_path / "table.csv"
    assert cli.main(["export", *runs, str(table)]) == 0
    options = ("figure", "tasks_figure", "conflict_figure", "conflict_curves")
    for option, places in ((o, p) for o in options for p in (runs, [str(table)])):
        file = tmp_path / f"{option}.svg"
        assert cli.main(["compare", *places, f"--{option}={file}", "--json=-"]) == 0
        drawn = file.read_text()
        assert "<svg" in drawn
        for label in "xy":  # matplotlib writes texts as comments beside their paths
            assert f"<!-- {label}" in drawn
    capsys.readouterr()
    assert cli.main(["compare", *runs, f"--figure={tmp_path}/x.nonsense"]) == 2
    assert "x.nonsense cannot be written: Format 'nonsense' is not supported" in capsys.readouterr().err


def test_a_diverged_run_without_an_evaluation_counts_as_no_success_and_such_runs_alone_are_refused(
    make_run, capsys
):
    good, bad = make_run("x/seed0", {1: (1, 1), 2: (1, 1)}), make_run("y/seed1", {}, status="DIVERGED critic")
    assert cli.main(["compare", str(good), str(bad), "--json=-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["y"]["area"]["mean"] == 0
    assert "is marked DIVERGED critic: its success after 0 steps per task counts as 0" in captured.err
    worse = make_run("x/seed2", {1: (1, 1)}, status="DIVERGED critic")
    for runs in ([bad], [worse]):
        assert cli.main(["compare", *map(str, runs)]) == 2
        assert "all of 1 runs diverged" in capsys.readouterr().err


def test_a_run_that_the_machine_ended_is_unfinished_not_a_failure_of_its_method(make_run, capsys):
    good = make_run("x/seed0", {1: (1, 1), 2: (1, 1)})
    full = make_run("x/seed1", {1: (1, 0)}, status="FAILED disk")
    none = make_run("x/seed2", {}, status="FAILED disk")
    assert cli.main(["compare", *map(str, (good, full, none)), "--json=-"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["x"]
    assert (found["seeds"], found["diverged"], found["steps_per_task"]) == ([0, 1], [], 1)
    assert found["final"]["mean"] == 0.75
    assert f"not finished: {full} (FAILED disk)" in captured.err
    assert f"{none}" in captured.err


def test_a_run_that_diverged_before_its_first_evaluation_has_the_tasks_of_its_protocol(make_run):
    others = {"protocol": {"name": "q", "goals": "fixed"}}
    make_run("all/a/seed0", {1: (1, 1)})
    make_run("all/b/seed0", {1: (1, 1, 1)}, tasks=("x", "y", "z"), **others)
    lost = make_run("all/b/seed1", {}, status="DIVERGED critic", **others)
    curves, _ = read_curves([str(lost.parents[1])])
    assert {str(c.path)[-7:]: c.task_names for c in curves} == {
        "a/seed0": ("a", "b"), "b/seed0": ("x", "y", "z"), "b/seed1": ("x", "y", "z"),
    }  # fmt: skip


def test_near_the_ceiling_and_where_a_task_tells_no_success_there_is_no_interval_and_no_test(
    make_run, capsys
):
    high = [
        str(make_run(f"{x}/seed{n}", {1: (1, 0.9 + 0.02 * n + s)}))
        for x, s in (("a", 0), ("b", 0.01))
        for n in range(4)
    ]
    silent = [str(make_run(f"c/seed{n}", {1: (0.5 + 0.1 * n, None)})) for n in range(4)]
    assert cli.main(["compare", *high, *silent, "--reference=a", "--json=-"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["a"]["area"]["no_ci"] == "the mean is nearer than 0.05 to 0 or 1"
    assert table["c"]["area"]["no_ci"] == "a score is not known"
    for arm in "bc":
        found = table[arm]["against"]
        assert (
            found["ci"]
            is found["p_better_holm"]
            is found["p_not_better"]
            is found["power_equivalent"]
            is None
        )
    assert table["c"]["worst3"]["mean"] is table["c"]["against"]["improvement"]["mean"] is None


@pytest.mark.parametrize("option", ["figure", "tasks_figure", "conflict_figure", "conflict_curves"])
@pytest.mark.parametrize("place", ["-", "picture"])
def test_a_figure_goes_to_a_file_whose_ending_names_its_format(make_run, capsys, monkeypatch, option, place):
    run = make_run("x/seed0", {1: (1, 1)})
    monkeypatch.chdir(run.parent)
    assert cli.main(["compare", str(run), f"--{option}={place}"]) == 2
    assert f"{option}: '{place}' is not valid" in capsys.readouterr().err
    assert [path.name for path in run.parent.iterdir()] == ["seed0"]
