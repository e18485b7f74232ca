"""kill -9 at six moments, among them inside a checkpoint's write: nothing is lost, nothing differs."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from tiny_runs import POINT, resumed, train, train_in_child, written

KILLS = 6
INSIDE = range(0, KILLS, 2)  # kills that wait for a file that is being written
ARGUMENTS = [*POINT, "--checkpoint_every=1e-9"]


@pytest.mark.timeout(900)  # a minute, but for machines that do much else beside
def test_a_run_killed_at_six_moments_always_ends_with_the_bytes_of_the_undisturbed_run(tmp_path):
    assert train(tmp_path / "whole", base=ARGUMENTS) == 0
    expected = written(tmp_path / "whole")
    # its children are forks of a process that has imported everything: real processes that start at once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mtrl.commands.train", "tiny_runs"])
    moments = random.Random(0)
    kills, torn, finished = 0, 0, []
    while kills < KILLS:
        run = tmp_path / f"run-{len(finished)}"
        child = context.Process(target=train_in_child, args=([*ARGUMENTS, f"--run_dir={run}"],))
        child.start()
        if killed(child, run, moments, inside=kills in INSIDE):
            kills += 1
            torn += is_torn(run / "checkpoint")
        else:
            assert child.exitcode == 0
            finished.append(run)
    if run not in finished:
        assert train(run, base=ARGUMENTS) == 0
        finished.append(run)
    for run in finished:
        assert written(run) == expected
    assert max(step for run in finished for step in resumed(run)) > 0  # not from the start each time
    assert torn > 0  # at least one left a checkpoint that was not whole


def killed(child: BaseProcess, run: Path, moments: random.Random, inside: bool) -> bool:
    """Kill the child at a random moment of its training; False when it was done before."""
    before = newest(run)
    while newest(run) == before and child.exitcode is None:
        time.sleep(0.001)
    moment = time.monotonic() + moments.uniform(0, 0.3)
    while child.exitcode is None and time.monotonic() < moment:
        time.sleep(0.001)
    while inside and child.exitcode is None and not any((run / "checkpoint").glob("*.tmp")):
        pass
    child.kill()
    child.join()
    return child.exitcode == -9


def newest(run: Path) -> int:
    """When the newest manifest was written; one that is deleted while it is looked at is not it."""
    times = [0]
    for path in manifests(run / "checkpoint"):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime_ns)
    return max(times)


def manifests(folder: Path) -> list[Path]:
    return list(folder.glob("manifest-*.json"))


def is_torn(folder: Path) -> bool:
    """Whether there is a file that no manifest names: a checkpoint was being written."""
    named = set()
    for path in manifests(folder):
        manifest = json.loads(path.read_text())
        named |= {path.name, *(entry["name"] for entry in [manifest["state"], *manifest["segments"]])}
    return any(path.name not in named for path in folder.iterdir())
