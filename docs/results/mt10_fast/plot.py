"""Draw the runs beside this script and print the tables of README.md: `python plot.py`."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from mtrl.envs import SUITES
from mtrl.results.baselines import read_baseline
from mtrl.results.export import read_table
from mtrl.results.figures import new_figure

HERE = Path(__file__).parent
RECIPES = {"first recipe": (100, 101), "second recipe": (102, 103), "mt10_fast": (104, 105)}
LAST = 5
MARKS = (50_000, 100_000, 150_000, 200_000, 300_000)  # steps per task

ARMS = {"first recipe": "first_recipe", "second recipe": "second_recipe", "mt10_fast": "mt10_fast"}
TABLE = {(curve.folder.name, curve.seed): curve for curve in read_table(HERE / "runs.csv")}

Run = Sequence[dict[str, Any]]  # its evaluations


def brc() -> dict[int, float]:
    """BRC's success (Nauman et al. 2025, arXiv 2505.23150): one agent for 50 tasks, 5 seeds, mean over MT10's ten."""
    published = read_baseline("brc", SUITES["mt10"], "mt10")
    (curves,) = (curves for label, curves in published.curves.items() if "50 tasks" in label)
    runs = [curve.at(np.array(MARKS)) for curve in curves]
    return dict(zip(MARKS, np.mean([run.success for run in runs], (0, 2)).tolist(), strict=True))


BRC = brc()


def load(seed: int | str) -> Run:
    """The evaluations of a seed's run; ``104_min`` is the recipe with the smaller critic's value."""
    number, _, variant = str(seed).partition("_")
    recipe = next(ARMS[recipe] for recipe, seeds in RECIPES.items() if int(number) in seeds)
    curve = TABLE[f"{recipe}_{variant}" if variant else recipe, int(number)]
    return [
        {
            "steps_per_task": int(steps), "seconds": 60 * minutes, "mean_success": mean(success),
            "tasks": {task: {"success": s} for task, s in zip(curve.task_names, success, strict=True)},
        } for steps, minutes, success in zip(curve.steps, curve.minutes, curve.success.tolist(), strict=True)
    ]  # fmt: skip


def around(steps: int, run: Run) -> float | None:
    """Mean success of the evaluation nearest to ``steps`` and of its neighbours: single ones swing."""
    nearest = min(range(len(run)), key=lambda i: abs(run[i]["steps_per_task"] - steps))
    if abs(run[nearest]["steps_per_task"] - steps) > 2500:
        return None
    return mean(line["mean_success"] for line in run[max(0, nearest - 1) : nearest + 2])


def draw() -> None:
    figure = new_figure(11, 3.8)
    by_steps, by_minutes = figure.subplots(1, 2, sharey=True)
    for color, (recipe, seeds) in zip(("C7", "C1", "C0"), RECIPES.items(), strict=True):
        runs = [load(seed) for seed in seeds]
        at_once = list(zip(*runs, strict=False))
        success = [mean(line["mean_success"] for line in lines) for lines in at_once]
        for axes, axis in (
            (by_steps, lambda line: line["steps_per_task"]),
            (by_minutes, lambda line: line["seconds"] / 60),
        ):
            for style, run in zip(("-", "--"), runs, strict=True):
                each = [line["mean_success"] for line in run]
                axes.plot([*map(axis, run)], each, color, ls=style, lw=0.7, alpha=0.6)
            label = f"{recipe}, mean of seeds {' and '.join(map(str, seeds))}"
            axes.plot([mean(map(axis, lines)) for lines in at_once], success, color, lw=2, label=label)
            axes.grid(alpha=0.3)
    by_steps.plot(list(BRC), list(BRC.values()), "C3o--", ms=4, label="BRC, published")
    by_steps.set(xlabel="environment steps per task", ylabel="success, mean over ten tasks", ylim=(0, 1.04))
    by_minutes.set(xlabel="minutes of one core")
    by_steps.legend(fontsize=8)
    figure.savefig(HERE / "curves.png", dpi=110)


def row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|")


def print_configurations(file: str, at: int) -> None:
    """A line per configuration tried: success of its last evaluations, returns where all can be compared."""
    lines = list(csv.DictReader((HERE / file).open()))
    heads = [
        "run",
        "changed",
        "seed",
        "steps per task",
        "minutes",
        "last success",
        "of three",
        "tasks at the last",
    ]
    row(*heads, f"training return at {at:,}")
    row("---:", "---", *["---:"] * 5, "---", "---:")
    for run in dict.fromkeys(line["run"] for line in lines):
        own = [line for line in lines if line["run"] == run]
        last, tasks = own[-1], list(own[-1])[7:]
        three = f"{mean(float(line['success']) for line in own[-3:]):.2f}"
        solved = ", ".join(task.removesuffix("-v3") for task in tasks if last[task] == "1")
        then = [f"{float(line['training_return']):.0f}" for line in own if int(line["steps_per_task"]) == at]
        steps, minutes = f"{int(last['steps_per_task']):,}", f"{float(last['minutes']):.0f}"
        row(
            run,
            last["changed"],
            last["seed"],
            steps,
            minutes,
            last["success"],
            three,
            solved,
            *(then or [""]),
        )


def print_results() -> None:
    runs = {recipe: [load(seed) for seed in seeds] for recipe, seeds in RECIPES.items()}
    heads = [head for seeds in RECIPES.values() for head in (*(f"seed {seed}" for seed in seeds), "mean")]
    row("steps per task", "BRC", *heads)
    row(*["---:"] * (len(heads) + 2))
    for steps, published in BRC.items():
        cells = []
        for group in runs.values():
            found = [around(steps, run) for run in group]
            known = [x for x in found if x is not None]
            cells += [*found, mean(known) if len(known) == len(found) else None]
        if any(cell is not None for cell in cells):
            row(f"{steps:,}", f"{published:.2f}", *("" if x is None else f"{x:.2f}" for x in cells))
    print()
    row(f"last {LAST} evaluations", *heads)
    row("---", *["---:"] * len(heads))
    for task in [*load(100)[0]["tasks"], None]:
        cells = []
        for group in runs.values():
            each = [
                mean(line["tasks"][task]["success"] if task else line["mean_success"] for line in run[-LAST:])
                for run in group
            ]
            cells += [*each, mean(each)]
        row(task.removesuffix("-v3") if task else "**mean**", *(f"{x:.2f}" for x in cells))


def print_averaging(after: int = 1500) -> None:
    """Success of the actor and of averages of its weights, once the longer one has forgotten its start."""
    lines = list(csv.DictReader((HERE / "averaging.csv").open()))
    kinds = list(dict.fromkeys(line["weights"] for line in lines))
    row("seed", *kinds)
    row("---", *["---:"] * len(kinds))
    for seed in RECIPES["second recipe"]:
        own = [line for line in lines if line["seed"] == str(seed) and int(line["updates"]) >= after]
        means = [mean(float(line["success"]) for line in own if line["weights"] == kind) for kind in kinds]
        row(seed, *(f"{x:.2f}" for x in means))


def print_min() -> None:
    """The recipe and the recipe with the smaller critic's value, on the same goals."""
    runs = {name: load(name) for seed in RECIPES["mt10_fast"] for name in (str(seed), f"{seed}_min")}
    row("steps per task", "mean: seed 104", "105", "min: seed 104", "105")
    row(*["---:"] * 5)
    for steps in range(20_000, 120_001, 20_000):
        found = [around(steps, runs[name]) for name in ("104", "105", "104_min", "105_min")]
        if all(x is not None for x in found):
            row(f"{steps:,}", *(f"{x:.2f}" for x in found))


def print_twin() -> None:
    """`mtrl evaluate --json`: every goal once; the present recipe and, behind it, the second."""
    files = ("twin_evaluation.json", "twin_evaluation_second.json")
    present, second = (json.loads((HERE / file).read_text()) for file in files)
    row("task", *["success", "95 % interval", "return"] * 2)
    row("---", *["---:"] * 6)
    for task in present["tasks"]:
        cells = []
        for scores in (present["tasks"][task], second["tasks"][task]):
            low, high = scores["ci"]
            cells += [f"{scores['success']:.2f}", f"{low:.2f} … {high:.2f}", f"{scores['return']:.0f}"]
        row(task.removesuffix("-v3"), *cells)
    cells = []
    for result in (present, second):
        low, high = result["mean_success_ci"]
        cells += [f"{result['mean_success']:.3f}", f"{low:.3f} … {high:.3f}", ""]
    row("**mean**", *cells)


def main() -> None:
    draw()
    print_results()
    print()
    print_averaging()
    print()
    print_min()
    print()
    print_twin()
    for file, at in (
        ("screening.csv", 40_000),
        ("screening_second.csv", 25_000),
        ("search.csv", 15_000),
    ):
        print()
        print_configurations(file, at)


if __name__ == "__main__":
    main()
