"""YAML files and command lines to settings, in one dialect; every error is one line that names the whole key.

A file and the command line become the same nested mapping of plain values. Only the merged mapping is converted,
field by field, to what the dataclasses of :mod:`mtrl.config` declare. A string is a string: none is imported, opened
or read a second time as YAML.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml

from mtrl import registry
from mtrl.config import ConfigError, TrainConfig, nearest
from mtrl.envs import Protocol, SuiteError, preset_fields

# in a wheel the configs lie inside the package, in a checkout beside it
CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
MOST_BYTES, MOST_VALUES, MOST_DEPTH = 2**20, 10_000, 20  # of a config file
MOST_DIGITS = 40  # of a number
LONGEST = 60  # of a value that an error shows
WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null",
}  # fmt: skip
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
EXPERIMENTS, CLAIMS = "experiments", "claims"  # folders of configs' that hold none
COMMAND_ONLY = ("config", "resume", "import", "allow_changes")  # what a file may not say


def shown(value: Any) -> str:
    """A value as an error shows it: in one line, not longer than :data:`LONGEST`, printable."""
    text = "null" if value is None else repr(value) if isinstance(value, (str, bool)) else str(value)
    text = text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def one_line(message: str) -> str:
    """A message of several lines as one."""
    return "; ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))


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

    def add_import(self) -> None:
        """The option by which a person lets a policy's file name classes and functions of a module."""
        self.add_argument(
            "--import", dest="modules", action="append", type=registry.trust, metavar="MODULE",
            help="a module of one's own that a file names (network, tasks, optimizer) and may be imported: its code "
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


# --- files ---------------------------------------------------------------------------------------------------


def config_names() -> dict[str, Path]:
    """The shipped configs: what ``--config`` takes, and the files."""
    others = (f"{EXPERIMENTS}/", f"{CLAIMS}/")
    return {name: path for name, path in shipped().items() if not name.startswith(others)}


def shipped() -> dict[str, Path]:
    """Every shipped YAML file by its path among the configs, without its ending."""
    folder = next(folder for folder in CONFIG_FOLDERS if folder.is_dir())
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))
    }


def find_config(name: str) -> Path:
    """A shipped config by name, or a YAML file by path."""
    names = config_names()
    if name in names:
        return names[name]
    path = path_of("config", name)
    if path.is_file():
        return path
    hint = nearest(name, names) or f"; there are {', '.join(n for n in names if '/' not in n)}"
    raise ConfigError(
        f"config: {shown(name)} is neither a file nor a shipped config{hint} (see `mtrl list configs`)"
    )


def path_of(key: str, text: str) -> Path:
    """A path as it was given, with ``~`` and ``$VARIABLES`` spelt out.

    Raises:
        ConfigError: it is no path that this system can have, or names a variable that is not set.
    """
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{key}: {shown(text)} is not valid; it must be a path")
    full = os.path.expanduser(os.path.expandvars(text))
    unset = [name for name in re.findall(r"\$\{?(\w+)", text) if name not in os.environ]
    if unset:
        raise ConfigError(f"{key}: {shown(text)} names the variable {unset[0]}, which is not set")
    parts = [os.fsencode(part) for part in full.split(os.sep)]
    if "\0" in full or not _decodes(full) or max(map(len, parts)) > 255 or sum(map(len, parts)) > 4000:
        raise ConfigError(f"{key}: {shown(text)} is not valid; it must be a path that this system can have")
    if full.startswith("~"):
        raise ConfigError(f"{key}: {shown(text)} names a user that there is not")
    return Path(full)


def _decodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Loader(yaml.SafeLoader):
    """YAML's safe loader, for which a key that comes twice in a mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1 and key != "<<"), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {shown(twice)} comes twice")
        return super().construct_mapping(node, deep)


# YAML 1.2's numbers: 3e2 is one, 1:30 is none
Loader.yaml_implicit_resolvers = {
    first: [
        (tag, form) for tag, form in forms if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    ]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"([-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+))|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def load_yaml(text: str, what: str, dotted: bool = False) -> Any:
    """A text's content as plain values; keys with dots only where they are said to be ``dotted``.

    Raises:
        ConfigError: it is no YAML, or larger or deeper than a config ever is, its references followed.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=Loader):  # one by one: nothing nested has been made yet
            if getattr(event, "tag", None):
                raise ConfigError(f"{what} has a tag (!…); settings are plain values")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH + 1:
                raise ConfigError(f"{what} is nested deeper than {MOST_DEPTH} levels")
        if count_values(yaml.compose(text, Loader=Loader), {}) > MOST_VALUES:
            raise ConfigError(f"{what} has more than {MOST_VALUES} values, its references followed")
        content = yaml.load(text, Loader=Loader)
    except ConfigError:
        raise
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{what} cannot be read as YAML ({shown(one_line(str(error)))})") from None
    require_plain(content, what, 0, dotted)
    return content


def read_settings(path: Path, kind: str = "config", dotted: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file, which errors call a ``kind``; keys with dots only if ``dotted``.

    Raises:
        ConfigError: it cannot be read, is no mapping of names, or is larger than a config ever is.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{kind}: {path} is no regular file")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ConfigError(f"{kind}: {path} has {size} bytes; a {kind} has at most {MOST_BYTES}")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"{kind}: {path} cannot be read as YAML ({reason})") from None
    content = load_yaml(text, f"{kind}: {path}", dotted)
    if not isinstance(content, dict):
        raise ConfigError(f"{kind}: {path} holds no settings (a mapping of names to values)")
    return content


def require_plain(value: Any, what: str, depth: int, dotted: bool = False) -> None:
    """Raise unless all keys are names and all numbers are of a length that a person writes."""
    if depth > MOST_DEPTH:
        raise ConfigError(f"{what} is nested deeper than {MOST_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or ("." in key and not dotted):
                raise ConfigError(
                    f"{what} has the key {shown(key)}, which is no name (sections are mappings)"
                )
            require_plain(item, what, depth + 1, dotted)
    elif isinstance(value, list):
        for item in value:
            require_plain(item, what, depth + 1, dotted)
    elif isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        raise ConfigError(f"{what} has a number of more than {MOST_DIGITS} digits")


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


def load_config(path: Path) -> dict[str, Any]:
    """A config's settings above those of its ``base``, with ``protocol.preset`` spelt out: self-contained.

    Raises:
        ConfigError: naming a key or a base that there is not, or configs that are each other's base.
        SuiteError: there is no such preset.
    """
    settings = with_base(path, ())
    protocol = settings.get("protocol")
    if isinstance(protocol, dict) and "preset" in protocol:
        fields = {key: value for key, value in protocol.items() if key != "preset"}
        settings["protocol"] = {**preset_fields(protocol["preset"]), **fields}
    return settings


def with_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A config's settings above those of its ``base`` (a shipped config, or a file beside it).

    A base's ``label`` and ``run_dir`` are its own runs'; naming another optimizer drops the base's options.
    """
    if path in above:
        chain = " -> ".join(str(p) for p in (*above[above.index(path) :], path))
        raise ConfigError(f"base: configs that are each other's base ({chain})")
    own = read_settings(path)
    check_keys(own, ("base", "protocol.preset"))
    name = own.pop("base", None)
    if name is None:
        return own
    if not isinstance(name, str):
        raise ConfigError(f"base: {shown(name)} in {path} is not the name of a config")
    beside = path.parent / name
    base = with_base(beside if beside.is_file() else find_config(name), (*above, path))
    for key in ("label", "run_dir"):
        base.pop(key, None)
    return laid_over(base, own)


def flat_items(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the leaves of nested mappings."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """:func:`merged`; where the upper one names another class, the lower one's options go."""
    named, before = dict(flat_items(above)), dict(flat_items(below))
    for section in WITH_OPTIONS:
        name = named.get(f"{section}.name")
        if name is not None and name != before.get(f"{section}.name"):
            inner: Any = below
            for part in section.split("."):
                inner = inner.get(part) if isinstance(inner, dict) else None
            if isinstance(inner, dict):
                inner.pop("options", None)
    return merged(below, above)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, one laid over the other."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


# --- from plain values to dataclasses ------------------------------------------------------------------------


def fields_of(cls: type) -> dict[str, Any]:
    """Names and types of a dataclass's fields."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


SECTIONS: dict[str, Any] = {**fields_of(TrainConfig), "protocol": Protocol}
WITH_OPTIONS = (
    "optimizer",
    "agent.network",
    "agent.actor.network",
    "agent.critic.network",
)  # of the class named


def _class(hint: Any) -> type:
    assert isinstance(hint, type)
    return hint


def known_names(fields: Mapping[str, Any] = SECTIONS, prefix: str = "") -> Iterator[str]:
    """Every setting by its dotted name, sections included."""
    for name, hint in fields.items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from known_names(fields_of(_class(hint)), f"{prefix}{name}.")


def check_keys(content: Mapping[str, Any], more: Sequence[str] = ()) -> None:
    """Raise when a key is no setting, with the nearest one."""
    known = [*known_names(), *more]
    sections = {name.rpartition(".")[0] for name in known}
    for key, _ in flat_items(content):
        if key in known or any(key.startswith(f"{name}.options.") for name in WITH_OPTIONS):
            continue
        if key in COMMAND_ONLY:
            raise ConfigError(f"{key}: a file cannot say it; give --{key} on the command line")
        section = key.rpartition(".")[0]
        if any(name in known and name not in sections for name in parents(section)):
            continue  # a leaf that was given a mapping: the conversion tells
        near = max(known, key=partial(likeness, key))
        hint = f", did you mean {near!r}?" if likeness(key, near)[0] > 0.6 else ""
        raise ConfigError(f"no setting {shown(key)}{hint} (`mtrl train --print_config` shows all)")


def likeness(key: str, name: str) -> tuple[float, float]:
    """How near a dotted name comes to a misspelt key: by its last part, then by its section."""
    (section, _, own), (other, _, leaf) = key.rpartition("."), name.rpartition(".")
    words = leaf.split("_")
    alike = SequenceMatcher(None, own.lower().replace("-", "_"), leaf).ratio()
    if own == "".join(word[0] for word in words):  # lr
        alike = 1.0
    elif own in words:  # steps
        alike = max(alike, 0.7)
    return alike, SequenceMatcher(None, section, other).ratio()


def parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def convert(hint: Any, value: Any, key: str) -> Any:
    """A plain value as the type that a field declares.

    Raises:
        ConfigError: it is none; the whole key, the value, and what would be valid.
    """
    if dataclasses.is_dataclass(hint):
        known = fields_of(_class(hint))
        if not isinstance(value, Mapping):
            named = f", did you mean {key}.name?" if "name" in known and isinstance(value, str) else ""
            raise ConfigError(
                f"{key}: {shown(value)} is not valid; it must be a mapping of names to values{named}"
            )
        for name in value:
            if name not in known:
                raise ConfigError(f"no setting {shown(f'{key}.{name}')}{nearest(str(name), known)}")
        inner = {name: convert(known[name], item, f"{key}.{name}") for name, item in value.items()}
        return build(_class(hint), inner, key)
    found = _fitting(hint, value)
    if not found:
        raise ConfigError(f"{key}: {shown(value)} is not valid; it must be {words(hint)}")
    return found[0]


def build(cls: Callable[..., Any], values: Mapping[str, Any], key: str) -> Any:
    """``cls(**values)``, whose complaint gets the keys above it."""
    try:
        return cls(**values)
    except (ConfigError, SuiteError) as error:
        raise ConfigError(f"{key}.{error}" if key else str(error)) from None


def _fitting(hint: Any, value: Any) -> list[Any]:
    """The value as this type, in a list; empty where it is none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return [v for v in arguments if v == value and type(v) is type(value)]
    if origin in (Union, types.UnionType):
        return next((found for member in arguments if (found := _fitting(member, value))), [])
    if origin in (tuple, list):
        items = [_fitting(arguments[0], item) for item in value] if isinstance(value, (list, tuple)) else [[]]
        return [origin(item[0] for item in items)] if all(items) else []
    if origin is dict:
        return [dict(value)] if isinstance(value, Mapping) else []
    if hint in (int, float) and isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)  # YAML reads 3e2 as text
    if isinstance(value, bool) or hint is bool:
        return [value] if hint is bool and isinstance(value, bool) else []
    if hint is float and isinstance(value, (int, float)):
        return [float(value)]
    if hint is int and isinstance(value, float) and value.is_integer():
        return [int(value)]
    return [value] if isinstance(value, hint) else []


def words(hint: Any) -> str:
    """What a type's values are, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(member) for member in arguments))
    if origin in (tuple, list):
        return f"a list of {words(arguments[0]).removeprefix('a ')}s"
    if origin is dict:
        return "a mapping of names to values"
    return WORDS[hint]


# --- the command line ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What a ``mtrl train`` command line asks for.

    Attributes:
        text: the resolved config as YAML, which asks for the same run again.
        command: the command line that it came from.
        resume: the run to go on with, if ``--resume`` named one.
        allow_changes: whether an unfinished run may go on with other settings.
        print_config: whether to print the text instead.
    """

    config: TrainConfig
    protocol: Protocol
    text: str
    command: str
    resume: Path | None = None
    allow_changes: bool = False
    print_config: bool = False


def parse_train(arguments: Sequence[str]) -> Request:
    """The run that a command line asks for: its configs in their order, a preset above them, then each setting.

    Raises:
        ConfigError, SuiteError: naming the key, its value and what would be valid.
    """
    files: dict[str, Any] = {}
    own: dict[str, Any] = {}
    preset: Mapping[str, Any] = {}
    labelled: dict[str, Any] = {}  # the config that gives the label
    resume: Path | None = None
    flags = {"allow_changes": False, "print_config": False}
    remaining = iter(arguments)
    for argument in remaining:
        key, equals, value = argument[2:].partition("=")
        if not argument.startswith("--") or not key:
            raise ConfigError(
                f"unrecognized arguments: {shown(argument)}; settings are given as --name value"
            )
        if key in flags:
            if equals:
                raise ConfigError(f"{key}: it takes no value")
            flags[key] = True
            continue
        if not equals:
            given = next(remaining, None)
            if given is None:
                check_keys(nested(key, None), (*COMMAND_ONLY, "protocol.preset"))
                if key == "protocol.preset":
                    preset_fields("")
                _missing(key)
            value = given
        if key == "config":
            content = load_config(find_config(value)) if value else _missing(key)
            files = laid_over(files, content)
            labelled = content if "label" in content else labelled
        elif key == "import":
            registry.trust(value)
        elif key == "resume":
            resume = path_of("resume", value) if value else _missing(key)
            if not (resume / "config.yaml").is_file():
                raise ConfigError(f"resume: {shown(value)} is no run's folder (it has no config.yaml)")
            files = merged(files, load_config(resume / "config.yaml"))
            own = merged(own, {"run_dir": str(resume)})
            labelled = {}
        elif key == "protocol.preset":
            preset = preset_fields(value)
        else:
            check_keys(nested(key, None))
            own = merged(own, nested(key, value_of(key, value)))
            if key.removesuffix(".name") in WITH_OPTIONS or key == "protocol.suite":
                registry.trust(value.partition(":")[0])  # who types a module's name knows its code
    settings = laid_over(merged(files, {"protocol": dict(preset)} if preset else {}), own)
    check_keys(settings)
    if "label" not in own and isinstance(labelled.get("label"), str):
        settings["label"] = label_of(labelled, settings)
    suite = dict(flat_items(settings)).get("protocol.suite")
    if isinstance(suite, str) and ":" in suite:
        try:
            registry.require_trusted(suite)
        except ValueError as error:
            raise ConfigError(f"protocol.suite: {error}") from None
    values = {
        name: convert(hint, settings[name], name) for name, hint in SECTIONS.items() if name in settings
    }
    protocol = values.pop("protocol", Protocol())
    if values.get("run_dir") is not None:
        values["run_dir"] = str(path_of("run_dir", values["run_dir"]))
    config = build(TrainConfig, values, "")
    text = yaml.safe_dump(
        plain({**dataclasses.asdict(config), "protocol": protocol.to_dict()}), sort_keys=False
    )
    command = shlex.join(["mtrl", "train", *arguments])
    return Request(config, protocol, text, command, resume, **flags)


def label_of(labelled: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """A config's label, and what the settings name instead of its optimizer and networks: ``mt10_fast-pcgrad``."""
    (method, *networks), (other, *others) = kinds(labelled), kinds(settings)
    words = [other] if other != method else []
    if networks != others:
        words += network_words(*others) or ["mlp"]
    label: str = labelled["label"]
    return f"{label}-{label_from(words)}" if words else label


def kinds(settings: Mapping[str, Any]) -> list[str]:
    """Names of the optimizer, the actor's network and the critics'."""
    flat, default = dict(flat_items(settings)), TrainConfig()
    network = flat.get("agent.network.name", default.agent.network.name)
    found = [flat.get(f"agent.{part}.network.name") or network for part in ("actor", "critic")]
    return [str(name) for name in (flat.get("optimizer.name", default.optimizer.name), *found)]


def network_words(actor: str, critic: str) -> list[str]:
    """What a label says of the networks: nothing of mlp."""
    words = [actor] if actor == critic else [f"actor_{actor}", f"critic_{critic}"]
    return [word for word in words if word not in ("mlp", "actor_mlp", "critic_mlp")]


def label_from(words: Sequence[str]) -> str:
    return "-".join(words).replace(":", ".")


def _missing(key: str) -> NoReturn:
    raise ConfigError(f"{key}: a value is missing")


def nested(key: str, value: Any) -> dict[str, Any]:
    """``a.b.c`` and a value as nested mappings."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def value_of(key: str, text: str) -> Any:
    """What a command line gives for a setting: text where the setting is text, else YAML."""
    hint: Any = None
    fields: Mapping[str, Any] = SECTIONS
    for part in key.split("."):
        hint = fields.get(part)
        fields = fields_of(_class(hint)) if dataclasses.is_dataclass(hint) else {}
    if hint is str or (str in get_args(hint) and text != "null"):
        return text
    if len(text) > MOST_BYTES:
        raise ConfigError(
            f"{key}: a value of {len(text)} characters; a config has at most {MOST_BYTES} bytes"
        )
    if "&" in text or "*" in text:
        raise ConfigError(f"{key}: {shown(text)} is not valid; a value has no references")
    value = load_yaml(text, key)
    return float(text) if text.lower() in ("nan", "inf", "-inf") else value


def plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def settle(request: Request, run: Path, device: Literal["cpu", "cuda"]) -> Request:
    """The request with ``auto`` spelt out where it changes numbers: as a run in this folder has it, else as
    this machine has it. So a resume computes as before, on whatever machine, or says that this one cannot.
    """
    import torch

    from mtrl.machine import choose_kernels, choose_precision, choose_threads, mkl_is_fast

    config, agent = request.config, request.config.agent
    started: dict[str, Any] = dict(flat_items(read_settings(run))) if run.is_file() else {}

    def settled(key: str, value: Any, choice: Callable[[Any], Any]) -> Any:
        recorded = started.get(key, "auto")
        return choice(value) if value != "auto" or recorded == "auto" else recorded

    place = torch.device(device)
    threads = settled("threads", config.threads, choose_threads)
    precision = settled("agent.precision", agent.precision, partial(choose_precision, device=place))
    # uniform sampling has other shapes at every update; a network of one's own may keep numbers in Python, which a
    # graph would not follow; products that inductor calls are MKL's
    own = any(":" in str(agent.architecture(part).name) for part in (agent.actor, agent.critic))
    compilable = not own and config.replay.sampling == "balanced" and (precision == "bf16" or mkl_is_fast())
    steps = max(config.total_steps_per_task - config.warmup_steps, 0)
    updates = config.warmup_updates + config.updates_per_step * steps if compilable else 0
    kernels = settled("agent.kernels", agent.kernels, partial(choose_kernels, device=place, updates=updates))
    agent = replace(agent, precision=precision, kernels=kernels)
    config = replace(config, threads=threads, device=device, agent=agent)
    text = plain({**dataclasses.asdict(config), "protocol": request.protocol.to_dict()})
    return replace(request, config=config, text=yaml.safe_dump(text, sort_keys=False))


def changed_settings(before: Path, now: str) -> list[str]:
    """``key: old -> new`` for every setting that differs between a run's resolved config and another;
    where a run lies is no setting of it, and one that came later is no change at its default.
    """
    old, new = dict(flat_items(read_settings(before))), dict(flat_items(yaml.safe_load(now)))
    default = dict(flat_items(yaml.safe_load(parse_train([]).text)))

    def same(key: str) -> bool:
        if key in old or key not in default:
            return bool(old.get(key) == new.get(key))
        return bool(new.get(key) == default[key])

    keys = [key for key in {**old, **new} if key != "run_dir" and not same(key)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]


def explained(default: Any = TrainConfig(), prefix: str = "") -> Iterator[tuple[str, str, str]]:  # noqa: B008
    """Every setting's dotted name, default, and what its class's docstring says of it."""
    texts = described(type(default))
    for name, hint in fields_of(type(default)).items():
        value = getattr(default, name)
        if dataclasses.is_dataclass(hint):
            yield from explained(value, f"{prefix}{name}.")
        else:
            yield prefix + name, shown(plain(value)).strip("'"), texts.get(name, "")


def described(cls: type) -> dict[str, str]:
    """What the ``Args`` of a class and of those it extends say of each, on one line."""
    found: dict[str, str] = {}
    for kind in reversed(cls.__mro__):
        _, _, text = (kind.__doc__ or "").partition("Args:\n")
        for names, body in re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {12}.*)*)", text, flags=re.MULTILINE):
            for name in names.split(", "):
                found[name] = " ".join(body.split())
    return found
