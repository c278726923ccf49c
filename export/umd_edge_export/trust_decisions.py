"""Operating points, prediction sets and the threshold of abstention, from scaled probabilities.

Every threshold is rounded down to six decimals, so that the last bits of another processor do not
exclude what decided it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from umd_edge._postprocess import confidence, other_share
from umd_edge._task import TaskSpec
from umd_edge._trust_curves import OperatingCurve
from umd_edge._trust_sets import ConformalSpec, ConformalThresholds

from .errors import ExportError
from .trust_records import TaskRecords
from .trust_scaling import right_answers

__all__ = [
    "COVERAGES",
    "AbstainRule",
    "abstain_threshold",
    "conformal_spec",
    "operating_curves",
    "operating_points",
    "record_risks",
]

Float64Array = npt.NDArray[np.float64]

COVERAGES = tuple(round(0.01 * step, 2) for step in range(50, 100))
MIN_OF_CLASS = 10
"""Records of each class below which a label keeps the operating point 0.5."""
MAX_POINTS = 48
_KEPT = (0.8, 0.85, 0.9, 0.95, 0.975, 0.99)
_DIGITS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class AbstainRule:
    """When a task does not stand by its answer."""

    max_risk: float | None = None
    """Share of wrong answers allowed among those given. None: abstain where answers are wrong
    half as often again as all of them are, or two times in three."""
    max_share: float = 0.2
    """Of the validation records, at most this share is abstained from."""
    min_records: int = 5
    """Fewer records below a threshold say nothing about it."""


def _down(values: npt.ArrayLike) -> Float64Array:
    return np.floor(np.asarray(values, np.float64) * _DIGITS) / _DIGITS


def _thresholds(scores: Float64Array) -> ConformalThresholds:
    """Split conformal thresholds of the probabilities that right outputs were given."""
    ordered = _down(np.sort(scores))
    n = len(ordered)
    # The rank of the guarantee: with n records, the next one is among the lowest k of n + 1 with
    # probability k / (n + 1).
    ranks = [int(np.floor((n + 1) * (1 - coverage) + 1e-9)) for coverage in COVERAGES]
    limits = tuple(float(ordered[rank - 1]) if rank else None for rank in ranks)
    return ConformalThresholds(n=n, thresholds=limits)


def conformal_spec(
    task: TaskSpec, records: TaskRecords, probability: Float64Array
) -> ConformalSpec:
    """Thresholds of the prediction sets.

    Args:
        task: With its scaling.
        records: Validation records.
        probability: (N, K), scaled.
    """
    targets = records.targets
    if task.multi_label:
        labels = {}
        for row, label in enumerate(task.outputs):
            present, absent = targets[:, row] == 1, targets[:, row] == 0
            labels[label] = {
                "present": _thresholds(probability[present, row]),
                "absent": _thresholds(1.0 - probability[absent, row]),
            }
        return ConformalSpec(coverages=COVERAGES, labels=labels)  # type: ignore[arg-type]
    listed = (targets == 1).any(axis=1)
    best = np.where(targets == 1, probability, 0.0).max(axis=1)
    other = None
    if task.other is not None:
        other = _thresholds(other_share(records.logits[~listed], task))
    return ConformalSpec(coverages=COVERAGES, any_output=_thresholds(best[listed]), other=other)


def operating_curves(
    task: TaskSpec, targets: Float64Array, probability: Float64Array
) -> dict[str, OperatingCurve]:
    """Curve of each label that occurs and is absent at least once; none for questions."""
    if task.kind != "classification":
        return {}
    curves = {}
    for row, label in enumerate(task.outputs):
        positive = np.sort(_down(probability[targets[:, row] == 1, row]))
        negative = np.sort(_down(probability[targets[:, row] == 0, row]))
        if len(positive) and len(negative):
            curves[label] = _curve(positive, negative)
    return curves


def _curve(positive: Float64Array, negative: Float64Array) -> OperatingCurve:
    above = np.minimum(1.0, np.round((negative + 1 / _DIGITS) * _DIGITS) / _DIGITS)
    thresholds = np.unique(np.concatenate([positive, above]))
    kept_positive = len(positive) - np.searchsorted(positive, thresholds, side="left")
    refused = np.searchsorted(negative, thresholds, side="left")
    sensitivities = kept_positive / (len(positive) + 1)
    specificities = refused / (len(negative) + 1)
    rows = _thin(sensitivities, specificities)
    return OperatingCurve(
        thresholds=tuple(thresholds[rows].tolist()),
        sensitivities=tuple(sensitivities[rows].tolist()),
        specificities=tuple(specificities[rows].tolist()),
        n_positive=len(positive),
        n_negative=len(negative),
    )


def _thin(sensitivities: Float64Array, specificities: Float64Array) -> npt.NDArray[np.intp]:
    """Rows to keep: the ends, those that a usual request picks, and others at even distances."""
    count = len(sensitivities)
    # A point is of use when the next one is less sensitive, or when it is more specific than the
    # one before.
    use = np.append(sensitivities[1:] < sensitivities[:-1], True)
    use |= np.append(True, specificities[1:] > specificities[:-1])
    rows = np.flatnonzero(use)
    if len(rows) <= MAX_POINTS:
        return rows
    kept = {0, count - 1}
    for share in _KEPT:
        for reached in (np.flatnonzero(sensitivities >= share)[-1:],):
            kept.update(reached.tolist())
        kept.update(np.flatnonzero(specificities >= share)[:1].tolist())
    even = rows[np.linspace(0, len(rows) - 1, MAX_POINTS - len(kept)).astype(int)]
    return np.asarray(sorted(kept | set(even.tolist())), dtype=np.intp)


def operating_points(task: TaskSpec, targets: Float64Array) -> dict[str, float]:
    """Probability from which a label of a multi-label task is positive.

    The label's share among the validation records: of scaled probabilities, that point has the
    highest expected sum of sensitivity and specificity. Unlike the best point of the records
    themselves, it has no luck in it.
    """
    if not task.multi_label:
        return {}
    points = {}
    for row, label in enumerate(task.outputs):
        known = targets[np.isfinite(targets[:, row]), row]
        positive = int(known.sum())
        if min(positive, len(known) - positive) >= MIN_OF_CLASS:
            points[label] = float(_down(positive / len(known)))
    return points


def record_risks(
    task: TaskSpec, targets: Float64Array, probability: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Confidence and risk (N,) of each record.

    The risk of a wrong answer is 1, of a right one 0; of a multi-label record the share of labels
    decided wrongly at 0.5.
    """
    certain = confidence(probability, task)
    if not task.multi_label:
        return certain, 1.0 - right_answers(probability, targets)
    known = np.isfinite(targets)
    wrong = known & ((probability >= 0.5) != (targets == 1))
    return certain, wrong.sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def abstain_threshold(
    task: TaskSpec, targets: Float64Array, probability: Float64Array, rule: AbstainRule
) -> float | None:
    """Confidence below which the task abstains; None where the rule finds none.

    Raises:
        ExportError: The risk that was asked for is not reached by leaving out so few records.
    """
    certain, risk = record_risks(task, targets, probability)
    order = np.argsort(certain, kind="stable")
    certain, risk = _down(certain[order]), risk[order]
    n = len(risk)
    wrong = np.concatenate([[0.0], np.cumsum(risk)])
    # Below a threshold equal to record k's confidence are the k records before it.
    sizes = np.flatnonzero(np.append(True, certain[1:] > certain[:-1]))
    sizes = sizes[sizes <= rule.max_share * n]
    if rule.max_risk is not None:
        given = (wrong[-1] - wrong[sizes]) / (n - sizes)
        reached = sizes[given <= rule.max_risk]
        if not len(reached):
            raise ExportError(
                f"task {task.name!r}: a risk of {rule.max_risk:g} is not reached by abstaining "
                f"from at most {rule.max_share:.0%} of {n} records; {given.min():.3f} is. Allow a "
                "higher risk (--max-risk) or more abstentions (--max-abstain)"
            )
        return float(certain[reached[0]]) if reached[0] else None
    sizes = sizes[sizes >= rule.min_records]
    limit = min(1.5 * wrong[-1] / n, 2.0 / 3.0)
    bad = sizes[wrong[sizes] >= limit * sizes]
    return float(certain[bad[-1]]) if len(bad) and limit > 0 else None
