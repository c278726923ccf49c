"""From logits to probabilities that mean what they say: which scaling, and its numbers.

The simplest scaling that lowers the negative log-likelihood of patients it was not fitted on:

* `identity`: the logits as they are.
* `temperature`: one divisor (Guo et al. 2017).
* `vector`: a factor and a shift for each label besides (Platt 1999 for a sigmoid), drawn towards
  the temperature alone, so that a label with two positive records does not explode.
* `answers` (questions): a temperature, a share for answers that the task does not list, and a last
  sigmoid of the confidence. An answer outside the vocabulary makes the model wrong however certain
  its softmax is, which no temperature can express.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from umd_edge._postprocess import probabilities
from umd_edge._task import TaskSpec

from .trust_minimise import minimise
from .trust_records import TaskRecords, split_groups

__all__ = [
    "ScalingKind",
    "Selection",
    "cross_fit",
    "fit_scaling",
    "losses",
    "right_answers",
    "select_scaling",
]

Float64Array = npt.NDArray[np.float64]
ScalingKind = Literal["identity", "temperature", "vector", "answers"]

MIN_RECORDS = 20
FOLDS = 10
_INNER_FOLDS = 5
_LEAST = 1e-12
# Widths of the normal priors: how far a label may leave the common temperature.
_WIDTH_SCALE, _WIDTH_BIAS = 0.25, 0.5
_WIDTH_TEMPERATURE = 2.0
# Labels of one record err together, so a sigmoid task has less to tell than its cells suggest.
_WIDTH_SIGMOID_TEMPERATURE = 0.2
_OTHER_MEAN, _OTHER_WIDTH = -4.0, 4.0
_KNOTS = np.linspace(np.log(0.3), np.log(8.0), 33)


def right_answers(probability: npt.NDArray[Any], targets: Float64Array) -> Float64Array:
    """(N,) 1 where the most probable output is right."""
    right: Float64Array = targets[np.arange(len(targets)), probability.argmax(axis=1)]
    return right


def losses(
    task: TaskSpec, probability: Float64Array, targets: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Negative log-likelihood and Brier score (N,) of each record; NaN where nothing is known.

    Single-label: of the right label, and summed over the labels. Multi-label: means over the known
    labels. Questions: of the event that the most probable answer is right.
    """
    if task.kind == "vqa":
        certain = probability.max(axis=1)
        right = right_answers(probability, targets)
        return _log_loss(certain, right), (certain - right) ** 2
    if not task.multi_label:
        return (
            -np.log(np.maximum((probability * targets).sum(axis=1), _LEAST)),
            ((probability - targets) ** 2).sum(axis=1),
        )
    known = np.isfinite(targets)
    filled = np.where(known, targets, 0.0)
    count = known.sum(axis=1)
    cells = np.where(known, _log_loss(probability, filled), 0.0).sum(axis=1)
    squares = np.where(known, (probability - filled) ** 2, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return cells / count, squares / count


def _log_loss(probability: Float64Array, right: Float64Array) -> Float64Array:
    p = np.clip(probability, _LEAST, 1 - _LEAST)
    return -(right * np.log(p) + (1 - right) * np.log1p(-p))


def _mean(values: Float64Array) -> float:
    return float(np.nanmean(values))


def _round(value: float) -> float:
    # Six digits: what is fitted does not depend on the last bits of this machine.
    return float(f"{value:.6g}")


def _temperature(records: TaskRecords) -> TaskSpec:
    task = records.task
    if task.kind == "vqa":
        found = minimise(lambda t: _confidence_loss(records, t[0], None, 0.0, 0.0), [0.0])
    else:
        logits = records.logits.astype(np.float64)
        sigmoid = task.probability_kind == "sigmoid"
        width = _WIDTH_SIGMOID_TEMPERATURE if sigmoid else _WIDTH_TEMPERATURE

        def loss(parameters: Float64Array) -> float:
            value = _mean_loss(task, logits * np.exp(-parameters[0]), records.targets)
            return value + _prior(parameters, width) / len(records)

        found = minimise(loss, [0.0])
    return replace(task, temperature=_round(float(np.exp(found[0]))))


def _vector(records: TaskRecords) -> TaskSpec:
    base = _temperature(records)
    logits = records.logits.astype(np.float64) / base.temperature
    if base.multi_label:
        # Each label on its own.
        columns = [
            _affine(base, logits[:, [row]], records.targets[:, [row]])
            for row in range(len(base.outputs))
        ]
        scale, bias = (
            np.concatenate([c[0] for c in columns]),
            np.concatenate([c[1] for c in columns]),
        )
    else:
        scale, bias = _affine(base, logits, records.targets)
    return replace(
        base,
        scale=tuple(_round(value) for value in scale.tolist()),
        bias=tuple(_round(value) for value in bias.tolist()),
    )


def _affine(
    task: TaskSpec, logits: Float64Array, targets: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Scale and bias (K,) for logits (N, K)."""
    count = logits.shape[1]

    def loss(parameters: Float64Array) -> float:
        scale, bias = np.exp(parameters[:count]), parameters[count:]
        value = _mean_loss(task, logits * scale + bias, targets)
        prior = _prior(parameters[:count], _WIDTH_SCALE) + _prior(bias, _WIDTH_BIAS)
        return value + prior / len(logits)

    found = minimise(loss, np.zeros(2 * count))
    return np.exp(found[:count]), found[count:]


def _prior(parameters: Float64Array, width: float) -> float:
    return 0.5 * float(((parameters / width) ** 2).sum())


def _mean_loss(task: TaskSpec, scaled: Float64Array, targets: Float64Array) -> float:
    """Mean negative log-likelihood of scaled logits, without the checks of a whole task."""
    if task.probability_kind == "sigmoid":
        known = np.isfinite(targets)
        signed = np.where(targets == 1, -scaled, scaled)[known]
        return float(np.logaddexp(0.0, signed).mean()) if known.any() else 0.0
    highest = scaled.max(axis=1)
    total = highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1))
    return float((total - (scaled * targets).sum(axis=1)).mean())


def with_sums(records: TaskRecords) -> TaskRecords:
    """The records with what their confidences need; for questions.

    The highest logit, whether it is right, and log sum of exp(z - z_top) at each of `_KNOTS`. Sums
    over a long vocabulary are what a fit costs, so they come once for all folds.
    """
    if records.task.kind != "vqa" or records.sums is not None:
        return records
    logits = records.logits.astype(np.float64)
    top = logits.max(axis=1)
    below = logits - top[:, None]
    sums = [np.log(np.exp(below * np.exp(-knot)).sum(axis=1)) for knot in _KNOTS]
    columns = [top, right_answers(logits, records.targets), *sums]
    return replace(records, sums=np.stack(columns, axis=1))


def _confidence_loss(
    records: TaskRecords, log_temperature: float, other: float | None, log_a: float, b: float
) -> float:
    """Mean negative log-likelihood of the best answer being right, with the priors."""
    assert records.sums is not None
    top, right, sums = records.sums[:, 0], records.sums[:, 1], records.sums[:, 2:]
    step = float(_KNOTS[1] - _KNOTS[0])
    place = (float(np.clip(log_temperature, _KNOTS[0], _KNOTS[-1])) - float(_KNOTS[0])) / step
    row = min(int(place), len(_KNOTS) - 2)
    total = (row + 1 - place) * sums[:, row] + (place - row) * sums[:, row + 1]
    if other is not None:
        total = np.logaddexp(total, other - top * np.exp(-log_temperature))
    # ln(p / (1 - p)) of p = exp(-total)
    odds = -total - np.log(-np.expm1(-np.maximum(total, _LEAST)))
    logit = np.exp(log_a) * odds + b
    value = np.logaddexp(0.0, np.where(right > 0, -logit, logit)).mean()
    prior = (log_temperature / _WIDTH_TEMPERATURE) ** 2 + (log_a / _WIDTH_SCALE) ** 2
    prior += (b / _WIDTH_BIAS) ** 2
    if other is not None:
        prior += ((other - _OTHER_MEAN) / _OTHER_WIDTH) ** 2
    return float(value + 0.5 * prior / len(top))


def _answers(records: TaskRecords) -> TaskSpec:
    def loss(parameters: Float64Array) -> float:
        temperature, other, log_a, b = parameters.tolist()
        return _confidence_loss(records, temperature, other, log_a, b)

    found = minimise(loss, [0.0, _OTHER_MEAN, 0.0, 0.0]).tolist()
    return replace(
        records.task,
        temperature=_round(float(np.exp(found[0]))),
        other=_round(found[1]),
        platt=(_round(float(np.exp(found[2]))), _round(found[3])),
    )


_FITS: dict[ScalingKind, Callable[[TaskRecords], TaskSpec]] = {
    "identity": lambda records: records.task,
    "temperature": _temperature,
    "vector": _vector,
    "answers": _answers,
}


def scaling_kinds(task: TaskSpec) -> tuple[ScalingKind, ...]:
    """What can be chosen, the simplest first."""
    return ("identity", "temperature", "answers" if task.kind == "vqa" else "vector")


def fit_scaling(records: TaskRecords, kind: ScalingKind) -> TaskSpec:
    """The task with a scaling of one kind, fitted on all records."""
    return _FITS[kind](with_sums(records))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which scaling was chosen, and what each reached on patients it was not fitted on."""

    kind: ScalingKind
    nll: dict[str, float]
    brier: dict[str, float]


def select_scaling(records: TaskRecords, folds: int = FOLDS) -> Selection:
    """Choose the scaling by patient-wise cross-fitting.

    A temperature, and then a richer scaling, is taken where it lowers the mean negative
    log-likelihood by more than one standard error over patients; neither may raise the Brier score
    by more than its standard error. Logits that mean what they say are left as they are.
    """
    records = with_sums(records)
    kinds = scaling_kinds(records.task)
    if len(records) < MIN_RECORDS or len(set(records.groups)) < 2 * _INNER_FOLDS:
        kinds = ("identity",)
    nll = {kind: np.full(len(records), np.nan) for kind in kinds}
    brier = {kind: np.full(len(records), np.nan) for kind in kinds}
    for rest, part in split_groups(records.groups, folds, np.random.default_rng(0)):
        fitted_on, judged = records.take(rest), records.take(part)
        for kind in kinds:
            scaled = fit_scaling(fitted_on, kind)
            pair = losses(scaled, probabilities(judged.logits, scaled), judged.targets)
            nll[kind][part], brier[kind][part] = pair
    chosen: ScalingKind = "identity"
    for kind in kinds[1:]:
        gain, error = _gain(nll[chosen] - nll[kind], records.groups)
        squares, squares_error = _gain(brier[chosen] - brier[kind], records.groups)
        if gain > error and squares > -squares_error:
            chosen = kind
    return Selection(
        chosen,
        {kind: _mean(values) for kind, values in nll.items()},
        {kind: _mean(values) for kind, values in brier.items()},
    )


def _gain(difference: Float64Array, groups: Sequence[str]) -> tuple[float, float]:
    """Mean of the differences, and its standard error over groups."""
    known = np.isfinite(difference)
    _, index = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    mean = float(difference[known].mean())
    sums = np.bincount(index[known], difference[known] - mean)
    return mean, float(np.sqrt((sums**2).sum()) / known.sum())


def cross_fit(records: TaskRecords) -> tuple[Float64Array, list[ScalingKind]]:
    """Probabilities (N, K) of records that neither chose nor fitted their own scaling.

    Returns:
        The probabilities, and what was chosen in each fold.
    """
    records = with_sums(records)
    result = np.empty(records.logits.shape)
    chosen = []
    for rest, part in split_groups(records.groups, FOLDS, np.random.default_rng(1)):
        fitted_on = records.take(rest)
        kind = select_scaling(fitted_on, _INNER_FOLDS).kind
        chosen.append(kind)
        result[part] = probabilities(records.logits[part], fit_scaling(fitted_on, kind))
    return result, chosen
