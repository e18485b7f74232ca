"""``mtrl export``: runs as one compact table, which compare, claims and their figures read like the folders."""

from __future__ import annotations

import sys

from mtrl.files import write_synced
from mtrl.results.compare import read_curves
from mtrl.results.export import write_table
from mtrl.results.tables import require_writable
from mtrl.settings.files import path_of
from mtrl.settings.parser import Parser


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl export", description=__doc__)
    parser.add_argument("runs", nargs="+", type=str, help="run folders, folders of runs, or tables")
    parser.add_argument(
        "file", type=str, metavar="FILE.csv", help="where to write; an older table is replaced"
    )
    args = parser.parse_args(arguments)
    path = path_of("file", args.file)
    if path.suffix != ".csv":
        parser.error(f"file: {args.file!r} is not valid; the last name is the table's and ends in .csv")
    require_writable(args.file, "file")
    curves, young = read_curves(args.runs)
    text = write_table(curves)
    write_synced(path, text.encode())
    for line in young:
        print(f"mtrl: warning: {line}", file=sys.stderr)
    print(f"{len(curves)} run{'s' * (len(curves) > 1)} in {path}")
    return 0
