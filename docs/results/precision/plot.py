"""Draw success, return and critic loss of the paired runs in runs.csv: `python plot.py`."""

from __future__ import annotations

import csv
from pathlib import Path

from mtrl.results.figures import new_figure

HERE = Path(__file__).parent
PANELS = {
    "success": "success in evaluation",
    "return": "return of training episodes",
    "critic_loss": "critic loss",
    "q": "mean Q",
}
STYLES = {"fp32": "-", "bf16": "--"}


def main() -> None:
    rows = list(csv.DictReader((HERE / "runs.csv").open()))
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    figure = new_figure(14, 3.2 * len(suites))
    panels = figure.subplots(len(suites), len(PANELS), squeeze=False)
    for line, suite in zip(panels, suites, strict=True):
        for axes, (column, title) in zip(line, PANELS.items(), strict=True):
            for seed in ("0", "1", "2"):
                for precision, style in STYLES.items():
                    of_run = (suite, precision, seed)
                    kept = [
                        row for row in rows
                        if (row["suite"], row["precision"], row["seed"]) == of_run and row[column]
                    ]  # fmt: skip
                    axes.plot(
                        [float(row["steps"]) for row in kept], [float(row[column]) for row in kept],
                        style, color=f"C{seed}", lw=1.2, label=f"{precision}, seed {seed}",
                    )  # fmt: skip
            axes.set(title=f"{suite}: {title}", xlabel="environment steps per task")
            axes.grid(alpha=0.3)
    panels[0][0].legend(fontsize=7)
    figure.savefig(HERE / "curves.png", dpi=100)


if __name__ == "__main__":
    main()
