"""Command lines and YAML files to dataclasses; every error one line that names the key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from envs import Protocol
from mtrl.config import ConfigError, TrainConfig, nearest

# in a wheel the configs lie inside the package, in a checkout beside it
CONFIG_FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
FREE = "optimizer.options."  # keys below it belong to the optimizer's class, which checks them


class Parser(ArgumentParser):
    """jsonargparse's parser, without the page of usage before an error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(one_line(str(ex or message)))


def one_line(message: str) -> str:
    """jsonargparse's several lines as one: key, what it expected, what it got."""
    lines = [line.strip(" -") for line in message.replace('Parser key "', '"').splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Given value type", "Errors", "Subtypes"))]
    text = re.sub(r"<class '(\w+)'>", r"\1", "; ".join(lines))
    return re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text.replace(":; ", ": "))


def config_names() -> dict[str, Path]:
    """The shipped configs: what ``--config`` takes, and the files."""
    folder = next(folder for folder in CONFIG_FOLDERS if folder.is_dir())
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))
    }


def find_config(name: str) -> Path:
    """A shipped config by name, or a YAML file by path."""
    names = config_names()
    if name in names:
        return names[name]
    path = Path(name)
    if path.is_file():
        return path
    raise ConfigError(
        f"config: {name!r} is neither a file nor a shipped config{nearest(name, names)}; "
        f"there are {', '.join(n for n in names if '/' not in n)} (see `mtrl list configs`)"
    )


def train_parser() -> Parser:
    parser = Parser(prog="mtrl train", description="Train an agent.")
    parser.add_argument("--config", action="config", help="a shipped config by name, or a YAML file")
    parser.add_class_arguments(TrainConfig)
    parser.add_argument("--protocol", type=Protocol, default=Protocol())
    return parser


def parse_train(arguments: list[str]) -> tuple[TrainConfig, Protocol, str]:
    """The run that a command line asks for, and the resolved config as YAML that asks for it again.

    Raises:
        ConfigError, SuiteError: naming the key, its value and what would be valid.
    """
    parser = train_parser()
    known = [action.dest for action in parser._actions]
    resolved = []
    arguments = iter(arguments)  # type: ignore[assignment]
    for argument in arguments:
        if not argument.startswith("--"):
            resolved.append(argument)
            continue
        option, equals, value = argument[2:].partition("=")
        if option == "config":
            path = find_config(value if equals else next(iter(arguments), ""))
            check_file(path, known)
            resolved.append(f"--config={path}")
            continue
        check_key(option, known)
        resolved.append(argument)
    values = parser.parse_args(resolved)
    made = parser.instantiate(values)
    fields = {key: value for key, value in vars(made).items() if key not in ("config", "protocol")}
    values.pop("config", None)
    text = parser.dump(values, skip_none=False)
    return TrainConfig(**fields), made.protocol, text


def check_key(key: str, known: list[str]) -> None:
    """Raise when there is no such setting, with the nearest one."""
    if key in known or key.startswith(FREE) or key in ("help", "print_config", "optimizer.options"):
        return
    if any(name.startswith(key + ".") for name in known):
        return
    leaf = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    hint = f", did you mean {leaf[0]!r}?" if leaf else nearest(key, known)
    raise ConfigError(f"no setting {key!r}{hint} (`mtrl train --print_config` shows all)")


def check_file(path: Path, known: list[str]) -> None:
    """Raise unless the file is YAML whose keys are all settings."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config: {path} cannot be read as YAML ({one_line(str(error))})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"config: {path} holds no settings (a mapping of names to values)")
    for key in flat_keys(content):
        check_key(key, known)


def flat_keys(content: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the leaves of nested mappings."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
