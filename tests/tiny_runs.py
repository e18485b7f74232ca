"""Whole runs of the command line that take a second or two, and what can be compared between them."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtrl import cli
from mtrl.results.figures import new_figure
from mtrl.train import Trainer

STEPS = 120
POINT = [
    "--protocol.suite=point", "--protocol.horizon=30", "--protocol.num_goals=3", "--threads=1", "--agent.gamma=0.9",
    f"--total_steps_per_task={STEPS}", "--warmup_steps=40", "--log_every=20",
    "--eval_every=60", "--eval_episodes=1", "--diagnostics_every=30", "--replay.batch_size=8",
    "--agent.actor.hidden=[8]", "--agent.critic.hidden=[8]",
]  # fmt: skip


def train(folder: Path, *more: str, base: list[str] = POINT) -> int:
    """Exit code of ``mtrl train`` in this process, with empty pictures: theirs is half of a tiny run's time."""
    with patch("mtrl.results.figures.cosine_figure", lambda *_: new_figure(1, 1)):
        return cli.main(["train", *base, f"--run_dir={folder}", *more])


def train_in_child(arguments: list[str]) -> None:
    """The body of a child process."""
    with patch("mtrl.results.figures.cosine_figure", lambda *_: new_figure(1, 1)):
        sys.exit(cli.main(["train", *arguments]))


def at_step(monkeypatch: Any, step: int, act: Callable[[Trainer], None]) -> None:
    """Do something once, in the middle of the training step that follows ``step`` steps per task."""
    remember = Trainer._remember
    done: list[int] = []

    def wrapped(self: Trainer, *arguments: Any) -> None:
        remember(self, *arguments)
        if self.num_timesteps // self.envs.num_envs == step and not done:
            done.append(step)
            act(self)

    monkeypatch.setattr(Trainer, "_remember", wrapped)


def send(number: int) -> Callable[[Trainer], None]:
    """Sends this process a signal."""
    return lambda trainer: os.kill(os.getpid(), number)


def train_until(step: int, folder: Path, *more: str, base: list[str] = POINT) -> None:
    """Train until a SIGTERM stops it, in the middle of the step that follows ``step`` steps per task."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, send(signal.SIGTERM))
        assert train(folder, *more, base=base) == 4


def resumed(folder: Path) -> list[int]:
    """The steps per task that a run went on from."""
    return [entry["steps_per_task"] for entry in json.loads((folder / "meta.json").read_text())["resumed"]]


def status(folder: Path) -> str:
    return (folder / "STATUS").read_text()


def written(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for times: policies' bytes, rows, lines, scalars by tag and step."""
    with (folder / "progress.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]
    evaluations = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    for line in evaluations:
        del line["seconds"]
    return {
        "policy": (folder / "policy.safetensors").read_bytes(),
        "best": (folder / "policy_best.safetensors").read_bytes(),
        "rows": rows,
        "evaluations": evaluations,
        "conflicts": (folder / "conflict.jsonl").read_text(),
        "scalars": scalars(folder),
    }


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's, by tag, in the order of steps."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: sorted((event.step, event.value) for event in events.Scalars(tag)) for tag in tags}
