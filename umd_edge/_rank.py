"""Which texts fit an image best, and which images a text: scores of pairs, and the order they give.

* `embedding`: cosine of the two embeddings, for all pairs; the graphs run once for each item.
* `fusion`: `match_logit` of the fusion graph for all pairs, as M3AE and UMD rank (their task
  `irtr`). It runs once for each pair: four million times for 2,000 of each.
* `two_stage`: the `candidates` best of each image and of each text by cosine are put in order by
  `match_logit`; all others keep their order by cosine behind them.

The shortlist of an image is its own: what else is ranked cannot change the order of two texts that
are on it. The same functions rank a torch model's outputs in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from ._defaults import CANDIDATES
from ._record import dataclass
from ._results import Result
from .errors import InferenceError, UsageError

__all__ = [
    "DIRECTIONS",
    "METHODS",
    "Direction",
    "Match",
    "Method",
    "PairScores",
    "Ranking",
    "check_method",
    "score_pairs",
]

Direction = Literal["both", "image_to_text", "text_to_image"]
Method = Literal["embedding", "fusion", "two_stage"]
Float32Array: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
PlaceArray: TypeAlias = npt.NDArray[np.int32]
Fuse: TypeAlias = Callable[[IntArray, IntArray], Float32Array]
"""Image indexes (P,) and text indexes (P,) -> `match_logit` (P,)."""

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
METHODS: tuple[Method, ...] = get_args(Method)
MAX_PAIRS = 1 << 25
_BLOCK_CELLS = 1 << 21


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairScores:
    """Scores of I images and T texts."""

    method: Method
    candidates: int
    """Length of a shortlist of `two_stage`."""
    direction: Direction = "both"
    """Texts for images, images for texts, or both."""
    cosine: Float32Array = field(repr=False)
    """(I, T) float32, -1..1; a row of NaN is an image that takes no part."""
    match_logits: Float32Array | None = field(repr=False)
    """(I, T) float32, NaN where the fusion was not run; None for `embedding`."""

    def text_places(self) -> PlaceArray:
        """(I, T) int32: place of each text for each image, 0 the best, equal for a tie."""
        return _places(self.method, self.candidates, self.cosine, self.match_logits)

    def image_places(self) -> PlaceArray:
        """(T, I) int32: place of each image for each text, 0 the best, equal for a tie."""
        logits = self.match_logits
        transposed = None if logits is None else logits.T
        return _places(self.method, self.candidates, self.cosine.T, transposed)


def _cosine(images: Float32Array, texts: Float32Array) -> Float32Array:
    """(I, E) and (T, E) -> (I, T); the sums are float64, so that equal texts stay equal."""

    def unit(embeddings: Float32Array) -> npt.NDArray[np.float64]:
        values = embeddings.astype(np.float64)
        norm = np.linalg.norm(values, axis=1, keepdims=True)
        if not np.isfinite(norm).all() or not (norm > 0).all():
            raise InferenceError(
                "an embedding is zero or not finite; run `umd-edge verify` on this machine"
            )
        normalised: npt.NDArray[np.float64] = values / norm
        return normalised

    left, right = unit(images), unit(texts).T
    result = np.empty((len(images), len(texts)), np.float32)
    step = max(1, _BLOCK_CELLS // max(len(texts), 1))
    for start in range(0, len(images), step):
        result[start : start + step] = left[start : start + step] @ right
    return result


def _shortlist(cosine: Float32Array, candidates: int) -> npt.NDArray[np.bool_]:
    """(Q, N): the best of each row, the first of equal ones; NaN is never on it."""
    chosen = np.zeros(cosine.shape, np.bool_)
    step = max(1, _BLOCK_CELLS // max(cosine.shape[1], 1))
    for start in range(0, len(cosine), step):
        block = cosine[start : start + step]
        best = np.argsort(-block, axis=1, kind="stable")[:, :candidates]
        np.put_along_axis(chosen[start : start + step], best, True, axis=1)
    return chosen & ~np.isnan(cosine)


def _places(
    method: Method, candidates: int, cosine: Float32Array, logits: Float32Array | None
) -> PlaceArray:
    """(Q, N) int32, 0 the best of the row; equal scores share a place."""
    places = np.empty(cosine.shape, np.int32)
    step = max(1, _BLOCK_CELLS // max(cosine.shape[1], 1))
    for start in range(0, len(cosine), step):
        score = cosine[start : start + step]
        behind = np.zeros(score.shape, np.bool_)
        if logits is not None:
            behind = ~_shortlist(score, candidates) if method == "two_stage" else np.isnan(score)
            score = np.where(behind, score, logits[start : start + step])
        order = np.lexsort((-score, behind), axis=1)
        score = np.take_along_axis(score, order, axis=1)
        behind = np.take_along_axis(behind, order, axis=1)
        step_down = (score[:, 1:] != score[:, :-1]) | (behind[:, 1:] != behind[:, :-1])
        place = np.zeros(score.shape, np.int32)
        np.cumsum(step_down, axis=1, out=place[:, 1:])
        np.put_along_axis(places[start : start + step], order, place, axis=1)
    return places


def check_method(method: str, candidates: int, direction: str) -> None:
    """Refuse an unknown method or direction, or an empty shortlist.

    Raises:
        UsageError: With what is allowed.
    """
    if method not in METHODS:
        raise UsageError(f"method {method!r} given; one of {list(METHODS)} is allowed")
    if direction not in DIRECTIONS:
        raise UsageError(f"direction {direction!r} given; one of {list(DIRECTIONS)} is allowed")
    if type(candidates) is not int or candidates < 1:
        raise UsageError(f"candidates {candidates!r} given; a whole number from 1 on is allowed")


def score_pairs(
    image_embeddings: Float32Array,
    text_embeddings: Float32Array,
    fuse: Fuse,
    *,
    method: Method = "two_stage",
    candidates: int = CANDIDATES,
    direction: Direction = "both",
    usable: npt.NDArray[np.bool_] | None = None,
) -> PairScores:
    """Score images against texts.

    Args:
        image_embeddings: (I, E) float32.
        text_embeddings: (T, E) float32.
        fuse: Runs the fusion for the pairs named; not called by `embedding`.
        method: See the module.
        candidates: Length of a shortlist of `two_stage`.
        direction: Whose lists are wanted; the fusion is not run for shortlists of the others.
        usable: (I,) which images take part; all where None.

    Raises:
        UsageError: Unknown method, fewer than one candidate, or more than 2**25 pairs.
        InferenceError: An embedding or a match logit is not finite.
    """
    check_method(method, candidates, direction)
    pairs = len(image_embeddings) * len(text_embeddings)
    if pairs > MAX_PAIRS:
        raise UsageError(
            f"{len(image_embeddings)} images x {len(text_embeddings)} texts are {pairs} pairs; at "
            f"most {MAX_PAIRS} are ranked at once. Rank the queries in parts"
        )
    cosine = _cosine(image_embeddings, text_embeddings)
    if usable is not None:
        cosine[~usable] = np.nan
    logits = None
    if method != "embedding":
        wanted = ~np.isnan(cosine)
        if method == "two_stage":
            wanted = _wanted(cosine, candidates, direction)
        # Text by text: pairs that follow each other then share their text's tokens.
        texts, images = np.nonzero(wanted.T)
        logits = np.full(cosine.shape, np.nan, np.float32)
        logits[images, texts] = fuse(images, texts)
        if not np.isfinite(logits[images, texts]).all():
            raise InferenceError(
                "a match logit is not finite; run `umd-edge verify` on this machine"
            )
        logits.flags.writeable = False
    cosine.flags.writeable = False
    return PairScores(
        method=method,
        candidates=candidates,
        direction=direction,
        cosine=cosine,
        match_logits=logits,
    )


def _wanted(cosine: Float32Array, candidates: int, direction: Direction) -> npt.NDArray[np.bool_]:
    """(I, T): the pairs on any shortlist."""
    images, texts = cosine.shape
    wanted = np.zeros(cosine.shape, np.bool_)
    # A list of one needs no order: one query against a gallery costs one shortlist.
    if direction != "text_to_image" and (texts > 1 or images == 1):
        wanted |= _shortlist(cosine, candidates)
    if direction != "image_to_text" and (images > 1 or texts == 1):
        wanted |= _shortlist(cosine.T, candidates).T
    return wanted


@dataclass(frozen=True, slots=True)
class Match:
    """One place of a ranked list."""

    index: int
    """Of the text or image among those given, from 0."""
    score: float
    """Cosine of the embeddings, -1..1."""
    match_logit: float | None
    """Of the fusion; None where it was not run for the pair."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"index": self.index, "score": self.score, "match_logit": self.match_logit}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking(Result):
    """Images and texts ranked for each other; made by `Predictor.rank`.

    Its status is `outside_intended_use` when the DICOM header of any image contradicts the task;
    such an image is in no list and has none.
    """

    task: str
    pairs: PairScores = field(repr=False)
    outside: tuple[int, ...] = ()
    """Indexes of the images that the task is not meant for."""

    @property
    def method(self) -> Method:
        """How the order came about."""
        return self.pairs.method

    @property
    def direction(self) -> Direction:
        """Which lists there are."""
        return self.pairs.direction

    @property
    def scores(self) -> Float32Array:
        """(I, T) float32, read-only: cosine of all pairs; NaN for images in `outside`."""
        return self.pairs.cosine

    @property
    def match_logits(self) -> Float32Array | None:
        """(I, T) float32, read-only: NaN where the fusion was not run; None for `embedding`."""
        return self.pairs.match_logits

    def texts_for(self, image: int, top: int | None = None) -> tuple[Match, ...]:
        """The `top` texts for an image (all where None), the best first.

        Raises:
            UsageError: There is no such image, or texts were not ranked.
        """
        self._check(image, self.scores.shape[0], "image", "text_to_image")
        row = slice(image, image + 1)
        return self._matches(self.pairs.cosine[row], _rows(self.match_logits, row), top)

    def images_for(self, text: int, top: int | None = None) -> tuple[Match, ...]:
        """The `top` images for a text (all where None), the best first.

        Raises:
            UsageError: There is no such text, or images were not ranked.
        """
        self._check(text, self.scores.shape[1], "text", "image_to_text")
        row = slice(text, text + 1)
        logits = None if self.match_logits is None else self.match_logits.T
        return self._matches(self.pairs.cosine.T[row], _rows(logits, row), top)

    def _check(self, index: int, count: int, kind: str, other: Direction) -> None:
        if self.direction == other:
            raise UsageError(f"only {other} was ranked; rank in both directions, or the other one")
        if not 0 <= index < count:
            raise UsageError(f"{kind} {index} given; 0..{count - 1} were ranked")

    def _matches(
        self, cosine: Float32Array, logits: Float32Array | None, top: int | None
    ) -> tuple[Match, ...]:
        place = _places(self.pairs.method, self.pairs.candidates, cosine, logits)[0]
        # Stable: of two that tie, the one given first stands first.
        order = np.argsort(place, kind="stable")
        order = order[~np.isnan(cosine[0, order])][:top]
        fused = None if logits is None else logits[0]
        return tuple(
            Match(
                int(index),
                float(cosine[0, index]),
                None if fused is None or np.isnan(fused[index]) else float(fused[index]),
            )
            for index in order
        )

    def to_dict(self, top: int | None = 10) -> dict[str, Any]:
        """The JSON object, with the `top` of each list that was asked for."""
        images, texts = self.scores.shape
        result = {
            **self.common_dict(),
            "task": self.task,
            "status": self.status,
            "reason": self.reason,
            "method": self.method,
            "candidates": self.pairs.candidates if self.method == "two_stage" else None,
            "outside": list(self.outside),
        }
        if self.direction != "text_to_image":
            lists = [self.texts_for(image, top) for image in range(images)]
            result["texts_for_images"] = [[match.to_dict() for match in own] for own in lists]
        if self.direction != "image_to_text":
            lists = [self.images_for(text, top) for text in range(texts)]
            result["images_for_texts"] = [[match.to_dict() for match in own] for own in lists]
        return result


def _rows(values: Float32Array | None, rows: slice) -> Float32Array | None:
    return None if values is None else values[rows]
