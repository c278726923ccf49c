"""Pictures of a data set: can each be read, and which look alike.

A 64-bit difference hash picks candidate pairs; a pair counts as a look-alike when the gradients of
the two 16 x 16 thumbnails correlate as well. The hash alone would not do: about 9 % of all pairs of
chest films of different people differ in 10 bits or fewer. `docs/data.md` gives the error rates on
which the two limits rest. Mirrored or rotated copies are not found.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from umd_edge._headers import jpeg_facts, png_facts
from umd_edge._image import load_image
from umd_edge.errors import UmdEdgeError

__all__ = ["HASH_LIMIT", "SIMILARITY_LIMIT", "Picture", "look_alikes", "read_pictures"]

HASH_LIMIT = 12
"""Bits of the hash that may differ in a candidate pair."""
SIMILARITY_LIMIT = 0.945
"""Gradient correlation from which a candidate pair counts as a look-alike."""

_MAX_BYTES = 512 * 1024 * 1024
_THUMBNAIL = 16
_BLANK_RANGE = 4.0
_BLOCK = 2048

State = Literal["ok", "missing", "broken", "blank"]


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known of one picture after reading it once."""

    path: Path
    state: State
    reason: str = ""
    digest: bytes = b""
    """BLAKE2b of the file, 16 bytes."""
    hash_bits: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    """(64,) float32, each -1 or 1."""
    gradients: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    """(392,) float32, zero mean and unit length."""


def _gradients(thumbnail: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Central differences of a (16, 16) thumbnail, as one normalised (392,) vector."""
    across = thumbnail[1:-1, 2:] - thumbnail[1:-1, :-2]
    down = thumbnail[2:, 1:-1] - thumbnail[:-2, 1:-1]
    vector = np.concatenate([across.ravel(), down.ravel()])
    vector -= vector.mean()
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / max(length, 1e-6), dtype=np.float32)


def _describe(path: Path, grey: Image.Image, digest: bytes) -> Picture:
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.float32)
    side = (_THUMBNAIL, _THUMBNAIL)
    thumbnail = np.asarray(grey.resize(side, Image.Resampling.BOX), dtype=np.float32)
    if float(np.ptp(thumbnail)) < _BLANK_RANGE:
        return Picture(path, "blank", "all pixels have nearly the same grey", digest)
    bits = np.where(small[:, 1:] > small[:, :-1], 1.0, -1.0).astype(np.float32)
    return Picture(path, "ok", "", digest, bits.ravel(), _gradients(thumbnail))


def _grey(data: bytes) -> Image.Image:
    """Decode to greys; a plain JPEG at an eighth of its size or so, which still reads all of it."""
    is_jpeg, is_png = data[:3] == b"\xff\xd8\xff", data[:8] == b"\x89PNG\r\n\x1a\n"
    if is_jpeg or is_png:
        (jpeg_facts if is_jpeg else png_facts)(data, "the picture")
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.mode in ("L", "RGB"):
                image.draft("L", (64, 64))
                grey: Image.Image = image.convert("L")
                return grey
    # Everything else is read as the runtime will read it, so that what it refuses is found here.
    pixels = load_image(data).pixels
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("L")


def _read(path: Path) -> Picture:
    try:
        if not path.is_file():
            return Picture(path, "missing", "no such file")
        if path.stat().st_size > _MAX_BYTES:
            return Picture(path, "broken", "larger than 512 MiB")
        data = path.read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).digest()
        return _describe(path, _grey(data), digest)
    except UmdEdgeError as error:
        return Picture(path, "broken", f"refused by the runtime ({type(error).__name__})")
    # Pillow's decoders raise many kinds of errors on damaged files; each means "broken" here.
    except Exception as error:
        return Picture(path, "broken", f"cannot be decoded ({type(error).__name__})")


def read_pictures(
    paths: Sequence[Path], on_progress: Callable[[int, int], None] | None = None
) -> list[Picture]:
    """Read each picture once, with as many threads as there are processors.

    Args:
        paths: Distinct files.
        on_progress: Called with the number done and the number of all.
    """
    pictures: list[Picture] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, picture in enumerate(pool.map(_read, paths, chunksize=16), start=1):
            pictures.append(picture)
            if on_progress is not None:
                on_progress(done, len(paths))
    return pictures


def _stack(pictures: Sequence[Picture], name: str) -> npt.NDArray[np.float32]:
    rows: Iterable[npt.NDArray[np.float32]] = (getattr(picture, name) for picture in pictures)
    return np.stack(list(rows))


def look_alikes(left: Sequence[Picture], right: Sequence[Picture]) -> list[tuple[int, int, float]]:
    """Pairs of different files, one from each side, that show the same thing.

    Args:
        left: Pictures; those that are not "ok" never match.
        right: The same, of another split.

    Returns:
        Position in `left`, position in `right`, gradient correlation (1.0 = the same), best first.
    """
    kept = [
        [index for index, picture in enumerate(side) if picture.state == "ok"]
        for side in (left, right)
    ]
    if not kept[0] or not kept[1]:
        return []
    first, second = [left[i] for i in kept[0]], [right[i] for i in kept[1]]
    bits, gradients = _stack(second, "hash_bits"), _stack(second, "gradients")
    pairs: list[tuple[int, int, float]] = []
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK]
        # The product of two rows of +-1 is 64 - 2 * (number of bits that differ).
        near = _stack(block, "hash_bits") @ bits.T >= 64 - 2 * HASH_LIMIT
        similarity = _stack(block, "gradients") @ gradients.T
        for row, column in np.argwhere(near & (similarity >= SIMILARITY_LIMIT)):
            i, j = kept[0][start + int(row)], kept[1][int(column)]
            if left[i].digest != right[j].digest:
                pairs.append((i, j, float(similarity[row, column])))
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))
