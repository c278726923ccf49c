"""Where the model looked, from the graphs alone.

`attention` reads how much the text attended to each patch: a part of the fusion, run once.
`ablation` replaces windows of patches by the image's mean patch before patches see each other, and
asks how much the decision loses: one batched pass through the rest of the vision graph and the
fusion. Neither needs a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._insides import ATTENTION
from .errors import InferenceError, UsageError

if TYPE_CHECKING:
    from ._preprocess import PreprocessSpec
    from ._session import GraphSession

__all__ = ["TokenGrid", "ablate", "attention_map", "spread", "windows"]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Feeds = Mapping[str, npt.NDArray[Any]]

_ACROSS = 7
"""Finest division of an axis that windows follow: more of them would cost too many runs."""


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """Which of the image tokens are patches, and how they lie on the image."""

    rows: int
    columns: int
    first: int
    """Index of the upper left patch among the image tokens; the others follow row by row."""

    @classmethod
    def of(cls, count: int, spec: PreprocessSpec) -> TokenGrid:
        """The grid behind `count` image tokens.

        Patches are square and cover the input; a class token may stand before them and a summary
        behind them.

        Raises:
            UsageError: No such grid has that many tokens.
        """
        for others in (0, 1, 2):
            for patch in range(1, min(spec.height, spec.width) + 1):
                if spec.height % patch or spec.width % patch:
                    continue
                rows, columns = spec.height // patch, spec.width // patch
                if rows * columns == count - others:
                    return cls(rows, columns, min(others, 1))
        raise UsageError(
            f"the bundle's {count} image tokens are no grid of square patches over "
            f"{spec.height} x {spec.width} pixels; no map can be drawn for it"
        )

    @property
    def stop(self) -> int:
        """Index behind the lower right patch."""
        return self.first + self.rows * self.columns

    def fold(self, values: npt.NDArray[Any]) -> Float32Array:
        """(rows * columns,) -> (rows, columns) float32."""
        return np.ascontiguousarray(values.reshape(self.rows, self.columns), np.float32)


def attention_map(graph: GraphSession, feeds: Feeds, grid: TokenGrid) -> Float32Array:
    """Share of the text's attention that each patch gets.

    Mean over the heads of the last layer and over the tokens that are there: the words and the
    structured values that were given.

    Args:
        graph: The fusion graph with its attention as an output.
        feeds: Inputs of the fusion, batch 1, no word padded.
        grid: Where the patches stand.

    Returns:
        (rows, columns) float32, not negative; the sum is at most 1, as tokens that are no patch
        get a share too.

    Raises:
        InferenceError: The tensor does not have the shape of an attention to these tokens.
    """
    (attention,) = graph.run({name: feeds[name] for name in graph.input_names}, [ATTENTION])
    present = np.concatenate([feeds["structured_mask"][0], feeds["attention_mask"][0]]) > 0
    shape = attention.shape
    if len(shape) != 4 or shape[2] != len(present) or shape[3] < grid.stop:
        raise InferenceError(
            f"{ATTENTION!r} of {graph.name!r} has shape {shape}; (1, heads, {len(present)}, image "
            "tokens) is needed: export the bundle again"
        )
    heads = attention[0][:, present].astype(np.float64)
    return grid.fold(heads.mean(axis=(0, 1))[grid.first : grid.stop])


def windows(rows: int, columns: int) -> BoolArray:
    """Overlapping windows of patches that together cover the grid.

    Two seventh parts of the grid high and wide and one seventh apart; along its border only every
    other one, where there is least to see. At most 28.

    Returns:
        (W, rows, columns) bool.
    """
    down, across = _spans(rows), _spans(columns)
    first, second = np.meshgrid(_from_border(len(down)), _from_border(len(across)), indexing="ij")
    inner = (first > 0) & (second > 0)
    sparse = _keeps(len(down))[:, None] & _keeps(len(across))[None, :]
    kept = inner | sparse
    both = down[:, None, :, None] & across[None, :, None, :]
    return np.asarray(both[kept])


def _from_border(count: int) -> npt.NDArray[np.int64]:
    places = np.arange(count)
    return np.minimum(places, places[::-1])


def _keeps(count: int) -> BoolArray:
    """Every other place from both ends, and the middle: what lies between is covered by both."""
    places = _from_border(count)
    return np.asarray((places % 2 == 0) | (places == (count - 1) // 2))


def _spans(length: int) -> BoolArray:
    """(N, length) bool: what each window covers along an axis."""
    size, starts = _starts(length)
    return np.stack([np.isin(np.arange(length), start + np.arange(size)) for start in starts])


def _starts(length: int) -> tuple[int, list[int]]:
    """Size of the windows along an axis, and where they begin."""
    step = -(-length // _ACROSS)
    size = 2 * step if length > 2 * step else step
    return size, [*range(0, length - size, step), length - size]


def ablate(cells: Float32Array, chosen: BoolArray) -> Float32Array:
    """Copies of an image's cells in which a window each is replaced by the mean over all patches.

    Args:
        cells: (1, C, rows, columns) float32.
        chosen: (W, rows, columns) bool.

    Returns:
        (W, C, rows, columns) float32.
    """
    mean = cells.mean(axis=(2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    return np.where(chosen[:, None], mean, cells)


def spread(falls: Float64Array, chosen: BoolArray) -> Float32Array:
    """For each patch, the mean fall (W,) over the windows (W, rows, columns) that cover it."""
    total = np.tensordot(falls, chosen.astype(np.float64), axes=1)
    return np.asarray(total / chosen.sum(axis=0), np.float32)
