"""How an update's time grows with tasks, rows and width, for every kind of method and both precisions.

    python benchmarks/growth.py FOLDER [--updates 10] [--threads N]

One quantity varies at a time around T = 10 tasks, B = 128 rows of each and 3 × 400. Writes ``growth.csv`` and
``growth.png``, medians; the floor is the update's matrix products at the machine's best speed.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from mtrl.bench.measure import take_turns
from mtrl.bench.peak import find_peak
from mtrl.bench.settings import METHODS, Setting, agent_config, make_agent, make_batch
from mtrl.bench.sizes import flops_of
from mtrl.bench.updates import DTYPES
from mtrl.machine import keep_freed_memory

POINTS = {
    "tasks": (1, 2, 5, 10, 20, 50), "rows": (16, 32, 64, 128, 256, 512), "width": (64, 128, 256, 512, 1024),
}  # fmt: skip
SHOWN = ("unitary", *METHODS, "graddrop")
COLUMNS = ("varied", "value", "precision", "method", "ms")


def setting_at(varied: str, value: int, around: Setting) -> Setting:
    if varied == "width":
        return replace(around, hidden=(value,) * len(around.hidden))
    return replace(around, **{varied: value})


def measure(
    updates: int, points: Mapping[str, Sequence[int]] = POINTS, around: Setting | None = None
) -> list[dict[str, Any]]:
    """One row per point, precision and method, and one for the floor, which is method ``floor``."""
    around = around or Setting()
    gflops = {precision: find_peak(dtype).gflops for precision, dtype in DTYPES.items()}
    rows = []
    for varied, values in points.items():
        for value in values:
            setting = setting_at(varied, value, around)
            batch, config = make_batch(setting.tasks, setting.rows), agent_config(setting)
            flops = flops_of(config, setting.tasks, setting.rows)
            for precision in DTYPES:

                def update(method: str, precision: str = precision) -> Callable[[], Any]:
                    agent = make_agent(setting.tasks, config, method, precision=precision)  # noqa: B023
                    return lambda: agent.update(batch)  # noqa: B023

                seconds = take_turns({method: update(method) for method in SHOWN}, updates)
                ms = {method: 1e3 * statistics.median(times) for method, times in seconds.items()}
                ms["floor"] = flops / gflops[precision] / 1e6
                rows += [
                    dict(zip(COLUMNS, (varied, value, precision, *item), strict=True)) for item in ms.items()
                ]
            print(f"{varied} = {value}", flush=True)
    return rows


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel per quantity and precision, both axes logarithmic."""
    varied = list(dict.fromkeys(row["varied"] for row in rows))
    figure = Figure(figsize=(4.2 * len(varied), 7), layout="constrained")
    panels = figure.subplots(len(DTYPES), len(varied), squeeze=False)
    for i, precision in enumerate(DTYPES):
        for j, name in enumerate(varied):
            panel = panels[i][j]
            for method in (*SHOWN, "floor"):
                points = [
                    (row["value"], row["ms"])
                    for row in rows
                    if (row["varied"], row["precision"], row["method"]) == (name, precision, method)
                ]
                panel.loglog(*zip(*points, strict=True), "k--" if method == "floor" else ".-", label=method)
            values = sorted({row["value"] for row in rows if row["varied"] == name})
            panel.set_xticks(values, [str(value) for value in values])
            panel.set_xticks([], minor=True)
            panel.set(title=precision, xlabel=name, ylabel="ms per update")
            panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--updates", type=int, default=10, help="timed per point, after a few to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the command line does
    torch.manual_seed(0)
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = measure(args.updates)
    with (args.folder / "growth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "ms": round(row["ms"], 3)} for row in rows)
    draw(rows).savefig(args.folder / "growth.png", dpi=120)


if __name__ == "__main__":
    main()
