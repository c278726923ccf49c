"""Recall of retrieval in both directions, with the intervals of `_evaluation`.

No model here: examples and ranked lists in, metrics out. Definitions:

* The pool is every different picture (by its bytes) and every different text (but for case and
  spaces) of the records. All texts that any record gives to a picture are right for it, and all
  pictures that any record gives to a text; equal captions and equal pictures thus always count.
* Each record is one query in each direction: its picture for texts, its text for pictures.
* The rank of a query is that of its best right item, from 1; items that tie with it count against
  it, so that a model that tells nothing apart reaches nothing.
* `image_to_text_r1`, `_r5`, `_r10`: share of the queries with a rank of at most 1, 5, 10.
  `image_to_text_medr`: median rank. `text_to_image_*`: the other direction. `embedding_*`: the
  same by the embeddings alone, beside an order that the fusion made.

Intervals resample whole patients and leave the pool as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ._evaluation import MetricValue, Resamples
from ._image import read_image_file
from ._rank import PairScores
from ._records import Example
from .errors import DataError, InputError

__all__ = [
    "RECALL_AT",
    "RetrievalItems",
    "evaluate_retrieval",
    "query_ranks",
    "retrieval_items",
    "retrieval_metrics",
]

RECALL_AT = (1, 5, 10)
IntArray: TypeAlias = npt.NDArray[np.int64]
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class RetrievalItems:
    """The pool of a set of records, and which of it belongs together."""

    images: tuple[Path, ...] = field(repr=False)
    """I different pictures."""
    texts: tuple[str, ...] = field(repr=False)
    """T different texts, spelled as where they first occur."""
    pairs: IntArray = field(repr=False)
    """(N, 2): picture and text of each record."""
    groups: tuple[str, ...] = field(repr=False)
    """N group names (patients)."""


def retrieval_items(examples: Sequence[Example]) -> RetrievalItems:
    """Read the examples' pictures and find equal ones.

    Raises:
        DataError: A picture cannot be read.
    """
    digest_of: dict[Path, bytes] = {}
    images: dict[bytes, Path] = {}
    texts: dict[str, str] = {}
    keys: list[tuple[bytes, str]] = []
    for example in examples:
        path = example.image_path
        if path not in digest_of:
            try:
                digest_of[path] = hashlib.sha256(read_image_file(path)).digest()
            except InputError as error:
                raise DataError(
                    f"{example.where}: {error} (mend or remove the record: leaving it out "
                    "silently would change the figures)"
                ) from error
        key = " ".join(example.text.split()).casefold()
        images.setdefault(digest_of[path], path)
        texts.setdefault(key, example.text)
        keys.append((digest_of[path], key))
    image_row = {digest: row for row, digest in enumerate(images)}
    text_row = {key: row for row, key in enumerate(texts)}
    pairs = np.asarray([(image_row[digest], text_row[key]) for digest, key in keys], np.int64)
    return RetrievalItems(
        images=tuple(images.values()),
        texts=tuple(texts.values()),
        pairs=pairs.reshape(-1, 2),
        groups=tuple(example.group for example in examples),
    )


def query_ranks(places: npt.NDArray[np.int32], pairs: IntArray) -> IntArray:
    """Rank, from 1, of the best right item of each query.

    Args:
        places: (Q, M) place of each item for each query: lower is better, equal a tie.
        pairs: (N, 2) query and right item.

    Returns:
        (N,), one for each pair; ties count against the right item.
    """
    right: dict[int, list[int]] = {}
    for query, item in pairs.tolist():
        right.setdefault(query, []).append(item)
    rank_of = np.zeros(len(places), np.int64)
    for query, items in right.items():
        row = places[query]
        hits = np.unique(items)
        best = row[hits].min()
        before = int((row <= best).sum()) - int((row[hits] <= best).sum())
        rank_of[query] = 1 + before
    ranks: IntArray = rank_of[pairs[:, 0]]
    return ranks


def _median(resamples: Resamples, ranks: IntArray) -> npt.NDArray[np.float64]:
    """Median over the records of each resample -> (1 + resamples,)."""
    order = np.argsort(ranks, kind="stable")
    ordered = ranks[order].astype(np.float64)
    group = resamples.index[order]
    result = np.full(len(resamples.counts), np.nan)
    step = max(1, _CHUNK_CELLS // max(len(ranks), 1))
    for start in range(0, len(result), step):
        seen = np.cumsum(resamples.counts[start : start + step][:, group], axis=1)
        total = seen[:, -1:]
        # The two middle ones of an even number, twice the middle one of an odd number.
        low = ordered[np.minimum((seen < total / 2).sum(axis=1), len(ordered) - 1)]
        high = ordered[np.minimum((seen <= total / 2).sum(axis=1), len(ordered) - 1)]
        result[start : start + step] = np.where(total[:, 0] > 0, (low + high) / 2, np.nan)
    return result


def evaluate_retrieval(
    *,
    text_places: npt.ArrayLike,
    image_places: npt.ArrayLike,
    pairs: npt.ArrayLike,
    groups: Sequence[str],
) -> dict[str, MetricValue]:
    """Metrics of a retrieval task.

    Args:
        text_places: (I, T) int; place of each text for each image: lower is better, equal a tie.
        image_places: (T, I) int; place of each image for each text.
        pairs: (N, 2) int: image and text of each record.
        groups: N group names (patients): the unit of resampling.

    Returns:
        `image_to_text_r1`, `_r5`, `_r10`, `_medr`, and the same of `text_to_image`.

    Raises:
        DataError: Shapes do not fit each other, or a pair names what is not there.
    """
    for_images = np.asarray(text_places, np.int32)
    for_texts = np.asarray(image_places, np.int32)
    known = np.asarray(pairs, np.int64).reshape(-1, 2)
    if for_images.ndim != 2 or for_texts.shape != for_images.shape[::-1]:
        raise DataError(
            f"places of shapes {for_images.shape} and {for_texts.shape} given; (I, T) and (T, I) "
            "are needed"
        )
    if len(known) != len(groups) or not len(known):
        raise DataError(f"{len(known)} pairs and {len(groups)} groups given; one for each, and any")
    if (known < 0).any() or (known >= for_images.shape).any():
        raise DataError(f"a pair lies outside the {for_images.shape} images and texts")
    resamples = Resamples(groups)
    n = len(known)
    everything = np.ones(n, np.bool_)
    metrics = {}
    for name, places, columns in (
        ("image_to_text", for_images, known),
        ("text_to_image", for_texts, known[:, ::-1]),
    ):
        ranks = query_ranks(places, columns)
        for k in RECALL_AT:
            recall = resamples.mean(ranks <= k, everything)
            metrics[f"{name}_r{k}"] = resamples.metric(recall, n)
        metrics[f"{name}_medr"] = resamples.metric(_median(resamples, ranks), n)
    return metrics


def retrieval_metrics(items: RetrievalItems, scores: PairScores) -> dict[str, MetricValue]:
    """Metrics of scored items; of an order by fusion also, as `embedding_*`, those without it.

    Raises:
        DataError: The scores are not those of the items.
    """

    def measure(ordered: PairScores) -> dict[str, MetricValue]:
        return evaluate_retrieval(
            text_places=ordered.text_places(),
            image_places=ordered.image_places(),
            pairs=items.pairs,
            groups=items.groups,
        )

    metrics = measure(scores)
    if scores.method != "embedding":
        plain = measure(replace(scores, method="embedding", match_logits=None))
        metrics |= {f"embedding_{name}": value for name, value in plain.items()}
    return metrics
