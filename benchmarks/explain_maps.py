"""The maps that are judged, and what they are judged against."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from umd_edge import EncodedImage, Predictor
from umd_edge._explain import ablated_logits, ablation, attention
from umd_edge._explain_maps import ablate, spread, windows
from umd_edge._image import load_image
from umd_edge._postprocess import probabilities
from umd_edge._preprocess import normalise, resize
from umd_edge._records import Example
from umd_edge._task import TaskSpec, output_name

if TYPE_CHECKING:
    from umd_edge._engine import Engine

__all__ = ["ALTERNATIVES", "MAPS", "RANDOM", "USUAL", "Case", "make_map"]

FloatArray = npt.NDArray[np.float64]
UInt8Array = npt.NDArray[np.uint8]

RANDOM = ("random-1", "random-2", "random-3")
MAPS = ("attention", "ablation", "centre", *RANDOM)
"""What is shown, and the two baselines."""
USUAL = "usual-place"
"""Where lesions lie in the training records: a harder baseline than the centre."""
ALTERNATIVES = (
    "ablation-20",
    "ablation-36",
    "ablation-log-odds",
    "ablation-1x1",
    "ablation-3x3",
    "ablation-zero",
    "ablation-tokens",
    "strips-7",
    "attention-ablation",
)
"""Other ways, for the choice among them."""
_BATCH = 12
_BLUR = 12.0
_SMALLEST = 1e-12


@dataclass
class Case:
    """One example with what its maps share. It is made for one image and then forgotten."""

    predictor: Predictor
    task: TaskSpec
    example: Example
    lesions: Sequence[tuple[float, float, float, float]] = ()
    """Boxes x0, y0, x1, y1 as fractions of the image."""
    usual: Sequence[tuple[float, float, float, float]] = ()
    """The boxes of the training records."""

    @property
    def engine(self) -> Engine:
        """The graphs behind the predictor."""
        return self.predictor._engine

    @cached_property
    def small(self) -> UInt8Array:
        """(H, W, 3) uint8: the image in the size that the model takes."""
        size = self.engine.manifest.preprocessing
        pixels = load_image(self.example.image_path).pixels
        small = resize(pixels, size.height, size.width, size.coefficient_bits)
        return np.repeat(small, 3 // small.shape[2], axis=2)

    @cached_property
    def encoded(self) -> EncodedImage:
        """The image behind the vision graph."""
        return self.predictor.encode(self.small)

    @cached_property
    def feeds(self) -> dict[str, npt.NDArray[Any]]:
        """Inputs of the fusion, batch 1."""
        tokens, _ = self.engine.text_features(self.example.text)
        return {
            "image_tokens": self.encoded.features()[0],
            "text_tokens": tokens,
            "attention_mask": np.ones(tokens.shape[:2], np.int64),
            "structured_values": self.example.structured_values[None],
            "structured_mask": self.example.structured_mask[None],
        }

    @cached_property
    def intact(self) -> FloatArray:
        """(K,) float64: probabilities of the image as it is."""
        return np.asarray(self.probabilities(self.small[None])[0])

    @property
    def row(self) -> int:
        """The output that is explained: the most probable one."""
        return int(self.intact.argmax())

    @cached_property
    def cells(self) -> npt.NDArray[np.float32]:
        """(1, C, rows, columns) float32: the patches before they see each other."""
        session = self.engine.graphs.insides.cells()
        return session.run({"pixel_values": self.encoded.pixel_values()})[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a map."""
        return self.cells.shape[2], self.cells.shape[3]

    @cached_property
    def blurred(self) -> UInt8Array:
        """The image without detail."""
        return np.asarray(Image.fromarray(self.small).filter(ImageFilter.GaussianBlur(_BLUR)))

    @cached_property
    def plain(self) -> UInt8Array:
        """The image's mean colour everywhere."""
        mean = self.small.mean(axis=(0, 1), keepdims=True)
        return np.broadcast_to(np.rint(mean).astype(np.uint8), self.small.shape)

    def probabilities(self, images: UInt8Array) -> FloatArray:
        """(B, H, W, 3) uint8 -> (B, K) float64."""
        size = self.engine.manifest.preprocessing
        names = [output_name(self.task.name)]
        found = []
        for start in range(0, len(images), _BATCH):
            pixel_values = np.stack([normalise(i, size) for i in images[start : start + _BATCH]])
            tokens, _ = self.engine.run_vision(pixel_values)
            feeds = {k: np.repeat(v, len(tokens), axis=0) for k, v in self.feeds.items()}
            feeds["image_tokens"] = tokens
            logits = self.engine.graphs.fusion.run(feeds, names)[0]
            found.append(probabilities(logits, self.task))
        return np.concatenate(found)

    def log_probability(self, logits: npt.NDArray[np.float32]) -> FloatArray:
        """(B, K) -> (B,) of the explained output."""
        value = probabilities(logits, self.task)[:, self.row]
        return np.asarray(np.log(np.maximum(value, _SMALLEST)))


def make_map(case: Case, name: str) -> FloatArray:
    """(rows, columns) float64; the higher, the more a patch is said to matter.

    Raises:
        KeyError: There is no such map.
    """
    return np.asarray(_MAKERS[name](case), np.float64)


def _centre(case: Case) -> FloatArray:
    """A bell over the middle of the image, a quarter of it wide."""
    rows, columns = case.shape
    y, x = np.mgrid[0:rows, 0:columns]
    squared = ((y + 0.5) / rows - 0.5) ** 2 + ((x + 0.5) / columns - 0.5) ** 2
    return np.asarray(np.exp(-squared / (2 * 0.25**2)))


def _usual(case: Case) -> FloatArray:
    """How many training lesions cover the middle of each patch."""
    rows, columns = case.shape
    y, x = (np.mgrid[0:rows, 0:columns] + 0.5) / np.reshape((rows, columns), (2, 1, 1))
    boxes = np.asarray(case.usual).reshape(-1, 4, 1, 1)
    inside = (x >= boxes[:, 0]) & (x <= boxes[:, 2]) & (y >= boxes[:, 1]) & (y <= boxes[:, 3])
    return np.asarray(inside.sum(axis=0), np.float64)


def _random(case: Case, name: str) -> FloatArray:
    rng = np.random.default_rng(zlib.crc32(f"{name} {case.example.id}".encode()))
    return rng.random(case.shape)


def _squares(case: Case, size: int) -> npt.NDArray[np.bool_]:
    rows, columns = case.shape
    y, x = np.mgrid[0:rows, 0:columns]
    places = [(i, j) for i in range(rows - size + 1) for j in range(columns - size + 1)]
    return np.stack([(y >= i) & (y < i + size) & (x >= j) & (x < j + size) for i, j in places])


def _every_other(case: Case) -> npt.NDArray[np.bool_]:
    """Half of all 2 x 2 windows, like one colour of a chessboard, and the corners."""
    chosen = _squares(case, 2)
    side = case.shape[1] - 1
    i, j = np.divmod(np.arange(len(chosen)), side)
    corner = np.isin(i, (0, i.max())) & np.isin(j, (0, side - 1))
    return np.asarray(chosen[((i + j) % 2 == 0) | corner])


def _by_windows(
    case: Case,
    chosen: npt.NDArray[np.bool_],
    score: Callable[[npt.NDArray[np.float32]], FloatArray] | None = None,
) -> FloatArray:
    intact = np.zeros_like(chosen[:1])
    logits = ablated_logits(
        case.engine, case.task, case.feeds, case.cells, np.concatenate([intact, chosen])
    )
    scores = (score or case.log_probability)(logits)
    return np.asarray(spread(scores[0] - scores[1:], chosen), np.float64)


def _log_odds(case: Case) -> FloatArray:
    def score(logits: npt.NDArray[np.float32]) -> FloatArray:
        value = np.clip(probabilities(logits, case.task)[:, case.row], _SMALLEST, 1 - _SMALLEST)
        return np.asarray(np.log(value) - np.log1p(-value))

    return _by_windows(case, windows(*case.shape), score)


def _zero(case: Case) -> FloatArray:
    """Blank cells in place of the mean one."""
    chosen = windows(*case.shape)
    kept = case.cells
    parts = []
    for window in chosen:
        case.cells = np.where(window, np.float32(0), kept)
        parts.append(case.log_probability(_logits(case))[0])
    case.cells = kept
    return np.asarray(spread(case.log_probability(_logits(case))[0] - np.asarray(parts), chosen))


def _logits(case: Case) -> npt.NDArray[np.float32]:
    none = np.zeros((1, *case.shape), bool)
    return ablated_logits(case.engine, case.task, case.feeds, case.cells, none)


def _tokens(case: Case) -> FloatArray:
    """The fusion alone: tokens behind the vision graph are replaced by their mean."""
    chosen = windows(*case.shape)
    chosen = np.concatenate([np.zeros_like(chosen[:1]), chosen])
    tokens = case.feeds["image_tokens"]
    first = 1 if tokens.shape[1] > case.cells[0, 0].size else 0
    grid = tokens[:, first : first + case.cells[0, 0].size].transpose(0, 2, 1)
    hidden = ablate(grid.reshape(1, -1, *case.shape), chosen)
    feeds = {name: np.repeat(value, len(chosen), axis=0) for name, value in case.feeds.items()}
    flat = hidden.reshape(len(chosen), grid.shape[1], -1).transpose(0, 2, 1)
    feeds["image_tokens"][:, first : first + flat.shape[1]] = flat
    logits = case.engine.graphs.fusion.run(feeds, [output_name(case.task.name)])[0]
    scores = case.log_probability(logits)
    return np.asarray(spread(scores[0] - scores[1:], chosen[1:]), np.float64)


def _strips(case: Case) -> FloatArray:
    """Seven whole inferences: four rows and three columns of blurred pixels."""
    height, width, _ = case.small.shape
    y, x = np.mgrid[0:height, 0:width]
    hidden = [y * 4 // height == i for i in range(4)] + [x * 3 // width == i for i in range(3)]
    images = [np.where(mask[..., None], case.blurred, case.small) for mask in hidden]
    found = case.probabilities(np.stack([case.small, *images]))[:, case.row]
    falls = np.log(np.maximum(found[:1], _SMALLEST)) - np.log(np.maximum(found[1:], _SMALLEST))
    rows, columns = case.shape
    down = np.interp((np.arange(rows) + 0.5) / rows, (np.arange(4) + 0.5) / 4, falls[:4])
    across = np.interp((np.arange(columns) + 0.5) / columns, (np.arange(3) + 0.5) / 3, falls[4:])
    return np.asarray(down[:, None] + across[None, :])


def _both(case: Case) -> FloatArray:
    """Attention where the ablation agrees."""
    maps = [np.maximum(make_map(case, name), 0.0) for name in ("attention", "ablation")]
    return np.asarray(np.prod([value / max(value.max(), _SMALLEST) for value in maps], axis=0))


_MAKERS: dict[str, Callable[[Case], npt.NDArray[Any]]] = {
    "attention": lambda case: attention(case.engine, case.feeds),
    "ablation": lambda case: ablation(
        case.encoded, case.engine, case.task, case.feeds, case.row, case.intact[case.row]
    ),
    "centre": _centre,
    USUAL: _usual,
    **{name: partial(_random, name=name) for name in RANDOM},
    "ablation-20": lambda case: _by_windows(case, _every_other(case)),
    "ablation-36": lambda case: _by_windows(case, _squares(case, 2)),
    "ablation-log-odds": _log_odds,
    "ablation-1x1": lambda case: _by_windows(case, _squares(case, 1)),
    "ablation-3x3": lambda case: _by_windows(case, _squares(case, 3)),
    "ablation-zero": _zero,
    "ablation-tokens": _tokens,
    "strips-7": _strips,
    "attention-ablation": _both,
}
