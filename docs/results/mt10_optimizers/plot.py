"""Draw rollout success and return against steps from the progress files beside this script: `python plot.py`."""

from __future__ import annotations

import csv
from pathlib import Path

from mtrl.results.figures import new_figure

HERE = Path(__file__).parent


def main() -> None:
    figure = new_figure(9, 3.6)
    panels = figure.subplots(1, 2)
    files = sorted(HERE.glob("progress_*.csv"))
    columns = {path.stem.removeprefix("progress_"): list(csv.DictReader(path.open())) for path in files}
    shared = min(float(rows[-1]["time/steps_per_task"]) for rows in columns.values())
    for axes, tag, title in zip(
        panels, ("rollout/success_rate", "rollout/ep_rew_mean"), ("success", "return"), strict=True
    ):
        for label, rows in columns.items():
            kept = [r for r in rows if r[tag] and float(r["time/steps_per_task"]) <= shared]
            axes.plot(
                [float(r["time/steps_per_task"]) for r in kept], [float(r[tag]) for r in kept], label=label
            )
        axes.set_xlabel("environment steps per task")
        axes.set_title(f"{title} while training, mean over tasks")
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(HERE / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
