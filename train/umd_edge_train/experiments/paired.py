"""Means and paired differences over seeds, with patient-wise bootstrap intervals.

A metric here is a mean of strata means of right records (`Outcomes`: `accuracy` has one stratum,
`balanced_accuracy` one for each class), or a macro AUROC over labels (`Rankings`). In each of 1,000
resamples of patients (seed 0) a metric is computed for every seed and averaged over the seeds, so
that an interval speaks of new patients and of the average run, and the runs of two arms are
compared on the same patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# The one place that draws resamples: an interval here is that of the same metric everywhere else.
from umd_edge._evaluation import Resamples
from umd_edge.errors import DataError

__all__ = [
    "COMPARED_METRICS",
    "Outcomes",
    "Rankings",
    "Results",
    "Summary",
    "paired_difference",
    "summarise",
]

COMPARED_METRICS = (
    "accuracy, balanced_accuracy, closed_accuracy, open_accuracy, accuracy_<question type>, "
    "accuracy_excluding_<question type>, macro_auroc, auroc_<label>, image_to_text_r<rank> and "
    "text_to_image_r<rank>"
)
"""Those that arms are compared by, record by record, for messages."""

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """What an arm's runs got right: S seeds on N records."""

    ids: tuple[str, ...]
    """(N,) names of the records."""
    groups: tuple[str, ...]
    """(N,) patients: the unit of resampling."""
    strata: npt.NDArray[np.int64]
    """(N,) stratum of each record; -1 leaves it out."""
    right: BoolArray | FloatArray
    """(S, N), or 0..1 where a record of several labels may be right in part."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.right.ndim != 2 or not (
            len(self.groups) == len(self.strata) == self.right.shape[1] == n
        ):
            raise DataError(
                f"{n} records, {len(self.groups)} groups, {len(self.strata)} strata and outcomes "
                f"of shape {self.right.shape} given; one of each for every record is needed"
            )
        if not n or not self.right.shape[0] or not np.any(self.strata >= 0):
            raise DataError("no outcome to average: one seed and one record at least are needed")

    @property
    def truth(self) -> npt.NDArray[np.int64]:
        """What two arms must share: the strata."""
        return self.strata

    @property
    def seeds(self) -> int:
        """S."""
        return len(self.right)

    @property
    def used(self) -> BoolArray:
        """(N,) which records count."""
        used: BoolArray = self.strata >= 0
        return used

    def resampled(self, resamples: Resamples) -> FloatArray:
        """Metric of each seed on the data (row 0) and on each resample: (1 + R, S)."""
        total = np.zeros((len(resamples.counts), len(self.right)))
        present = np.zeros(len(resamples.counts))
        right = self.right.T.astype(np.float64)
        for stratum in np.unique(self.strata[self.used]):
            weight = (self.strata == stratum).astype(np.float64)[:, None]
            sums = resamples.sums(np.concatenate([right * weight, weight], axis=1))
            hits, count = sums[:, :-1], sums[:, -1:]
            # a class that a resample lacks is left out of its mean
            total += np.divide(hits, count, out=np.zeros_like(hits), where=count > 0)
            present += count[:, 0] > 0
        metric = np.full_like(total, np.nan)
        np.divide(total, present[:, None], out=metric, where=present[:, None] > 0)
        return metric


@dataclass(frozen=True)
class Rankings:
    """What an arm's runs make of several labels: S seeds on N records with K labels."""

    ids: tuple[str, ...]
    """(N,) names of the records."""
    groups: tuple[str, ...]
    """(N,) patients."""
    truth: FloatArray
    """(N, K): 1, 0, or NaN for unknown."""
    scores: FloatArray
    """(S, N, K), higher where the label is more probable."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        if (
            self.scores.ndim != 3
            or self.scores.shape[1:] != self.truth.shape
            or not (len(self.groups) == len(self.truth) == n)
        ):
            raise DataError(
                f"{n} records, {len(self.groups)} groups, truth of shape {self.truth.shape} and "
                f"scores of shape {self.scores.shape} given; one of each for every record is needed"
            )
        if not any(np.any(row == 1) and np.any(row == 0) for row in self.truth.T):
            raise DataError(
                "no label has both a positive and a negative record, so no AUROC is defined; "
                "use more records"
            )

    @property
    def seeds(self) -> int:
        """S."""
        return len(self.scores)

    @property
    def used(self) -> BoolArray:
        """(N,) which records count."""
        return np.asarray(np.isfinite(self.truth).any(axis=1))

    def resampled(self, resamples: Resamples) -> FloatArray:
        """Macro AUROC of each seed on the data (row 0) and on each resample: (1 + R, S)."""
        known = np.isfinite(self.truth)
        return np.stack([self._macro(one, known, resamples) for one in self.scores], axis=1)

    def _macro(self, scores: FloatArray, known: BoolArray, resamples: Resamples) -> FloatArray:
        """(1 + R,): the mean over the labels that have an AUROC there."""
        areas = np.stack(
            [
                resamples.auroc(scores[:, k], self.truth[:, k] == 1, known[:, k])
                for k in range(scores.shape[1])
            ]
        )
        defined = np.isfinite(areas)
        macro = np.full(areas.shape[1], np.nan)
        sums = np.where(defined, areas, 0.0).sum(axis=0)
        np.divide(sums, defined.sum(axis=0), out=macro, where=defined.any(axis=0))
        return macro


Results: TypeAlias = Outcomes | Rankings


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A mean over seeds, or a difference of two, and what stands behind it."""

    value: float
    low: float | None
    """2.5 % quantile over the resamples; None with a single patient."""
    high: float | None
    by_seed: tuple[float, ...]
    """Metric of each seed (a difference: of each seed's pair)."""
    n: int
    """Records."""
    patients: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and self.low * self.high > 0.0


def _summary(values: FloatArray, outcomes: Results, resamples: Resamples) -> Summary:
    used = outcomes.used
    n = int(used.sum())
    metric = resamples.metric(values.mean(axis=1), n)
    if metric.value is None:  # unreachable: both kinds check that it is defined
        raise DataError("the metric is undefined on these records")
    return Summary(
        value=metric.value,
        low=metric.low,
        high=metric.high,
        by_seed=tuple(float(v) for v in values[0]),
        n=n,
        patients=len({group for group, use in zip(outcomes.groups, used, strict=True) if use}),
    )


def summarise(outcomes: Results) -> Summary:
    """Mean over seeds with its 95 % interval over patients."""
    resamples = Resamples(outcomes.groups)
    return _summary(outcomes.resampled(resamples), outcomes, resamples)


def paired_difference(first: Results, second: Results) -> Summary:
    """How much better `first` is than `second` on the same records, seed by seed.

    Args:
        first: S seeds.
        second: The same records in the same order, the same S seeds.

    Raises:
        DataError: Records, classes or numbers of seeds differ.
    """
    _check_pair(first, second)
    resamples = Resamples(first.groups)
    values = first.resampled(resamples) - second.resampled(resamples)
    return _summary(values, first, resamples)


def _check_pair(first: Results, second: Results) -> None:
    same: Sequence[tuple[str, bool]] = (
        ("records", first.ids == second.ids),
        ("patients", first.groups == second.groups),
        ("metrics", type(first) is type(second)),
        ("classes or labels", bool(np.array_equal(first.truth, second.truth, equal_nan=True))),
        ("numbers of seeds", first.seeds == second.seeds),
    )
    for what, equal in same:
        if not equal:
            raise DataError(
                f"two arms differ in their {what}; compare runs on the same records and seeds"
            )
