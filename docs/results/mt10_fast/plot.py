"""Draw the runs beside this script and print the tables of README.md: `python plot.py`."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from mtrl.figures import new_figure

HERE = Path(__file__).parent
SEEDS = (100, 101)
# Read off the published curves of BRC (Nauman et al. 2025, arXiv 2505.23150): one agent for 50 tasks, 5 seeds,
# mean over the tasks of MT10.
BRC = {50_000: 0.30, 100_000: 0.70, 150_000: 0.89, 200_000: 0.92, 300_000: 0.98}
LAST = 5

Run = Sequence[dict[str, Any]]  # its evaluations


def around(steps: int, run: Run) -> float | None:
    """Mean success of the evaluation nearest to ``steps`` and of its neighbours: single ones swing."""
    nearest = min(range(len(run)), key=lambda i: abs(run[i]["steps_per_task"] - steps))
    if abs(run[nearest]["steps_per_task"] - steps) > 2500:
        return None
    return mean(line["mean_success"] for line in run[max(0, nearest - 1) : nearest + 2])


def draw(runs: Sequence[Run]) -> None:
    figure = new_figure(11, 3.8)
    by_steps, by_minutes = figure.subplots(1, 2, sharey=True)
    both = list(zip(*runs, strict=False))
    for axes, axis in (
        (by_steps, lambda line: line["steps_per_task"]),
        (by_minutes, lambda line: line["seconds"] / 60),
    ):
        for i, (seed, run) in enumerate(zip(SEEDS, runs, strict=True)):
            success = [line["mean_success"] for line in run]
            axes.plot([axis(line) for line in run], success, f"C{i}-", lw=1, label=f"seed {seed}")
        success = [mean(line["mean_success"] for line in lines) for lines in both]
        axes.plot([mean(map(axis, lines)) for lines in both], success, "k", lw=2, label="mean")
        axes.grid(alpha=0.3)
    by_steps.plot(list(BRC), list(BRC.values()), "C3o--", ms=4, label="BRC, published")
    by_steps.set(xlabel="environment steps per task", ylabel="success, mean over ten tasks", ylim=(0, 1.02))
    by_minutes.set(xlabel="minutes of one core")
    by_steps.legend()
    figure.savefig(HERE / "curves.png", dpi=110)


def row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|")


def print_search(at: int = 15_000) -> None:
    """A line per configuration tried: success at its last evaluation, returns where all can be compared."""
    lines = list(csv.DictReader((HERE / "search.csv").open()))
    row(
        "run",
        "changed",
        "seed",
        "steps per task",
        "minutes",
        "success",
        "tasks",
        f"training return at {at:,}",
    )
    row("---:", "---", *["---:"] * 4, "---", "---:")
    for run in dict.fromkeys(line["run"] for line in lines):
        own = [line for line in lines if line["run"] == run]
        last, tasks = own[-1], list(own[-1])[7:]
        solved = ", ".join(task.removesuffix("-v3") for task in tasks if last[task] == "1")
        then = [f"{float(line['training_return']):.0f}" for line in own if int(line["steps_per_task"]) == at]
        steps, minutes = f"{int(last['steps_per_task']):,}", f"{float(last['minutes']):.0f}"
        row(run, last["changed"], last["seed"], steps, minutes, last["success"], solved, *(then or [""]))


def print_results(runs: Sequence[Run]) -> None:
    seeds = [f"seed {seed}" for seed in SEEDS]
    row("steps per task", "BRC", *seeds, "mean")
    row(*["---:"] * (len(seeds) + 3))
    for steps, published in BRC.items():
        found = [around(steps, run) for run in runs]
        if None not in found:
            row(f"{steps:,}", *(f"{x:.2f}" for x in (published, *found, mean(found))))
    print()
    row(f"last {LAST} evaluations", *seeds, "mean")
    row("---", *["---:"] * (len(seeds) + 1))
    for task in runs[0][0]["tasks"]:
        each = [mean(line["tasks"][task]["success"] for line in run[-LAST:]) for run in runs]
        row(task, *(f"{x:.2f}" for x in (*each, mean(each))))
    each = [mean(line["mean_success"] for line in run[-LAST:]) for run in runs]
    row("**mean**", *(f"{x:.2f}" for x in (*each, mean(each))))


def main() -> None:
    runs = [[json.loads(line) for line in (HERE / f"eval_seed{seed}.jsonl").open()] for seed in SEEDS]
    draw(runs)
    print_search()
    print()
    print_results(runs)


if __name__ == "__main__":
    main()
