"""Labelled records as a bundle's runtime sees them: logits, what is right, and whose they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from umd_edge._answers import normalise_answer
from umd_edge._predictor import Predictor
from umd_edge._records import Example, build_examples
from umd_edge._task import TaskSpec
from umd_edge.errors import DataError, InputError

from .samples import read_free_records

__all__ = ["TaskRecords", "read_task_records", "split_groups", "unfitted"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TaskRecords:
    """Records of one task."""

    task: TaskSpec
    """Without anything fitted."""
    logits: npt.NDArray[np.float32] = field(repr=False)
    """(N, K)."""
    targets: Float64Array = field(repr=False)
    """(N, K): 1 right, 0 wrong, NaN unknown. A question whose answer the task does not list has
    a row of zeros; some answers may be right at once."""
    groups: tuple[str, ...] = field(repr=False)
    """Unit of splitting of each, usually the patient."""
    sums: Float64Array | None = field(repr=False, default=None)
    """Of questions, what their fits share; see `trust_scaling`."""

    def __len__(self) -> int:
        return len(self.groups)

    def take(self, rows: npt.NDArray[np.intp]) -> TaskRecords:
        """Those of some rows."""
        groups = tuple(self.groups[row] for row in rows)
        return replace(
            self,
            logits=self.logits[rows],
            targets=self.targets[rows],
            groups=groups,
            sums=None if self.sums is None else self.sums[rows],
        )


def unfitted(task: TaskSpec) -> TaskSpec:
    """The task without anything that is fitted here."""
    thresholds = {key: value for key, value in task.thresholds.items() if key != "abstain"}
    return replace(
        task,
        temperature=1.0,
        scale=(),
        bias=(),
        other=None,
        platt=None,
        operating_points={},
        operating_curves={},
        conformal=None,
        thresholds=thresholds,
    )


def split_groups(
    groups: Sequence[str], parts: int, rng: np.random.Generator
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Rows (others, part) for each of `parts` parts of about as many groups; none is in two."""
    names, index = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    part_of = (rng.permutation(len(names)) % parts)[index]
    for part in range(min(parts, len(names))):
        yield np.flatnonzero(part_of != part), np.flatnonzero(part_of == part)


def _answers(task: TaskSpec, examples: Sequence[Example]) -> Float64Array:
    rows: dict[str, list[int]] = {}
    for index, answer in enumerate(task.outputs):
        rows.setdefault(normalise_answer(answer), []).append(index)
    targets = np.zeros((len(examples), len(task.outputs)))
    for target, example in zip(targets, examples, strict=True):
        for answer in example.reference.answers if example.reference else ():
            target[rows.get(normalise_answer(answer), [])] = 1.0
    return targets


def _logits(
    predictor: Predictor,
    task: TaskSpec,
    examples: Sequence[Example],
    on_progress: Callable[[int, int], None],
) -> npt.NDArray[np.float32]:
    """Logits (N, K); every image is encoded once."""
    by_image: dict[Path, list[int]] = {}
    for index, example in enumerate(examples):
        by_image.setdefault(example.image_path, []).append(index)
    result = np.empty((len(examples), len(task.outputs)), np.float32)
    done = 0
    for path, rows in by_image.items():
        try:
            encoded = predictor.encode(path)
        except InputError as error:
            raise DataError(f"{examples[rows[0]].where}: {error}") from error
        for row in rows:
            example = examples[row]
            pair = (example.structured_values, example.structured_mask)
            result[row] = predictor._engine.example_logits(encoded, task, example.text, pair)
        done += len(rows)
        on_progress(done, len(examples))
    return result


def read_task_records(
    predictor: Predictor,
    paths: Sequence[Path],
    *,
    allow_non_commercial: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> dict[str, TaskRecords]:
    """Run a bundle on labelled records; task name -> records, for those tasks that have any.

    Args:
        predictor: The bundle, with the variant that is fitted.
        paths: JSONL manifests that the model was not trained on; images are relative to them.
        allow_non_commercial: Also take records that are not marked `non_commercial: false`.
        on_progress: Called with the task, the records done and all records.

    Raises:
        DataError: A file or an image is unreadable, a record is restricted, or none fits any task.
    """
    files = read_free_records(paths, allow_non_commercial=allow_non_commercial)
    records = [record for file in files for record in file]
    found: dict[str, TaskRecords] = {}
    for task in predictor.tasks:
        if task.kind == "retrieval":
            continue
        fields = predictor.manifest.structured_fields
        examples = build_examples(records, task, fields, on_unmapped="drop").examples
        if not examples:
            continue

        def advance(done: int, total: int, name: str = task.name) -> None:
            on_progress(name, done, total)

        if task.kind == "vqa":
            targets = _answers(task, examples)
        else:
            rows = [example.target for example in examples if example.target is not None]
            targets = np.stack(rows).astype(np.float64)
        found[task.name] = TaskRecords(
            task=unfitted(task),
            logits=_logits(predictor, task, examples, advance),
            targets=targets,
            groups=tuple(example.group for example in examples),
        )
    if not found:
        raise DataError(
            f"no record of {[path.name for path in paths]} fits one of the tasks "
            f"{[task.name for task in predictor.tasks]}; give labelled records like those that "
            "the model is for"
        )
    return found
