"""Accuracy of a bundle on somebody's own records: JSONL and a `Predictor` in, metrics out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._defaults import CANDIDATES
from ._evaluation import MetricValue, evaluate_classification, evaluate_vqa
from ._postprocess import confidence, probabilities
from ._predictor import Predictor
from ._rank import PairScores
from ._ranking_calls import ranking_trail
from ._records import Example, ExampleSet, Record, VQAReference, build_examples, read_records
from ._results import BundleInfo, Status
from ._retrieval import build_gallery, rank_galleries
from ._retrieval_metrics import RetrievalItems, retrieval_items, retrieval_metrics
from ._status import judge, outside_intended_use
from ._task import OnUnmapped, TaskSpec
from .errors import DataError, InputError, UmdEdgeError, UnknownTaskError, UsageError

if TYPE_CHECKING:
    from ._encoded import EncodedImage
    from ._gallery import Gallery, Kind

__all__ = [
    "EvaluatedRecords",
    "Evaluation",
    "evaluate_file",
    "evaluate_records",
    "example_metrics",
    "find_task",
    "predict_examples",
    "rank_examples",
    "rank_pool",
    "wanted_records",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Metrics of one task on one set of records."""

    task: str
    n: int
    """Records evaluated."""
    dropped: Mapping[str, int]
    """Reason -> number of records that were not."""
    metrics: Mapping[str, MetricValue]
    bundle: BundleInfo
    variant: str
    provider: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `dropped` is the number of all records left out."""
        return {
            "task": self.task,
            "n": self.n,
            "dropped": sum(self.dropped.values()),
            "dropped_by_reason": dict(self.dropped),
            "metrics": {name: value.to_dict() for name, value in self.metrics.items()},
            "bundle": self.bundle.to_dict(),
            "variant": self.variant,
            "provider": self.provider,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedRecords:
    """Every record that was evaluated, with what came out for it; all in one order."""

    task: TaskSpec
    examples: tuple[Example, ...] = field(repr=False)
    records: tuple[Record, ...] = field(repr=False)
    logits: npt.NDArray[np.float32] = field(repr=False)
    """(N, K) float32, in the order of the task's outputs."""
    probabilities: npt.NDArray[np.float64] = field(repr=False)
    """(N, K) float64."""
    statuses: tuple[Status, ...] = field(repr=False)
    """What a call would have said of each. The metrics count every record, whatever its status."""


def find_task(predictor: Predictor, name: str) -> TaskSpec:
    """The bundle's task of that name.

    Raises:
        UnknownTaskError: There is none.
    """
    known = [task.name for task in predictor.tasks]
    task = predictor.manifest.task(name)
    if task is None:
        raise UnknownTaskError(f"task {name!r} given; this bundle can be evaluated on {known}")
    return task


def evaluate_file(
    predictor: Predictor,
    task_name: str,
    data: str | Path,
    *,
    on_unmapped: OnUnmapped | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate one task on the records of a JSONL file.

    Args:
        predictor: The bundle under test, with its variant and provider.
        task_name: One of its tasks.
        data: JSONL manifest; images are relative to it.
        on_unmapped: `drop` leaves records out whose label the task does not know; None means what
            the task says.
        on_progress: Called with the records done and all records.

    Raises:
        UnknownTaskError: The bundle has no such task.
        DataError: A record cannot be read or does not fit, none is left, or an image is unusable.
    """
    task = find_task(predictor, task_name)
    _, examples = _examples(predictor, task, data, on_unmapped)
    if task.kind == "retrieval":
        metrics = rank_examples(predictor, task, examples.examples, on_progress)
    else:
        found = predict_examples(predictor, task, examples.examples, on_progress)
        metrics = example_metrics(task, examples.examples, found)
    return _evaluation(predictor, examples, metrics)


def evaluate_records(
    predictor: Predictor,
    task_name: str,
    data: str | Path,
    *,
    on_unmapped: OnUnmapped | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Evaluation, EvaluatedRecords]:
    """As `evaluate_file`, with what came out for every record.

    Raises:
        UsageError: The task is a retrieval, where no single record is right or wrong.
        UnknownTaskError: As in `evaluate_file`.
        DataError: As in `evaluate_file`.
    """
    task = find_task(predictor, task_name)
    if task.kind == "retrieval":
        raise UsageError(
            f"task {task_name!r} is a retrieval; a report and acceptance rules are for "
            "classification and questions. Evaluate it without them"
        )
    records, examples = _examples(predictor, task, data, on_unmapped)
    listed = examples.examples
    logits = np.empty((len(listed), len(task.outputs)), np.float32)
    found = np.empty(logits.shape)
    statuses: list[Status] = ["ok"] * len(listed)
    for row, encoded in _encoded_rows(predictor, listed, on_progress):
        logits[row], found[row], statuses[row] = _recorded(predictor, task, encoded, listed[row])
    by_place = {record.where: record for record in records}
    evaluation = _evaluation(predictor, examples, example_metrics(task, listed, found))
    return evaluation, EvaluatedRecords(
        task=task,
        examples=listed,
        records=tuple(by_place[example.where] for example in listed),
        logits=logits,
        probabilities=found,
        statuses=tuple(statuses),
    )


def _examples(
    predictor: Predictor, task: TaskSpec, data: str | Path, on_unmapped: OnUnmapped | None
) -> tuple[list[Record], ExampleSet]:
    records = read_records(data)
    fields = predictor.manifest.structured_fields
    examples = build_examples(records, task, fields, on_unmapped=on_unmapped)
    if not examples.examples:
        raise DataError(
            f"{data}: no record fits task {task.name!r}; left out: {dict(examples.dropped)}. "
            f"{wanted_records(task)}"
        )
    return records, examples


def wanted_records(task: TaskSpec) -> str:
    """What a record needs for a task, as a sentence without its full stop."""
    chosen = [f"{name} among {list(values)}" for name, values in task.select.items()]
    texts = [] if task.kind == "classification" else list(task.text_paths)
    targets = [] if task.kind == "retrieval" else [task.target.field]
    return f"Give records with {' and '.join([', '.join(['image', *texts, *targets]), *chosen])}"


def _evaluation(
    predictor: Predictor, examples: ExampleSet, metrics: Mapping[str, MetricValue]
) -> Evaluation:
    return Evaluation(
        task=examples.task.name,
        n=len(examples.examples),
        dropped=examples.dropped,
        metrics=metrics,
        bundle=predictor.info,
        variant=predictor.variant,
        provider=predictor.provider,
    )


def _judged(
    predictor: Predictor, task: TaskSpec, encoded: EncodedImage, example: Example
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], Status]:
    """Logits and probabilities (K,) of one example, and the status that a call would give."""
    engine = predictor._engine
    text = engine.prompt_features(example.text, keep=example.text == task.prompt)
    structured = (example.structured_values[None], example.structured_mask[None])
    logits, score = engine.infer(encoded, task, text, structured)
    values = probabilities(logits, task)
    if outside_intended_use(task, encoded.dicom):
        return logits, values, "outside_intended_use"
    return logits, values, judge(task, score, float(confidence(values, task)))[0]


def _recorded(
    predictor: Predictor, task: TaskSpec, encoded: EncodedImage, example: Example
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], Status]:
    """As `_judged`; where there is an audit log, its record is on the disk then."""
    trail = encoded._trail
    if trail is None:
        return _judged(predictor, task, encoded, example)
    text = example.text.removeprefix(task.prompt).strip() or None
    given = {"question" if task.kind == "vqa" else "text": text}
    start = perf_counter()
    try:
        logits, values, status = _judged(predictor, task, encoded, example)
    except UmdEdgeError as error:
        trail.record_error(error, task.name, **given)
        raise
    spent = (perf_counter() - start) * 1e3
    trail.record_example(task, values, status, spent, encoded.timing.total_ms, **given)
    return logits, values, status


def predict_examples(
    predictor: Predictor,
    task: TaskSpec,
    examples: Sequence[Example],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> npt.NDArray[np.float64]:
    """Probabilities (N, K) float64; every image is encoded once for all its records."""
    result = np.empty((len(examples), len(task.outputs)))
    for row, encoded in _encoded_rows(predictor, examples, on_progress):
        example = examples[row]
        if encoded._trail is not None:
            result[row] = _recorded(predictor, task, encoded, example)[1]
            continue
        structured = (example.structured_values, example.structured_mask)
        result[row] = predictor.probabilities(encoded, task, example.text, structured)
    return result


def _encoded_rows(
    predictor: Predictor,
    examples: Sequence[Example],
    on_progress: Callable[[int, int], None],
) -> Iterator[tuple[int, EncodedImage]]:
    """Row and encoded image of every example; every image is encoded once for all its records."""
    by_image: dict[Path, list[int]] = {}
    for index, example in enumerate(examples):
        by_image.setdefault(example.image_path, []).append(index)
    done = 0
    for path, rows in by_image.items():
        try:
            encoded = predictor.encode(path)
        except InputError as error:
            raise DataError(
                f"{examples[rows[0]].where}: {error} (mend or remove the record: leaving it "
                "out silently would change the figures)"
            ) from error
        for row in rows:
            yield row, encoded
        done += len(rows)
        on_progress(done, len(examples))


def rank_examples(
    predictor: Predictor,
    task: TaskSpec,
    examples: Sequence[Example],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, MetricValue]:
    """Metrics of ranking the examples' pictures and texts in two stages.

    Raises:
        DataError: A picture cannot be used.
    """
    items = retrieval_items(examples)
    return retrieval_metrics(items, rank_pool(predictor, task, items, on_progress))


def rank_pool(
    predictor: Predictor,
    task: TaskSpec,
    items: RetrievalItems,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PairScores:
    """Scores of all pictures and texts of a pool, in two stages.

    Raises:
        DataError: A picture cannot be used.
    """
    images, texts = len(items.images), len(items.texts)
    encoded = images + texts
    total = encoded + min(CANDIDATES * encoded, images * texts)  # at most
    # An example's text has the prompt already, and every record is evaluated, whatever its header.
    spec = replace(task, prompt="", applies_to={})
    engine = predictor._engine
    trail = ranking_trail(predictor._audit, engine, task.name, "evaluation")

    def gallery(kind: Kind, given: Sequence[Any], before: int) -> Gallery:
        return build_gallery(
            engine,
            spec,
            kind,
            given,
            on_error=trail.listener(kind, given, None) if trail else None,
            on_progress=lambda done, _: on_progress(before + done, total),
        )

    try:
        text_gallery = gallery("text", items.texts, 0)
        image_gallery = gallery("image", items.images, texts)
    except InputError as error:
        raise DataError(
            f"{error} (mend or remove the record: leaving it out silently would change the figures)"
        ) from error
    with trail.watching() if trail else nullcontext():
        ranking = rank_galleries(
            engine,
            spec,
            image_gallery,
            text_gallery,
            on_progress=lambda done, _: on_progress(encoded + done, total),
        )
    if trail is not None:
        trail.record(ranking, image_gallery, text_gallery)
    on_progress(total, total)
    return ranking.pairs


def example_metrics(
    task: TaskSpec, examples: Sequence[Example], probabilities: npt.NDArray[np.float64]
) -> dict[str, MetricValue]:
    """Metrics of probabilities (N, K) against N examples; see `_evaluation` for each."""
    groups = [example.group for example in examples]
    if task.kind == "vqa":
        best = probabilities.argmax(axis=1)
        return evaluate_vqa(
            predictions=[task.outputs[index] for index in best],
            confidences=probabilities.max(axis=1),
            references=[example.reference or VQAReference(()) for example in examples],
            groups=groups,
        )
    return evaluate_classification(
        probabilities=probabilities,
        targets=np.stack([example.target for example in examples if example.target is not None]),
        groups=groups,
        labels=task.outputs,
        multi_label=task.multi_label,
        operating_points=task.operating_points,
    )
