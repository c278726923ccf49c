"""The figures of a site's acceptance test, from arrays alone: no file, no model, no page.

* A record is right as in `_evaluation`. Its risk is 0 or 1; of a multi-label task the share of its
  known labels that were decided wrongly.
* Intervals of shares are Wilson's; those of areas and metrics come from resampling whole patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ._evaluation import MetricValue, Resamples
from ._task import TaskSpec

__all__ = [
    "CalibrationBin",
    "Decisions",
    "RiskCoverage",
    "SetCoverage",
    "binomial_band",
    "decisions",
    "reliability",
    "risk_coverage",
    "roc_curve",
    "set_coverage",
    "wilson",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

BINS = 10
_Z = 1.959963984540054
_TAIL = 0.025


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); 0 to 1 where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, _Z * _Z / n
    centre = (share + z2 / 2) / (1 + z2)
    reach = _Z / (1 + z2) * (share * (1 - share) / n + z2 / (4 * n)) ** 0.5
    return max(0.0, centre - reach), min(1.0, centre + reach)


def binomial_band(n: int, p: float) -> tuple[float, float]:
    """Where 95 % of the shares k / n lie when k is binomial: exact, at most 2.5 % on each side."""
    if n == 0 or p <= 0 or p >= 1:
        edge = min(max(p, 0.0), 1.0)
        return edge, edge
    k = np.arange(n + 1, dtype=np.float64)
    steps = np.log((n - k[:-1]) / k[1:]) + np.log(p) - np.log1p(-p)
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    mass = np.exp(logs - logs.max())
    below = np.cumsum(mass) / mass.sum()
    low = int(np.searchsorted(below, _TAIL, side="right"))
    high = int(np.searchsorted(below, 1 - _TAIL, side="left"))
    return low / n, min(high, n) / n


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Cells whose confidence lies within a tenth."""

    low: float
    high: float
    n: int
    confidence: float
    """Mean of what was promised."""
    observed: float
    """Share that came true."""
    band: tuple[float, float]
    """Where the share would lie, 95 times in 100, if the promise were exact."""

    @property
    def within(self) -> bool:
        """Whether the share lies in the band."""
        return self.band[0] <= self.observed <= self.band[1]


def reliability(confidence: FloatArray, came_true: BoolArray) -> list[CalibrationBin]:
    """The bins that hold something, of ten equal ones.

    Args:
        confidence: (M,) float64 in 0..1.
        came_true: (M,) bool.
    """
    index = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    found = []
    for row in range(BINS):
        here = index == row
        n = int(here.sum())
        if n:
            mean = float(confidence[here].mean())
            found.append(
                CalibrationBin(
                    row / BINS,
                    (row + 1) / BINS,
                    n,
                    mean,
                    float(came_true[here].mean()),
                    binomial_band(n, mean),
                )
            )
    return found


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Mean risk of the records that are kept when the least confident ones are turned away."""

    coverage: FloatArray
    """(N,) rising share of records kept."""
    risk: FloatArray
    """(N,) mean risk of those kept."""
    area: MetricValue
    """Mean risk over all coverages; lower is better."""
    random: float
    """The same if records were turned away at random: the mean risk of all."""
    best: float
    """The same if the wrong records were turned away first."""


def risk_coverage(
    confidence: FloatArray, risk: FloatArray, groups: Sequence[str]
) -> RiskCoverage | None:
    """The curve, or None where there are no records.

    Records of equal confidence count as if taken in random order: the expectation over it.

    Args:
        confidence: (N,) float64.
        risk: (N,) float64, 0..1.
        groups: N names of patients.
    """
    n = len(confidence)
    if n == 0:
        return None
    order = np.argsort(-confidence, kind="stable")
    _, first, size = np.unique(-confidence[order], return_index=True, return_counts=True)
    sorted_risk = risk[order]
    means = np.add.reduceat(sorted_risk, first) / size
    expected = np.repeat(means, size)
    kept = np.arange(1, n + 1)
    curve = np.cumsum(expected) / kept
    resamples = Resamples(groups)
    weights = resamples.counts[:, resamples.index[order]]
    total = np.cumsum(weights, axis=1)
    wrong = np.cumsum(weights * expected, axis=1)
    values = np.divide(wrong, total, out=np.zeros_like(wrong), where=total > 0)
    areas = (values * weights).sum(axis=1) / total[:, -1]
    return RiskCoverage(
        kept / n,
        curve,
        resamples.metric(areas, n),
        float(risk.mean()),
        float((np.cumsum(np.sort(risk)) / kept).mean()),
    )


@dataclass(frozen=True, slots=True)
class SetCoverage:
    """How often the truth was in the prediction set."""

    what: str
    """`all`, or the states of a multi-label task, or one label in one state."""
    nominal: float
    n: int
    covered: int
    size: float
    """Mean number of outputs in the set; of a multi-label task, of states left open."""

    @property
    def share(self) -> float:
        """Share covered; 0 where n is 0."""
        return self.covered / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share."""
        return wilson(self.covered, self.n)


def set_coverage(
    task: TaskSpec, probabilities: FloatArray, truth: BoolArray, known: BoolArray
) -> list[SetCoverage]:
    """Coverage of the task's sets at every coverage that the bundle has thresholds for.

    Args:
        task: Holds the thresholds; without them the list is empty.
        probabilities: (N, K) float64.
        truth: (N, K) bool: right outputs; a record may have none (an answer that the model does
            not know), which no set covers.
        known: (N, K) bool: cells of which the truth is known (multi-label).
    """
    spec = task.conformal
    if spec is None:
        return []
    if spec.any_output is not None:
        return [
            _one_right(nominal, limit, probabilities, truth)
            for nominal, limit in zip(spec.coverages, spec.any_output.thresholds, strict=True)
        ]
    found = []
    for row, nominal in enumerate(spec.coverages):
        cells = _by_state(task, row, nominal, probabilities, truth, known)
        for state in ("present", "absent"):
            ours = [cell for cell in cells if cell.what.endswith(state)]
            n = sum(cell.n for cell in ours)
            size = sum(cell.size * cell.n for cell in ours) / n if n else 0.0
            found.append(SetCoverage(state, nominal, n, sum(c.covered for c in ours), size))
        found += cells
    return found


def _one_right(
    nominal: float, limit: float | None, probabilities: FloatArray, truth: BoolArray
) -> SetCoverage:
    chosen = np.ones_like(truth) if limit is None else probabilities >= limit
    covered = (chosen & truth).any(axis=1)
    return SetCoverage(
        "all", nominal, len(truth), int(covered.sum()), float(chosen.sum(axis=1).mean())
    )


def _by_state(
    task: TaskSpec,
    row: int,
    nominal: float,
    probabilities: FloatArray,
    truth: BoolArray,
    known: BoolArray,
) -> list[SetCoverage]:
    assert task.conformal is not None
    found = []
    for column, label in enumerate(task.outputs):
        shares = {"present": probabilities[:, column], "absent": 1.0 - probabilities[:, column]}
        inside = {}
        for state, thresholds in task.conformal.labels[label].items():
            limit = thresholds.thresholds[row]
            inside[state] = np.ones(len(truth), bool) if limit is None else shares[state] >= limit
        left_open = inside["present"].astype(float) + inside["absent"]
        for state, right in (("present", truth[:, column]), ("absent", ~truth[:, column])):
            here = known[:, column] & right
            n = int(here.sum())
            size = float(left_open[here].mean()) if n else 0.0
            covered = int((inside[state] & here).sum())
            found.append(SetCoverage(f"{label}: {state}", nominal, n, covered, size))
    return found


@dataclass(frozen=True, slots=True)
class Decisions:
    """How one label was decided."""

    label: str
    true_positive: int
    false_negative: int
    true_negative: int
    false_positive: int

    @property
    def sensitivity(self) -> tuple[int, int]:
        """Hits and all that have the label."""
        return self.true_positive, self.true_positive + self.false_negative

    @property
    def specificity(self) -> tuple[int, int]:
        """Rightly refused and all that do not have the label."""
        return self.true_negative, self.true_negative + self.false_positive


def decisions(
    labels: Sequence[str], called: BoolArray, truth: BoolArray, known: BoolArray
) -> list[Decisions]:
    """Counts for each label, over the records of which it is known; all arrays (N, K)."""
    return [
        Decisions(
            label,
            int((called[:, k] & truth[:, k] & known[:, k]).sum()),
            int((~called[:, k] & truth[:, k] & known[:, k]).sum()),
            int((~called[:, k] & ~truth[:, k] & known[:, k]).sum()),
            int((called[:, k] & ~truth[:, k] & known[:, k]).sum()),
        )
        for k, label in enumerate(labels)
    ]


def roc_curve(scores: FloatArray, positive: BoolArray) -> tuple[FloatArray, FloatArray] | None:
    """1 - specificity and sensitivity at every distinct score, or None with one class only.

    Args:
        scores: (M,) float64.
        positive: (M,) bool.
    """
    up, down = int(positive.sum()), int((~positive).sum())
    if up == 0 or down == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[scores[order][1:] != scores[order][:-1], True])
    hits = np.cumsum(positive[order])[last] / up
    alarms = np.cumsum(~positive[order])[last] / down
    return np.r_[0.0, alarms], np.r_[0.0, hits]
