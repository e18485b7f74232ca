"""The ratios of ``mtrl bench``, each next to what it shall be at most.

    mtrl bench --json speed.json && python benchmarks/bars.py speed.json

Exit code 1 if one is above its bar, or missing. Those of bf16 are void where bf16 is emulated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from mtrl.bench.settings import METHODS
from mtrl.results.tables import make_table, show

BARS = {
    "unitary_bf16_over_floor_S": 1.5,
    "unitary_fp32_over_floor_S": 1.5,
    "unitary_bf16_over_floor_R": 1.8,
    "unitary_fp32_over_floor_R": 1.4,
    **{f"{method}_over_unitary_fp32_S": 1.3 for method in METHODS},
    **{f"{method}_over_unitary_fp32_L": 1.3 for method in METHODS},
    **{f"{method}_over_unitary_fp32_F": 1.7 for method in METHODS},
    **{f"{method}_over_unitary_bf16_S": 1.5 for method in METHODS},
    **{f"{method}_over_unitary_bf16_L": 1.5 for method in METHODS},
    **{f"{method}_over_unitary_bf16_F": 2.0 for method in METHODS},
    **{f"{method}_over_unitary_bf16_R": 1.25 for method in METHODS},
    "graddrop_over_unitary_fp32_S": 1.7,
    "replay_over_update": 0.03,
    "env_step_over_stock": 0.85,
    "loop_overhead": 0.05,
    "rss_gb_1m": 2.0,
}


def judge(report: Mapping[str, Any]) -> dict[str, str]:
    """``ok``, ``ABOVE``, ``noisy``, ``void`` or ``missing`` for each bar, from ``mtrl bench --json``."""
    verdicts = {}
    for key, bar in BARS.items():
        value = report["ratios"].get(key, {}).get("value")
        if key not in report["ratios"]:
            verdicts[key] = "missing"
        elif "bf16" in key and not report["machine"]["bf16_is_fast"]:
            verdicts[key] = "void"
        else:
            verdicts[key] = "noisy" if value is None else "ok" if value <= bar else "ABOVE"
    return verdicts


def table_of(report: Mapping[str, Any], verdicts: Mapping[str, str]) -> Table:
    table = make_table("ratio", "value", "bar", "", title=report["machine"]["processor"])
    for key, verdict in verdicts.items():
        value = report["ratios"].get(key, {}).get("value")
        table.add_row(key, "–" if value is None else f"{value:.3g}", f"{BARS[key]:g}", verdict)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="of `mtrl bench --json FILE`")
    report = json.loads(parser.parse_args().file.read_text())
    verdicts = judge(report)
    show(table_of(report, verdicts))
    return int(bool({"ABOVE", "missing"} & set(verdicts.values())))


if __name__ == "__main__":
    raise SystemExit(main())
