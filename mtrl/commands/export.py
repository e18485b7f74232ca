"""``mtrl export``: runs as one compact table, which compare, claims and their figures read like the folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mtrl.config import ConfigError
from mtrl.files import write_synced
from mtrl.results.compare import read_curves
from mtrl.results.export import FORMAT, read_table, write_table
from mtrl.results.reading import Curve
from mtrl.results.tables import require_writable
from mtrl.settings.files import path_of
from mtrl.settings.parser import Parser


def keep_what_is_there(path: Path, curves: Sequence[Curve]) -> None:
    """Refuse to write over another kind of file, or over runs that the new table has not.

    Raises:
        ConfigError: naming what would be lost.
    """
    if not path.exists():
        return
    if not path.read_bytes().startswith(FORMAT.encode()):
        raise ConfigError(f"file: {path} exists and is no table of mtrl export; choose another")
    kept = {(curve.arm, curve.seed) for curve in curves}
    if lost := next((old for old in read_table(path) if (old.arm, old.seed) not in kept), None):
        raise ConfigError(
            f"file: {path} has runs that would be lost ({lost.arm}, seed {lost.seed}); name the table among the "
            "runs, too, or choose another file"
        )


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl export", description=__doc__)
    parser.add_argument("runs", nargs="+", type=str, help="run folders, folders of runs, or tables")
    parser.add_argument(
        "file",
        type=str,
        metavar="FILE.csv",
        help="where to write; a table there may be replaced by one with all its runs",
    )
    args = parser.parse_args(arguments)
    path = path_of("file", args.file)
    if path.suffix != ".csv":
        parser.error(f"file: {args.file!r} is not valid; the last name is the table's and ends in .csv")
    require_writable(args.file, "file")
    curves, young = read_curves(args.runs)
    keep_what_is_there(path, curves)
    text = write_table(curves)
    write_synced(path, text.encode())
    for line in young:
        print(f"mtrl: warning: {line}", file=sys.stderr)
    print(f"{len(curves)} run{'s' * (len(curves) > 1)} in {path}")
    return 0
