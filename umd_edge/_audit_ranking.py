"""Puts what a predictor ranks into its audit log: one record for each image and each text."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._audit_trail import TOP
from ._image import read_image_file
from .errors import UmdEdgeError

if TYPE_CHECKING:
    from ._audit import AuditLog
    from ._engine import Engine
    from ._gallery import Gallery, Kind
    from ._rank import Match, Ranking

__all__ = ["RankingTrail"]


class RankingTrail:
    """The log, and what all records of one ranking share."""

    def __init__(
        self, log: AuditLog, engine: Engine, task: str, purpose: str | None = None
    ) -> None:
        """A trail.

        Args:
            log: Where the records go.
            engine: What ranks.
            task: Name of the retrieval task.
            purpose: `evaluation`, or None for a ranking that somebody asked for.
        """
        self._log = log
        self._common = {
            "bundle": engine.info.to_dict(),
            "variant": engine.variant,
            "provider": engine.options.provider,
            "task": task,
        }
        self._path = {"int8_path": engine.graphs.int8_path}
        if purpose is not None:
            self._common["purpose"] = purpose

    def listener(
        self,
        kind: Kind,
        items: Sequence[Any],
        on_error: Callable[[int, UmdEdgeError], None] | None,
    ) -> Callable[[int, UmdEdgeError], None]:
        """`on_error` of a gallery that records each item that cannot be used before it is told."""

        def record(index: int, error: UmdEdgeError) -> None:
            given = items[index]
            if kind == "image":
                self._log.record_error(error, self._common, _file_hash(given))
            else:
                text = given if isinstance(given, str) else None
                self._log.record_error(error, self._common, {}, text=text)
            if on_error is None:
                raise error
            on_error(index, error)

        return record

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record an error of the ranking itself."""
        try:
            yield
        except UmdEdgeError as error:
            self._log.record_error(error, self._common, {})
            raise

    def record(self, ranking: Ranking, images: Gallery, texts: Gallery) -> None:
        """Record the best of each list that was asked for.

        Raises:
            AuditWriteError: A record is not on the disk; the ranking must not be used.
        """
        latency = {"ranking": round(ranking.timing.total_ms, 3)}
        common = {**self._common, **self._path, "latency_ms": latency}
        if ranking.direction != "text_to_image":
            for row in range(len(images)):
                status = ranking.status if row in ranking.outside else "ok"
                ranked = [
                    {**self._text(texts, match.index), **_scores(match)}
                    for match in ranking.texts_for(row, TOP)
                ]
                fields = {**common, "status": status, "ranked": ranked, "of": len(texts)}
                self._log.record_found(fields, _image(images, row))
        if ranking.direction != "image_to_text":
            for row in range(len(texts)):
                ranked = [
                    {**_image(images, match.index), **_scores(match)}
                    for match in ranking.images_for(row, TOP)
                ]
                fields = {**common, "status": "ok", "ranked": ranked, "of": len(images)}
                self._log.record_found(fields, self._text(texts, row))

    def _text(self, texts: Gallery, row: int) -> dict[str, str]:
        if texts.texts:
            return {"text": self._log.keyed_hash("text", texts.texts[row])}
        digest = texts.digests[row].tobytes().hex()  # its words are gone: it was read from a file
        return {"gallery_text": self._log.keyed_hash("gallery_text", digest)}


def _image(images: Gallery, row: int) -> dict[str, str]:
    """What a gallery knows an image by: for files the same hash as in the other records."""
    kind = "file_sha256" if images.names[row] else "gallery_sha256"
    return {kind: images.digests[row].tobytes().hex()}


def _scores(match: Match) -> dict[str, float | None]:
    return {"score": match.score, "match_logit": match.match_logit}


def _file_hash(image: object) -> dict[str, str]:
    data: Any = b""
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = image
    elif isinstance(image, (str, os.PathLike)):
        with contextlib.suppress(UmdEdgeError, ValueError):
            data = read_image_file(Path(image))
    return {"file_sha256": hashlib.sha256(data).hexdigest()} if len(data) else {}
