"""The signals that stop a run: taken before its folder is locked, given back when it has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from mtrl.run.outputs import leave_lost_outputs, tell

TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Signals:
    """Inside its ``with``, the first signal is only remembered: whoever trains looks, saves and ends.

    SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 (pre-emption), and SIGHUP (the terminal is gone; not under nohup). After any
    of them a SIGINT, and a second SIGTERM, raise KeyboardInterrupt at once. Off the main thread, where Python
    takes no signals, none is taken, and that is said.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            tell("training off the main thread: signals will not stop it with a checkpoint")
            return self
        for number in TAKEN:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self.received = self.received or name
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        leave_lost_outputs(hung_up=number == signal.SIGHUP)
        with contextlib.suppress(OSError):  # not print: a handler may run in the middle of one
            text = f"{name}: stopping after this step, or when it is compiled, and saving; Ctrl-C now stops at once"
            os.write(2, f"\nmtrl: {text}\n".encode())
