"""Whether the fitted answers can be trusted: judged on patients that were left out of the fit.

Everything is resampled or split by patient. What is shown: scores and calibration before and after
the scaling, against what perfect calibration gives by chance with as many records; coverage of the
prediction sets over repeated splits; and whether the confidence puts wrong answers last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from umd_edge._evaluation import Resamples
from umd_edge._postprocess import other_share, probabilities
from umd_edge._task import TaskSpec
from umd_edge._trust_sets import ConformalThresholds

from .trust import FittedTask
from .trust_decisions import conformal_spec, record_risks
from .trust_records import TaskRecords
from .trust_scaling import cross_fit, fit_scaling, losses, right_answers

__all__ = ["NOMINAL", "Proof", "prove_task"]

Float64Array = npt.NDArray[np.float64]

SPLITS = 200
NOMINAL = (0.8, 0.9, 0.95)
SIMULATIONS = 1000
CURVE_POINTS = 100
_FIT_SHARE = 2 / 3
RELIABILITY_BINS = 10
_PER_BIN = 12


@dataclass(frozen=True, slots=True)
class Proof:
    """Figures of one task, and the curves of its pictures."""

    figures: dict[str, Any]
    reliability: Mapping[str, list[tuple[float, float, int]]] = field(repr=False)
    """`before` and `after` -> (mean probability, share right, count) of bins of equal count."""
    coverages: Mapping[float, list[float]] = field(repr=False)
    """Nominal -> coverage of each split."""
    risk: list[tuple[float, float]] = field(repr=False)
    """(share answered, risk)."""


def _cells(
    task: TaskSpec, probability: Float64Array, targets: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """What calibration is about, one each: a probability, and whether it came true."""
    if task.multi_label:
        known = np.isfinite(targets)
        return probability[known], targets[known]
    return probability.max(axis=1), right_answers(probability, targets)


def calibration_error(certain: Float64Array, right: Float64Array, bins: int = 15) -> float:
    """Expected calibration error, in the bins of `umd-edge evaluate`."""
    place = np.minimum((certain * bins).astype(int), bins - 1)
    gaps = np.bincount(place, certain - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(certain))


def perfect_error(certain: Float64Array, quantile: float = 0.95) -> float:
    """Quantile of the calibration error if every probability were exactly right.

    As many records, with the probabilities that were given: what is wrong with them is chance.
    """
    rng = np.random.default_rng(0)
    drawn = [
        calibration_error(certain, (rng.random(len(certain)) < certain).astype(float))
        for _ in range(SIMULATIONS)
    ]
    return float(np.quantile(drawn, quantile))


def _reliability(certain: Float64Array, right: Float64Array) -> list[tuple[float, float, int]]:
    order = np.argsort(certain, kind="stable")
    return [
        (float(certain[part].mean()), float(right[part].mean()), len(part))
        for part in np.array_split(order, max(1, min(RELIABILITY_BINS, len(order) // _PER_BIN)))
    ]


def _covered(task: TaskSpec, records: TaskRecords, nominal: float) -> Float64Array:
    """Whether each record's (multi-label: each known cell's) right output is in its set."""
    spec = task.conformal
    assert spec is not None
    row = spec.coverages.index(nominal)
    probability, targets = probabilities(records.logits, task), records.targets

    def inside(thresholds: ConformalThresholds, share: Float64Array) -> Float64Array:
        limit = thresholds.thresholds[row]
        return np.ones(len(share)) if limit is None else (share >= limit).astype(np.float64)

    if spec.any_output is None:
        parts = []
        for column, label in enumerate(task.outputs):
            p, y = probability[:, column], targets[:, column]
            parts.append(inside(spec.labels[label]["present"], p[y == 1]))
            parts.append(inside(spec.labels[label]["absent"], 1.0 - p[y == 0]))
        return np.concatenate(parts)
    best = np.where(targets == 1, probability, 0.0).max(axis=1)
    covered = inside(spec.any_output, best)
    unlisted = ~(targets == 1).any(axis=1)
    if spec.other is not None and unlisted.any():
        covered[unlisted] = inside(spec.other, other_share(records.logits[unlisted], task))
    return covered


def _set_size(task: TaskSpec, records: TaskRecords, nominal: float) -> float:
    """Mean number of outputs in a set (multi-label: of states for each label)."""
    assert task.conformal is not None
    probability = probabilities(records.logits, task)
    row = task.conformal.coverages.index(nominal)
    if task.conformal.any_output is not None:
        limit = task.conformal.any_output.thresholds[row]
        return float((probability >= (0.0 if limit is None else limit)).sum(axis=1).mean())
    sizes = []
    for column, label in enumerate(task.outputs):
        for state, share in (
            ("present", probability[:, column]),
            ("absent", 1 - probability[:, column]),
        ):
            limit = task.conformal.labels[label][state].thresholds[row]  # type: ignore[index]
            sizes.append((share >= (0.0 if limit is None else limit)).mean())
    return float(np.sum(sizes) / len(task.outputs))


def _resplit(
    records: TaskRecords, fitted: FittedTask, progress: Callable[[int, int], None]
) -> tuple[dict[float, list[float]], dict[float, list[float]]]:
    """Coverage and set size of each split: two thirds of the patients fit, the others judge."""
    names, index = np.unique(np.asarray(records.groups, dtype=np.str_), return_inverse=True)
    rng = np.random.default_rng(2)
    covered: dict[float, list[float]] = {nominal: [] for nominal in NOMINAL}
    sizes: dict[float, list[float]] = {nominal: [] for nominal in NOMINAL}
    for split in range(SPLITS):
        fits = (rng.permutation(len(names)) < round(len(names) * _FIT_SHARE))[index]
        fit, judge = records.take(np.flatnonzero(fits)), records.take(np.flatnonzero(~fits))
        task = fit_scaling(fit, fitted.selection.kind)
        scaled = probabilities(fit.logits, task)
        task = replace(task, conformal=conformal_spec(task, fit, scaled))
        for nominal in NOMINAL:
            covered[nominal].append(float(_covered(task, judge, nominal).mean()))
            sizes[nominal].append(_set_size(task, judge, nominal))
        progress(split + 1, SPLITS)
    return covered, sizes


def _binomial(nominal: float, n: int) -> tuple[float, float]:
    """Where a coverage of n independent records lies with 95 % where it is nominal."""
    counts = np.random.default_rng(0).binomial(n, nominal, size=20000) / max(n, 1)
    low, high = np.quantile(counts, [0.025, 0.975])
    return float(low), float(high)


def risk_curve(certain: Float64Array, risk: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Share answered and mean risk among those answered, the most certain first."""
    order = np.argsort(-certain, kind="stable")
    count = np.arange(1, len(order) + 1)
    return count / len(order), np.cumsum(risk[order]) / count


def area_below_random(
    certain: Float64Array, risk: Float64Array, groups: tuple[str, ...]
) -> dict[str, float]:
    """Area under the risk-coverage curve, that of random order, and the difference's interval."""
    area = float(risk_curve(certain, risk)[1].mean())
    random = float(risk.mean())
    resamples = Resamples(groups)
    drawn = []
    for counts in resamples.counts[1:]:
        rows = np.repeat(np.arange(len(risk)), counts[resamples.index].astype(int))
        drawn.append(float(risk_curve(certain[rows], risk[rows])[1].mean() - risk[rows].mean()))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "area": area,
        "random": random,
        "difference": area - random,
        "low": float(low),
        "high": float(high),
    }


def prove_task(
    records: TaskRecords,
    fitted: FittedTask,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Proof:
    """Judge the fit of one task on its own records, each left out of what judges it.

    Args:
        records: What the task was fitted on.
        fitted: Gives the kind of scaling for the splits; the cross-fit chooses its own.
        progress: Called with the splits done and all splits.
    """
    task, targets = records.task, records.targets
    before = probabilities(records.logits, task)
    after, kinds = cross_fit(records)
    scores = {}
    for name, probability in (("before", before), ("after", after)):
        nll, brier = losses(task, probability, targets)
        certain, right = _cells(task, probability, targets)
        scores[name] = {
            "nll": float(np.nanmean(nll)),
            "brier": float(np.nanmean(brier)),
            "calibration_error": calibration_error(certain, right),
            "perfect_95": perfect_error(certain),
        }
    pairs = {name: _cells(task, p, targets) for name, p in (("before", before), ("after", after))}
    covered, sizes = _resplit(records, fitted, progress)
    certain, risk = record_risks(task, targets, after)
    share, curve = risk_curve(certain, risk)
    rows = np.unique(np.linspace(0, len(curve) - 1, CURVE_POINTS).astype(int))
    figures = {
        "records": len(records),
        "groups": len(set(records.groups)),
        "scaling": fitted.selection.kind,
        "scaling_of_folds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        **scores,
        "coverage": {
            f"{nominal:g}": {
                "mean": float(np.mean(covered[nominal])),
                "low": float(np.quantile(covered[nominal], 0.025)),
                "high": float(np.quantile(covered[nominal], 0.975)),
                "binomial": _binomial(nominal, round(len(records) * (1 - _FIT_SHARE))),
                "set_size": float(np.mean(sizes[nominal])),
                "splits": SPLITS,
            }
            for nominal in NOMINAL
        },
        "risk_coverage": area_below_random(certain, risk, records.groups),
        "abstention": _abstention(fitted),
    }
    return Proof(
        figures=figures,
        reliability={name: _reliability(*pair) for name, pair in pairs.items()},
        coverages=covered,
        risk=[(float(share[row]), float(curve[row])) for row in rows],
    )


def _abstention(fitted: FittedTask) -> dict[str, float | None]:
    """What the bundle's own threshold does on the records that it was chosen on."""
    scaled = probabilities(fitted.records.logits, fitted.task)
    certain, risk = record_risks(fitted.task, fitted.records.targets, scaled)
    limit = fitted.task.thresholds.get("abstain")
    below = certain < (0.0 if limit is None else limit)
    return {
        "threshold": limit,
        "share": float(below.mean()),
        "risk_all": float(risk.mean()),
        "risk_answered": float(risk[~below].mean()),
        "risk_abstained": float(risk[below].mean()) if below.any() else None,
    }
