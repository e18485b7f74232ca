"""Draw the runs beside this script and print their tables: `python plot.py`."""

from __future__ import annotations

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


def evaluations(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / f"eval_{name}.jsonl").open()]


def around(steps: int, runs: Sequence[Sequence[dict[str, Any]]]) -> list[float]:
    """Success of each run at ``steps`` and at the evaluation on either side of it: single ones swing."""
    found = []
    for run in runs:
        nearest = min(range(len(run)), key=lambda i: abs(run[i]["steps_per_task"] - steps))
        if abs(run[nearest]["steps_per_task"] - steps) <= 5000:
            found.append(mean(line["mean_success"] for line in run[max(0, nearest - 1) : nearest + 2]))
    return found


def draw(runs: Sequence[Sequence[dict[str, Any]]]) -> None:
    figure = new_figure(11, 3.8)
    by_steps, by_minutes = figure.subplots(1, 2, sharey=True)
    for i, (seed, run) in enumerate(zip(SEEDS, runs, strict=True)):
        success = [line["mean_success"] for line in run]
        by_steps.plot([line["steps_per_task"] for line in run], success, f"C{i}-", lw=1, label=f"seed {seed}")
        by_minutes.plot([line["seconds"] / 60 for line in run], success, f"C{i}-", lw=1, label=f"seed {seed}")
    both = list(zip(*runs, strict=False))
    success = [mean(line["mean_success"] for line in lines) for lines in both]
    by_steps.plot([lines[0]["steps_per_task"] for lines in both], success, "k", lw=2, label="mean")
    by_minutes.plot([mean(x["seconds"] / 60 for x in lines) for lines in both], success, "k", lw=2, label="mean")
    by_steps.plot(list(BRC), list(BRC.values()), "C3o--", ms=4, label="BRC, published")
    by_steps.set(xlabel="environment steps per task", ylabel="success, mean over ten tasks", ylim=(0, 1.02))
    by_minutes.set(xlabel="minutes of one core")
    for axes in (by_steps, by_minutes):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(HERE / "curves.png", dpi=110)


def main() -> None:
    runs = [evaluations(f"seed{seed}") for seed in SEEDS]
    draw(runs)
    print("| steps per task | BRC | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " |\n|---:|---:|---:|---:|")
    for steps, published in BRC.items():
        if found := around(steps, runs):
            print(f"| {steps:,} | {published:.2f} | " + " | ".join(f"{x:.2f}" for x in found) + " |")
    print(f"\n| task, last {LAST} evaluations | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " |\n|---|---:|---:|")
    for task in runs[0][0]["tasks"]:
        each = [mean(line["tasks"][task]["success"] for line in run[-LAST:]) for run in runs]
        print(f"| {task} | " + " | ".join(f"{x:.1f}" for x in each) + " |")
    each = [mean(line["mean_success"] for line in run[-LAST:]) for run in runs]
    print("| **mean** | " + " | ".join(f"{x:.2f}" for x in each) + " |")


if __name__ == "__main__":
    main()
