"""Python processes that import from where this one does, and never from the current folder."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator


def command(code: str) -> list[str]:
    """What starts a Python that runs `code`, with `environment()`.

    `python -c` puts the current folder first on its path, and so does an empty entry of PYTHONPATH: a folder's
    own `json.py` would be imported. Hence the path is set before anything is imported that is not built in.
    """
    entries = [entry for entry in sys.path if isinstance(entry, str)]
    # What is no folder or file stands for an importer of its own.
    path = [os.path.abspath(entry) if os.path.exists(entry or ".") else entry for entry in entries]
    variable = os.environ.get("PYTHONPATH")
    back = "" if variable is None else f"import os; os.environ['PYTHONPATH'] = {variable!r}; "
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}; {back}{code}"]


def environment() -> dict[str, str]:
    """The environment of this process without PYTHONPATH, which `command` sets once Python has started."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """For imports of the simulator, whose glfw runs a `python -c` of its own (Python 3.11 and later heed this)."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings are a line each, without a file, a number and a line of source; also as a decorator."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"mtrl: warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
