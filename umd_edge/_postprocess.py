"""From logits to probabilities and decisions.

Every sample is computed on its own, output by output, so that its bits are the same whatever else
is in the batch.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ._results import Finding
from ._task import TaskSpec
from ._trust_curves import OperatingPoint, check_share
from ._trust_sets import PredictionSet
from .errors import UsageError

__all__ = [
    "best_outputs",
    "check_coverage",
    "check_operating_request",
    "confidence",
    "decide",
    "findings",
    "other_share",
    "positives",
    "prediction_set",
    "probabilities",
]


def probabilities(logits: npt.NDArray[np.float32], task: TaskSpec) -> npt.NDArray[np.float64]:
    """Probabilities after the task's scaling; `docs/bundle-format.md` gives the formula.

    Args:
        logits: (..., K) float32.
        task: Says softmax over the K outputs, or a sigmoid for each, and holds the scaling.

    Returns:
        (..., K) float64; softmax rows sum to 1, or less where the task knows of other answers.
    """
    return _platt(_shares(logits, task), task)


def _shares(logits: npt.NDArray[np.float32], task: TaskSpec) -> npt.NDArray[np.float64]:
    """Softmax or sigmoid of the scaled logits."""
    scaled = logits.astype(np.float64)
    if task.temperature != 1.0:
        scaled /= task.temperature
    if task.affine is not None:
        scaled *= task.affine[0]
        scaled += task.affine[1]
    if task.probability_kind == "sigmoid":
        # Two-sided form: exp never overflows.
        decay = np.exp(-np.abs(scaled))
        result: npt.NDArray[np.float64] = np.where(scaled >= 0, 1.0, decay) / (1.0 + decay)
        return result
    # The ufuncs themselves: the methods reach the same ones through two more Python functions.
    if scaled.ndim == 1:  # numbers cost less than arrays of one
        highest = np.maximum.reduce(scaled)
        if task.other is not None and task.other > highest:
            highest = np.float64(task.other)
        scaled -= highest
        np.exp(scaled, out=scaled)
        total = np.add.reduce(scaled)
        if task.other is not None:
            total = total + np.exp(task.other - highest)
        scaled /= total
        return scaled
    highest = np.maximum.reduce(scaled, axis=-1, keepdims=True)
    if task.other is not None:
        highest = np.maximum(highest, task.other)
    scaled -= highest
    np.exp(scaled, out=scaled)
    total = np.add.reduce(scaled, axis=-1, keepdims=True)
    if task.other is not None:
        total += np.exp(task.other - highest)
    scaled /= total
    return scaled


def _platt(share: npt.NDArray[np.float64], task: TaskSpec) -> npt.NDArray[np.float64]:
    if task.platt is None:
        return share
    a, b = task.platt
    # Of the odds, so that nothing is a logarithm of 0.
    right = np.power(share, a)
    wrong = np.power(1.0 - share, a) * math.exp(-b)
    result: npt.NDArray[np.float64] = right / (right + wrong)
    return result


def other_share(logits: npt.NDArray[np.float32], task: TaskSpec) -> npt.NDArray[np.float64]:
    """Share (...) of the answers that the task does not know, before the last step of the scaling.

    Args:
        logits: (..., K) float32.
        task: Holds `other`.
    """
    known = np.add.reduce(_shares(logits, task), axis=-1)
    return np.asarray(np.maximum(0.0, 1.0 - known))


def best_outputs(
    logits: npt.NDArray[np.float32], task: TaskSpec, count: int
) -> list[tuple[int, float]]:
    """Rows of the `count` most probable outputs with their probabilities, the best first.

    Of equal ones the first row comes first. Looking for the highest value a few times costs less
    than sorting a long vocabulary.

    Args:
        logits: (K,) float32.
        task: As in `probabilities`.
        count: At least 1; all K where it exceeds them.
    """
    left = _shares(logits, task)
    best: list[tuple[int, float]] = []
    for _ in range(min(count, len(left))):
        row = int(left.argmax())
        best.append((row, float(left[row])))
        left[row] = -1.0
    if task.platt is None:
        return best
    # The last step keeps the order, and few numbers cost less than a long vocabulary.
    values = _platt(np.array([value for _, value in best]), task).tolist()
    return [(row, value) for (row, _), value in zip(best, values, strict=True)]


def positives(probability: npt.NDArray[np.float64], task: TaskSpec) -> npt.NDArray[np.bool_]:
    """Which outputs are positive: the arg-max, or each at its operating point (multi-label).

    Args:
        probability: (K,) float64.
        task: Holds `multi_label` and the operating points (0.5 where none is given).
    """
    if task.multi_label:
        return np.asarray(probability >= task.limits)
    chosen = np.zeros(probability.shape, dtype=np.bool_)
    chosen[int(np.argmax(probability))] = True
    return chosen


def confidence(probability: npt.NDArray[np.float64], task: TaskSpec) -> npt.NDArray[np.float64]:
    """How certain a task is of what it says: what the threshold `abstain` is compared with.

    Args:
        probability: (..., K) float64.
        task: Says whether several labels may be right.

    Returns:
        (...) float64: the highest probability; of a multi-label task the mean over the labels of
        the more probable one of presence and absence.
    """
    if task.multi_label:
        certain = np.maximum(probability, 1.0 - probability)
        total = np.zeros(probability.shape[:-1])
        for row in range(probability.shape[-1]):  # in order, as every language sums
            total = total + certain[..., row]
        return np.asarray(total / probability.shape[-1])
    highest: npt.NDArray[np.float64] = np.maximum.reduce(probability, axis=-1)
    return highest


def decide(
    probability: npt.NDArray[np.float64],
    task: TaskSpec,
    sensitivity: float | None = None,
    specificity: float | None = None,
) -> tuple[list[bool], list[OperatingPoint | None]]:
    """Which outputs are positive, and the operating points that were picked for it.

    With a sensitivity or specificity each label is decided on its own, against all others, in a
    single-label task too: several or none may then be positive. A label that lacks one of the two
    classes on the validation records has no curve and is decided as without the request.

    Args:
        probability: (K,) float64.
        task: Holds the curves.
        sensitivity: Above 0 and below 1; the highest threshold that reaches it is taken.
        specificity: The same, with the lowest threshold. Not both.

    Raises:
        UsageError: Both are given, one is out of range, or no label of the task can reach it.
    """
    decided = positives(probability, task).tolist()
    points: list[OperatingPoint | None] = [None] * len(decided)
    if sensitivity is None and specificity is None:
        return decided, points
    points = _operating_points(task, sensitivity, specificity)
    for row, point in enumerate(points):
        if point is not None:
            decided[row] = bool(probability[row] >= point.threshold)
    return decided, points


def findings(
    probability: npt.NDArray[np.float64],
    task: TaskSpec,
    sensitivity: float | None = None,
    specificity: float | None = None,
) -> tuple[Finding, ...]:
    """One finding for each of the K outputs, in order; arguments and errors as in `decide`."""
    decided, points = decide(probability, task, sensitivity, specificity)
    columns = (task.outputs, probability.tolist(), decided, points)
    return tuple(Finding(*item) for item in zip(*columns, strict=True))


def check_operating_request(
    task: TaskSpec, sensitivity: float | None, specificity: float | None
) -> None:
    """Refuse a request that `decide` would refuse, before an image is decoded.

    Raises:
        UsageError: As in `decide`.
    """
    if sensitivity is not None or specificity is not None:
        _operating_points(task, sensitivity, specificity)


def _operating_points(
    task: TaskSpec, sensitivity: float | None, specificity: float | None
) -> list[OperatingPoint | None]:
    if sensitivity is not None and specificity is not None:
        raise UsageError("give either a sensitivity or a specificity, not both")
    name = "specificity" if sensitivity is None else "sensitivity"
    wanted = check_share(specificity if sensitivity is None else sensitivity, name)
    if not task.operating_curves:
        raise UsageError(
            f"{name} {wanted:g} given, but task {task.name!r} of this bundle has no operating "
            "curves; fit them with `umd-edge-export trust` on labelled records"
        )
    points: list[OperatingPoint | None] = []
    for label in task.outputs:
        curve = task.operating_curves.get(label)
        if curve is None:
            points.append(None)
        elif sensitivity is not None:
            points.append(curve.at_sensitivity(wanted))
        else:
            points.append(curve.at_specificity(wanted))
    known = [point for point in points if point is not None]
    if not any(point.reached for point in known):
        best = max(getattr(point, name) for point in known)
        raise UsageError(
            f"{name} {wanted:g} given; task {task.name!r} can promise {best:.3f} at most, from "
            f"{max(p.n_positive for p in known)} positive and "
            f"{max(p.n_negative for p in known)} negative validation records of a label"
        )
    return points


def check_coverage(task: TaskSpec, coverage: float | None) -> None:
    """Refuse a coverage that `prediction_set` would refuse, before an image is decoded.

    Raises:
        UsageError: It is out of range, or the task has no conformal thresholds.
    """
    if coverage is None:
        return
    check_share(coverage, "coverage")
    if task.conformal is None:
        raise UsageError(
            f"coverage {coverage:g} given, but task {task.name!r} of this bundle has no conformal "
            "thresholds; fit them with `umd-edge-export trust` on labelled records"
        )


def prediction_set(
    logits: npt.NDArray[np.float32], task: TaskSpec, coverage: float
) -> PredictionSet:
    """Outputs that cannot be excluded at a coverage.

    Args:
        logits: (K,) float32.
        task: Holds the scaling and the conformal thresholds.
        coverage: Above 0 and below 1.

    Raises:
        UsageError: As in `check_coverage`.
    """
    check_coverage(task, coverage)
    assert task.conformal is not None
    other = None if task.other is None else float(other_share(logits, task))
    return task.conformal.prediction_set(
        probabilities(logits, task), task.outputs, coverage, other=other
    )
