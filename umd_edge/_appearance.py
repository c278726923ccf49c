"""Seventeen statistics of the grey levels, edges and colours of a resized picture.

They catch blanks, noise, colours and inverted films, and come from whole-number sums alone, so that
another language can repeat them and the order of a sum does not matter.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["APPEARANCE", "appearance_statistics"]

Float64Array = npt.NDArray[np.float64]

APPEARANCE = (
    "mean level",
    "log spread of levels",
    "skewness of levels",
    "entropy of levels",
    "log share of black",
    "log share of white",
    "log step to the next column",
    "log step to the next row",
    "log step to the fourth column",
    "log step to the fourth row",
    "middle minus margin",
    "upper minus lower half",
    "left minus right half",
    "log colour",
    "red minus green",
    "green minus blue",
    "log colour step to the next column",
)
"""What `appearance_statistics` gives, in order."""
_FAR = 4
_GREY = np.array([77, 150, 29], np.uint16)[:, None, None]


def _histogram_rows() -> npt.NDArray[np.int64]:
    """(19, 256): each level to the first, second and third power, and which sixteenth it is in."""
    levels = np.arange(256, dtype=np.int64)
    powers = levels ** np.array([[1], [2], [3]])
    return np.concatenate([powers, levels // 16 == np.arange(16)[:, None]])


_ROWS = _histogram_rows()


class _Workspace:
    """Buffers and the views into them for pictures of one size.

    Fresh memory, and every call of numpy on code that is not in the processor's cache, cost more
    than the arithmetic on some thousand numbers: so there are few of both.

    Args:
        rows: Rows that are looked at.
        columns: Columns that are looked at.
        colour: Whether there are three channels.
    """

    def __init__(self, rows: int, columns: int, colour: bool) -> None:
        count = 3 if colour else 1
        self.planes = np.empty((count, rows, columns), np.int16)  # grey, and two tints
        self.grey, self.tints = self.planes[0], self.planes[1:]
        self.flat = self.grey.ravel()
        self.channels = np.empty((3, rows, columns), np.uint16)
        self.signed = self.channels.view(np.int16)  # below 256 both are the same
        self.weighted = np.empty((3, rows, columns), np.uint16)
        self.total = np.empty((rows, columns), np.uint16)
        self.distances = np.empty_like(self.tints)
        pairs = [
            (self.planes[..., 1:], self.planes[..., :-1]),
            (self.grey[1:], self.grey[:-1]),
            (self.grey[:, _FAR:], self.grey[:, :-_FAR]),
            (self.grey[_FAR:], self.grey[:-_FAR]),
        ]
        ends = np.cumsum([0, *(ahead.size for ahead, _ in pairs)]).tolist()
        self.steps = np.empty(ends[-1], np.int16)
        outs = [
            self.steps[ends[i] : ends[i + 1]].reshape(pair[0].shape) for i, pair in enumerate(pairs)
        ]
        self.pairs = [(*pair, out) for pair, out in zip(pairs, outs, strict=True)]
        one = ends[1] // count
        self.sizes = [one] * count + [ahead.size for ahead, _ in pairs[1:]]
        self.starts = [*range(0, ends[1], one), *ends[1:-1]]
        self.row_bands = [0, rows // 4, rows // 2, rows - rows // 4]
        self.column_bands = [0, columns // 4, columns // 2, columns - columns // 4]

    def fill(self, image: npt.NDArray[np.uint8]) -> None:
        """Take the levels of a picture, and the tints of a coloured one."""
        if len(self.planes) == 1:
            np.copyto(self.grey, image[..., 0])
            return
        np.copyto(self.channels, image.transpose(2, 0, 1))
        np.multiply(self.channels, _GREY, out=self.weighted)
        np.add.reduce(self.weighted, axis=0, out=self.total)  # at most 256 * 255: it fits
        np.add(self.total, 128, out=self.total)
        np.right_shift(self.total, 8, out=self.grey, casting="unsafe")
        np.subtract(self.signed[:2], self.signed[1:], out=self.tints)

    def bands(self) -> list[list[int]]:
        """Sums over 4 x 4 parts: the two outer quarters and the two halves of the middle."""
        across = np.add.reduceat(self.grey, self.row_bands, axis=0, dtype=np.int32)
        sums: list[list[int]] = np.add.reduceat(across, self.column_bands, axis=1).tolist()
        return sums

    def mean_steps(self) -> list[float]:
        """Mean absolute differences as shares of the whole range.

        To the next column of each plane; of the grey one also to the next row, and to the fourth
        column and row.
        """
        for ahead, behind, out in self.pairs:
            np.subtract(ahead, behind, out=out)
        np.abs(self.steps, out=self.steps)
        sums = np.add.reduceat(self.steps, self.starts, dtype=np.int32).tolist()
        return [total / size / 255.0 for total, size in zip(sums, self.sizes, strict=True)]

    def tint_sums(self) -> tuple[list[int], list[int]]:
        """Sums of the tints, and of their absolute values."""
        if not len(self.tints):
            return [], []
        np.abs(self.tints, out=self.distances)
        plain = np.add.reduce(self.tints, axis=(1, 2), dtype=np.int32).tolist()
        return plain, np.add.reduce(self.distances, axis=(1, 2), dtype=np.int32).tolist()


class _Workspaces(threading.local):
    """Those of one thread."""

    def __init__(self) -> None:
        self.of = lru_cache(maxsize=8)(_Workspace)


_workspaces = _Workspaces()


def appearance_statistics(image: npt.NDArray[np.uint8]) -> Float64Array:
    """The statistics that `APPEARANCE` names, of a resized picture.

    Only every second row and column is looked at. Levels count as 0..1; a logarithm is taken of
    the value plus 0.01. Every sum runs over whole numbers, so that its order does not matter.

    Args:
        image: (H, W, 1 or 3) uint8, at least 16 x 16. Colour is turned to grey by the integer
            ITU-R BT.601 weights 77, 150, 29 (of 256).

    Returns:
        (17,) float64.
    """
    looked = image[::2, ::2]
    rows, columns, channels = looked.shape
    work = _workspaces.of(rows, columns, channels == 3)
    work.fill(looked)
    size = rows * columns
    counts = np.bincount(work.flat, minlength=256)
    first, second, third, *sixteenths = np.einsum("ij,j->i", _ROWS, counts).tolist()
    mean, variance = first / size, (second * size - first * first) / (size * size)
    spread = math.sqrt(variance) / 255.0
    central = third / size - 3.0 * mean * variance - mean * mean * mean
    coarse = [count / size for count in sixteenths]
    bands = work.bands()
    middle = (rows - 2 * (rows // 4)) * (columns - 2 * (columns // 4))
    inner = sum(sum(band[1:3]) for band in bands[1:3])
    upper = sum(sum(band) for band in bands[:2])
    left = sum(sum(band[:2]) for band in bands)
    next_column, *tint_steps = (steps := work.mean_steps())[: len(work.planes)]
    plain, distances = work.tint_sums()
    values = [
        mean / 255.0,
        _log(spread),
        central / 255.0**3 / (spread + 0.02) ** 3,
        -sum(share * math.log(share) for share in coarse if share > 0.0),
        _log(coarse[0]),
        _log(coarse[15]),
        _log(next_column),
        *map(_log, steps[-3:]),
        (inner / middle - (first - inner) / (size - middle)) / 255.0,
        _halves(upper, first, rows) / columns / 255.0,
        _halves(left, first, columns) / rows / 255.0,
        _log(sum(total / size / 255.0 for total in distances)),
        *([total / size / 255.0 for total in plain] or (0.0, 0.0)),
        _log(sum(tint_steps)),
    ]
    return np.array(values)


def _log(value: float) -> float:
    return math.log(value + 0.01)


def _halves(part: int, whole: int, count: int) -> float:
    """Mean of the first half of the sums of so many lines minus that of the rest."""
    half = count // 2
    return part / half - (whole - part) / (count - half)
