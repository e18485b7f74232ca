"""Command lines and YAML files to dataclasses; every error one line that names the key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentParser

from mtrl.config import ConfigError, TrainConfig, nearest
from mtrl.envs import Protocol, preset_fields
from mtrl.machine import choose_kernels, choose_precision, choose_threads

# in a wheel the configs lie inside the package, in a checkout beside it
CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
MOST_BYTES, MOST_VALUES = 2**20, 10_000  # of a config file
WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "tuple": "a list",
    "dict": "a mapping of names to values", "NoneType": "null",
}  # fmt: skip
FREE = "optimizer.options."  # keys below it belong to the optimizer's class, which checks them


class Parser(ArgumentParser):  # type: ignore[misc]
    """jsonargparse's parser, without the page of usage before an error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(explain(str(ex or message)))


def explain(message: str) -> str:
    """jsonargparse's several lines as one: the key, its value, what would be valid."""
    text = re.sub(
        r"<class '(\w+)'>", r"\1", one_line(message).replace('Parser key "', '"').replace(":;", ":")
    )
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    wrong = re.search(r'"([\w.]+)": (?:Expected|Does not).*?(?:Got|Given) value: ([^;]*)', text)
    expected = re.findall(r"Expected an? (one of [^;]*?'(?=[.;])|\w+)", text)
    if wrong and expected:
        valid = " or ".join(dict.fromkeys(WORDS.get(word, word) for word in expected))
        return f"{wrong[1]}: {wrong[2]} is not valid; it must be {valid}"
    if unloaded := re.search(r'"([\w.]+)": Unable to load config (.*?);', text):
        return f"{unloaded[1]}: {unloaded[2]} is not valid; it must be a mapping of names to values"
    return re.sub(r"^argument --([\w.]+): expected one argument", r"\1: a value is missing", text)


def one_line(message: str) -> str:
    """A message of several lines as one."""
    return "; ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))


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


@dataclass(frozen=True)
class Request:
    """What a ``mtrl train`` command line asks for.

    Attributes:
        text: the resolved config as YAML, which asks for the same run again.
        resume: the run to go on with, if ``--resume`` named one.
        allow_changes: whether an unfinished run may go on with other settings.
    """

    config: TrainConfig
    protocol: Protocol
    text: str
    resume: Path | None = None
    allow_changes: bool = False


def train_parser() -> Parser:
    parser = Parser(prog="mtrl train", description="Train an agent.")
    parser.add_argument("--config", action="config", help="a shipped config by name, or a YAML file")
    parser.add_argument("--resume", type=str, help="go on with the unfinished run in this folder")
    parser.add_argument("--allow_changes", action="store_true", help="go on although settings changed")
    parser.add_class_arguments(TrainConfig)
    parser.add_argument("--protocol", type=Protocol, default=Protocol())
    return parser


def parse_train(arguments: Sequence[str]) -> Request:
    """The run that a command line asks for.

    Raises:
        ConfigError, SuiteError: naming the key, its value and what would be valid.
    """
    parser = train_parser()
    known = [action.dest for action in parser._actions]
    resolved: list[str] = []
    preset: Mapping[str, Any] = {}
    remaining = iter(arguments)
    for argument in remaining:
        option, equals, value = argument[2:].partition("=")
        if option in ("config", "resume") and argument.startswith("--"):
            value = value if equals else next(remaining, "")
            if not value:
                raise ConfigError(f"{option}: a value is missing")
        if not argument.startswith("--"):
            resolved.append(argument)
        elif option == "config":
            resolved.append(f"--config={json.dumps(load_config(find_config(value), known), default=str)}")
        elif option == "protocol.preset":
            preset = preset_fields(value if equals else next(remaining, ""))
        elif option == "resume":
            run = Path(value)
            if not (run / "config.yaml").is_file():
                raise ConfigError(f"resume: {str(run)!r} is no run's folder (it has no config.yaml)")
            check_file(run / "config.yaml", known)
            resolved += [f"--config={run / 'config.yaml'}", f"--run_dir={run}", f"--resume={run}"]
        else:
            check_key(option, known)
            resolved.append(argument)
    # above what config files say, below what the command line says itself
    last = max((i for i, text in enumerate(resolved, start=1) if text.startswith("--config=")), default=0)
    resolved[last:last] = [f"--protocol.{key}={value}" for key, value in preset.items()]
    values = parser.parse_args(resolved)
    made = vars(parser.instantiate(values))
    resume, allow_changes = made.pop("resume"), made.pop("allow_changes")
    protocol = made.pop("protocol")
    made.pop("config")
    for key in ("config", "resume", "allow_changes"):
        values.pop(key, None)
    text = parser.dump(values, skip_none=False, skip_validation=True)
    return Request(TrainConfig(**made), protocol, text, Path(resume) if resume else None, allow_changes)


def settle(request: Request, run: Path, device: torch.device) -> Request:
    """The request with ``auto`` spelt out where it changes numbers: as a run in this folder has it, else as
    this machine has it. So a resume computes as before, on whatever machine.
    """
    config, agent = request.config, request.config.agent
    started: dict[str, Any] = dict(flat_items(read_settings(run))) if run.is_file() else {}

    def settled(key: str, value: Any, choice: Callable[[Any], Any]) -> Any:
        before = started.get(key, "auto")
        return choice(before if value == "auto" else value)

    threads = settled("threads", config.threads, choose_threads)
    precision = settled("agent.precision", agent.precision, partial(choose_precision, device=device))
    kernels = settled("agent.kernels", agent.kernels, partial(choose_kernels, device=device))
    text = yaml.safe_load(request.text)
    text["threads"] = threads
    text["agent"] |= {"precision": precision, "kernels": kernels}
    return replace(
        request,
        config=replace(config, threads=threads, agent=replace(agent, precision=precision, kernels=kernels)),
        text=yaml.safe_dump(text, sort_keys=False),
    )


def changed_settings(before: Path, now: str) -> list[str]:
    """``key: old -> new`` for every setting that differs between a run's resolved config and another;
    where a run lies is no setting of it.
    """
    old, new = dict(flat_items(read_settings(before))), dict(flat_items(yaml.safe_load(now)))
    keys = [key for key in {**old, **new} if key != "run_dir" and old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]


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
    for key, _ in flat_items(read_settings(path)):
        check_key(key, known)


def read_settings(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: it cannot be read, is no mapping, or is larger than a config ever is, also once
            its references are followed.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ConfigError(f"config: {path} has {size} bytes; a config has at most {MOST_BYTES}")
        text = path.read_text()
        if count_values(yaml.compose(text, Loader=yaml.SafeLoader), {}) > MOST_VALUES:
            raise ConfigError(f"config: {path} has more than {MOST_VALUES} values, its references followed")
        content = yaml.safe_load(text)
    except ConfigError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"config: {path} cannot be read as YAML ({one_line(str(error))})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"config: {path} holds no settings (a mapping of names to values)")
    return content


def count_values(node: yaml.Node | None, counted: dict[int, int]) -> int:
    """How many values a YAML node becomes, without making them; a node within itself is too many."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = MOST_VALUES + 1
        pairs = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if pairs else node.value
        counted[id(node)] = 1 + sum(count_values(child, counted) for child in children)
    return counted[id(node)]


def flat_items(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the leaves of nested mappings."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def load_config(path: Path, known: list[str]) -> dict[str, Any]:
    """A config's settings above those of its ``base``, with ``protocol.preset`` spelt out: self-contained.

    Raises:
        ConfigError: naming a key or a base that there is not, or configs that are each other's base.
        SuiteError: there is no such preset.
    """
    settings = with_base(path, [*known, "base", "protocol.preset"], ())
    protocol = settings.get("protocol")
    if isinstance(protocol, dict) and "preset" in protocol:
        fields = {key: value for key, value in protocol.items() if key != "preset"}
        settings["protocol"] = {**preset_fields(protocol["preset"]), **fields}
    return settings


def with_base(path: Path, known: list[str], above: tuple[Path, ...]) -> dict[str, Any]:
    """A config's settings above those of its ``base`` (a shipped config, or a file beside it).

    A base's ``label`` and ``run_dir`` are its own runs'; naming another optimizer drops the base's options.
    """
    if path in above:
        chain = " -> ".join(str(p) for p in (*above[above.index(path) :], path))
        raise ConfigError(f"base: configs that are each other's base ({chain})")
    check_file(path, known)
    own: dict[str, Any] = read_settings(path)
    name = own.pop("base", None)
    if name is None:
        return own
    if not isinstance(name, str):
        raise ConfigError(f"base: {name!r} in {path} is not the name of a config")
    beside = path.parent / name
    base = with_base(beside if beside.is_file() else find_config(name), known, (*above, path))
    for key in ("label", "run_dir"):
        base.pop(key, None)
    if dict(flat_items(own)).get("optimizer.name", "") not in (
        "",
        dict(flat_items(base)).get("optimizer.name"),
    ):
        base["optimizer"] = {}
    return merged(base, own)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings, one laid over the other."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both
