"""Retrieval by predicted facets: what a bundle's answers to a few questions are worth as a search.

A picture is asked for its modality, plane and organ, and a caption fits it as well as the answers
that the caption was put together from are probable. A model that retrieves must do better than
that, or its own questions would be the better search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from umd_edge._answers import normalise_answer
from umd_edge._evaluate import find_task, rank_pool
from umd_edge._predictor import Predictor
from umd_edge._rank import PairScores
from umd_edge._records import Example, Record, build_examples, read_records
from umd_edge._retrieval_metrics import RECALL_AT, RetrievalItems, query_ranks, retrieval_items
from umd_edge.errors import DataError, UsageError

from .paired import Outcomes, Summary, paired_difference, summarise

__all__ = ["QUESTIONS", "FacetComparison", "compare_with_facets", "facet_scores"]

QUESTIONS = {
    "modality": "what imaging modality was used to take this image?",
    "plane": "what plane is seen?",
    "organ": "what organ system is shown in the image?",
}
Float64Array = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FacetComparison:
    """Recalls of the model and of the facets on the same queries, and their difference."""

    model: Mapping[str, Summary]
    """Such as `image_to_text_r1`."""
    facets: Mapping[str, Summary]
    difference: Mapping[str, Summary]
    """Model less facets; intervals resample patients."""
    images: int
    texts: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "images": self.images,
            "texts": self.texts,
            "metrics": {
                name: {
                    side: {"value": s.value, "low": s.low, "high": s.high, "n": s.n}
                    for side, s in (
                        ("model", self.model[name]),
                        ("facets", self.facets[name]),
                        ("difference", self.difference[name]),
                    )
                }
                for name in self.model
            },
        }


def facet_scores(log_probabilities: Float64Array, facets: npt.NDArray[np.int64]) -> Float64Array:
    """Mean log probability of a text's facets, picture by picture.

    Args:
        log_probabilities: (I, F, K) of answer k to the question for facet f of picture i.
        facets: (T, F) answer that a text names, -1 where it names none: that facet then counts as
            the mean of the texts that name one, so that a short text is neither favoured nor
            punished.

    Returns:
        (I, T) scores, higher is better.
    """
    images, count, _ = log_probabilities.shape
    total = np.zeros((images, len(facets)))
    for facet in range(count):
        named = facets[:, facet] >= 0
        if not named.any():
            continue
        values = np.empty((images, len(facets)))
        values[:, named] = log_probabilities[:, facet][:, facets[named, facet]]
        values[:, ~named] = values[:, named].mean(axis=1, keepdims=True)
        total += values
    mean: Float64Array = total / count
    return mean


def _places(scores: Float64Array) -> npt.NDArray[np.int32]:
    """(Q, M): how many items score higher; equal scores tie."""
    ordered = np.sort(-scores, axis=1)
    return np.stack(
        [np.searchsorted(row, -values) for row, values in zip(ordered, scores, strict=True)]
    ).astype(np.int32)


def _named_facets(
    records: Sequence[Record], examples: Sequence[Example], items: RetrievalItems, vqa: Any
) -> npt.NDArray[np.int64]:
    """(T, F) answers that the texts name, by the record where a text first occurs."""
    row_of = {normalise_answer(answer): row for row, answer in enumerate(vqa.outputs)}
    by_id = {str(record.get("id")): record for record in records}
    facets = np.full((len(items.texts), len(QUESTIONS)), -1, np.int64)
    for (_, text), example in zip(items.pairs.tolist(), examples, strict=True):
        named = by_id[example.id].get("facets")
        for column, name in enumerate(QUESTIONS):
            value = named.get(name) if isinstance(named, Mapping) else None
            if isinstance(value, str) and facets[text, column] < 0:
                facets[text, column] = row_of.get(normalise_answer(value), -1)
    if (facets < 0).all():
        raise DataError(
            f"no record names one of the facets {list(QUESTIONS)} by an answer of the bundle; give "
            "records with `facets`"
        )
    return facets


def _log_probabilities(
    predictor: Predictor, vqa: Any, images: Sequence[Path], progress: Progress
) -> Float64Array:
    fields = predictor.manifest.structured_fields
    absent = np.zeros(len(fields), np.float32), np.zeros(len(fields), np.float32)
    result = np.empty((len(images), len(QUESTIONS), len(vqa.outputs)))
    for row, path in enumerate(images):
        encoded = predictor.encode(path)
        for column, question in enumerate(QUESTIONS.values()):
            result[row, column] = predictor.probabilities(encoded, vqa, question, absent)
        progress(row + 1, len(images))
    return np.log(np.maximum(result, 1e-12))


def _outcomes(
    items: RetrievalItems, ids: tuple[str, ...], text_places: Any, image_places: Any
) -> dict[str, Outcomes]:
    found = {}
    for name, places, pairs in (
        ("image_to_text", text_places, items.pairs),
        ("text_to_image", image_places, items.pairs[:, ::-1]),
    ):
        ranks = query_ranks(places, pairs)
        for k in RECALL_AT:
            found[f"{name}_r{k}"] = Outcomes(
                ids=ids,
                groups=items.groups,
                strata=np.zeros(len(ids), np.int64),
                right=(ranks <= k)[None],
            )
    return found


def compare_with_facets(
    predictor: Predictor,
    data: Path,
    *,
    retrieval_task: str,
    vqa_task: str,
    progress: Progress = lambda done, total: None,
) -> FacetComparison:
    """Rank a file's pictures and captions by the model and by its predicted facets.

    Args:
        predictor: A bundle with both tasks.
        data: JSONL of pictures with the retrieval task's text and `facets`.
        retrieval_task: Name of the task that ranks (in two stages).
        vqa_task: Name of the task that answers for the facets.
        progress: Called with the pictures done and all of them, for the facets and then the model.

    Raises:
        UnknownTaskError: The bundle lacks a task.
        UsageError: A task is of another kind.
        DataError: A record cannot be read, or none names a facet.
    """
    retrieval, vqa = find_task(predictor, retrieval_task), find_task(predictor, vqa_task)
    for task, kind in ((retrieval, "retrieval"), (vqa, "vqa")):
        if task.kind != kind:
            raise UsageError(f"task {task.name!r} is a {task.kind}; a {kind} task is needed")
    records = read_records(data)
    examples = build_examples(records, retrieval, predictor.manifest.structured_fields).examples
    items = retrieval_items(examples)
    facets = _named_facets(records, examples, items, vqa)
    scores = facet_scores(_log_probabilities(predictor, vqa, items.images, progress), facets)
    model: PairScores = rank_pool(predictor, retrieval, items, progress)
    ids = tuple(example.id for example in examples)
    by_model = _outcomes(items, ids, model.text_places(), model.image_places())
    by_facets = _outcomes(items, ids, _places(scores), _places(scores.T))
    return FacetComparison(
        model={name: summarise(value) for name, value in by_model.items()},
        facets={name: summarise(value) for name, value in by_facets.items()},
        difference={
            name: paired_difference(value, by_facets[name]) for name, value in by_model.items()
        },
        images=len(items.images),
        texts=len(items.texts),
    )
