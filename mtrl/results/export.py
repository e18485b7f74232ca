"""Runs as one compact table, and back: what is committed, and read as the folders are.

::

    # mtrl-runs-1
    # {"run": 0, "arm": "pcgrad", "seed": 200, "status": "DONE", "protocol": "…", "settings": {…}, …}
    run,steps,minutes,task,success,success_at_end,return

A commented line per run, a row per evaluation and task. The line has ``unseen``, ``cosines`` (of the pairs 0-1, 0-2,
… 1-2, …) and ``conflict`` (of each evaluation), where these were measured.

``pandas.read_csv(FILE, comment="#")`` reads the numbers. An empty cell is not known. Numbers of success are exact.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.config import ConfigError
from mtrl.results.reading import (
    MOST,
    NETWORKS,
    Array,
    Curve,
    Unseen,
    mapping,
    parsed,
    read_text,
    real,
    require_later,
)

FORMAT = "# mtrl-runs-1"
COLUMNS = ("run", "steps", "minutes", "task", "success", "success_at_end", "return")
NUMBERS = ("success", "success_at_end", "return")
ABOUT: dict[str, tuple[type, ...]] = {
    "arm": (str,), "seed": (int, type(None)), "status": (str,), "protocol": (str,), "tasks": (list,),
    "episodes": (int, type(None)), "settings": (dict,), "acting": (dict,),
    "critic_loss": (float, int, type(None)),
}  # fmt: skip


def write_table(curves: Sequence[Curve]) -> str:
    """The text of a table of runs by arm, ``<experiment>/<arm>``: the same however often a table is written anew.

    Raises:
        ConfigError: two runs of an arm have the same seed, so that a table would not tell them apart.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    runs = [(curve.arm, curve) for curve in curves]
    places: dict[str, Path] = {}
    print(FORMAT, file=text)
    for number, (arm, curve) in enumerate(runs):
        place = arm if curve.seed is None else f"{arm}/seed{curve.seed}"
        if place in places:
            raise ConfigError(
                f"run: {curve.path} and {places[place]} are both {place} (the arm and the seed are equal)"
            )
        places[place] = curve.path
        values = (arm, curve.seed, curve.status, curve.protocol, list(curve.task_names), curve.episodes,
                  curve.settings, curve.acting, curve.critic_loss)  # fmt: skip
        about = {"run": number, **dict(zip(ABOUT, values, strict=True))}
        if curve.training_success is not None:
            about["training_success"] = curve.training_success
        if curve.unseen is not None:
            about["unseen"] = asdict(curve.unseen)
        if curve.cosines:
            about["cosines"] = {name: pairs_of(found) for name, found in curve.cosines.items()}
        if curve.conflict:
            about["conflict"] = {name: nullable(shares) for name, shares in curve.conflict.items()}
        print("#", json.dumps(about, ensure_ascii=False, allow_nan=False), file=text)
    lines.writerow(COLUMNS)
    for number, (_, curve) in enumerate(runs):
        for n, steps in enumerate(curve.steps):
            for t, task in enumerate(curve.task_names):
                scores = (curve.success[n, t], curve.at_end[n, t], curve.returns[n, t])
                lines.writerow([number, short(steps), short(curve.minutes[n]), task, *map(short, scores)])
    return text.getvalue()


def short(number: float) -> str:
    """The shortest text that reads back as the same number; none for NaN."""
    return "" if math.isnan(number) else repr(int(number)) if number == int(number) else repr(float(number))


def place_of(table: Path, arm: str, seed: int | None) -> Path:
    """As if the run's folder lay next to the table; where the arm names no experiment, in one that is named like it."""
    folder = (table.parent if "/" in arm else table.with_suffix("")) / arm
    return folder if seed is None else folder / f"seed{seed}"


def read_table(path: Path) -> list[Curve]:
    """The runs in a table, as :func:`mtrl.results.reading.read_curve` reads folders.

    Raises:
        ConfigError: it is no table of ours; the line and what is wrong with it.
    """
    lines = read_text(path).splitlines()
    if not lines or lines[0] != FORMAT:
        raise ConfigError(f"run: {path} is no table of `mtrl export` (its first line is not {FORMAT!r})")
    head = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    abouts = [read_about(line[1:], f"{path} line {n}", n - 2) for n, line in enumerate(lines[1:head], 2)]
    if head == len(lines) or tuple(lines[head].split(",")) != COLUMNS:
        raise ConfigError(f"run: {path} line {head + 1}: the columns {','.join(COLUMNS)} were expected")
    rows: list[list[tuple[int, dict[str, str]]]] = [[] for _ in abouts]
    for number, cells in enumerate(csv.reader(lines[head + 1 :]), head + 2):
        row = dict(zip(COLUMNS, cells, strict=False))
        if len(cells) != len(COLUMNS) or not row["run"].isdecimal() or int(row["run"]) >= len(rows):
            raise ConfigError(f"run: {path} line {number} is no row of a run that is named above")
        rows[int(row["run"])].append((number, row))
    curves = [curve_of(about, own, path) for about, own in zip(abouts, rows, strict=True)]
    places = [curve.path for curve in curves]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise ConfigError(f"run: {path} has {twice.relative_to(path.resolve().parent)} twice")
    return curves


def read_about(text: str, where: str, number: int) -> dict[str, Any]:
    about = mapping(parsed(text, where), where)
    for key, kinds in ABOUT.items():
        if key not in about or isinstance(about[key], bool) or not isinstance(about[key], kinds):
            raise ConfigError(f"run: {where}: {key} is {about.get(key)!r:.80}, which no table has")
    arm, tasks = about["arm"], about["tasks"]
    if about.get("run") != number:
        raise ConfigError(
            f"run: {where}: run {about.get('run')!r:.80} is not the {number}th (they count from 0)"
        )
    if not arm.isprintable() or Path(arm).is_absolute() or ".." in Path(arm).parts or not arm.strip():
        raise ConfigError(f"run: {where}: the arm {arm!r:.80} is no name")
    if not tasks or not all(isinstance(task, str) for task in tasks) or len(set(tasks)) < len(tasks):
        raise ConfigError(f"run: {where}: tasks are not names that differ")
    return about


def curve_of(about: dict[str, Any], rows: list[tuple[int, dict[str, str]]], path: Path) -> Curve:
    tasks = tuple(about["tasks"])
    unseen = read_unseen(about["unseen"], len(tasks), path) if "unseen" in about else None
    numbers: dict[str, list[list[float]]] = {key: [] for key in NUMBERS}
    steps: list[float] = []
    minutes: list[float] = []
    for place, (line, row) in enumerate(rows):
        where = f"{path} line {line}"
        task = place % len(tasks)
        if row["task"] != tasks[task]:
            raise ConfigError(f"run: {where}: task {tasks[task]} was expected")
        values = {key: number(row[key], where) for key in ("steps", "minutes", *NUMBERS)}
        now = (real(values, "steps", where, 0), real(values, "minutes", where, 0))
        if task == 0:
            steps.append(now[0])
            minutes.append(now[1])
            require_later(steps, where)
            for cells in numbers.values():
                cells.append([])
        elif now != (steps[-1], minutes[-1]):
            raise ConfigError(f"run: {where}: an evaluation has one number of steps and minutes")
        for key, cells in numbers.items():
            low, high = (0.0, 1.0) if key != "return" else (-MOST, MOST)
            cells[-1].append(values[key] if math.isnan(values[key]) else real(values, key, where, low, high))
    if len(rows) % len(tasks):
        raise ConfigError(f"run: {path}: the last evaluation of {about['arm']} has not every task")

    def column(key: str) -> Any:
        return np.array(numbers[key], dtype=float).reshape(len(steps), len(tasks))

    return Curve(
        path=place_of(path.resolve(), about["arm"], about["seed"]), protocol=about["protocol"], status=about["status"],
        task_names=tasks, steps=np.array(steps), minutes=np.array(minutes), success=column("success"),
        at_end=column("success_at_end"), returns=column("return"), episodes=about["episodes"],
        seed=about["seed"], settings=about["settings"], acting=about["acting"],
        critic_loss=about["critic_loss"], training_success=read_share(about, "training_success", path), unseen=unseen,
        cosines=read_cosines(about.get("cosines", {}), len(tasks), path),
        conflict=read_conflict(about.get("conflict", {}), len(steps), path),
    )  # fmt: skip


def read_share(about: Mapping[str, Any], key: str, path: Path) -> float | None:
    """A number in [0, 1]; None where the table has none, as older ones."""
    value = about.get(key)
    if value is not None and not (type(value) in (int, float) and 0 <= value <= 1):
        raise ConfigError(f"run: {path}: {key} of {about['arm']} is {value!r:.80}, which no table has")
    return value


def nullable(numbers: Array) -> list[float | None]:
    """As JSON has them: None for NaN."""
    return [None if math.isnan(number) else number for number in numbers.tolist()]


def read_numbers(found: Any, low: float, count: int, where: str) -> Array:
    """What :func:`nullable` wrote: ``count`` numbers from ``low`` to 1."""
    if not isinstance(found, list) or len(found) != count:
        raise ConfigError(f"run: {where}: not a list of {count} numbers")
    return np.array(
        [math.nan if value is None else real({"it": value}, "it", where, low, 1) for value in found]
    )


def by_network(found: Any, where: str) -> dict[str, Any]:
    networks = mapping(found, where)
    if unknown := networks.keys() - NETWORKS:
        raise ConfigError(f"run: {where}: {min(unknown)!r:.80} is no network")
    return networks


def read_conflict(found: Any, evaluations: int, path: Path) -> dict[str, Array]:
    where = f"{path}, conflict"
    return {
        network: read_numbers(shares, 0, evaluations, where)
        for network, shares in by_network(found, where).items()
    }


def pairs_of(cosines: Array) -> list[float | None]:
    """The upper half of a symmetric matrix."""
    return nullable(cosines[np.triu_indices(len(cosines), 1)])


def read_cosines(found: Any, tasks: int, path: Path) -> dict[str, Array]:
    """The matrices that :func:`pairs_of` took apart; the diagonal is 1."""
    matrices = {}
    where = f"{path}, cosines"
    places = np.triu_indices(tasks, 1)
    for network, pairs in by_network(found, where).items():
        matrix = np.eye(tasks)
        matrix[places] = read_numbers(pairs, -1, len(places[0]), where)
        matrices[network] = np.triu(matrix) + np.triu(matrix, 1).T
    return matrices


def read_unseen(found: Any, tasks: int, path: Path) -> Unseen:
    """What a run's line has of goals that were not trained on."""
    where = f"{path}, unseen"
    found = mapping(found, where)
    success = found.get("success")
    if not isinstance(success, list) or len(success) != tasks:
        raise ConfigError(f"run: {where}: success is {success!r:.80}, not a number per task")
    return Unseen(
        int(real(found, "goal_seed", where, 0, 2.0**63)),
        int(real(found, "episodes", where, 1)),
        tuple(real({"success": value}, "success", where, 0, 1) for value in success),
    )


def number(text: str, where: str) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise ConfigError(f"run: {where}: {text!r:.80} is no number") from None
