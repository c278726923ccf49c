"""The calls of `Predictor` that rank images and texts for each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from ._defaults import CANDIDATES
from ._results import Timing
from .errors import UmdEdgeError, UsageError

if TYPE_CHECKING:
    from ._audit import AuditLog
    from ._audit_ranking import RankingTrail
    from ._engine import Engine
    from ._gallery import Gallery
    from ._image import ImageInput
    from ._rank import Direction, Method, Ranking
    from ._retrieval import OnStale

__all__ = ["RankingCalls", "ranking_trail"]


class RankingCalls:
    """`gallery` and `rank`, for a class that has an engine."""

    _engine: Engine
    _audit: AuditLog | None

    def gallery(
        self,
        *,
        images: Sequence[ImageInput] | None = None,
        texts: Sequence[str] | None = None,
        task: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        on_stale: OnStale = "error",
        on_error: Callable[[int, UmdEdgeError], None] | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Gallery:
        """Encode images or texts once, for any number of `rank` calls.

        Args:
            images: As in `encode`; give these or `texts`.
            texts: Captions or queries; longer ones than the bundle's `max_length` tokens are cut.
            task: Name of the retrieval task, where the bundle has several.
            cache: Folder whose `images.npz` or `texts.npz` is read first and afterwards holds this
                gallery: only items that it lacks are encoded. Paths of images are kept in it.
            on_stale: What to do with a cache that is damaged or was made by another bundle,
                variant, task or provider: `error`, or `rebuild`.
            on_error: Called with the index and the error of an item that cannot be used, which is
                then left out; None raises the error.
            on_progress: Called with the items done and all items.

        Raises:
            UnknownTaskError: The bundle has no retrieval task, or not that one.
            UsageError: Neither or both of images and texts, none of them, or more features than
                2 GiB.
            GalleryError: The cache cannot be used.
            ImageInputError: As in `encode`.
            TextInputError: A text is empty or too long.
        """
        from ._retrieval import build_gallery, cached_gallery

        if (images is None) == (texts is None):
            raise UsageError("give either images or texts to make a gallery of")
        spec = self._engine.tasks.retrieval(task)
        kind: Literal["image", "text"] = "text" if images is None else "image"
        items: Sequence[Any] = (texts if images is None else images) or ()
        trail = ranking_trail(self._audit, self._engine, spec.name)
        if trail is not None:
            on_error = trail.listener(kind, items, on_error)
        listening: dict[str, Any] = {"on_error": on_error, "on_progress": on_progress}
        if cache is None:
            return build_gallery(self._engine, spec, kind, items, **listening)
        return cached_gallery(
            self._engine, spec, kind, items, cache, on_stale=on_stale, **listening
        )

    def rank(
        self,
        images: Sequence[ImageInput] | Gallery,
        texts: Sequence[str] | Gallery,
        *,
        method: Method = "two_stage",
        candidates: int = CANDIDATES,
        direction: Direction = "both",
        task: str | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Ranking:
        """Rank texts for each image and images for each text.

        Args:
            images: As in `encode`, or a gallery of them.
            texts: Captions or queries, or a gallery of them.
            method: `embedding` compares embeddings, at once; `fusion` runs the fusion for every
                pair; `two_stage` puts only the best by embedding in order by fusion.
            candidates: How many of each image's texts and of each text's images `two_stage` hands
                to the fusion.
            direction: `image_to_text`, `text_to_image` or `both`: which lists are wanted.
            task: Name of the retrieval task, where the bundle has several.
            on_progress: Called with the pairs done and all pairs that the fusion runs.

        Raises:
            UnknownTaskError: The bundle has no retrieval task, or not that one.
            UsageError: An unknown method, no image or text, or too many pairs.
            GalleryError: A gallery was made by another bundle, variant, task or provider.
            ImageInputError: As in `encode`.
            TextInputError: A text is empty or too long.
        """
        from ._gallery import Gallery
        from ._rank import check_method
        from ._retrieval import build_gallery, rank_galleries

        check_method(method, candidates, direction)
        spec = self._engine.tasks.retrieval(task)
        start = perf_counter()
        timing = Timing()
        tokens = method != "embedding"
        trail = ranking_trail(self._audit, self._engine, spec.name)
        if not isinstance(texts, Gallery):  # before the images: a bad text is told at once
            told = trail.listener("text", texts, None) if trail else None
            texts = build_gallery(self._engine, spec, "text", texts, tokens=tokens, on_error=told)
            timing += texts.timing
        if not isinstance(images, Gallery):
            told = trail.listener("image", images, None) if trail else None
            images = build_gallery(
                self._engine, spec, "image", images, tokens=tokens, on_error=told
            )
            timing += images.timing
        with trail.watching() if trail else nullcontext():
            ranking = rank_galleries(
                self._engine,
                spec,
                images,
                texts,
                method=method,
                candidates=candidates,
                direction=direction,
                on_progress=on_progress,
            )
        spent = (perf_counter() - start) * 1e3
        ranking = replace(ranking, timing=replace(timing + ranking.timing, total_ms=spent))
        if trail is not None:
            trail.record(ranking, images, texts)
        return ranking


def ranking_trail(
    log: AuditLog | None, engine: Engine, task: str, purpose: str | None = None
) -> RankingTrail | None:
    """The trail of a ranking, as `RankingTrail` describes it; None where nothing is recorded."""
    if log is None:
        return None
    from ._audit_ranking import RankingTrail

    return RankingTrail(log, engine, task, purpose)
