"""Means and paired differences over seeds, with patient-wise bootstrap intervals.

Every metric here is a mean of strata means of right records: `accuracy` has one stratum,
`balanced_accuracy` one for each class. In each of 1,000 resamples of patients (seed 0) a metric is
computed for every seed and averaged over the seeds, so that an interval speaks of new patients and
of the average run, and the runs of two arms are compared on the same patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The one place that draws resamples: an interval here is that of the same metric everywhere else.
from umd_edge._evaluation import Resamples
from umd_edge.errors import DataError

__all__ = ["Outcomes", "Summary", "paired_difference", "summarise"]

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
    right: BoolArray
    """(S, N)."""

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


def _resampled(outcomes: Outcomes, resamples: Resamples) -> FloatArray:
    """Metric of each seed on the data (row 0) and on each resample: (1 + R, S)."""
    total = np.zeros((len(resamples.counts), len(outcomes.right)))
    present = np.zeros(len(resamples.counts))
    right = outcomes.right.T.astype(np.float64)
    for stratum in np.unique(outcomes.strata[outcomes.strata >= 0]):
        weight = (outcomes.strata == stratum).astype(np.float64)[:, None]
        sums = resamples.sums(np.concatenate([right * weight, weight], axis=1))
        hits, count = sums[:, :-1], sums[:, -1:]
        # a class that a resample lacks is left out of its mean
        total += np.divide(hits, count, out=np.zeros_like(hits), where=count > 0)
        present += count[:, 0] > 0
    metric = np.full_like(total, np.nan)
    np.divide(total, present[:, None], out=metric, where=present[:, None] > 0)
    return metric


def _summary(values: FloatArray, outcomes: Outcomes, resamples: Resamples) -> Summary:
    used = outcomes.strata >= 0
    n = int(used.sum())
    metric = resamples.metric(values.mean(axis=1), n)
    if metric.value is None:  # unreachable: Outcomes has a record in some stratum
        raise DataError("the metric is undefined on these records")
    return Summary(
        value=metric.value,
        low=metric.low,
        high=metric.high,
        by_seed=tuple(float(v) for v in values[0]),
        n=n,
        patients=len({group for group, use in zip(outcomes.groups, used, strict=True) if use}),
    )


def summarise(outcomes: Outcomes) -> Summary:
    """Mean over seeds with its 95 % interval over patients."""
    resamples = Resamples(outcomes.groups)
    return _summary(_resampled(outcomes, resamples), outcomes, resamples)


def paired_difference(first: Outcomes, second: Outcomes) -> Summary:
    """How much better `first` is than `second` on the same records, seed by seed.

    Args:
        first: S seeds.
        second: The same records in the same order, the same S seeds.

    Raises:
        DataError: Records, strata or numbers of seeds differ.
    """
    _check_pair(first, second)
    resamples = Resamples(first.groups)
    values = _resampled(first, resamples) - _resampled(second, resamples)
    return _summary(values, first, resamples)


def _check_pair(first: Outcomes, second: Outcomes) -> None:
    same: Sequence[tuple[str, bool]] = (
        ("records", first.ids == second.ids),
        ("patients", first.groups == second.groups),
        ("strata", bool(np.array_equal(first.strata, second.strata))),
        ("numbers of seeds", first.right.shape == second.right.shape),
    )
    for what, equal in same:
        if not equal:
            raise DataError(
                f"two arms differ in their {what}; compare runs on the same records and seeds"
            )
