"""Values as plain data, and back.

Plain: None, bool, int, float, str, arrays, and lists and string-keyed dicts of them; nothing pickled. A
value of any other kind is written as a dict with one tag as its key (`tuple`, `scalar`, `generator`, …).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode(name: str, value: Any, array: Callable[[str, NDArray[Any]], Any] | None = None) -> Any:
    """A value as plain data. array: what is made of an array called `name`; none copies it.

    Raises `TypeError` with `name` for a value of a kind that cannot be captured.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.copy() if array is None else array(name, value)
    if isinstance(value, np.generic):
        return {"scalar": np.array(value)}
    if isinstance(value, np.random.Generator):
        return {"generator": value.bit_generator.state}
    if type(value) in (list, tuple):
        return {type(value).__name__: [encode(name, item, array) for item in value]}
    if type(value) is deque:
        return {"deque": [value.maxlen, [encode(name, item, array) for item in value]]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: encode(name, item, array) for key, item in value.items()}}
    raise TypeError(f"attribute {name} of type {type(value).__name__} cannot be captured")


def decode(data: Any, other: Callable[[str, Any], Any] | None = None) -> Any:
    """The value that `encode` wrote. other: reads the tags of one's own `array`."""
    if isinstance(data, np.ndarray):
        return data.copy()
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    if tag == "scalar":
        return content[()]
    if tag == "generator":
        generator = np.random.Generator(getattr(np.random, content["bit_generator"])())
        generator.bit_generator.state = content
        return generator
    if tag == "dict":
        return {key: decode(item, other) for key, item in content.items()}
    if tag == "deque":
        longest, items = content
        return deque((decode(item, other) for item in items), longest)
    if tag in ("list", "tuple"):
        items = [decode(item, other) for item in content]
        return tuple(items) if tag == "tuple" else items
    assert other is not None
    return other(tag, content)
