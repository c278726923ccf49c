"""Acceptance rules such as `accuracy>=0.5`: read, checked against what was measured, told."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, cast

from ._evaluation import MetricValue
from .errors import UsageError

__all__ = ["AcceptanceRule", "Verdict", "judge", "read_rule"]

Side = Literal["value", "low", "high"]

_RULE = re.compile(r"\s*(.+?)(?:\.(value|low|high))?\s*(>=|<=|>|<)\s*(\S+)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_HELP = (
    "write for instance accuracy>=0.8, accuracy.low>=0.7 (lower end of the interval) or ece<=0.1"
)


@dataclass(frozen=True, slots=True)
class AcceptanceRule:
    """One figure that must be on one side of a limit."""

    metric: str
    side: Side
    """`value`, or an end of the 95 % interval."""
    comparison: str
    limit: float

    def __str__(self) -> str:
        side = "" if self.side == "value" else f".{self.side}"
        return f"{self.metric}{side}{self.comparison}{self.limit:g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule with what was measured."""

    rule: AcceptanceRule
    measured: MetricValue
    passed: bool
    """False too where the figure, or its interval, is not defined on these records."""

    @property
    def compared(self) -> float | None:
        """What was compared with the limit; None where it is not defined."""
        side: float | None = getattr(self.measured, self.rule.side)
        return side

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"rule": str(self.rule), **self.measured.to_dict(), "passed": self.passed}


def read_rule(given: str) -> AcceptanceRule:
    """Read one rule.

    Raises:
        UsageError: It is not METRIC[.value|.low|.high], a comparison and a number.
    """
    match = _RULE.fullmatch(given)
    try:
        limit = float(match.group(4)) if match else math.nan
    except ValueError:
        limit = math.nan
    if match is None or not math.isfinite(limit):
        raise UsageError(f"the rule {given!r} cannot be read; {_HELP}")
    side = cast("Side", match.group(2) or "value")
    return AcceptanceRule(match.group(1), side, match.group(3), limit)


def judge(
    rules: Sequence[AcceptanceRule], metrics: Mapping[str, MetricValue]
) -> tuple[Verdict, ...]:
    """Compare every rule with what was measured.

    Raises:
        UsageError: A rule names a figure that this evaluation does not have.
    """
    unknown = [rule.metric for rule in rules if rule.metric not in metrics]
    if unknown:
        near = get_close_matches(unknown[0], metrics, n=4, cutoff=0.3) or sorted(metrics)[:4]
        raise UsageError(
            f"no figure {unknown[0]!r} in this evaluation; it has {near} and others: `umd-edge "
            "evaluate --report` lists them all"
        )
    found = []
    for rule in rules:
        measured = metrics[rule.metric]
        value = getattr(measured, rule.side)
        passed = value is not None and _COMPARE[rule.comparison](value, rule.limit)
        found.append(Verdict(rule, measured, passed))
    return tuple(found)
