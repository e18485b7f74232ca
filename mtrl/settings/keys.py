"""The settings that there are, by their dotted names, and values as :mod:`mtrl.config` declares them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import partial
from typing import Any, get_args, get_origin

from mtrl.config import ConfigError, TrainConfig
from mtrl.envs import Protocol, SuiteError
from mtrl.settings.files import MOST_BYTES, load_yaml
from mtrl.values import fields_of, fitting, flat_items, plain, shown, words

COMMAND_ONLY = ("config", "resume", "import", "allow_changes")  # what a file may not say
SECTIONS: dict[str, Any] = {**fields_of(TrainConfig), "protocol": Protocol}
WITH_OPTIONS = (
    "optimizer",
    "agent.network",
    "agent.actor.network",
    "agent.critic.network",
)  # of the class named


def known_names(fields: Mapping[str, Any] = SECTIONS, prefix: str = "") -> Iterator[str]:
    """Every setting by its dotted name, sections included."""
    for name, hint in fields.items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from known_names(fields_of(hint), f"{prefix}{name}.")


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
    parts = leaf.split("_")
    alike = SequenceMatcher(None, own.lower().replace("-", "_"), leaf).ratio()
    if own == "".join(part[0] for part in parts):  # lr
        alike = 1.0
    elif own in parts:  # steps
        alike = max(alike, 0.7)
    return alike, SequenceMatcher(None, section, other).ratio()


def parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def convert(hint: Any, value: Any, key: str) -> Any:
    """A plain value, whose keys :func:`check_keys` has seen, as the type that a field declares.

    Raises:
        ConfigError: it is none; the whole key, the value, and what would be valid.
    """
    if dataclasses.is_dataclass(hint):
        known = fields_of(hint)
        if not isinstance(value, Mapping):
            named = f", did you mean {key}.name?" if "name" in known and isinstance(value, str) else ""
            raise ConfigError(
                f"{key}: {shown(value)} is not valid; it must be a mapping of names to values{named}"
            )
        inner = {name: convert(known[name], item, f"{key}.{name}") for name, item in value.items()}
        return build(hint, inner, key)
    found = fitting(hint, value)
    if not found:
        raise ConfigError(f"{key}: {shown(value)} is not valid; it must be {words(hint)}")
    return found[0]


def build(cls: Any, values: Mapping[str, Any], key: str) -> Any:
    """``cls(**values)``, whose complaint gets the keys above it."""
    try:
        return cls(**values)
    except (ConfigError, SuiteError) as error:
        raise ConfigError(f"{key}.{error}" if key else str(error)) from None


def value_of(key: str, text: str) -> Any:
    """What a command line gives for a setting: text where the setting is text, else YAML."""
    hint: Any = None
    fields: Mapping[str, Any] = SECTIONS
    for part in key.split("."):
        hint = fields.get(part)
        fields = fields_of(hint) if dataclasses.is_dataclass(hint) else {}
    if hint is str or (get_origin(hint) is not dict and str in get_args(hint) and text != "null"):
        return text
    if not text.strip():
        raise ConfigError(f"{key}: '' is not valid; give a value, or null")
    if len(text) > MOST_BYTES:
        raise ConfigError(
            f"{key}: a value of {len(text)} characters; a config has at most {MOST_BYTES} bytes"
        )
    if "&" in text or "*" in text:
        raise ConfigError(f"{key}: {shown(text)} is not valid; a value has no references")
    value = load_yaml(text, key)
    return float(text) if text.lower() in ("nan", "inf", "-inf") else value


def as_text(key: str, value: Any) -> str:
    """A setting's value as a command line gives it: :func:`value_of` the other way round.

    Raises:
        ConfigError: no text there means the same.
    """
    texts = [os.fspath(value)] if isinstance(value, str | os.PathLike) else []
    with contextlib.suppress(AttributeError, TypeError, ValueError):  # a date, say
        texts.append(json.dumps(value, ensure_ascii=False, default=as_plain))
    for text in texts:
        if key == "protocol.preset" or value_of(key, text) == json.loads(texts[-1]):
            return text
    raise ConfigError(f"{key}: {shown(value)} is not valid; no command line can say it")


def as_plain(value: Any) -> Any:
    """What JSON has no word for: paths, and numpy's numbers and arrays."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value.tolist()


def explained(default: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
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
