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
    """Refuse to write over another kind of file, or over what the new table has not: runs, or their later evaluations.

    Raises:
        ConfigError: naming what would be lost.
    """
    if not path.exists():
        return
    if not path.read_bytes().startswith(FORMAT.encode()):
        raise ConfigError(f"file: {path} exists and is no table of mtrl export; choose another")
    kept = {(curve.arm, curve.seed): curve for curve in curves}
    for old in read_table(path):
        new = kept.get((old.arm, old.seed))
        if new is None:
            raise ConfigError(
                f"file: {path} has runs that would be lost ({old.arm}, seed {old.seed}); name the table among the "
                "runs, too, or choose another file"
            )
        if new.last_step < old.last_step or (old.unseen and not new.unseen):
            what = f"{old.last_step:.0f} steps per task" if new.last_step < old.last_step else "unseen goals"
            raise ConfigError(
                f"file: {path} has {old.arm}, seed {old.seed}, with {what}, which {new.path} has not; choose another "
                "file"
            )


def merged_arms(curves: Sequence[Curve]) -> list[str]:
    """A line about each arm whose runs lie in several folders: the table has them as seeds of one."""
    folders: dict[str, dict[Path, None]] = {}
    for curve in curves:
        if curve.path.is_dir():  # not of a table
            folders.setdefault(curve.arm, {})[curve.folder] = None
    return [
        f"{arm} is one arm in the table, of the runs in {', '.join(map(str, places))}"
        for arm, places in folders.items()
        if len(places) > 1
    ]


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
    for line in (*young, *merged_arms(curves)):
        print(f"mtrl: warning: {line}", file=sys.stderr)
    print(f"{len(curves)} run{'s' * (len(curves) > 1)} in {path}")
    return 0
