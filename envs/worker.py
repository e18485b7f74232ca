"""A worker process that owns some tasks, and its handle. Loads no torch.

Workers are started as plain `python -c` (see process.py), not by multiprocessing, which would import the
caller's main module, and with it torch, into each of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pickle
import select
import signal
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from mtrl.envs import process
from mtrl.envs.group import Group
from mtrl.envs.protocol import WorkerDiedError
from mtrl.envs.wrappers import TaskSpec

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_LONGEST_POLL = 2**31 - 1
_PR_SET_PDEATHSIG = 1


class RemoteGroup:
    """A `Group` in a worker process of its own, with one thread.

    timeout: seconds that an answer may take; then the process is ended.
    variables: of its environment, on top of the caller's.

    Raises `WorkerDiedError` from `receive`, naming the tasks when the process has died, and the one whose turn it
    was when it gave no answer in time.
    """

    def __init__(
        self, specs: Sequence[TaskSpec], timeout: float, variables: Mapping[str, str] | None = None
    ) -> None:
        self.task_names = tuple(spec.name for spec in specs)
        # Functions that are defined in the caller's main module or in a function need more than pickle.
        self._specs: bytes = cloudpickle.dumps(list(specs))
        self._timeout = timeout
        self._variables = dict(variables or {})
        with tempfile.TemporaryFile() as file:
            file.truncate(mmap.PAGESIZE)
            self._turn_file = os.dup(file.fileno())
        self._turn = memoryview(mmap.mmap(self._turn_file, mmap.PAGESIZE)).cast("I")
        self.restart()

    def restart(self) -> None:
        """Start the process; its tasks then wait for a reset or a state."""
        self._pipe, theirs = Pipe()
        self._answered = select.poll()
        self._answered.register(self._pipe.fileno(), select.POLLIN)
        # The kernel tells a child that the thread which started it has ended, not the process.
        lasting = threading.current_thread() is threading.main_thread()
        arguments = f"{theirs.fileno()}, {self._turn_file}, {os.getpid()}, {lasting}"
        self._process = subprocess.Popen(
            process.command(f"from mtrl.envs.worker import main; main({arguments})"),
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), self._turn_file],
            env={**process.environment(), **dict.fromkeys(_THREADS, "1"), **self._variables},
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
        if not self._answered.poll(min(1000 * self._timeout, _LONGEST_POLL)):
            task = self.task_names[self._turn[0]]
            self._process.kill()
            self._process.wait()
            raise WorkerDiedError(
                f"task {task}: its env has not gone on for {self._timeout:g} s (step_timeout); its worker was ended"
            )
        try:
            answer, error = self._pipe.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            tasks = ", ".join(self.task_names)
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
        os.close(self._turn_file)

    def _send(self, content: bytes) -> None:
        # Where the process is gone, `receive` says so, once the answers of all the others have been taken.
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(content)


def main(handle: int, turn_file: int, parent: int, lasting: bool) -> None:
    """Serve a group until the other end of the pipe closes, or the parent is gone.

    handle: the file descriptor of this end. turn_file: of a page whose first number is the position of the task
    whose turn it is. lasting: whether the thread that started this process lasts as long as the parent.
    """
    _end_with(parent, lasting)
    # A scheduler signals every process of a job, but the parent still needs this one to save the run.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    turn = memoryview(mmap.mmap(turn_file, mmap.PAGESIZE)).cast("I")
    pipe: Connection[Any, Any] = Connection(handle)
    with process.plain_warnings():
        _serve(pipe, turn)


def _serve(pipe: Connection[Any, Any], turn: memoryview) -> None:
    try:
        try:
            group = Group(pickle.loads(pipe.recv_bytes()), partial(turn.__setitem__, 0))
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


def _end_with(parent: int, lasting: bool) -> None:
    """Have this process killed when its parent is gone: one that hangs in a task reads no end of a pipe."""
    told = False
    if lasting:
        with contextlib.suppress(AttributeError, OSError, TypeError):  # no Linux
            told = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if not told:
        threading.Thread(target=watch, daemon=True).start()
    elif os.getppid() != parent:  # it went before the kernel was asked
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error itself if it survives the way to the parent, else one with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
