"""A site's acceptance test: what a bundle does on the site's own records, on one page.

`site_report` computes, `_site_report_page` draws. The report holds counts and figures; records are
named only where that was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ._answers import normalise_answer
from ._evaluate import EvaluatedRecords, Evaluation
from ._evaluation import MetricValue
from ._records import VQAReference
from ._site_report_figures import (
    CalibrationBin,
    Decisions,
    RiskCoverage,
    SetCoverage,
    decisions,
    reliability,
    risk_coverage,
    roc_curve,
    set_coverage,
    wilson,
)
from ._site_report_groups import TOLD_PATIENTS, Subgroup, check_fields, subgroups
from ._site_report_outcomes import Outcomes, outcomes
from ._site_report_rules import AcceptanceRule, Verdict, judge
from ._task import TaskSpec
from .errors import UsageError

__all__ = ["Confusion", "Roc", "SiteReport", "WrongRecord", "site_report"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

_MOST_WRONG = 200
_STATUSES = ("ok", "abstain", "out_of_distribution", "outside_intended_use")


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of records by truth (rows) and by what the model said (columns)."""

    what: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Roc:
    """The curve of one label against the rest, and where it is decided."""

    decisions: Decisions
    curve: tuple[FloatArray, FloatArray]
    """1 - specificity and sensitivity."""
    area: MetricValue | None


@dataclass(frozen=True, slots=True)
class WrongRecord:
    """A record that was not right, named because that was asked for."""

    id: str
    truth: str
    said: str
    confidence: float
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """Everything that the page shows."""

    evaluation: Evaluation
    task: TaskSpec
    made: str
    """UTC to the second."""
    data_name: str
    data_sha256: str
    patients: int
    statuses: Mapping[str, int]
    right: Mapping[str, float | None]
    """Status -> mean share that is right among its records; None where there are none."""
    metrics: Mapping[str, MetricValue]
    """Those of the evaluation and `aurc`, `abstained`, `set_coverage_<percent>` and the like."""
    verdicts: tuple[Verdict, ...]
    calibration: Sequence[CalibrationBin]
    risk: RiskCoverage | None
    sets: Sequence[SetCoverage]
    confusion: Confusion | None
    decisions: Sequence[Decisions]
    rocs: Sequence[Roc]
    groups: Sequence[Subgroup]
    wrong: Sequence[WrongRecord] | None = field(default=None, repr=False)
    """None unless asked for."""

    @property
    def accepted(self) -> bool | None:
        """Whether every rule is met; None where there is none."""
        return all(verdict.passed for verdict in self.verdicts) if self.verdicts else None

    def to_dict(self) -> dict[str, Any]:
        """The keys that the JSON object of `evaluate` has beside those of the evaluation."""
        own = {name: value for name, value in self.metrics.items() if name not in self._basic}
        return {
            "patients": self.patients,
            "statuses": dict(self.statuses),
            "site_metrics": {name: value.to_dict() for name, value in own.items()},
            "acceptance": [verdict.to_dict() for verdict in self.verdicts],
            "accepted": self.accepted,
        }

    @property
    def _basic(self) -> Mapping[str, MetricValue]:
        return self.evaluation.metrics


def site_report(
    evaluation: Evaluation,
    evaluated: EvaluatedRecords,
    data: str | Path,
    *,
    by: Sequence[str] = (),
    rules: Sequence[AcceptanceRule] = (),
    with_ids: bool = False,
) -> SiteReport:
    """Compute the report.

    Args:
        evaluation: From `evaluate_records`.
        evaluated: From the same call.
        data: The file with the records, for its name and hash.
        by: Record paths to group by beside age, sex, view, modality and region.
        rules: What must hold for the bundle to be accepted.
        with_ids: Name the records that were not right.

    Raises:
        UsageError: A field identifies records or is in none of them, or a rule names an unknown
            figure.
    """
    task = evaluated.task
    fields = check_fields(by, task)
    unknown = [name for name in by if all(record.get(name) is None for record in evaluated.records)]
    if unknown:
        raise UsageError(f"no record has a value of {unknown} to group by; see how it is written")
    groups = [example.group for example in evaluated.examples]
    found = outcomes(evaluated)
    usable = np.flatnonzero(found.known.any(axis=1))
    risk = risk_coverage(
        found.confidence[usable], found.risk[usable], [groups[row] for row in usable]
    )
    sets = set_coverage(task, evaluated.logits[usable], found.truth[usable], found.known[usable])
    metrics = {**evaluation.metrics, **_own_metrics(evaluated, risk, sets)}
    groups_found = subgroups(
        task, evaluated.examples, evaluated.records, evaluated.probabilities, fields
    )
    classified = task.kind == "classification"
    decided = decisions(task.outputs, found.said, found.truth, found.known) if classified else []
    return SiteReport(
        evaluation=evaluation,
        task=task,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        data_name=Path(data).name,
        data_sha256=hashlib.sha256(Path(data).read_bytes()).hexdigest(),
        patients=len(set(groups)),
        statuses={name: evaluated.statuses.count(name) for name in _STATUSES},
        right={name: found.right_share(evaluated.statuses, name) for name in _STATUSES},
        metrics=metrics,
        verdicts=judge(rules, {**metrics, **_group_metrics(groups_found)}),
        calibration=_calibration(task, evaluated.probabilities, found),
        risk=risk,
        sets=sets,
        confusion=_confusion(evaluated, found),
        decisions=decided,
        rocs=_rocs(evaluated, decided, found, evaluation.metrics),
        groups=groups_found,
        wrong=_wrong(evaluated, found) if with_ids else None,
    )


def _group_metrics(groups: Sequence[Subgroup]) -> dict[str, MetricValue]:
    """Figures of the subgroups as a rule names them: `accuracy[sex=F]`."""
    none = MetricValue(None, None, None, 0)
    return {
        f"{name}[{item.field}={item.value}]": none if item.patients < TOLD_PATIENTS else value
        for item in groups
        for name, value in item.metrics.items()
    }


def _calibration(
    task: TaskSpec, probabilities: FloatArray, found: Outcomes
) -> list[CalibrationBin]:
    if task.multi_label:
        return reliability(probabilities[found.known], found.truth[found.known])
    usable = np.flatnonzero(found.known.any(axis=1))
    right = np.asarray((found.said & found.truth).any(axis=1))
    return reliability(probabilities[usable].max(axis=1), right[usable])


def _own_metrics(
    evaluated: EvaluatedRecords, risk: RiskCoverage | None, sets: Sequence[SetCoverage]
) -> dict[str, MetricValue]:
    """Figures that the evaluation itself does not have, so that a rule may name them."""
    n = len(evaluated.statuses)
    found = {} if risk is None else {"aurc": risk.area}
    states = {"abstained": "abstain", "out_of_distribution": "out_of_distribution"}
    states["outside_intended_use"] = "outside_intended_use"
    for name, state in states.items():
        count = evaluated.statuses.count(state)
        found[name] = MetricValue(count / n, *wilson(count, n), n)
    for item in sets:
        if ":" not in item.what:
            kind = "" if item.what == "all" else f"{item.what}_"
            low, high = item.interval
            value = MetricValue(item.share, low, high, item.n)
            none = MetricValue(None, None, None, 0)
            percent = f"{100 * item.nominal:g}"
            found[f"set_coverage_{kind}{percent}"] = value if item.n else none
            size = MetricValue(item.size, None, None, item.n)
            found[f"set_size_{kind}{percent}"] = size if item.n else none
    return found


def _confusion(evaluated: EvaluatedRecords, found: Outcomes) -> Confusion | None:
    task = evaluated.task
    if task.multi_label:
        return None
    if task.kind == "vqa":
        return _closed_confusion(evaluated, found.said)
    usable = found.known.any(axis=1)
    called, right = found.said[usable].argmax(axis=1), found.truth[usable].argmax(axis=1)
    size = len(task.outputs)
    counts = np.bincount(right * size + called, minlength=size * size).reshape(size, size)
    rows = tuple(tuple(int(v) for v in row) for row in counts)
    return Confusion("all records", task.outputs, task.outputs, rows)


def _closed_confusion(evaluated: EvaluatedRecords, said: BoolArray) -> Confusion | None:
    """Questions whose answer is yes or no; every other answer is one column."""
    names = ("yes", "no")
    counts = np.zeros((2, 3), dtype=np.int64)
    for example, row in zip(evaluated.examples, said, strict=True):
        answers = (example.reference or VQAReference(())).answers
        right = {normalise_answer(answer) for answer in answers} & set(names)
        if len(right) == 1:
            told = normalise_answer(evaluated.task.outputs[int(row.argmax())])
            column = names.index(told) if told in names else 2
            counts[names.index(right.pop()), column] += 1
    if not counts.any():
        return None
    rows = tuple(tuple(int(v) for v in row) for row in counts)
    return Confusion("questions to be answered by yes or no", names, (*names, "other"), rows)


def _rocs(
    evaluated: EvaluatedRecords,
    decided: Sequence[Decisions],
    found: Outcomes,
    metrics: Mapping[str, MetricValue],
) -> list[Roc]:
    rocs = []
    for column, item in enumerate(decided):
        here = found.known[:, column]
        curve = roc_curve(evaluated.probabilities[here, column], found.truth[here, column])
        if curve is not None:
            rocs.append(Roc(item, curve, metrics.get(f"auroc_{item.label}")))
    return rocs


def _wrong(evaluated: EvaluatedRecords, found: Outcomes) -> list[WrongRecord]:
    """Those that were not right, the most confident first."""
    order = np.argsort(-found.confidence, kind="stable")
    rows = [row for row in order if found.risk[row] > 0]
    wrong = []
    for row in rows[:_MOST_WRONG]:
        example = evaluated.examples[row]
        reference = example.reference
        right = reference.answers if reference else _names(evaluated.task, found.truth[row])
        wrong.append(
            WrongRecord(
                example.id,
                ", ".join(right) or "none",
                ", ".join(_names(evaluated.task, found.said[row])) or "none",
                float(found.confidence[row]),
                evaluated.statuses[row],
            )
        )
    return wrong


def _names(task: TaskSpec, chosen: BoolArray) -> tuple[str, ...]:
    return tuple(name for name, here in zip(task.outputs, chosen, strict=True) if here)
