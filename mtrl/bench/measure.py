"""Ratios of times, taken in turns so that a change of the machine's speed meets both parts alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

WARM_UP = 3  # rounds that are not counted
MOST_SPREAD = 0.3  # of the value; above it there is none


class Ratio(NamedTuple):
    """Of two times, or another number with its spread.

    Attributes:
        value: the median of the rounds' ratios; None where the spread is above ``MOST_SPREAD`` of it.
        spread: their quartiles.
        parts_ms: both times' medians, ``(numerator, denominator)``; None where there are none.
    """

    value: float | None
    spread: tuple[float, float]
    parts_ms: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: the parts by name."""
        parts = self.parts_ms and dict(zip(("numerator", "denominator"), self.parts_ms, strict=True))
        return {"value": self.value, "spread": list(self.spread), "parts_ms": parts}


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def take_turns(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in every round, one after the other, after a few rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + WARM_UP):
        for name, function in functions.items():
            seconds[name].append(timed(function))
    return {name: times[WARM_UP:] for name, times in seconds.items()}


def ratio_of(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """Of seconds, round by round."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, value, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    )
    parts = (1e3 * statistics.median(numerator), 1e3 * statistics.median(denominator))
    return Ratio(None if (high - low) / value > MOST_SPREAD else value, (low, high), parts)
