"""Accuracy of a bundle on somebody's own records: JSONL and a `Predictor` in, metrics out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._evaluation import MetricValue, evaluate_classification, evaluate_vqa
from ._predictor import Predictor
from ._rank import CANDIDATES, PairScores
from ._records import Example, VQAReference, build_examples, read_records
from ._results import BundleInfo
from ._retrieval import build_gallery, rank_galleries
from ._retrieval_metrics import RetrievalItems, retrieval_items, retrieval_metrics
from ._task import OnUnmapped, TaskSpec
from .errors import DataError, InputError, UnknownTaskError

__all__ = [
    "Evaluation",
    "evaluate_file",
    "example_metrics",
    "find_task",
    "predict_examples",
    "rank_examples",
    "rank_pool",
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
    examples = build_examples(
        read_records(data),
        task,
        predictor.manifest.structured_fields,
        on_unmapped=on_unmapped,
    )
    if not examples.examples:
        raise DataError(
            f"{data}: no record fits task {task_name!r}; left out: {dict(examples.dropped)}"
        )
    if task.kind == "retrieval":
        metrics = rank_examples(predictor, task, examples.examples, on_progress)
    else:
        probabilities = predict_examples(predictor, task, examples.examples, on_progress)
        metrics = example_metrics(task, examples.examples, probabilities)
    return Evaluation(
        task=task.name,
        n=len(examples.examples),
        dropped=examples.dropped,
        metrics=metrics,
        bundle=predictor.info,
        variant=predictor.variant,
        provider=predictor.provider,
    )


def predict_examples(
    predictor: Predictor,
    task: TaskSpec,
    examples: Sequence[Example],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> npt.NDArray[np.float64]:
    """Probabilities (N, K) float64; every image is encoded once for all its records."""
    by_image: dict[Path, list[int]] = {}
    for index, example in enumerate(examples):
        by_image.setdefault(example.image_path, []).append(index)
    result = np.empty((len(examples), len(task.outputs)))
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
            example = examples[row]
            structured = (example.structured_values, example.structured_mask)
            result[row] = predictor.probabilities(encoded, task, example.text, structured)
        done += len(rows)
        on_progress(done, len(examples))
    return result


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
    try:
        text_gallery = build_gallery(
            engine, spec, "text", items.texts, on_progress=lambda done, _: on_progress(done, total)
        )
        image_gallery = build_gallery(
            engine,
            spec,
            "image",
            items.images,
            on_progress=lambda done, _: on_progress(texts + done, total),
        )
    except InputError as error:
        raise DataError(
            f"{error} (mend or remove the record: leaving it out silently would change the figures)"
        ) from error
    ranking = rank_galleries(
        engine,
        spec,
        image_gallery,
        text_gallery,
        on_progress=lambda done, _: on_progress(encoded + done, total),
    )
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
