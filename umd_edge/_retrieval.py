"""The graphs' part in retrieval: encode items into galleries, run the fusion on pairs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ._defaults import CANDIDATES
from ._encoded import EncodedImage
from ._gallery import MAX_GALLERY_BYTES, Gallery, GalleryMaker, Kind
from ._image import LoadedImage, decode_image, load_image, read_image_file
from ._rank import Direction, Method, Ranking, score_pairs
from ._results import Timing
from ._status import outside_intended_use
from ._task import TaskSpec, compose_text
from .errors import (
    GalleryError,
    InputError,
    MissingDependencyError,
    TextInputError,
    UmdEdgeError,
    UsageError,
)

if TYPE_CHECKING:
    from ._engine import Engine
    from ._image import ImageInput

__all__ = [
    "OnStale",
    "build_gallery",
    "cached_gallery",
    "gallery_maker",
    "load_gallery",
    "pair_logits",
    "rank_galleries",
]

Float32Array: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
OnError: TypeAlias = Callable[[int, UmdEdgeError], None]
OnProgress: TypeAlias = Callable[[int, int], None]
OnStale = Literal["error", "rebuild"]

# Half to two thirds of the time of single pairs; larger batches gain a few per cent at most.
FUSION_BATCH = 16


class _Features(NamedTuple):
    length: int
    tokens: Float32Array
    """(length, D), or none where tokens are not kept."""
    embedding: Float32Array
    """(E,)"""
    outside: bool
    timing: Timing


class _Item(NamedTuple):
    digest: bytes
    name: str
    compute: Callable[[], _Features]


def gallery_maker(engine: Engine, task: TaskSpec) -> GalleryMaker:
    """What computes galleries for this task."""
    return GalleryMaker(
        bundle_sha256=engine.info.sha256,
        variant=engine.variant,
        task=task.name,
        provider=engine.options.provider,
        int8_path=engine.graphs.int8_path,
    )


def _open_image(engine: Engine, task: TaskSpec, image: ImageInput, index: int) -> _Item:
    name = ""
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        name = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
        data = read_image_file(path)
        load: Callable[[], LoadedImage] = partial(decode_image, data, repr(str(path)))
        digest = hashlib.sha256(data).digest()
    elif isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        load = partial(decode_image, data, f"image {index}")
        digest = hashlib.sha256(data).digest()
    else:  # an array or a PIL image has no bytes of its own: its 8-bit pixels stand for it
        loaded = load_image(image)
        load = partial(_given, loaded)
        shape = b"pixels %d %d %d\n" % loaded.pixels.shape
        digest = hashlib.sha256(shape + loaded.pixels.tobytes()).digest()
    return _Item(digest, name, partial(_image_features, engine, task, load))


def _given(loaded: LoadedImage) -> LoadedImage:
    return loaded


def _image_features(engine: Engine, task: TaskSpec, load: Callable[[], LoadedImage]) -> _Features:
    start = perf_counter()
    loaded = load()
    encoded = EncodedImage(engine, loaded, (perf_counter() - start) * 1e3)
    tokens, embedding = encoded.features()
    outside = bool(outside_intended_use(task, encoded.dicom))
    return _Features(tokens.shape[1], tokens[0], embedding[0], outside, encoded.timing)


def _open_text(engine: Engine, task: TaskSpec, text: object, index: int) -> _Item:
    if not isinstance(text, str) or not text.strip():
        raise TextInputError(f"text {index} is empty; write it or leave it out")
    whole = compose_text(task.prompt, [text])
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()
    return _Item(digest, "", partial(_text_features, engine, whole))


def _text_features(engine: Engine, text: str) -> _Features:
    start = perf_counter()
    tokens, embedding = engine.text_features(text)
    spent = (perf_counter() - start) * 1e3
    timing = Timing(text_ms=spent, total_ms=spent)
    return _Features(tokens.shape[1], tokens[0], embedding[0], False, timing)


class _Collected:
    """Features by digest: those of a known gallery, and those computed since."""

    def __init__(self, known: Gallery | None, keep_tokens: bool) -> None:
        self._known, self._keep_tokens = known, keep_tokens
        self._known_rows = {} if known is None else known.rows()
        self._new: dict[bytes, _Features] = {}
        self._bytes = 0

    def add(self, item: _Item) -> None:
        """Compute the item's features unless they are there."""
        if item.digest in self._known_rows or item.digest in self._new:
            return
        features = item.compute()
        if not self._keep_tokens:
            features = features._replace(tokens=features.tokens[:0])
        self._bytes += features.tokens.nbytes + features.embedding.nbytes
        if self._bytes > MAX_GALLERY_BYTES:
            raise UsageError(
                f"more than {MAX_GALLERY_BYTES} bytes of features; rank in parts, or by the "
                "method 'embedding', which keeps less"
            )
        self._new[item.digest] = features

    def features(self, digest: bytes) -> _Features:
        """The features of an item that was added."""
        known, row = self._known, self._known_rows.get(digest)
        if known is None or row is None:
            return self._new[digest]
        length = int(known.lengths[row])
        return _Features(
            length, known.tokens_of(row), known.embeddings[row], bool(known.outside[row]), Timing()
        )

    @property
    def timing(self) -> Timing:
        """What was spent on the new features."""
        return sum((item.timing for item in self._new.values()), Timing())


def build_gallery(
    engine: Engine,
    task: TaskSpec,
    kind: Kind,
    items: Sequence[Any],
    *,
    known: Gallery | None = None,
    tokens: bool = True,
    on_error: OnError | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Gallery:
    """Encode images or texts; an item that occurs twice, or in `known`, is not encoded again.

    Args:
        engine: Runs the graphs.
        task: A retrieval task; its prompt stands before each text.
        kind: `image` or `text`.
        items: Images as `Predictor.encode` takes them, or texts.
        known: Features computed before; returned itself where it holds just these items.
        tokens: Whether to keep the tokens, which the fusion reads.
        on_error: Called with the index of an item that cannot be used, which is then left out;
            None raises the error.
        on_progress: Called with the items done and all items.

    Raises:
        InputError: An item cannot be used.
        UsageError: No item, or features above 2 GiB.
    """
    if not len(items):
        raise UsageError(f"no {kind} given; at least one is needed")
    open_item = _open_image if kind == "image" else _open_text
    collected = _Collected(known, tokens)
    digests: list[bytes] = []
    names: list[str] = []
    texts: list[str] = []
    start = perf_counter()
    for index, given in enumerate(items):
        try:
            item = open_item(engine, task, given, index)
            collected.add(item)
            digests.append(item.digest)
            names.append(item.name)
            if kind == "text":
                texts.append(given)
        except (InputError, MissingDependencyError) as error:
            if on_error is None:
                raise
            on_error(index, error)
        on_progress(index + 1, len(items))
    if known is not None and known.digests.tobytes() == b"".join(digests):
        return replace(known, names=tuple(names), texts=tuple(texts))
    features = [collected.features(digest) for digest in digests]
    timing = replace(collected.timing, total_ms=(perf_counter() - start) * 1e3)
    return Gallery(
        kind=kind,
        maker=gallery_maker(engine, task),
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
        embeddings=_joined([item.embedding[None] for item in features]),
        lengths=np.asarray([item.length for item in features], np.int64),
        tokens=_joined([item.tokens for item in features]) if tokens else None,
        outside=np.asarray([item.outside for item in features], np.bool_),
        names=tuple(names),
        texts=tuple(texts),
        timing=timing,
    )


def _joined(parts: list[Float32Array]) -> Float32Array:
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def cached_gallery(
    engine: Engine,
    task: TaskSpec,
    kind: Kind,
    items: Sequence[Any],
    folder: str | os.PathLike[str],
    *,
    on_stale: OnStale = "error",
    on_error: OnError | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Gallery:
    """As `build_gallery`, beginning with the file in `folder`, which afterwards holds the result.

    Args:
        engine: See `build_gallery`.
        task: See `build_gallery`.
        kind: See `build_gallery`.
        items: See `build_gallery`.
        folder: Holds `images.npz` and `texts.npz`; made where it is missing.
        on_stale: What to do with a file that is damaged or was made by another bundle, variant,
            task or provider: `error`, or `rebuild` to compute everything again.
        on_error: See `build_gallery`.
        on_progress: See `build_gallery`.

    Raises:
        GalleryError: The file cannot be used and `on_stale` is `error`.
        UsageError: The file cannot be written.
    """
    if on_stale not in ("error", "rebuild"):
        raise UsageError(f"on_stale {on_stale!r} given; 'error' or 'rebuild' is allowed")
    path = Path(folder) / f"{kind}s.npz"
    known = None
    if os.path.exists(path):
        try:
            known = load_gallery(path, kind, gallery_maker(engine, task))
        except GalleryError:
            if on_stale == "error":
                raise
    gallery = build_gallery(
        engine, task, kind, items, known=known, on_error=on_error, on_progress=on_progress
    )
    unchanged = known is not None and gallery.digests is known.digests
    if len(gallery) and not (unchanged and known is not None and gallery.names == known.names):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{str(folder)!r} is no folder and cannot be made one") from error
        gallery.save(path)
    return gallery


def load_gallery(path: Path, kind: Kind, maker: GalleryMaker, *, tokens: bool = True) -> Gallery:
    """Read a gallery of one kind that `maker` made.

    Raises:
        GalleryError: Missing, damaged, of the other kind, or made by something else.
    """
    gallery = Gallery.load(path, tokens=tokens)
    gallery.check(kind, maker)
    return gallery


def rank_galleries(
    engine: Engine,
    task: TaskSpec,
    images: Gallery,
    texts: Gallery,
    *,
    method: Method = "two_stage",
    candidates: int = CANDIDATES,
    direction: Direction = "both",
    on_progress: OnProgress = lambda done, total: None,
) -> Ranking:
    """Score and order two galleries; see `Predictor.rank`.

    Raises:
        UsageError: See `score_pairs`; or a gallery is empty or lacks the tokens that are needed.
        GalleryError: A gallery was made by another bundle, variant, task or provider.
    """
    start = perf_counter()
    maker = gallery_maker(engine, task)
    images.check("image", maker)
    texts.check("text", maker)
    pairs = score_pairs(
        images.embeddings,
        texts.embeddings,
        pair_logits(engine, images, texts, on_progress),
        method=method,
        candidates=candidates,
        direction=direction,
        usable=~images.outside,
    )
    spent = (perf_counter() - start) * 1e3
    outside = tuple(np.flatnonzero(images.outside).tolist())
    return Ranking(
        status="outside_intended_use" if outside else "ok",
        reason=_outside_reason(task, len(outside), len(images)),
        timing=Timing(fusion_ms=spent, total_ms=spent),
        task=task.name,
        pairs=pairs,
        outside=outside,
        **engine.common,
    )


def _outside_reason(task: TaskSpec, count: int, total: int) -> str:
    if not count:
        return ""
    return (
        f"the DICOM headers of {count} of {total} images are not those for which task "
        f"{task.name!r} is meant; these images are not ranked"
    )


def pair_logits(
    engine: Engine, images: Gallery, texts: Gallery, on_progress: OnProgress
) -> Callable[[IntArray, IntArray], Float32Array]:
    """`match_logit` of pairs of two galleries: (P,) image and (P,) text indexes -> (P,) float32.

    Pairs run in batches of texts of one length: no padding is computed, and memory holds the tokens
    of one batch beside the galleries.
    """

    def fuse(image: IntArray, text: IntArray) -> Float32Array:
        if images.tokens is None or texts.tokens is None:
            raise UsageError(
                "a gallery was read without its tokens, which the fusion needs; read it whole, or "
                "rank by the method 'embedding'"
            )
        image_tokens = images.tokens.reshape(len(images), -1, images.tokens.shape[1])
        starts = np.cumsum(texts.lengths) - texts.lengths
        result = np.empty(len(image), np.float32)
        order = np.argsort(texts.lengths[text], kind="stable")
        lengths = texts.lengths[text[order]]
        first = 0
        while first < len(order):
            length = int(lengths[first])
            end = min(first + FUSION_BATCH, int(np.searchsorted(lengths, length, "right")))
            batch = order[first:end]
            rows = starts[text[batch], None] + np.arange(length)
            result[batch] = engine.match_logits(image_tokens[image[batch]], texts.tokens[rows])
            first = end
            on_progress(first, len(order))
        return result

    return fuse
