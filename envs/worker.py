"""A worker process that owns some tasks, and its handle. Loads no torch.

Workers are started as plain `python -c`, not by multiprocessing, which would import the caller's main module,
and with it torch, into each of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from mtrl.envs.group import Group
from mtrl.envs.protocol import WorkerDiedError
from mtrl.envs.wrappers import TaskSpec

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class RemoteGroup:
    """A `Group` in a worker process of its own, with one thread.

    Raises `WorkerDiedError`, naming the tasks, from `receive` when the process has died, or has not answered for
    `timeout` seconds and was ended.
    """

    def __init__(self, specs: Sequence[TaskSpec], timeout: float | None) -> None:
        self._timeout = timeout
        self.task_names = tuple(spec.name for spec in specs)
        # Functions that are defined in the caller's main module or in a function need more than pickle.
        self._specs: bytes = cloudpickle.dumps(list(specs))
        self.restart()

    def restart(self) -> None:
        """Start the process; its tasks then wait for a reset or a state."""
        self._pipe, theirs = Pipe()
        # the death signal comes when the thread that made the process ends: only the main one lasts
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                isolated("from mtrl.envs.worker import main", f"main({theirs.fileno()}, {parent})"),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, **dict.fromkeys(_THREADS, "1")},
            # Ctrl-C is the parent's to answer: it still needs its workers to save the run.
            start_new_session=True,
        )
        theirs.close()
        self._send(self._specs)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def send(self, method: str, *arguments: Any) -> None:
        """Ask for `method(*arguments)` of the group."""
        self._send(pickle.dumps((method, arguments)))

    def receive(self) -> Any:
        """The answer to the last `send`; raises what the method raised."""
        tasks = ", ".join(self.task_names)
        try:
            if not self._pipe.poll(self._timeout):
                self._process.kill()
                self._process.wait()
                raise WorkerDiedError(
                    f"the worker process of {tasks} has not answered for {self._timeout:g} seconds and was ended"
                )
            answer, error = self._pipe.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            raise WorkerDiedError(f"the worker process of {tasks} has died (exit code {code})") from None
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, content: bytes) -> None:
        # Where the process is gone, `receive` says so, once the answers of all the others have been taken.
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(content)


def isolated(*statements: str) -> str:
    """Python code for `-c` that finds modules where this process does, and not in the current folder before that."""
    path = [entry or os.getcwd() for entry in sys.path]
    return "; ".join((f"import sys; sys.path[:] = {path!r}", *statements))


def end_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent ends, however it ends; Linux only."""
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (AttributeError, OSError, TypeError):
        return
    pdeathsig = 1
    prctl(pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)


def main(handle: int, parent: int) -> None:
    """Serve a group until the other end of the pipe closes.

    handle: the file descriptor of this end. parent: the process to end with, 0 for none.
    """
    if parent:
        end_with_parent(parent)
    # A scheduler signals every process of a job, but the parent still needs this one to save the run.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    pipe: Connection[Any, Any] = Connection(handle)
    try:
        try:
            group = Group(pickle.loads(pipe.recv_bytes()))
        except Exception as error:
            pipe.send((None, _portable(error)))
            return
        while True:
            method, arguments = pickle.loads(pipe.recv_bytes())
            answer, failure = None, None
            try:
                answer = getattr(group, method)(*arguments)
            except Exception as error:
                failure = _portable(error)
            pipe.send((answer, failure))
    except (EOFError, OSError):
        return


def _portable(error: Exception) -> Exception:
    """The error itself if it survives the way to the parent, else one with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
