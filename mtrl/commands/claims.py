"""``mtrl claims``: which sentences the data support, contradict or leave open, with the numbers and what is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from mtrl.config import ConfigError
from mtrl.files import write_synced
from mtrl.results.claims import (
    BENCH,
    ROOT,
    TABLES,
    as_json,
    as_markdown,
    committed_tables,
    judge,
    read_arms,
    read_claims,
)
from mtrl.results.tables import make_table, report_json, require_writable, show
from mtrl.settings.files import path_of
from mtrl.settings.parser import Parser
from mtrl.sweep.grid import experiment_names, read_experiment

PAGE = ROOT / "docs/claims.md"


def planned_seeds(arms: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Of arms of the shipped experiments: the seeds that their files fixed."""
    files = experiment_names()
    found: dict[str, tuple[int, ...]] = {}
    for name in {arm.partition("/")[0] for arm in arms} & files.keys():
        found |= {f"{name}/{arm}": seeds for arm, seeds in read_experiment(files[name]).seeds.items()}
    return found


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl claims", description=__doc__)
    parser.add_argument("names", nargs="*", type=str, help="which, C1 or S1; all by default")
    parser.add_argument(
        "--runs", nargs="+", type=str, default=[], help="folders of runs, <experiment>/<arm>/seed<n>, or tables; "
        "without it the committed tables",
    )  # fmt: skip
    parser.add_argument(
        "--bench", type=str, help="figures of `mtrl bench --json`; without it the committed ones"
    )
    parser.add_argument("--json", type=str, help="write the verdicts to this file, or - for standard output")
    parser.add_argument("--write", action="store_true", help="write docs/claims.md from the committed data")
    args = parser.parse_args(arguments)
    require_writable(args.json)
    if args.write and (args.names or args.runs or args.bench or not PAGE.parent.is_dir()):
        raise ConfigError("write: docs/claims.md is of all claims and the committed data, in a checkout")
    paths = args.runs or committed_tables()
    if not TABLES.is_dir() and not args.runs:
        print(
            "mtrl: warning: this installation is no checkout, so it has no committed tables; name runs with --runs",
            file=sys.stderr,
        )
    arms, young = read_arms(paths) if paths else ({}, [])
    for line in young:
        print(f"mtrl: warning: {line}", file=sys.stderr)
    bench = path_of("bench", args.bench) if args.bench else BENCH
    if args.bench and not bench.is_file():
        raise ConfigError(f"bench: {bench} does not exist")
    planned = planned_seeds(arms)
    for arm in arms.keys() & planned.keys():
        if others := sorted({str(curve.seed) for curve in arms[arm]} - {str(seed) for seed in planned[arm]}):
            print(
                f"mtrl: warning: {arm} was not planned with seed {', '.join(others)}: left out",
                file=sys.stderr,
            )
    verdicts = [judge(claim, arms, bench, planned) for claim in read_claims(args.names)]
    if args.write:
        write_synced(PAGE, as_markdown(verdicts).encode())
    if report_json({v.claim.name: as_json(v) for v in verdicts}, args.json):
        return 0
    table = make_table("claim", "verdict", "sentence", "why", title="claims")
    for v in verdicts:
        table.add_row(v.claim.name, v.verdict, v.claim.sentence, v.why)
    show(table)
    if args.names or args.runs:
        for v in verdicts:
            detail = make_table(
                "arm", "finding", "numbers", "what would settle it", title=f"{v.claim.name}: {v.verdict}",
                caption=f"positive control: {v.control.numbers}. Rule: {v.claim.decision}.",
            )  # fmt: skip
            for arm, found in v.arms.items():
                detail.add_row(arm, found.verdict, found.numbers, found.settle)
            show(detail)
            print("its data are made by", *v.claim.commands, sep="\n  ")
    return 0
