"""Draw success, critic loss and temperature against steps from the files beside this script: `python plot.py`."""

from __future__ import annotations

import csv
from pathlib import Path

from mtrl.results.export import read_table
from mtrl.results.figures import new_figure

HERE = Path(__file__).parent
PANELS = {
    "rollout/success_rate": "success of training episodes, mean over tasks",
    "train/critic_loss": "critic loss, mean over tasks",
    "train/ent_coef": "temperature, mean over tasks",
}


def main() -> None:
    runs = {curve.folder.name: curve for curve in read_table(HERE / "runs.csv")}
    figure = new_figure(13, 3.6)
    panels = dict(zip(PANELS, figure.subplots(1, len(PANELS)), strict=True))
    for i, rung in enumerate((1, 5)):
        rows = list(csv.DictReader((HERE / f"progress_ladder{rung}.csv").open()))
        for tag, axes in panels.items():
            kept = [row for row in rows if row[tag]]
            steps = [float(row["time/steps_per_task"]) for row in kept]
            axes.plot(steps, [float(row[tag]) for row in kept], f"C{i}", label=f"ladder{rung}_unitary")
        run = runs[f"ladder{rung}_unitary"]
        panels["rollout/success_rate"].plot(
            run.steps, run.success.mean(axis=1), f"C{i}o", ms=4, label="evaluation"
        )
    for tag, axes in panels.items():
        axes.set(title=PANELS[tag], xlabel="environment steps per task")
        axes.grid(alpha=0.3)
    panels["rollout/success_rate"].legend()
    panels["train/critic_loss"].set_yscale("log")
    panels["train/ent_coef"].set_yscale("log")
    figure.savefig(HERE / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
