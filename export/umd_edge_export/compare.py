"""Two bundles, or two variants of one, on the same records: what changes, with an interval.

The comparison is paired: both see the same records, so what they share cancels out and a small
difference can be told from none. Patients are resampled, not records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from umd_edge.errors import DataError, InputError, UnknownTaskError, UsageError

from .drift import changed_decisions

__all__ = ["Comparison", "PairedDifference", "compare", "paired_difference"]

RESAMPLES = 1000
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Accuracy of B less that of A, on the same records."""

    n: int
    groups: int
    """Patients: the unit of resampling."""
    accuracy_a: float
    accuracy_b: float
    difference: float
    low: float
    """2.5th percentile of the difference over patient-wise resamples."""
    high: float
    changed_decisions: float
    """Share of decisions that differ, right or wrong."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found."""

    tasks: dict[str, PairedDifference]
    pooled: PairedDifference
    """Every record of every task counts the same."""
    dropped: int
    """Pairs of record and task that do not fit together."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "tasks": {name: value.to_dict() for name, value in self.tasks.items()},
            "pooled": self.pooled.to_dict(),
            "dropped": self.dropped,
        }


@dataclass(slots=True)
class _Rows:
    """Scores of single records."""

    groups: list[str] = field(default_factory=list)
    a: list[float] = field(default_factory=list)
    b: list[float] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)

    def extend(self, other: _Rows) -> None:
        self.groups += other.groups
        self.a += other.a
        self.b += other.b
        self.changed += other.changed


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
    sums = np.bincount(index, weights=second - first, minlength=len(names))
    counts = np.bincount(index, minlength=len(names)).astype(np.float64)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    low, high = np.percentile((weights @ sums) / (weights @ counts), [2.5, 97.5])
    return PairedDifference(
        n=len(first),
        groups=len(names),
        accuracy_a=float(first.mean()),
        accuracy_b=float(second.mean()),
        difference=float((second - first).mean()),
        low=float(low),
        high=float(high),
        changed_decisions=float(np.mean(np.asarray(changed, dtype=np.float64))),
    )


def _score(task: TaskSpec, example: Example, probability: Float64Array) -> float:
    """Right or wrong; of a multi-label task, the share of known labels decided rightly."""
    if example.reference is not None:
        return float(is_right(task.outputs[int(probability.argmax())], example.reference))
    if example.target is None:
        raise DataError(f"record {example.id!r} has no target for task {task.name!r}")
    known = np.isfinite(example.target)
    if task.multi_label:
        return float((positives(probability, task) == (example.target == 1))[known].mean())
    return float(example.target[int(probability.argmax())] == 1)


def _is_scorable(example: Example) -> bool:
    return example.target is None or bool(np.isfinite(example.target).any())


def _check_tasks(a: Predictor, b: Predictor, names: Sequence[str]) -> list[TaskSpec]:
    usable = [task.name for task in a.tasks if task.kind != "retrieval"]
    unknown = sorted(set(names) - set(usable))
    if unknown:
        raise UnknownTaskError(f"tasks {unknown} given; the bundle can be compared on {usable}")
    tasks = []
    for name in names or usable:
        task, other = a.manifest.task(name), b.manifest.task(name)
        if task is None or other is None or task.outputs != other.outputs:
            raise UsageError(
                f"task {name!r} is not in both bundles with the same outputs; name with --task "
                "those that are"
            )
        tasks.append(task)
    return tasks


def _run_task(
    a: Predictor,
    b: Predictor,
    task: TaskSpec,
    examples: Sequence[Example],
    progress: Callable[[int, int], None],
) -> _Rows:
    rows = _Rows()
    by_picture: dict[Path, list[Example]] = {}
    for example in examples:
        by_picture.setdefault(example.image_path, []).append(example)
    for path, group in by_picture.items():
        try:
            encoded = a.encode(path), b.encode(path)
        except InputError as error:
            raise DataError(f"record {group[0].id!r}: {error}") from error
        for example in group:
            values = (example.structured_values, example.structured_mask)
            first = a.probabilities(encoded[0], task, example.text, values)
            second = b.probabilities(encoded[1], task, example.text, values)
            rows.groups.append(example.group)
            rows.a.append(_score(task, example, first))
            rows.b.append(_score(task, example, second))
            rows.changed.append(changed_decisions(task, first, second))
        progress(len(rows.a), len(examples))
    return rows


def compare(
    a: Predictor,
    b: Predictor,
    data: Sequence[Path],
    *,
    tasks: Sequence[str] = (),
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> Comparison:
    """Paired comparison on every record that a task can read.

    Args:
        a: The reference, such as the variant `fp32`.
        b: What is compared with it, such as `int8`. Both must know the same tasks and fields.
        data: JSONL manifests. A record with a label unknown to a task is left out and counted.
        tasks: Names; all but retrieval where none is given.
        progress: Called with task, records done, all records.

    Raises:
        UnknownTaskError: A task that A does not have.
        UsageError: A task or field that the two do not share.
        DataError: Unreadable data, or records that fit no task.
    """
    if a.manifest.structured_fields != b.manifest.structured_fields:
        raise UsageError("the two bundles have different structured fields and cannot be compared")
    specs = _check_tasks(a, b, tasks)
    files = [read_records(path) for path in data]
    results: dict[str, PairedDifference] = {}
    pooled = _Rows()
    dropped = 0
    for task in specs:
        examples: list[Example] = []
        for records in files:
            fields = a.manifest.structured_fields
            found = build_examples(records, task, fields, on_unmapped="drop").examples
            usable = [item for item in found if _is_scorable(item)]
            dropped += len(records) - len(usable)
            examples += usable
        if not examples:
            continue

        def report(done: int, total: int, name: str = task.name) -> None:
            progress(name, done, total)

        rows = _run_task(a, b, task, examples, report)
        results[task.name] = paired_difference(rows.a, rows.b, rows.changed, rows.groups)
        pooled.extend(rows)
    if not results:
        raise DataError(
            f"no record of the data fits one of the tasks {[task.name for task in specs]}; give "
            "data like those of the training"
        )
    together = paired_difference(pooled.a, pooled.b, pooled.changed, pooled.groups)
    return Comparison(results, together, dropped)
