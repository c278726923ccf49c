"""Two models on the same records: what changes, with an interval.

The comparison is paired: both see the same records, so what they share cancels out and a small
difference can be told from none. Patients are resampled, not records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from umd_edge._evaluation import is_right
from umd_edge._postprocess import positives
from umd_edge._predictor import Predictor
from umd_edge._records import Example, build_examples, read_records
from umd_edge._task import TaskSpec
from umd_edge.errors import DataError, UnknownTaskError, UsageError

from .sides import PredictorSide, Side

__all__ = [
    "Comparison",
    "Disagreement",
    "PairedDifference",
    "Predictions",
    "compare",
    "compare_predictions",
    "paired_difference",
    "predict",
    "record_score",
]

RESAMPLES = 1000
_TAIL = 0.025
_KEPT = 20

Float64Array = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Accuracy of B less that of A, on the same records."""

    n: int
    groups: int
    """Patients: the unit of resampling."""
    accuracy_a: float
    accuracy_b: float
    difference: float
    low: float | None
    """2.5th percentile of the difference over patient-wise resamples; None for a single patient.
    Where no record differs, resampling sees nothing: then the exact bound that so many patients
    allow, the `1 - 0.025 ** (1 / groups)` by which a rate can be above a count of zero."""
    high: float | None
    changed_decisions: float
    """Share of decisions that differ, right or wrong."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One record on which the two sides differ. For people; it never goes into a bundle."""

    task: str
    id: str = field(repr=False)
    image_path: Path = field(repr=False)
    output_a: str = field(repr=False)
    """Most probable output under A."""
    output_b: str = field(repr=False)
    probability_a: float
    """Of `output_a` under A."""
    probability_b: float
    """Of `output_b` under B."""
    score_a: float
    """1 right, 0 wrong; of a multi-label task the share of known labels decided rightly."""
    score_b: float
    changed: float
    """Share of the record's decisions that differ."""
    distance: float
    """Largest difference of a probability."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found."""

    tasks: dict[str, PairedDifference]
    pooled: PairedDifference
    """Every record of every task counts the same."""
    dropped: int
    """Pairs of record and task that do not fit together."""
    disagreements: tuple[Disagreement, ...] = field(default=(), repr=False)
    """The worst ones first: changed decisions, then by distance."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; without the records, whose names may not go everywhere."""
        return {
            "tasks": {name: value.to_dict() for name, value in self.tasks.items()},
            "pooled": self.pooled.to_dict(),
            "dropped": self.dropped,
        }


@dataclass(frozen=True, slots=True)
class TaskPredictions:
    """Probabilities of several sides for the examples of one task."""

    examples: tuple[Example, ...] = field(repr=False)
    task: Mapping[str, TaskSpec]
    """Side -> the task as that side has it: operating points may differ."""
    probabilities: Mapping[str, Float64Array] = field(repr=False)
    """Side -> (N, K)."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What `predict` found, by task."""

    tasks: dict[str, TaskPredictions]
    dropped: int


def paired_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, changed: npt.ArrayLike, groups: Sequence[str]
) -> PairedDifference:
    """Difference of two means over the same records, with a patient-wise bootstrap interval.

    Args:
        a: (N,) score of each record under A, 0..1.
        b: (N,) score of each record under B.
        changed: (N,) share of the record's decisions that differ.
        groups: N patients; 1,000 resamples of them, seed 0.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    low, high = _interval(second - first, index, len(names))
    return PairedDifference(
        n=len(first),
        groups=len(names),
        accuracy_a=float(first.mean()),
        accuracy_b=float(second.mean()),
        difference=float((second - first).mean()),
        low=low,
        high=high,
        changed_decisions=float(np.mean(np.asarray(changed, dtype=np.float64))),
    )


def _interval(
    difference: Float64Array, index: npt.NDArray[np.int64], groups: int
) -> tuple[float | None, float | None]:
    if groups < 2:
        return None, None
    if not difference.any():
        bound = 1 - _TAIL ** (1 / groups)
        return -bound, bound
    sums = np.bincount(index, weights=difference, minlength=groups)
    counts = np.bincount(index, minlength=groups).astype(np.float64)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    low, high = np.quantile((weights @ sums) / (weights @ counts), [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def record_score(task: TaskSpec, example: Example, probability: Float64Array) -> float:
    """Right or wrong; of a multi-label task, the share of known labels decided rightly."""
    if example.reference is not None:
        return float(is_right(task.outputs[int(probability.argmax())], example.reference))
    if example.target is None:
        raise DataError(f"{example.where}: no target for task {task.name!r}")
    known = np.isfinite(example.target)
    if task.multi_label:
        return float((positives(probability, task) == (example.target == 1))[known].mean())
    return float(example.target[int(probability.argmax())] == 1)


def _is_scorable(example: Example) -> bool:
    return example.target is None or bool(np.isfinite(example.target).any())


def _check_tasks(sides: Mapping[str, Side], names: Sequence[str]) -> list[str]:
    first, *others = sides.values()
    usable = [task.name for task in first.tasks if task.kind != "retrieval"]
    unknown = sorted(set(names) - set(usable))
    if unknown:
        raise UnknownTaskError(f"tasks {unknown} given; the first side can be compared on {usable}")
    known = {task.name: task.outputs for task in first.tasks}
    for side in others:
        if side.structured_fields != first.structured_fields:
            raise UsageError(
                "the two sides have different structured fields and cannot be compared"
            )
        outputs = {task.name: task.outputs for task in side.tasks}
        for name in names or usable:
            if outputs.get(name) != known[name]:
                raise UsageError(
                    f"task {name!r} is not on both sides with the same outputs; name with --task "
                    "those that are"
                )
    return list(names or usable)


def predict(
    sides: Mapping[str, Side],
    data: Sequence[Path],
    *,
    tasks: Sequence[str] = (),
    progress: Progress = lambda task, done, total: None,
) -> Predictions:
    """Probabilities of every side on every record that a task can read.

    Args:
        sides: Name -> model; the first one is the reference, and all must know its tasks and
            fields.
        data: JSONL manifests. A record with a label unknown to a task is left out and counted.
        tasks: Names; all but retrieval where none is given.
        progress: Called with task, records done, all records.

    Raises:
        UnknownTaskError: A task that the first side does not have.
        UsageError: A task or field that the sides do not share.
        DataError: Unreadable data, or records that fit no task.
    """
    names = _check_tasks(sides, tasks)
    files = [read_records(path) for path in data]
    found: dict[str, TaskPredictions] = {}
    dropped = 0
    for name in names:
        specs = {
            key: next(task for task in side.tasks if task.name == name)
            for key, side in sides.items()
        }
        reference = next(iter(sides))
        fields = sides[reference].structured_fields
        examples: list[Example] = []
        for records in files:
            built = build_examples(records, specs[reference], fields, on_unmapped="drop").examples
            usable = [item for item in built if _is_scorable(item)]
            dropped += len(records) - len(usable)
            examples += usable
        if examples:
            found[name] = _predict_task(sides, specs, tuple(examples), progress)
    if not found:
        raise DataError(
            f"no record of the data fits one of the tasks {names}; give data like those of the "
            "training"
        )
    return Predictions(found, dropped)


def _predict_task(
    sides: Mapping[str, Side],
    specs: Mapping[str, TaskSpec],
    examples: tuple[Example, ...],
    progress: Progress,
) -> TaskPredictions:
    total = len(examples) * len(sides)
    probabilities = {}
    for turn, (key, side) in enumerate(sides.items()):
        spec = specs[key]

        def report(
            done: int, _: int, name: str = spec.name, before: int = turn * len(examples)
        ) -> None:
            progress(name, before + done, total)

        probabilities[key] = side.predict(spec, examples, report)
    return TaskPredictions(examples, specs, probabilities)


def _compare_task(found: TaskPredictions, a: str, b: str) -> list[Disagreement]:
    """Every record of a task, in order."""
    first_task, second_task = found.task[a], found.task[b]
    rows = []
    for example, first, second in zip(
        found.examples, found.probabilities[a], found.probabilities[b], strict=True
    ):
        differs = positives(first, first_task) != positives(second, second_task)
        rows.append(
            Disagreement(
                task=first_task.name,
                id=example.id,
                image_path=example.image_path,
                output_a=first_task.outputs[int(first.argmax())],
                output_b=second_task.outputs[int(second.argmax())],
                probability_a=float(first.max()),
                probability_b=float(second.max()),
                score_a=record_score(first_task, example, first),
                score_b=record_score(second_task, example, second),
                changed=float(differs.mean() if first_task.multi_label else differs.any()),
                distance=float(np.abs(first - second).max()),
            )
        )
    return rows


def _difference(rows: Sequence[Disagreement], groups: Sequence[str]) -> PairedDifference:
    return paired_difference(
        [row.score_a for row in rows],
        [row.score_b for row in rows],
        [row.changed for row in rows],
        groups,
    )


def compare_predictions(predictions: Predictions, a: str, b: str) -> Comparison:
    """Paired comparison of two sides of `predictions`: B less A."""
    results: dict[str, PairedDifference] = {}
    rows: list[Disagreement] = []
    groups: list[str] = []
    for name, found in predictions.tasks.items():
        own = _compare_task(found, a, b)
        patients = [example.group for example in found.examples]
        results[name] = _difference(own, patients)
        rows += own
        groups += patients
    worst = sorted(rows, key=lambda row: (-row.changed, -row.distance))[:_KEPT]
    return Comparison(
        results,
        _difference(rows, groups),
        predictions.dropped,
        tuple(row for row in worst if row.distance > 0),
    )


def compare(
    a: Predictor | Side,
    b: Predictor | Side,
    data: Sequence[Path],
    *,
    tasks: Sequence[str] = (),
    progress: Progress = lambda task, done, total: None,
) -> Comparison:
    """Paired comparison on every record that a task can read.

    Args:
        a: The reference, such as the variant `fp32` or a checkpoint (see `open_side`).
        b: What is compared with it, such as `int8`. Both must know the same tasks and fields.
        data: JSONL manifests. A record with a label unknown to a task is left out and counted.
        tasks: Names; all but retrieval where none is given.
        progress: Called with task, runs done, all runs: each record runs on both sides.

    Raises:
        UnknownTaskError: A task that A does not have.
        UsageError: A task or field that the two do not share.
        DataError: Unreadable data, or records that fit no task.
    """
    first, second = (PredictorSide(x) if isinstance(x, Predictor) else x for x in (a, b))
    found = predict({"a": first, "b": second}, data, tasks=tasks, progress=progress)
    return compare_predictions(found, "a", "b")
