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
from ._postprocess import prediction_set
from ._task import TaskSpec
from ._trust_sets import PredictionSet

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
Float32Array: TypeAlias = npt.NDArray[np.float32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

BINS = 10
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""At which prediction sets are looked at."""
_Z = 1.959963984540054
_TAIL = 0.025
_CHUNK_CELLS = 4_000_000


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
    return RiskCoverage(
        kept / n,
        curve,
        resamples.metric(_areas(resamples, order, expected), n),
        float(risk.mean()),
        float((np.cumsum(np.sort(risk)) / kept).mean()),
    )


def _areas(resamples: Resamples, order: npt.NDArray[np.intp], risk: FloatArray) -> FloatArray:
    """Area under the curve of the data and of each resample -> (1 + resamples,).

    Args:
        resamples: Of the records as given.
        order: (N,) rows, the most confident first.
        risk: (N,) in that order.
    """
    group = resamples.index[order]
    step = max(1, _CHUNK_CELLS // len(group))
    areas = []
    for first in range(0, len(resamples.counts), step):
        weights = resamples.counts[first : first + step][:, group]
        total = np.cumsum(weights, axis=1)
        wrong = np.cumsum(weights * risk, axis=1)
        values = np.divide(wrong, total, out=np.zeros_like(wrong), where=total > 0)
        areas.append((values * weights).sum(axis=1) / total[:, -1])
    return np.concatenate(areas)


@dataclass(frozen=True, slots=True)
class SetCoverage:
    """How often the truth was in the prediction set."""

    what: str
    """`all`, `present` or `absent`; with a colon, a part of these: one label, or the answers that
    the task lists."""
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
    task: TaskSpec, logits: Float32Array, truth: BoolArray, known: BoolArray
) -> list[SetCoverage]:
    """How often the truth was in the set that a call gives at some usual coverages.

    A question whose answer the task does not list is covered where the set says that another
    answer cannot be excluded.

    Args:
        task: Holds the thresholds; without them the list is empty.
        logits: (N, K) float32.
        truth: (N, K) bool: right outputs; none of a record whose answer the task does not list.
        known: (N, K) bool: cells of which the truth is known (multi-label).
    """
    if task.conformal is None or not len(logits):
        return []
    count = _covered_states if task.multi_label else _covered_outputs
    found = []
    for nominal in COVERAGES:
        sets = [prediction_set(row, task, nominal) for row in logits]
        found += count(task, nominal, sets, truth, known)
    return found


def _covered_outputs(
    task: TaskSpec,
    nominal: float,
    sets: Sequence[PredictionSet],
    truth: BoolArray,
    known: BoolArray,
) -> list[SetCoverage]:
    """All records, and of questions those with a listed answer and the others on their own."""
    column = {name: row for row, name in enumerate(task.outputs)}
    listed = np.asarray(truth.any(axis=1))
    covered = np.asarray(
        [
            any(right[column[name]] for name in chosen.outputs)
            or (chosen.other is True and not right.any())
            for chosen, right in zip(sets, truth, strict=True)
        ],
        dtype=np.bool_,
    )
    sizes = np.asarray([len(chosen.outputs) for chosen in sets], dtype=np.float64)
    parts = {"all": np.ones_like(listed)}
    if not listed.all():
        parts |= {"all: answers listed": listed, "all: answers not listed": ~listed}
    return [_counted(what, nominal, covered, sizes, here) for what, here in parts.items()]


def _covered_states(
    task: TaskSpec,
    nominal: float,
    sets: Sequence[PredictionSet],
    truth: BoolArray,
    known: BoolArray,
) -> list[SetCoverage]:
    """Every label in every state on its own, all of each state together, and all."""
    cells = []
    for column, label in enumerate(task.outputs):
        states = [(chosen.states or {}).get(label, ()) for chosen in sets]
        sizes = np.asarray([len(item) for item in states], dtype=np.float64)
        for state, right in (("present", truth[:, column]), ("absent", ~truth[:, column])):
            covered = np.asarray([state in item for item in states], dtype=np.bool_)
            here = known[:, column] & right
            cells.append(_counted(f"{label}: {state}", nominal, covered, sizes, here))
    pooled = []
    for state, end in (("all", ""), ("present", ": present"), ("absent", ": absent")):
        ours = [cell for cell in cells if cell.what.endswith(end)]
        n = sum(cell.n for cell in ours)
        size = sum(cell.size * cell.n for cell in ours) / n if n else 0.0
        pooled.append(SetCoverage(state, nominal, n, sum(c.covered for c in ours), size))
    return pooled + cells


def _counted(
    what: str, nominal: float, covered: BoolArray, sizes: FloatArray, here: BoolArray
) -> SetCoverage:
    n = int(here.sum())
    size = float(sizes[here].mean()) if n else 0.0
    return SetCoverage(what, nominal, n, int((covered & here).sum()), size)


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
