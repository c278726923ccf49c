"""Conformal prediction sets: every output that cannot be excluded at a chosen coverage.

Split conformal prediction with the probability of the right output as the conformity score
(Sadinle, Lei and Wasserman 2019, "least ambiguous set-valued classifiers"). One threshold for the
whole task where one output is right; in a multi-label task one for the presence and one for the
absence of each label, so that a rare label is covered as often as a common one. The promise is an
average over patients like those of the validation records, not one for a single patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ._fields import fail, free_object, integer, list_, object_
from ._record import dataclass
from ._trust_curves import shares

__all__ = ["STATES", "ConformalSpec", "ConformalThresholds", "PredictionSet", "State"]

State = Literal["present", "absent"]
Method = Literal["lac", "lac_by_class"]

STATES: tuple[State, ...] = ("present", "absent")
MAX_COVERAGES = 200
_COUNTS = 10**9
_SLACK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSet:
    """What cannot be excluded at a coverage."""

    coverage: float
    """What was asked for."""
    outputs: tuple[str, ...] = field(repr=False)
    """Labels or answers, the most probable first; of a multi-label task those that may be present,
    in the task's order. Empty where even the best one is less probable than is usual."""
    states: Mapping[str, tuple[State, ...]] | None = field(default=None, repr=False)
    """Multi-label tasks: label -> which of `present` and `absent` cannot be excluded."""
    other: bool | None = None
    """Questions: whether an answer that the bundle does not know cannot be excluded either; None
    where the bundle says nothing about such answers."""
    n: int
    """Validation records behind it; of a multi-label task those of the rarest state."""
    complete: bool = False
    """Everything is in the set, as there were too few records to exclude anything (multi-label:
    for at least one label)."""
    reason: str = ""
    """Why it is complete."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `states` is there for multi-label tasks, `other` for questions."""
        states = (
            {} if self.states is None else {"states": {k: [*v] for k, v in self.states.items()}}
        )
        return {
            "coverage": self.coverage,
            "outputs": list(self.outputs),
            **states,
            **({} if self.other is None else {"other": self.other}),
            "n": self.n,
            "complete": self.complete,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformalThresholds:
    """From which probability on an output is in the set, for each coverage of a grid."""

    n: int
    """Validation records."""
    thresholds: tuple[float | None, ...]
    """Falling; None: so few records exclude nothing at that coverage."""

    @classmethod
    def from_dict(cls, data: object, path: str, count: int) -> ConformalThresholds:
        """Read `n` and `thresholds` of a JSON object."""
        given = object_(data, path, {"n", "thresholds"}, set())
        values = list_(given["thresholds"], f"{path}.thresholds")
        known = [value for value in values if value is not None]
        if len(values) != count or values[: len(known)] != known:
            raise fail(
                f"{path}.thresholds", "one for each coverage is needed; null from some point on"
            )
        limits = shares(known, f"{path}.thresholds")
        if list(limits) != sorted(limits, reverse=True):
            raise fail(f"{path}.thresholds", "must fall with the coverage")
        return cls(
            n=integer(given["n"], f"{path}.n", 0, _COUNTS),
            thresholds=(*limits, *[None] * (count - len(known))),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"n": self.n, "thresholds": list(self.thresholds)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformalSpec:
    """The `conformal` object of a task."""

    coverages: tuple[float, ...]
    """Rising, within 0..1."""
    any_output: ConformalThresholds | None = None
    """Of a task of which one output is right (method `lac`)."""
    other: ConformalThresholds | None = None
    """For the share of answers that the task does not know."""
    labels: Mapping[str, Mapping[State, ConformalThresholds]] = field(default_factory=dict)
    """Of a multi-label task (method `lac_by_class`)."""

    @property
    def method(self) -> Method:
        """How the thresholds were found."""
        return "lac_by_class" if self.any_output is None else "lac"

    @classmethod
    def from_dict(cls, data: object, path: str, outputs: tuple[str, ...]) -> ConformalSpec:
        """Read the JSON object; `path` is its JSON path, for errors.

        Raises:
            ManifestError: A key is missing or unknown, or a threshold is not as it must be.
        """
        method = free_object(data, path).get("method")
        if method not in ("lac", "lac_by_class"):
            raise fail(f"{path}.method", "lac or lac_by_class is needed")
        own = {"n", "thresholds"} if method == "lac" else {"labels"}
        optional = {"other"} if method == "lac" else set()
        given = object_(data, path, {"method", "coverages"} | own, optional)
        coverages = shares(given["coverages"], f"{path}.coverages")
        if not 0 < len(coverages) <= MAX_COVERAGES or list(coverages) != sorted(set(coverages)):
            raise fail(f"{path}.coverages", f"1 to {MAX_COVERAGES} rising numbers are needed")
        count = len(coverages)
        if method == "lac":
            single = {name: given[name] for name in own}
            return cls(
                coverages=coverages,
                any_output=ConformalThresholds.from_dict(single, path, count),
                other=ConformalThresholds.from_dict(given["other"], f"{path}.other", count)
                if "other" in given
                else None,
            )
        labels = object_(given["labels"], f"{path}.labels", set(outputs), set())
        read: dict[str, dict[State, ConformalThresholds]] = {}
        for label in outputs:
            where = f"{path}.labels.{label}"
            states = object_(labels[label], where, set(STATES), set())
            read[label] = {
                state: ConformalThresholds.from_dict(states[state], f"{where}.{state}", count)
                for state in STATES
            }
        return cls(coverages=coverages, labels=read)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `from_dict` gives an equal one back."""
        common = {"method": self.method, "coverages": list(self.coverages)}
        if self.any_output is not None:
            other = {} if self.other is None else {"other": self.other.to_dict()}
            return {**common, **self.any_output.to_dict(), **other}
        labels = {
            label: {state: thresholds.to_dict() for state, thresholds in states.items()}
            for label, states in self.labels.items()
        }
        return {**common, "labels": labels}

    def prediction_set(
        self,
        probability: npt.NDArray[np.float64],
        outputs: tuple[str, ...],
        coverage: float,
        *,
        other: float | None = None,
    ) -> PredictionSet:
        """The set of one sample.

        Args:
            probability: (K,) float64, scaled.
            outputs: K names.
            coverage: Above 0 and below 1; the next higher one of the grid is taken.
            other: Share of the answers that the task does not know.
        """
        row = next((i for i, c in enumerate(self.coverages) if c >= coverage - _SLACK), None)
        if self.any_output is not None:
            limit = None if row is None else self.any_output.thresholds[row]
            unknown = None
            if self.other is not None and other is not None:
                least = None if row is None else self.other.thresholds[row]
                unknown = least is None or other >= least
            return _one_right(probability, outputs, coverage, limit, self.any_output.n, unknown)
        return self._by_class(probability, outputs, coverage, row)

    def _by_class(
        self,
        probability: npt.NDArray[np.float64],
        outputs: tuple[str, ...],
        coverage: float,
        row: int | None,
    ) -> PredictionSet:
        states: dict[str, tuple[State, ...]] = {}
        open_labels = []
        for label, value in zip(outputs, probability.tolist(), strict=True):
            found: list[State] = []
            for state, share in (("present", value), ("absent", 1.0 - value)):
                thresholds = self.labels[label][state]  # type: ignore[index]
                limit = None if row is None else thresholds.thresholds[row]
                if limit is None and label not in open_labels:
                    open_labels.append(label)
                if limit is None or share >= limit:
                    found.append(state)  # type: ignore[arg-type]
            states[label] = tuple(found)
        counts = [item.n for label in outputs for item in self.labels[label].values()]
        return PredictionSet(
            coverage=coverage,
            outputs=tuple(label for label in outputs if "present" in states[label]),
            states=states,
            n=min(counts),
            complete=bool(open_labels),
            reason=f"too few validation records for coverage {coverage:g} of {open_labels}"
            if open_labels
            else "",
        )


def _one_right(
    probability: npt.NDArray[np.float64],
    outputs: tuple[str, ...],
    coverage: float,
    limit: float | None,
    n: int,
    other: bool | None,
) -> PredictionSet:
    order = np.argsort(-probability, kind="stable")
    chosen = order if limit is None else order[probability[order] >= limit]
    return PredictionSet(
        coverage=coverage,
        outputs=tuple(outputs[row] for row in chosen),
        other=other,
        n=n,
        complete=limit is None,
        reason=f"{n} validation records exclude nothing at coverage {coverage:g}"
        if limit is None
        else "",
    )
