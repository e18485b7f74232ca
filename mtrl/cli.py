"""``mtrl``: the command line.

Exit codes:

==  ===============================================================================
0   done
2   bad input, or no memory: one line says what, and nothing was changed
3   training diverged: the run is marked, the evidence saved
4   training was interrupted: the same command goes on
1   anything else: the machine failed (one line), or this code did (a traceback)
==  ===============================================================================
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

import mtrl
from mtrl.config import ConfigError, nearest
from mtrl.envs.process import plain_warnings
from mtrl.envs.protocol import SuiteError
from mtrl.errors import CheckpointError, OptimizerError, PolicyError
from mtrl.machine import keep_freed_memory
from mtrl.values import printable

FAILED, BAD_INPUT = 1, 2
COMMANDS = {
    "train": "train an agent: --config NAME and any setting by its dotted name",
    "sweep": "run an experiment: arms and seeds as a file",
    "evaluate": "evaluate a run's or a file's policy, per task",
    "video": "a policy's episodes on film, a tile per task",
    "compare": "statistics and curves over several runs",
    "claims": "which sentences the data support, contradict or leave open",
    "export": "runs as one table: what is committed and compared later",
    "card": "a folder to publish: policy, evaluation, model card",
    "list": "what there is: configs, experiments, suites, protocols, tasks, optimizers, networks",
    "bench": "time the parts of training on this machine",
    "doctor": "check this machine and installation",
}


@plain_warnings()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what an old terminal cannot show is replaced, not fatal
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except (ConfigError, SuiteError, OptimizerError, PolicyError, CheckpointError) as error:
        print(f"mtrl: {printable(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["MemoryError"])[0]
        if not isinstance(error, MemoryError) and "memory" not in reason:
            raise
        print(f"mtrl: no memory: {reason}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        leave_output()
        return FAILED
    except (
        OSError
    ) as error:  # outside of training, which marks its run: a place that may not be entered or is full
        where = f"{error.filename}: " if error.filename else ""
        print(printable(f"mtrl: {where}{error.strerror or error}"), file=sys.stderr)
        leave_output()
        return BAD_INPUT if error.filename else FAILED
    except KeyboardInterrupt:
        print("mtrl: interrupted", file=sys.stderr)
        return FAILED


def leave_output() -> None:
    """Have what is left in the buffer of standard output go nowhere: who reads it is gone, or the disk is full."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: mtrl COMMAND ...\n")
        for name, text in COMMANDS.items():
            print(f"  {name:10} {text}")
        print("\nmtrl COMMAND --help tells more; mtrl --version")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"mtrl {mtrl.__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        raise ConfigError(
            f"no command {command!r}{nearest(command, COMMANDS)}; there are {', '.join(COMMANDS)}"
        )
    module = importlib.import_module(f"mtrl.commands.{command}")
    code: int = module.main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
