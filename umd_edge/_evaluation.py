"""Metrics with patient-wise bootstrap intervals: the one place that computes them, in training too.

No input or output here, only arrays. Definitions:

* A record is right in a single-label task when the arg-max is its label; in a multi-label task each
  known (record, label) cell counts on its own and is positive from the label's operating point on.
* `accuracy`: share of right records (single-label) or of right cells (multi-label).
* `balanced_accuracy`: mean recall of the classes present; multi-label: mean over labels with both
  classes known of (sensitivity + specificity) / 2.
* `macro_f1`: mean F1 of the labels that occur in the targets.
* `auroc_<label>`: one label against the rest, ties count half; `macro_auroc`: mean over the labels
  for which it is defined.
* `brier`: squared error, summed over the classes of a record (single-label, 0..2) or averaged over
  cells (multi-label, 0..1). `ece`: 15 equal bins of the confidence of the arg-max, or of each cell.
* VQA: an answer is right when its normal form is among those of the reference; `brier` and `ece`
  are those of the top answer's probability.

Intervals are the 2.5 % and 97.5 % quantiles over 1,000 resamples of whole groups (patients) with
seed 0. A resample in which a metric is undefined is left out of that metric's interval. A metric
that is undefined on the data itself is null, and so is an interval from fewer than two groups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ._answers import normalise_answer
from ._records import VQAReference
from .errors import DataError

__all__ = ["MetricValue", "Resamples", "evaluate_classification", "evaluate_vqa", "is_right"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

RESAMPLES = 1000
ECE_BINS = 15
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A metric, its 95 % interval and the number of records behind it."""

    value: float | None
    """None where the metric is undefined (for instance an AUROC with one class)."""
    low: float | None
    high: float | None
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """The JSON object `{"value", "low", "high", "n"}`."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


class Resamples:
    """How often each group stands in the data (row 0) and in each bootstrap resample (the rest)."""

    def __init__(self, groups: Sequence[str]) -> None:
        names, self.index = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
        self.n_groups = len(names)
        # Sorted group names and a fixed seed: the order of the records does not matter.
        draws = np.random.default_rng(0).integers(
            0, max(self.n_groups, 1), size=(RESAMPLES, self.n_groups)
        )
        draws += np.arange(RESAMPLES)[:, None] * self.n_groups
        counts = np.bincount(draws.ravel(), minlength=RESAMPLES * self.n_groups)
        drawn = counts.reshape(RESAMPLES, self.n_groups).astype(np.float64)
        self.counts: FloatArray = np.vstack([np.ones((1, self.n_groups)), drawn])

    def sums(self, columns: npt.ArrayLike) -> FloatArray:
        """Column sums, (N, M) -> (1 + resamples, M)."""
        values = np.asarray(columns, dtype=np.float64)
        by_group = np.zeros((self.n_groups, values.shape[1]))
        np.add.at(by_group, self.index, values)
        result: FloatArray = self.counts @ by_group
        return result

    def mean(self, values: npt.ArrayLike, where: npt.ArrayLike) -> FloatArray:
        """Mean of `values` (N,) over the records `where` (N,) -> (1 + resamples,)."""
        weight = np.asarray(where, dtype=np.float64)
        total = self.sums(np.stack([np.asarray(values, dtype=np.float64) * weight, weight], axis=1))
        return _divide(total[:, 0], total[:, 1])

    def auroc(self, scores: FloatArray, positive: BoolArray, known: BoolArray) -> FloatArray:
        """Area under the ROC curve of the known records -> (1 + resamples,)."""
        rows = np.flatnonzero(known)
        result = np.full(len(self.counts), np.nan)
        if rows.size == 0:
            return result
        rows = rows[np.argsort(scores[rows], kind="stable")]
        ordered = scores[rows]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        is_positive = positive[rows].astype(np.float64)
        group = self.index[rows]
        step = max(1, _CHUNK_CELLS // rows.size)
        for first in range(0, len(result), step):
            weight = self.counts[first : first + step][:, group]
            # Weight of positives and negatives at each distinct score
            up = np.add.reduceat(weight * is_positive, starts, axis=1)
            down = np.add.reduceat(weight * (1.0 - is_positive), starts, axis=1)
            below = np.cumsum(down, axis=1) - down
            won = (up * (below + 0.5 * down)).sum(axis=1)
            result[first : first + step] = _divide(won, up.sum(axis=1) * down.sum(axis=1))
        return result

    def ece(self, confidence: FloatArray, right: npt.ArrayLike, where: BoolArray) -> FloatArray:
        """Expected calibration error over (N, M) cells -> (1 + resamples,)."""
        bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
        gap = np.where(where, confidence - np.asarray(right, dtype=np.float64), 0.0)
        columns = [np.where(bins == b, gap, 0.0).sum(axis=1) for b in range(ECE_BINS)]
        total = self.sums(np.stack([*columns, where.sum(axis=1)], axis=1))
        return _divide(np.abs(total[:, :-1]).sum(axis=1), total[:, -1])

    def metric(self, values: FloatArray, n: int) -> MetricValue:
        """Point value (row 0) and interval (the other rows)."""
        if not np.isfinite(values[0]):
            return MetricValue(None, None, None, n)
        drawn = values[1:][np.isfinite(values[1:])]
        if self.n_groups < 2 or drawn.size == 0:
            return MetricValue(float(values[0]), None, None, n)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return MetricValue(float(values[0]), float(low), float(high), n)


def _divide(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """Quotient, NaN where `bottom` is 0."""
    filled = np.full(np.broadcast(top, bottom).shape, np.nan)
    np.divide(top, bottom, out=filled, where=bottom != 0)
    return filled


def _mean_defined(values: FloatArray) -> FloatArray:
    """Mean over axis 1 of the entries that are not NaN; NaN where there is none."""
    defined = np.isfinite(values)
    return _divide(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(float))


def _check_rows(expected: int, **columns: Sequence[object] | npt.NDArray[np.float64]) -> None:
    for name, column in columns.items():
        if len(column) != expected:
            raise DataError(
                f"{name} has {len(column)} rows, the predictions {expected}; one for each is needed"
            )


def evaluate_classification(
    *,
    probabilities: npt.ArrayLike,
    targets: npt.ArrayLike,
    groups: Sequence[str],
    labels: Sequence[str],
    multi_label: bool,
    operating_points: Mapping[str, float],
) -> dict[str, MetricValue]:
    """Metrics of a classification task.

    Args:
        probabilities: (N, K) float, 0..1.
        targets: (N, K) float, 1 or 0; NaN where the label is unknown, which is left out. A
            single-label row holds exactly one 1, or no 1 and a NaN when its label is unknown.
        groups: N group names (patients): the unit of resampling.
        labels: K names in the order of the columns.
        multi_label: Whether each label is decided on its own.
        operating_points: Label -> probability from which it is positive (multi-label; 0.5 where
            absent).

    Returns:
        Metric name -> value, in a fixed order.

    Raises:
        DataError: Shapes differ, a probability is not in 0..1, or a single-label row does not have
            exactly one label.
    """
    p = np.asarray(probabilities, dtype=np.float64).reshape(-1, len(labels))
    y = np.asarray(targets, dtype=np.float64).reshape(-1, len(labels))
    _check_rows(len(p), targets=y, groups=groups)
    if not np.all((p >= 0) & (p <= 1)):
        raise DataError("a probability is not finite or not in 0..1; check the model's outputs")
    known = np.isfinite(y)
    if not multi_label:
        ones = np.sum(y == 1, axis=1)
        one = ones == 1
        if np.any(~one & known.all(axis=1)) or np.any(ones > 1):
            raise DataError("a single-label record needs exactly one label that is 1")
        known = np.repeat(one[:, None], len(labels), axis=1)
    resamples = Resamples(groups)
    positive = known & (y == 1)
    if multi_label:
        limits = np.asarray([operating_points.get(label, 0.5) for label in labels])
        metrics = _multi_label(resamples, p, positive, known, p >= limits)
    else:
        metrics = _single_label(resamples, p, positive, known)
    return metrics | _aurocs(resamples, p, positive, known, labels)


def _aurocs(
    resamples: Resamples,
    p: FloatArray,
    positive: BoolArray,
    known: BoolArray,
    labels: Sequence[str],
) -> dict[str, MetricValue]:
    areas = [resamples.auroc(p[:, k], positive[:, k], known[:, k]) for k in range(len(labels))]
    n = int(known.any(axis=1).sum())
    metrics = {"macro_auroc": resamples.metric(_mean_defined(np.stack(areas, axis=1)), n)}
    for k, (label, area) in enumerate(zip(labels, areas, strict=True)):
        metrics[f"auroc_{label}"] = resamples.metric(area, int(known[:, k].sum()))
    return metrics


def _f1(hits: FloatArray, called: FloatArray, actual: FloatArray) -> FloatArray:
    """Mean F1 of the labels that occur, from (R, K) weights."""
    f1 = _divide(2 * hits, called + actual)
    return _mean_defined(np.where(actual > 0, f1, np.nan))


def _single_label(
    resamples: Resamples, p: FloatArray, positive: BoolArray, known: BoolArray
) -> dict[str, MetricValue]:
    usable = known[:, 0]
    n = int(usable.sum())
    called = np.zeros_like(positive)
    called[np.arange(len(p)), p.argmax(axis=1)] = True
    called &= known
    hits = resamples.sums(called & positive)
    actual = resamples.sums(positive)
    right: BoolArray = np.asarray((called & positive).any(axis=1))
    error = ((p - positive) ** 2).sum(axis=1)
    top = p.max(axis=1)[:, None]
    values = {
        "accuracy": resamples.mean(right, usable),
        "balanced_accuracy": _mean_defined(_divide(hits, actual)),
        "macro_f1": _f1(hits, resamples.sums(called), actual),
        "brier": resamples.mean(error, usable),
        "ece": resamples.ece(top, right[:, None], usable[:, None]),
    }
    return {name: resamples.metric(value, n) for name, value in values.items()}


def _multi_label(
    resamples: Resamples, p: FloatArray, positive: BoolArray, known: BoolArray, called: BoolArray
) -> dict[str, MetricValue]:
    called = called & known
    n = int(known.any(axis=1).sum())
    hits = resamples.sums(called & positive)
    actual = resamples.sums(positive)
    negatives = resamples.sums(known & ~positive)
    refused = resamples.sums(known & ~positive & ~called)
    cells = actual + negatives
    wrong_square = resamples.sums(np.where(known, (p - positive) ** 2, 0.0))
    values = {
        "accuracy": _divide((hits + refused).sum(axis=1), cells.sum(axis=1)),
        "balanced_accuracy": _mean_defined(
            (_divide(hits, actual) + _divide(refused, negatives)) / 2
        ),
        "macro_f1": _f1(hits, resamples.sums(called), actual),
        "brier": _divide(wrong_square.sum(axis=1), cells.sum(axis=1)),
        "ece": resamples.ece(p, positive, known),
    }
    return {name: resamples.metric(value, n) for name, value in values.items()}


def is_right(prediction: str, reference: VQAReference) -> bool:
    """Whether the normal form of the prediction is among those of the reference's answers."""
    return normalise_answer(prediction) in {normalise_answer(a) for a in reference.answers}


def _slug(question_type: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", question_type.lower()).strip("_")


def evaluate_vqa(
    *,
    predictions: Sequence[str],
    confidences: npt.ArrayLike,
    references: Sequence[VQAReference],
    groups: Sequence[str],
) -> dict[str, MetricValue]:
    """Metrics of a VQA task.

    Args:
        predictions: N answers.
        confidences: (N,) float, probability of each answer, 0..1.
        references: N references; their types are used for reporting only.
        groups: N group names (patients): the unit of resampling.

    Returns:
        Metric name -> value. `accuracy_<question type>` is there for each type that occurs, and
        `accuracy_excluding_abnormality` when the type `abnormality` does.

    Raises:
        DataError: Lengths differ or a confidence is not in 0..1.
    """
    confidence = np.asarray(confidences, dtype=np.float64).reshape(-1)
    _check_rows(len(predictions), confidences=confidence, references=references, groups=groups)
    if not np.all((confidence >= 0) & (confidence <= 1)):
        raise DataError("a confidence is not finite or not in 0..1; check the model's outputs")
    pairs = zip(predictions, references, strict=True)
    right = np.asarray([is_right(*pair) for pair in pairs], dtype=np.bool_)
    everything = np.ones(len(predictions), dtype=np.bool_)
    kinds = np.asarray([(r.answer_type or "").upper() for r in references], dtype=np.str_)
    types = np.asarray([_slug(r.question_type or "") for r in references], dtype=np.str_)
    subsets = {
        "accuracy": everything,
        "closed_accuracy": kinds == "CLOSED",
        "open_accuracy": kinds == "OPEN",
    }
    names = sorted(set(types.tolist()) - {""})
    subsets |= {f"accuracy_{name}": types == name for name in names}
    if "abnormality" in names:
        subsets["accuracy_excluding_abnormality"] = types != "abnormality"
    resamples = Resamples(groups)
    metrics = {
        name: resamples.metric(resamples.mean(right, subset), int(subset.sum()))
        for name, subset in subsets.items()
    }
    n = len(predictions)
    metrics["brier"] = resamples.metric(resamples.mean((confidence - right) ** 2, everything), n)
    ece = resamples.ece(confidence[:, None], right[:, None], everything[:, None])
    return metrics | {"ece": resamples.metric(ece, n)}
