"""What a run or a baseline gets right, record by record."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from umd_edge._evaluate import example_metrics
from umd_edge._evaluation import is_right
from umd_edge._rank import PairScores
from umd_edge._records import Example
from umd_edge._retrieval_metrics import (
    RetrievalItems,
    query_ranks,
    retrieval_metrics,
)
from umd_edge._task import TaskSpec
from umd_edge.errors import DataError, UsageError

from .paired import COMPARED_METRICS, Outcomes, Rankings

__all__ = ["Predictions", "outcomes", "predictions_of", "retrieval_predictions"]

_NO_LETTER = re.compile(r"[^a-z0-9]+")
_DIRECTIONS = ("image_to_text", "text_to_image")
_RECALL = re.compile(r"(image_to_text|text_to_image)_r(\d+)")


@dataclass(frozen=True)
class Predictions:
    """One model on one task and split; records are sorted by their ids.

    Of retrieval, a record is a query: each picture for its texts, and each text for its pictures.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    kinds: tuple[str, ...]
    """(N,) class of each record, its question type in lower case, or the direction of a query."""
    answer_types: tuple[str, ...]
    """(N,) `OPEN`, `CLOSED` or empty."""
    right: tuple[bool, ...]
    """(N,) whether the record is right; empty for a task of several labels."""
    metrics: Mapping[str, Mapping[str, Any]]
    """All of the runtime's metrics: name -> `{"value", "low", "high", "n"}`."""
    ranks: tuple[int, ...] = ()
    """(N,) retrieval: rank of the best right item, from 1."""
    labels: tuple[str, ...] = ()
    """(K,) of a task of several labels."""
    truth: tuple[tuple[float | None, ...], ...] = ()
    """(N, K): 1, 0, or None for unknown."""
    scores: tuple[tuple[float, ...], ...] = ()
    """(N, K) probabilities."""

    def to_dict(self) -> dict[str, Any]:
        """JSON object."""
        return {
            "ids": list(self.ids),
            "groups": list(self.groups),
            "kinds": list(self.kinds),
            "answer_types": list(self.answer_types),
            "right": [int(value) for value in self.right],
            "metrics": {name: dict(metric) for name, metric in self.metrics.items()},
            "ranks": list(self.ranks),
            "labels": list(self.labels),
            "truth": [list(row) for row in self.truth],
            "scores": [list(row) for row in self.scores],
        }

    @staticmethod
    def from_dict(table: Mapping[str, Any]) -> Predictions:
        """Read what `to_dict` gave."""
        return Predictions(
            ids=tuple(table["ids"]),
            groups=tuple(table["groups"]),
            kinds=tuple(table["kinds"]),
            answer_types=tuple(table["answer_types"]),
            right=tuple(bool(value) for value in table["right"]),
            metrics=table["metrics"],
            ranks=tuple(table.get("ranks", ())),
            labels=tuple(table.get("labels", ())),
            truth=tuple(tuple(row) for row in table.get("truth", ())),
            scores=tuple(tuple(row) for row in table.get("scores", ())),
        )


def predictions_of(
    task: TaskSpec, examples: Sequence[Example], probability: npt.NDArray[np.float64]
) -> Predictions:
    """Judge probabilities (N, K) of a VQA task or a classification.

    Raises:
        DataError: Two records have the same id.
    """
    order = _order(task.name, examples)
    listed, rows = [examples[i] for i in order], probability[order]
    metrics = {name: m.to_dict() for name, m in example_metrics(task, listed, rows).items()}
    ids, groups = _names(listed)
    if task.multi_label:
        nothing = ("",) * len(listed)
        truth = tuple(_known(example.target) for example in listed)
        scores = tuple(tuple(row) for row in rows.tolist())
        return Predictions(
            ids, groups, nothing, nothing, (), metrics, (), task.outputs, truth, scores
        )
    right, kinds, answer_types = [], [], []
    for example, row in zip(listed, rows.argmax(axis=1), strict=True):
        if example.reference is not None:
            right.append(is_right(task.outputs[row], example.reference))
            kinds.append(_slug(example.reference.question_type or ""))
            answer_types.append((example.reference.answer_type or "").upper())
        elif example.target is not None:
            truth_row = int(np.nanargmax(example.target))
            right.append(int(row) == truth_row)
            kinds.append(task.outputs[truth_row])
            answer_types.append("")
    return Predictions(ids, groups, tuple(kinds), tuple(answer_types), tuple(right), metrics)


def retrieval_predictions(
    task: TaskSpec, examples: Sequence[Example], items: RetrievalItems, scores: PairScores
) -> Predictions:
    """Judge the scores of a pool, query by query.

    Args:
        task: A retrieval task.
        examples: One for each pair of `items`, in its order.
        items: The pool.
        scores: Of its pictures and texts.

    Raises:
        DataError: Two records have the same id.
    """
    order = _order(task.name, examples)
    ids, groups = _names([examples[i] for i in order])
    by_direction = (
        query_ranks(scores.text_places(), items.pairs)[order],
        query_ranks(scores.image_places(), items.pairs[:, ::-1])[order],
    )
    ranks = tuple(int(rank) for part in by_direction for rank in part)
    n = len(order)
    return Predictions(
        ids=tuple(f"{direction} {name}" for direction in _DIRECTIONS for name in ids),
        groups=groups * 2,
        kinds=tuple(direction for direction in _DIRECTIONS for _ in range(n)),
        answer_types=("",) * (2 * n),
        right=tuple(rank == 1 for rank in ranks),
        metrics={k: m.to_dict() for k, m in retrieval_metrics(items, scores).items()},
        ranks=ranks,
    )


def _order(task: str, examples: Sequence[Example]) -> list[int]:
    if len({example.id for example in examples}) != len(examples):
        raise DataError(f"task {task!r}: two records have the same id; give each its own")
    return sorted(range(len(examples)), key=lambda i: examples[i].id)


def _names(examples: Sequence[Example]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and patients."""
    return tuple(e.id for e in examples), tuple(e.group for e in examples)


def _known(target: npt.NDArray[np.float32] | None) -> tuple[float | None, ...]:
    values = [] if target is None else target.tolist()
    return tuple(None if np.isnan(value) else value for value in values)


def _slug(text: str) -> str:
    return _NO_LETTER.sub("_", text.lower()).strip("_")


def _strata(predictions: Predictions, metric: str) -> npt.NDArray[np.int64]:
    """Strata whose means of right records give the metric (see `paired`)."""
    kinds = np.asarray(predictions.kinds)
    if metric == "accuracy":
        chosen = np.ones(len(kinds), dtype=np.bool_)
    elif metric == "balanced_accuracy":
        strata: npt.NDArray[np.int64] = np.unique(kinds, return_inverse=True)[1].astype(np.int64)
        return strata
    elif metric in ("closed_accuracy", "open_accuracy"):
        chosen = np.asarray(predictions.answer_types) == metric.partition("_")[0].upper()
    elif metric.startswith("accuracy_excluding_"):
        chosen = kinds != metric.removeprefix("accuracy_excluding_")
    elif metric.startswith("accuracy_"):
        chosen = kinds == metric.removeprefix("accuracy_")
    elif recall := _RECALL.fullmatch(metric):
        chosen = kinds == recall[1]
    else:
        raise UsageError(f"metric {metric!r} given; {COMPARED_METRICS} are allowed")
    if not chosen.any():
        raise DataError(f"no record counts for {metric!r}; the records are of {set(kinds)}")
    return np.where(chosen, 0, -1).astype(np.int64)


def outcomes(seeds: Sequence[Predictions], metric: str) -> Outcomes | Rankings:
    """The runs of one arm, ready for the statistics of a metric.

    Raises:
        UsageError: The metric is none that records are compared by, or none of this task.
        DataError: The runs are of different records.
    """
    first = seeds[0]
    if any(other.ids != first.ids for other in seeds):
        raise DataError("the seeds of an arm were evaluated on different records; use one data set")
    if bool(first.labels) != (metric == "macro_auroc" or metric.startswith("auroc_")):
        raise UsageError(
            f"metric {metric!r} given; a task of several labels has macro_auroc and "
            "auroc_<label>, and it alone"
        )
    if first.labels:
        return _rankings(seeds, metric)
    recall = _RECALL.fullmatch(metric)
    if recall and not first.ranks:
        raise UsageError(f"metric {metric!r} given; retrieval alone has it")
    right = [np.asarray(run.ranks) <= int(recall[2]) if recall else run.right for run in seeds]
    return Outcomes(
        ids=first.ids,
        groups=first.groups,
        strata=_strata(first, metric),
        right=np.asarray(right, dtype=np.bool_),
    )


def _rankings(seeds: Sequence[Predictions], metric: str) -> Rankings:
    """The labels that the metric speaks of."""
    first = seeds[0]
    wanted = metric.removeprefix("auroc_")
    labels = first.labels if metric == "macro_auroc" else (wanted,)
    if not set(labels) <= set(first.labels):
        raise UsageError(f"metric {metric!r} given; the task has {list(first.labels)}")
    columns = [first.labels.index(label) for label in labels]
    return Rankings(
        ids=first.ids,
        groups=first.groups,
        # None becomes NaN
        truth=np.asarray(first.truth, dtype=np.float64)[:, columns],
        scores=np.asarray([run.scores for run in seeds], dtype=np.float64)[:, :, columns],
    )
