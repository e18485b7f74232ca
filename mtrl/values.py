"""Plain values, as YAML has them: nests of mappings, what an error shows of them, and how they fit a declared type."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MOST = 10**300  # of a whole number that is taken for a fraction
LONGEST = 60  # of a value that an error shows
WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null",
}  # fmt: skip


def shown(value: Any) -> str:
    """A value as an error shows it: in one line, not longer than :data:`LONGEST`, printable."""
    text = "null" if value is None else repr(value) if isinstance(value, (str, bool)) else str(value)
    text = text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def printable(text: str) -> str:
    """A text that a terminal shows as it is: what moves the cursor is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(message: str) -> str:
    """A message of several lines as one."""
    return "; ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))


def flat_items(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the leaves of nested mappings."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, one laid over the other."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def nested(key: str, value: Any) -> dict[str, Any]:
    """``a.b.c`` and a value as nested mappings."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def fields_of(cls: Any) -> dict[str, Any]:
    """Names and types of a dataclass's fields; nobody changes the mapping."""
    return _fields_of(cls)


@functools.cache
def _fields_of(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def fitting(hint: Any, value: Any) -> list[Any]:
    """The value as this type, in a list; empty where it is none.

    Text that is a number is one where a number is declared (``'3'``, ``007``). A list is a tuple where one is declared.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return [v for v in arguments if v == value and type(v) is type(value)]
    if origin in (Union, types.UnionType):
        members = sorted(arguments, key=lambda member: member is not type(value))
        return next((found for member in members if (found := fitting(member, value))), [])
    kind = origin or hint
    if kind in (tuple, list):
        item = arguments[0] if arguments else Any
        items = [fitting(item, part) for part in value] if isinstance(value, (list, tuple)) else [[]]
        return [kind(part[0] for part in items)] if all(items) else []
    if kind is dict:
        return [dict(value)] if isinstance(value, Mapping) else []
    if hint in (int, float) and isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value) if hint is float or not value.lstrip("+-").isdecimal() else int(value)
    if isinstance(value, bool) and hint in WORDS:
        return [value] if hint is bool else []
    if hint is float and isinstance(value, (int, float)):
        return [float(value)] if abs(value) < MOST or isinstance(value, float) else []
    if hint is int and isinstance(value, float) and value.is_integer():
        return [int(value)]
    try:
        return [value] if isinstance(value, kind) else []
    except TypeError:  # Any, a type variable, a protocol: it cannot tell
        return [value]


def words(hint: Any) -> str:
    """What a type's values are, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(member) for member in arguments))
    kind = origin or hint
    if kind in (tuple, list):
        return f"a list of {words(arguments[0]).removeprefix('a ')}s" if arguments else "a list"
    if kind is dict:
        return "a mapping of names to values"
    return WORDS.get(hint, str(getattr(hint, "__name__", hint)))
