"""Operating curves: which probability to decide at for a sensitivity or a specificity.

A curve is fitted on validation records and kept in the bundle. Its figures are those expected of
new patients: with n positive records, the one of rank r from below is under a new positive's
probability with (n + 1 - r) / (n + 1). So 8 positives never promise more than 8 / 9.
"""

from __future__ import annotations

from typing import Any

from ._fields import fail, integer, list_, object_
from ._record import dataclass
from .errors import UsageError

__all__ = ["OperatingCurve", "OperatingPoint", "check_share", "shares"]

MAX_POINTS = 200
_COUNTS = 10**9
# 19 / 20 of 19 positives are the 0.95 that was asked for.
_SLACK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """At which probability one label was decided, and what that is expected to reach."""

    threshold: float
    """The label is positive from this probability on."""
    sensitivity: float
    specificity: float
    n_positive: int
    """Validation records with the label."""
    n_negative: int
    reached: bool
    """False where that many records cannot promise what was asked; this is then the best point."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "threshold": self.threshold,
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
            "n_positive": self.n_positive,
            "n_negative": self.n_negative,
            "reached": self.reached,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingCurve:
    """Sensitivity and specificity of one label, against all others, by threshold."""

    thresholds: tuple[float, ...]
    """Probabilities, rising."""
    sensitivities: tuple[float, ...]
    """Expected share of new positives at or above each threshold; falling."""
    specificities: tuple[float, ...]
    """Expected share of new negatives below each threshold; rising."""
    n_positive: int
    n_negative: int

    @classmethod
    def from_dict(cls, data: object, path: str) -> OperatingCurve:
        """Read the JSON object; `path` is its JSON path, for errors.

        Raises:
            ManifestError: A key is missing or unknown, or the table is not monotone.
        """
        columns = ("thresholds", "sensitivities", "specificities")
        given = object_(data, path, {*columns, "n_positive", "n_negative"}, set())
        read = {name: shares(given[name], f"{path}.{name}") for name in columns}
        if len({len(column) for column in read.values()}) != 1 or not read["thresholds"]:
            raise fail(path, f"{list(columns)} must have one length, at least 1")
        if len(read["thresholds"]) > MAX_POINTS:
            raise fail(path, f"at most {MAX_POINTS} points are allowed")
        rising = (read["thresholds"], read["specificities"], read["sensitivities"][::-1])
        if any(list(column) != sorted(column) for column in rising):
            raise fail(path, "thresholds and specificities must rise, sensitivities must fall")
        return cls(
            n_positive=integer(given["n_positive"], f"{path}.n_positive", 1, _COUNTS),
            n_negative=integer(given["n_negative"], f"{path}.n_negative", 1, _COUNTS),
            **read,
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `from_dict` gives an equal curve back."""
        return {
            "thresholds": list(self.thresholds),
            "sensitivities": list(self.sensitivities),
            "specificities": list(self.specificities),
            "n_positive": self.n_positive,
            "n_negative": self.n_negative,
        }

    def at_sensitivity(self, wanted: float) -> OperatingPoint:
        """The highest threshold with that sensitivity, or with the highest one that there is."""
        least = min(wanted - _SLACK, self.sensitivities[0])
        rows = [row for row, value in enumerate(self.sensitivities) if value >= least]
        return self._point(rows[-1], reached=self.sensitivities[0] >= wanted - _SLACK)

    def at_specificity(self, wanted: float) -> OperatingPoint:
        """The lowest threshold with that specificity, or with the highest one that there is."""
        least = min(wanted - _SLACK, self.specificities[-1])
        rows = [row for row, value in enumerate(self.specificities) if value >= least]
        return self._point(rows[0], reached=self.specificities[-1] >= wanted - _SLACK)

    def _point(self, row: int, *, reached: bool) -> OperatingPoint:
        return OperatingPoint(
            threshold=self.thresholds[row],
            sensitivity=self.sensitivities[row],
            specificity=self.specificities[row],
            n_positive=self.n_positive,
            n_negative=self.n_negative,
            reached=reached,
        )


def shares(data: object, path: str) -> tuple[float, ...]:
    """A list of numbers in 0..1."""
    values = list_(data, path)
    if not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):
        raise fail(path, "a list of numbers in 0..1 is needed")
    return tuple(float(value) for value in values)


def check_share(value: object, name: str) -> float:
    """A sensitivity, specificity or coverage that was asked for.

    Raises:
        UsageError: It is no number strictly between 0 and 1.
    """
    if type(value) not in (int, float) or not 0 < float(value) < 1:  # type: ignore[arg-type]
        raise UsageError(f"{name} {value!r} given; a number above 0 and below 1 is needed")
    return float(value)  # type: ignore[arg-type]
