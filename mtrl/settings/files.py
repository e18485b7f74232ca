"""YAML files: the shipped ones by name, and what a file may hold.

A string is a string: none is imported, opened or read a second time as YAML.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mtrl.config import ConfigError, nearest
from mtrl.values import one_line, shown

# in a wheel the configs lie inside the package, in a checkout next to it
CONFIG_FOLDERS = tuple(above / "configs" for above in Path(__file__).parents[1:3])
MOST_BYTES, MOST_VALUES, MOST_DEPTH = 2**20, 10_000, 20  # of a config file
MOST_DIGITS = 40  # of a number
EXPERIMENTS, CLAIMS = "experiments", "claims"  # folders of configs' that hold none


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
    return find_file("config", name, config_names())


def find_file(kind: str, name: str, names: Mapping[str, Path]) -> Path:
    """A shipped file of a kind by name, or a YAML file by path.

    Raises:
        ConfigError: there is neither.
    """
    if name in names:
        return names[name]
    path = path_of(kind, name)
    if path.is_file():
        return path
    hint = nearest(name, names) or f"; there are {', '.join(n for n in names if '/' not in n)}"
    raise ConfigError(
        f"{kind}: {shown(name)} is neither a file nor a shipped {kind}{hint} (see `mtrl list {kind}s`)"
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
    """YAML's safe loader, with merges (<<) as YAML has them: own keys first, then those of earlier mappings.

    PyYAML 6.0.4 compares keys by their address, and gives other values where merges are merged.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        own: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        below: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                own[key.value if isinstance(key, yaml.ScalarNode) else id(key)] = key, value
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise yaml.YAMLError("a merge (<<) is of mappings")
                self.flatten_mapping(source)
                below = {**{name.value: (name, item) for name, item in source.value}, **below}
        node.value = list({**below, **own}.values())


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
        r"([-+]?(\.[0-9]+([eE][-+]?[0-9]+)?|[0-9][0-9_]*(\.[0-9]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+))|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


class Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something else than text."""


Dumper.yaml_implicit_resolvers = {
    first: [
        *Loader.yaml_implicit_resolvers.get(first, ()),
        *yaml.SafeLoader.yaml_implicit_resolvers.get(first, ()),
    ]
    for first in {**Loader.yaml_implicit_resolvers, **yaml.SafeLoader.yaml_implicit_resolvers}
}


def dump_yaml(settings: Any) -> str:
    """As :func:`load_yaml` reads it."""
    text: str = yaml.dump(settings, Dumper=Dumper, sort_keys=False)
    return text


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
    """How many values a YAML node becomes, without making them; a node within itself is too many.

    Raises:
        YAMLError: a key comes twice in a mapping.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = MOST_VALUES + 1
        pairs = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if pairs else node.value
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)] if pairs else []
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"the key {shown(twice)} comes twice")
        counted[id(node)] = 1 + sum(count_values(child, counted) for child in children)
    return counted[id(node)]
