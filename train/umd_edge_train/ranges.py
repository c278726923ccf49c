"""Which values a setting may have, so that a slip of the pen is an error and not a useless run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from umd_edge.errors import UsageError

__all__ = ["ABOVE_ZERO", "AT_LEAST_ZERO", "BELOW_ONE", "UP_TO_ONE", "Range", "check_ranges"]


class Range(NamedTuple):
    """Finite numbers between two limits."""

    low: float
    high: float
    low_included: bool
    high_included: bool
    words: str

    def holds(self, value: float) -> bool:
        """Whether a value is one of them; NaN is not."""
        if not math.isfinite(value):
            return False
        above = value >= self.low if self.low_included else value > self.low
        return above and (value <= self.high if self.high_included else value < self.high)


AT_LEAST_ZERO = Range(0.0, math.inf, True, False, "a finite number, 0 or more,")
ABOVE_ZERO = Range(0.0, math.inf, False, False, "a finite number above 0")
BELOW_ONE = Range(0.0, 1.0, True, False, "0 or more and less than 1")
UP_TO_ONE = Range(0.0, 1.0, True, True, "0..1")


def check_ranges(part: str, record: object, ranges: Mapping[str, Range]) -> None:
    """Check a settings record.

    Args:
        part: The record's place in the recipe, for the message.
        record: Has a number for each name in `ranges`.
        ranges: Allowed values by name.

    Raises:
        UsageError: The first value that is not allowed.
    """
    for name, allowed in ranges.items():
        value = float(getattr(record, name))
        if not allowed.holds(value):
            raise UsageError(f"{part}.{name}: {value:g} given; {allowed.words} is allowed")
