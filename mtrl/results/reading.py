"""What a run folder says, read and checked; imports nothing of training."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from mtrl.config import ConfigError, TrainConfig
from mtrl.files import read_bounded
from mtrl.run.paths import RunPaths
from mtrl.values import flat_items, plain

Array = npt.NDArray[np.float64]
MOST = 1e15  # of any number
MOST_BYTES = 2**25  # of a file that is read whole
NETWORKS = ("critic", "actor")
# "equal to the mean", as far as bf16 tells: of plain means it measured 1 - 3e-4 and 1 ± .013 at worst
SAME_COSINE, SAME_NORM = 0.999, 0.02
# what tells no arm from another: two runs of one arm may differ in it
OF_A_RUN = (
    "seed", "run_dir", "label", "threads", "workers", "device", "log_every", "checkpoint_every", "agent.kernels",
)  # fmt: skip


@dataclass(frozen=True)
class Unseen:
    """What ``mtrl evaluate --goals unseen`` found of a run's last policy.

    Attributes:
        goal_seed: of the goals, which is not that of the run's own.
        episodes: goals per task.
        success: ``[T]``.
    """

    goal_seed: int
    episodes: int
    success: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, n of them.

    Attributes:
        path: of its folder, or the table's place and what the folder was called.
        seed: None where nothing tells it.
        steps: ``[n]`` environment steps per task, increasing.
        minutes: ``[n]`` of training, evaluations included.
        success: ``[n, T]`` by task; NaN where a task never told it.
        at_end: ``[n, T]`` success at the episodes' last step, likewise.
        returns: ``[n, T]``; NaN where they are not known.
        episodes: per task in an evaluation; None where they differ.
        settings: what makes runs alike or not, by name; see :func:`settings_of`.
        acting: per network, what the method did to the gradient; see :func:`acting_of`.
        cosines: per network, the mean pairwise cosines ``[T, T]`` of the tasks' gradients; see :func:`cosines_of`.
        conflict: per network ``[n]``, how many pairs of tasks conflict over training; see :func:`conflict_of`.
        critic_loss, training_success: mean over tasks and the second half of the training log; None where it is not
            known.
        unseen: of the policy at the last step, on goals of another seed; None where that was not measured.
    """

    path: Path
    protocol: str
    status: str
    task_names: tuple[str, ...]
    steps: Array
    minutes: Array
    success: Array
    at_end: Array
    returns: Array
    episodes: int | None
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    acting: dict[str, dict[str, float]] = field(default_factory=dict)
    cosines: dict[str, Array] = field(default_factory=dict)
    conflict: dict[str, Array] = field(default_factory=dict)
    critic_loss: float | None = None
    training_success: float | None = None
    unseen: Unseen | None = None

    @property
    def folder(self) -> Path:
        """Where the seeds of one label lie: the folder above ``seed<n>``, or the run's own."""
        return self.path.parent if re.fullmatch(r"seed\d+", self.path.name) else self.path

    @property
    def arm(self) -> str:
        """``<experiment>/<arm>``: the last two names of :attr:`folder`."""
        return "/".join(self.folder.relative_to(self.folder.anchor).parts[-2:])

    @property
    def diverged(self) -> bool:
        """Whether its numbers ended it. A run that the machine ended (FAILED) can go on, like an interrupted one."""
        return self.status.startswith("DIVERGED")

    @property
    def last_step(self) -> float:
        return float(self.steps[-1]) if len(self.steps) else 0.0

    def at(self, steps: Array) -> Curve:
        """The evaluations at these steps per task; those that a diverged run never reached count as no success, after
        an unknown time."""
        kept = np.isin(self.steps, steps)
        missing = steps[steps > self.last_step] if self.diverged else steps[:0]
        lost = np.zeros((len(missing), len(self.task_names)))
        # what is of half of the training log is of a whole run alone
        whole = self.last_step in steps and self.status.startswith("DONE")
        return replace(
            self,
            steps=np.append(self.steps[kept], missing),
            minutes=np.append(self.minutes[kept], np.full(len(missing), math.nan)),
            success=np.vstack((self.success[kept], lost)),
            at_end=np.vstack((self.at_end[kept], lost)),
            returns=np.vstack((self.returns[kept], np.full_like(lost, math.nan))),
            conflict={
                network: np.append(shares[kept], np.full(len(missing), math.nan))
                for network, shares in self.conflict.items()
            },
            unseen=self.unseen if self.last_step in steps else None,
            critic_loss=self.critic_loss if whole else None,
            training_success=self.training_success if whole else None,
        )

    def of_tasks(self, names: tuple[str, ...]) -> Curve:
        """Some of its tasks, in this order."""
        places = [self.task_names.index(name) for name in names]
        parts: dict[str, Any] = {
            key: getattr(self, key)[:, places] for key in ("success", "at_end", "returns")
        }
        parts["cosines"] = {name: found[np.ix_(places, places)] for name, found in self.cosines.items()}
        if len(places) < len(self.task_names):
            parts["conflict"] = {}  # known over all pairs only
        if self.unseen is not None:
            success = tuple(self.unseen.success[place] for place in places)
            parts["unseen"] = replace(self.unseen, success=success)
        return replace(self, task_names=names, **parts)


class NoEvaluation(ConfigError):
    """A run that was not evaluated yet."""


def read_curve(path: str | Path) -> Curve:
    """A run folder's ``eval.jsonl``, with what its other files say of the run.

    Raises:
        NoEvaluation: the run has none yet.
        ConfigError: no run, or a file that no run of ours writes; it names the file and the line.
    """
    run = RunPaths(Path(path).resolve())
    if run.exists and not run.evaluations.exists():
        raise NoEvaluation(f"run: {path} has no evaluation yet (it is {run.status})")
    if not run.path.exists():
        raise ConfigError(f"run: {path} does not exist")
    if not run.meta.exists() or not run.evaluations.exists():
        raise ConfigError(f"run: {path} is no run's folder (it has no meta.json and eval.jsonl)")
    records = read_lines(run.evaluations)
    if not records:
        raise NoEvaluation(f"run: {path} has no evaluation yet (it is {run.status})")
    tasks = tuple(mapping(records[0].get("tasks"), f"{run.evaluations} line 1"))
    if not tasks:
        raise ConfigError(f"run: {run.evaluations} line 1 has no tasks")
    steps, minutes, episodes = [], [], set()
    columns: dict[str, list[list[float]]] = {"success": [], "success_at_end": [], "return": []}
    for number, record in enumerate(records, 1):
        where = f"{run.evaluations} line {number}"
        by_task = mapping(record.get("tasks"), where)
        if tuple(by_task) != tasks:
            raise ConfigError(f"run: {where} has other tasks than line 1")
        steps.append(real(record, "steps_per_task", where, low=0))
        minutes.append(round(real(record, "seconds", where, low=0) / 60, 3))
        require_later(steps, where)
        scores = [mapping(by_task[name], f"{where}, {name}") for name in tasks]
        for key, rows in columns.items():
            low, high = (0.0, 1.0) if key != "return" else (-MOST, MOST)
            rows.append(
                [
                    math.nan if s.get(key) is None else real(s, key, f"{where}, {name}", low, high)
                    for name, s in zip(tasks, scores, strict=True)
                ]
            )
        episodes |= {int(real(s, "episodes", where, 1)) for s in scores if s.get("episodes") is not None}
    return Curve(
        **about(run, np.array(steps)), task_names=tasks, steps=np.array(steps), minutes=np.array(minutes),
        success=none_is_no(np.array(columns["success"])), at_end=none_is_no(np.array(columns["success_at_end"])),
        returns=np.round(np.array(columns["return"]), 3),
        episodes=episodes.pop() if len(episodes) == 1 else None, unseen=unseen_of(run, tasks, steps[-1]),
    )  # fmt: skip


def none_is_no(told: Array) -> Array:
    """Success ``[n, T]`` with 0 for NaN where the task tells it in another evaluation: some tell it when reached."""
    return np.where(np.isnan(told) & np.isfinite(told).any(axis=0), 0.0, told)


def unseen_of(run: RunPaths, tasks: tuple[str, ...], last_step: float) -> Unseen | None:
    """What ``unseen.json`` says, unless the run went on after it was written."""
    if not run.unseen.is_file():
        return None
    where = str(run.unseen)
    content = mapping(read_json(run.unseen), where)
    if real(content, "steps_per_task", where, 0) != last_step:
        return None
    by_task = mapping(content.get("tasks"), where)
    if set(by_task) != set(tasks):
        raise ConfigError(f"run: {where} has other tasks than {run.evaluations}")
    scores = [mapping(by_task[name], f"{where}, {name}") for name in tasks]
    goal_seed = int(real(mapping(content.get("protocol"), where), "goal_seed", where, 0, 2.0**63))
    if goal_seed == goal_seed_of(config_of(run), mapping(read_json(run.meta).get("protocol"), run.meta)):
        raise ConfigError(f"run: {where} is of goal seed {goal_seed}, which the run trained on")
    return Unseen(
        goal_seed,
        int(real(scores[0], "episodes", where, 1)),
        tuple(real(s, "success", f"{where}, {name}", 0, 1) for s, name in zip(scores, tasks, strict=True)),
    )


def diverged_curve(path: str | Path, others: Sequence[Curve]) -> Curve:
    """A run that diverged before its first evaluation: no success at any step.

    Args:
        others: runs whose tasks are known; one of the same protocol has the same.

    Raises:
        NoEvaluation: no other has its protocol, so that its tasks are not known.
    """
    run = RunPaths(Path(path).resolve())
    told = about(run, np.zeros(0))
    task_names = next((curve.task_names for curve in others if curve.protocol == told["protocol"]), None)
    if task_names is None:
        raise NoEvaluation(
            f"run: {run.path} diverged before its first evaluation, and no other run has its protocol"
        )
    none = np.zeros((0, len(task_names)))
    return Curve(
        **told, task_names=task_names, steps=np.zeros(0), minutes=np.zeros(0),
        success=none, at_end=none, returns=none, episodes=None,
    )  # fmt: skip


def about(run: RunPaths, steps: Array) -> dict[str, Any]:
    """What a run's other files say, by the names of :class:`Curve`; the evaluations are at ``steps [n]``."""
    meta = mapping(read_json(run.meta), run.meta)
    protocol = mapping(meta.get("protocol"), run.meta)
    if not isinstance(protocol.get("name"), str):
        raise ConfigError(f"run: {run.meta} names no protocol")
    config = config_of(run)
    measured = read_lines(run.conflicts) if run.conflicts.is_file() else []
    return {
        "path": run.path, "protocol": protocol["name"], "status": run.status,
        "seed": seed_of(run, config), "settings": settings_of(config, meta, protocol),
        "acting": acting_of(run, measured), "cosines": cosines_of(measured),
        "conflict": conflict_of(measured, steps, str(run.conflicts)),
        "critic_loss": late(run, "train/critic_loss"), "training_success": late(run, "rollout/success_rate"),
    }  # fmt: skip


def require_later(steps: list[float], where: str) -> None:
    if len(steps) > 1 and steps[-1] <= steps[-2]:
        raise ConfigError(
            f"run: {where} is at {steps[-1]:g} steps per task, the line before at {steps[-2]:g}"
        )


def config_of(run: RunPaths) -> dict[str, Any]:
    try:
        config = yaml.safe_load(read_text(run.config)) if run.config.exists() else {}
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(f"run: {run.config} is no YAML") from None
    return config if isinstance(config, dict) else {}


def seed_of(run: RunPaths, config: dict[str, Any]) -> int | None:
    seed = config.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool):
        return seed
    digits = run.path.name.removeprefix("seed")
    return int(digits) if digits != run.path.name and digits.isdecimal() and len(digits) < 20 else None


def settings_of(config: dict[str, Any], meta: dict[str, Any], protocol: dict[str, Any]) -> dict[str, Any]:
    """``goals`` (their seed, where fixed or given), ``total_steps_per_task``, ``commit`` (several, where
    a run went on with another), ``kernels``, ``versions`` and ``config``: a digest of the settings that are an arm's.
    """
    # by what differs from the defaults: a setting that a later version adds makes no other arm
    defaults = dict(flat_items(plain(asdict(TrainConfig()))))
    of_arm = {
        key: value
        for key, value in flat_items(config)
        if key not in OF_A_RUN and not (key in defaults and value == defaults[key])
    }
    text = json.dumps(of_arm, sort_keys=True, default=str)
    resumed = meta.get("resumed")
    parts = [
        meta,
        *(part for part in (resumed if isinstance(resumed, list) else ()) if isinstance(part, dict)),
    ]
    return {
        "goals": goal_seed_of(config, protocol)
        if protocol.get("goals") == "fixed"
        else protocol.get("goal_seed"),
        "total_steps_per_task": config.get("total_steps_per_task"),
        "commit": ", ".join(dict.fromkeys(str(part["commit"]) for part in parts if part.get("commit")))
        or None,
        "kernels": dict(flat_items(config)).get("agent.kernels"),
        "versions": meta.get("versions"),
        "config": hashlib.sha256(text.encode()).hexdigest()[:16] if config else None,
    }


def goal_seed_of(config: dict[str, Any], protocol: dict[str, Any]) -> Any:
    """The seed that a run's goals are drawn from."""
    return config.get("seed") if protocol.get("goal_seed") is None else protocol["goal_seed"]


def acting_of(run: RunPaths, measured: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per network, means over a run's conflict measurements, which are of one update in ``diagnostics_every``.

    ``cosine`` and ``norm_ratio`` of the applied direction and the mean gradient; ``unchanged``, the share of updates
    where they are equal as far as bf16 tells; ``conflict``, the share of pairs of tasks whose gradients point apart;
    ``measured``, the number of updates. What was not measured is missing. ``fallbacks``: how often in all updates
    the method's solver had no solution; missing where nothing is solved.
    """
    found: dict[str, dict[str, float]] = {}
    for network in NETWORKS:
        if counts := logged(run, f"train/{network}_fallbacks"):
            found[network] = {"fallbacks": counts[-1]}
        rows = np.array(
            [
                [r.get(key) for key in ("cosine_to_mean", "norm_ratio", "negative_pairs")]
                for r in measured
                if r.get("network") == network
                and all(isinstance(r.get(key), (int, float)) for key in ("cosine_to_mean", "norm_ratio"))
            ],
            dtype=float,
        )
        if not len(rows):
            continue
        same = (rows[:, 0] >= SAME_COSINE) & (np.abs(rows[:, 1] - 1) <= SAME_NORM)
        apart = rows[:, 2][np.isfinite(rows[:, 2])]
        found[network] = {
            **found.get(network, {}),
            "cosine": round(float(rows[:, 0].mean()), 4), "norm_ratio": round(float(rows[:, 1].mean()), 4),
            "unchanged": round(float(same.mean()), 4), "measured": len(rows),
        }  # fmt: skip
        if len(apart):
            found[network]["conflict"] = round(float(apart.mean()), 4)
    return found


def cosines_of(measured: list[dict[str, Any]]) -> dict[str, Array]:
    """Per network, the mean of the second half of a run's measurements, to three digits; NaN where a gradient was zero.

    Empty where a measurement has no matrix.
    """
    found: dict[str, Array] = {}
    for network in NETWORKS:
        try:
            rows = np.array([r["cosines"] for r in measured if r.get("network") == network], dtype=float)
        except (ValueError, KeyError, TypeError):
            continue
        if rows.ndim == 3 and rows.shape[1] == rows.shape[2]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN
                found[network] = np.asarray(np.nanmean(rows[len(rows) // 2 :], axis=0).round(3))
    return found


def conflict_of(measured: list[dict[str, Any]], steps: Array, where: str) -> dict[str, Array]:
    """Per network ``[n]``, the share of pairs of tasks whose gradients point apart, to four digits.

    Mean over the updates that were measured since the evaluation before; NaN where none was.
    """
    found: dict[str, Array] = {}
    for network in NETWORKS:
        keys = ("negative_pairs", "steps_per_task")
        known = [
            r for r in measured if r.get("network") == network and all(finite(r.get(key)) for key in keys)
        ]
        if not known:
            continue
        shares = np.array([real(r, "negative_pairs", where, 0, 1) for r in known])
        interval = np.searchsorted(steps, [real(r, "steps_per_task", where, 0) for r in known])
        parts = [shares[interval == n] for n in range(len(steps))]
        found[network] = np.array([round(part.mean(), 4) if len(part) else math.nan for part in parts])
    return found


def finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and -MOST <= value <= MOST


def late(run: RunPaths, key: str) -> float | None:
    """Mean over the second half of a column of ``progress.csv``; None where that knows none."""
    values = logged(run, key, finite=False)
    known = [value for value in values[len(values) // 2 :] if math.isfinite(value)]
    return float(f"{np.mean(known):.6g}") if known else None


def logged(run: RunPaths, key: str, finite: bool = True) -> list[float]:
    """A column of ``progress.csv``; without ``finite`` NaN stands where a row has none."""
    if not run.progress.is_file():
        return []
    values = []
    for row in csv.DictReader(read_text(run.progress).splitlines()):
        try:
            values.append(float(row.get(key) or "nan"))
        except ValueError:
            raise ConfigError(f"run: {run.progress}: {key} is no number") from None
    return [value for value in values if math.isfinite(value)] if finite else values


def read_text(path: Path) -> str:
    """A regular file of no absurd size, as text."""
    try:
        return read_bounded(path, MOST_BYTES).decode()
    except OSError as error:
        raise ConfigError(f"run: {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"run: {path} is no text") from None


def read_json(path: Path) -> Any:
    return parsed(read_text(path), path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A jsonl file of mappings."""
    lines = read_text(path).splitlines()
    return [mapping(parsed(text, f"{path} line {i}"), f"{path} line {i}") for i, text in enumerate(lines, 1)]


def parsed(text: str, where: object) -> Any:
    """JSON in which no key comes twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ConfigError(f"run: {where}: the key {twice!r:.80} comes twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except ConfigError:
        raise
    except (ValueError, RecursionError):
        raise ConfigError(f"run: {where} is no JSON") from None


def mapping(value: Any, where: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"run: {where} is not what a run writes (a mapping was expected)")
    return value


def real(record: dict[str, Any], key: str, where: str, low: float, high: float = MOST) -> float:
    """A number in a record, within bounds."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"run: {where}: {key} is {value!r}, which no run writes")
    return float(value)
