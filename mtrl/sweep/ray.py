"""The runs of a sweep on a Ray cluster: one task per run, each a ``mtrl train`` process next to its worker.

A run resumes by itself, so a task that is lost with its worker or node is simply started again, elsewhere. Its folder
must lie on storage that all nodes see under the same path.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RETRIES = 3  # of a task that is lost with its worker, its node, or to the memory monitor
# Read when ray is loaded. Without the first a run that never fits memory is tried for ever.
os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from mtrl.config import ConfigError  # noqa: E402
from mtrl.run.status import read_status  # noqa: E402
from mtrl.sweep.board import Board  # noqa: E402
from mtrl.sweep.child import start, verdict  # noqa: E402
from mtrl.sweep.grid import Run  # noqa: E402
from mtrl.sweep.local import Stop, Tries, stopped  # noqa: E402
from mtrl.values import one_line  # noqa: E402

CONNECT = 10  # seconds that a cluster has to answer
LOOK = 120  # seconds that a node has to show that it sees the run folders
ORPHAN = 300  # seconds that a lost worker's process has to leave its run
PAUSE = 1.0  # seconds between looks at the tasks


class Job(NamedTuple):
    """What a worker is told of a run."""

    arguments: tuple[str, ...]
    folder: Path
    log: Path
    nice: int
    marker: Path


def run_all(runs: Sequence[Run], address: str | None, nice: int, board: Board) -> None:
    """Run what is not done or diverged as tasks; the board has what became of each.

    Args:
        address: of a cluster; None is that of ``RAY_ADDRESS``, or one that is started here.

    Raises:
        ConfigError: there is no such cluster, no node is large enough, or one does not see the run folders.
    """
    waiting = [run for run in runs if board.states[run.folder][0] not in ("done", "diverged")]
    if not waiting:
        return
    connect(address)
    try:
        require_room(waiting)
        with shared_marker(waiting[0].folder.parents[1]) as marker:
            _run_all(waiting, nice, board, marker)
    finally:
        ray.shutdown()


def connect(address: str | None) -> None:
    """Join the cluster, or start one here."""
    address = (
        address or os.environ.get("RAY_ADDRESS") or "local"
    )  # by itself ray would join any that it finds
    host, colon, port = address.rpartition(":")
    try:
        if colon and "://" not in address:  # ray would try for more than five minutes
            socket.create_connection((host, int(port)), CONNECT).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        raise ConfigError(f"address: no Ray cluster at {address} ({one_line(str(error))})") from None


def _run_all(waiting: Sequence[Run], nice: int, board: Board, marker: Path) -> None:
    tries, stop = Tries(), Stop()
    tasks = {submit(run, nice, marker): run for run in waiting}
    cancelled = False
    with stop.taken():
        while tasks and stop.received < 2:
            if stop.received and not cancelled:
                cancelled = True
                for task in tasks:
                    ray.cancel(task)  # in the worker a KeyboardInterrupt; see train
            ended, _ = ray.wait(list(tasks), timeout=PAUSE)
            for task in ended:
                run = tasks.pop(task)
                word, reason = outcome(task)
                if stop.received and word in ("again", "failed", "lost"):
                    word, reason = "interrupted", stopped(reason)
                board.tell(run, word, reason)
                if not stop.received and tries.again(run, word):
                    tasks[submit(run, nice, marker)] = run
            for run in tasks.values():
                if board.states[run.folder][0] != "training" and read_status(run.folder).startswith(
                    "RUNNING"
                ):
                    board.tell(run, "training")
            board.refresh()
    for run in tasks.values():
        board.tell(run, "interrupted")


def submit(run: Run, nice: int, marker: Path) -> Any:
    """Its task, with the cores that its threads and workers take."""
    job = Job(run.command(1), run.folder, run.log, nice, marker)
    needs = resources(run)
    options = {"max_retries": RETRIES, "retry_exceptions": False, "name": run.name, **needs}
    return ray.remote(train).options(**options).remote(job)


def resources(run: Run) -> dict[str, int]:
    """What a run needs of a node, as Ray names it."""
    numbers = [number for key in ("threads", "workers") if (number := run.recorded(key)) != "auto"]
    return {"num_cpus": max(1, sum(numbers)), "num_gpus": int(run.recorded("device") == "cuda")}


def train(job: Job) -> tuple[str, str]:
    """In a worker, on its main thread: the run's process, and what became of it.

    The process is ended with the worker, but may need a while to save: the run's lock is waited for.

    Raises:
        ConfigError: this node does not see the run folders.
    """
    if not job.marker.is_file():
        raise ConfigError(f"runs: the node {socket.gethostname()} does not see {job.marker.parent}")
    limit = time.monotonic() + ORPHAN
    while True:
        child = start(job.arguments, job.log, job.nice)
        try:
            while child.poll() is None:  # not wait(): what cancels a task does not interrupt that
                time.sleep(0.1)
        except KeyboardInterrupt:  # cancelled
            child.terminate()
        word, reason = verdict(child.wait(), job.folder, job.log)
        if word != "busy" or time.monotonic() > limit:
            return word, reason
        time.sleep(5)


def outcome(task: Any) -> tuple[str, str]:
    """What :func:`train` returned, or how its worker ended for the last time, which is not tried again."""
    try:
        word, reason = ray.get(task)
        return word, reason
    except ray.exceptions.TaskCancelledError:
        return "interrupted", ""
    except ray.exceptions.OutOfMemoryError:
        return "lost", f"it did not fit its node's memory in {RETRIES + 1} tries"
    except ray.exceptions.RayTaskError as error:
        return "lost", one_line(str(error.cause))
    except ray.exceptions.RayError as error:
        return "lost", f"{type(error).__name__} in {RETRIES + 1} tries"


def require_room(runs: Sequence[Run]) -> None:
    """Raise ConfigError for a run that no node has the cores or the GPU for: it would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for run in runs:
        needs = resources(run)
        if not any(
            node.get("CPU", 0) >= needs["num_cpus"] and node.get("GPU", 0) >= needs["num_gpus"]
            for node in nodes
        ):
            raise ConfigError(
                f"engine: no node has the {needs['num_cpus']} CPU(s) and {needs['num_gpus']} GPU(s) of {run.name}"
            )


@contextlib.contextmanager
def shared_marker(folder: Path) -> Iterator[Path]:
    """A file in the experiment's folder that every node has been seen to read and to write next to.

    Nodes that join later look for it before they train.

    Raises:
        ConfigError: it names the first node that does not see it.
    """
    word = uuid.uuid4().hex
    marker = folder / f".sweep-{word}"
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(word)
    try:
        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        looks = {
            node: ray.remote(look)
            .options(
                num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, False)
            )
            .remote(marker, node)
            for node in nodes
        }
        for node, task in looks.items():
            reply = marker.with_name(f"{marker.name}-{node}")
            try:
                seen = ray.get(task, timeout=LOOK)
                back = reply.read_text()
            except (ray.exceptions.RayError, OSError, TimeoutError) as error:
                cause = getattr(error, "cause", None) or error
                seen = back = None
                reason = one_line(str(cause)) or type(error).__name__
            else:
                reason = "it has other files there"
            if not seen == back == word:
                raise ConfigError(
                    f"runs: the node {nodes[node]} does not share {folder} ({reason}); --runs must be storage "
                    "that all nodes see under the same path"
                )
        yield marker
    finally:
        for path in folder.glob(f"{marker.name}*"):
            path.unlink(missing_ok=True)


def look(marker: Path, node: str) -> str:
    """On a node: what it reads in the marker, which it also writes into a file next to it."""
    word = marker.read_text()
    marker.with_name(f"{marker.name}-{node}").write_text(word)
    return word
