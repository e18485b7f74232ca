"""Time and bytes of a checkpoint of MT10's sizes, by the size of the replay; and of going on from it.

    python benchmarks/checkpoint_cost.py [--folder .] [--steps_per_second 40]

`first` writes every row, as the first checkpoint of a buffer that is already full would; `next` is what
follows ten minutes of training later, and what a run pays every ten minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from mtrl.config import TrainConfig
from mtrl.replay import TaskReplay
from mtrl.run.checkpoint import Checkpoints, generators_state
from mtrl.sac import MTSAC

T, OBS, ACT = 10, 39, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=".", help="on the disk to measure")
    parser.add_argument("--steps_per_second", type=float, default=40, help="vector steps of the training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    minutes = TrainConfig().checkpoint_every
    new = round(60 * minutes * args.steps_per_second)
    agent = MTSAC(OBS, ACT, tuple(f"task-{t}" for t in range(T)))
    agent.update(batch_of(256))  # so that Adam has a state
    state = {"agent": agent.state_dict(), "generators": generators_state()}
    print(
        f"MT10: {T} tasks, every {minutes:g} min, {args.steps_per_second:g} steps/s: {new} new rows per task"
    )
    print("transitions   first: s      MB    next: s      MB   share of time   loading: s")
    for transitions in (100_000, 1_000_000, 4_000_000):
        replay = TaskReplay(T, transitions // T, OBS, ACT)
        for column in replay.data.values():
            column.uniform_()
        replay.added = replay.capacity
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            checkpoints = Checkpoints(Path(folder))
            first, first_bytes = timed(checkpoints, 1, state, replay)
            replay.added += new
            after, after_bytes = timed(checkpoints, 2, state, replay)
            start = time.perf_counter()
            Checkpoints(Path(folder)).load(replay)
            loading = time.perf_counter() - start
        print(
            f"{transitions:11,}   {first:8.2f} {first_bytes / 1e6:7.0f}   {after:8.2f} {after_bytes / 1e6:7.0f}   "
            f"{after / (60 * minutes):13.2%}   {loading:10.2f}",
            flush=True,
        )


def timed(
    checkpoints: Checkpoints, step: int, state: dict[str, object], replay: TaskReplay
) -> tuple[float, int]:
    start = time.perf_counter()
    written = checkpoints.save(step, state, replay)
    return time.perf_counter() - start, written


def batch_of(rows: int) -> object:
    replay = TaskReplay(T, 1, OBS, ACT)
    replay.add(torch.zeros(T, OBS), torch.zeros(T, ACT), torch.zeros(T), torch.zeros(T, OBS), torch.zeros(T))
    return replay.sample(rows)


if __name__ == "__main__":
    main()
