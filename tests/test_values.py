"""What a plain value is where a type is declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest

from mtrl.values import fitting, words


class Shape(TypedDict):
    width: int


class Mode(Enum):
    FAST = "fast"


@pytest.mark.parametrize(
    ("hint", "value", "taken"),
    [
        (float, 2, 2.0), (float, "0.9", 0.9), (float, "3e2", 300.0), (int, 3.0, 3), (int, "007", 7),
        (int, "3e2", 300), (int | float, 3.0, 3.0), (int | float, 3, 3), (float | None, None, None),
        (int | Literal["auto"], "auto", "auto"), (Literal[1, True], True, True), (bool, False, False), (str, "3", "3"),
        (tuple[int, ...], [8, 16], (8, 16)), (list[float], (1, 2), [1.0, 2.0]), (tuple[int, ...], [], ()),
        (list, (1, "a"), [1, "a"]), (tuple, [1], (1,)), (dict, {"a": 1}, {"a": 1}), (dict[str, float], {}, {}),
        (Any, object, object), (Shape, {"width": 1}, {"width": 1}), (Sequence[int], [1], [1]),
        (Path, Path("x"), Path("x")), (Mode, Mode.FAST, Mode.FAST),
    ],
)  # fmt: skip
def test_a_value_that_fits_is_of_the_type_that_is_declared(hint: Any, value: Any, taken: Any) -> None:
    (found,) = fitting(hint, value)
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (float, "much"), (float, True), (float, None), (float, 10**400), (int, 1.5), (int, "1.5"), (int, True),
        (int, ""), (bool, 1), (bool, "true"), (str, 3), (str, None), (Literal["a"], "b"), (Literal[1], True),
        (Literal[1], 1.0), (tuple[int, ...], 8), (tuple[int, ...], "ab"), (tuple[int, ...], [1.5]), (list, 3),
        (tuple, "ab"), (dict, [1]), (int | None, "x"), (Mode, "fast"), (Path, 3), (set[int], [1]),
        (Mode | None, "fast"), (Sequence[int], 3),
        (Callable[..., int], 3),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused(hint: Any, value: Any) -> None:
    assert fitting(hint, value) == []


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (int, "a whole number"), (float | None, "a number or null"), (Literal["a", "b"], "one of 'a', 'b'"),
        (tuple[int, ...], "a list of whole numbers"), (list, "a list"),
        (dict[str, Any], "a mapping of names to values"),
        (Mode, "Mode"),
    ],
)  # fmt: skip
def test_a_type_is_told_in_words(hint: Any, told: str) -> None:
    assert words(hint) == told
