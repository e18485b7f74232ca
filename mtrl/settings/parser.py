"""The command lines of all commands but ``mtrl train``, whose options are few."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from mtrl import registry
from mtrl.config import ConfigError
from mtrl.values import one_line, shown


class Parser(argparse.ArgumentParser):
    """argparse's parser for the other commands' few options, whose errors are :class:`ConfigError`."""

    def __init__(self, **named: Any) -> None:
        text = str(named.pop("description", "")).replace("``", "`")
        super().__init__(
            **named,
            description=text,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_checkpoint(self) -> None:
        """The option that chooses between a run's two policies."""
        self.add_argument(
            "--checkpoint", choices=["best", "last"], default="last",
            help="which policy of a run (last); best is the best in training",
        )  # fmt: skip

    def add_import(self) -> None:
        """The option by which a person lets a policy's file name classes and functions of a module."""
        self.add_argument(
            "--import", dest="modules", action="append", type=registry.trust, metavar="MODULE",
            help="allow files to name classes and functions of this module (network, tasks, optimizer): its code "
            "is run; may be given more than once",
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        text = re.sub(r"^argument (--)?", "", message)
        text = re.sub(r"^(\w+): expected .*argument", r"\1: a value is missing", text)
        text = re.sub(
            r"^(\w+): invalid int value: '(.*)'",
            lambda found: f"{found[1]}: {shown(found[2])} is not valid; it must be a whole number",
            text,
        )
        raise ConfigError(one_line(text))


def whole_number(key: str, text: str, low: int, high: int) -> int:
    """A whole number from the command line, for options that also take ``auto``.

    Raises:
        ConfigError: it is none, or out of range.
    """
    number = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else low - 1
    if not low <= number <= high:
        raise ConfigError(f"{key}: {shown(text)} is not valid; it must be from {low} to {high}, or auto")
    return number
