"""How far an image is from those that a task was fitted on.

Three parts, each divided by its own limit; the score is the largest of them, so 1.0 is the
threshold and the reason can say which part was too far:

* `features`: mean and standard deviation of `image_tokens` over the tokens, scaled; Mahalanobis
  distance in the directions in which the fitted images vary most, and the distance to that
  subspace (Lee et al. 2018; Wang et al. 2022, ViM). In a narrow model the encoder maps what it has
  never seen close to what it knows, hence the second part.
* `appearance`: Mahalanobis distance of seventeen statistics of the resized 8-bit picture. They come
  from whole-number sums and catch blanks, noise, colours and inverted films.
* `energy`: negative log-sum-exp of the task's logits (Liu et al. 2020), or the sum of the negative
  softplus of each where several labels may be right (Wang et al. 2021).

Float64 arithmetic on one image alone, without BLAS: what else runs cannot change a bit of it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arrays import read_arrays
from ._ood_spec import OodPart, OodSpec
from ._record import dataclass
from ._task import TaskSpec
from .errors import BundleIntegrityError

__all__ = [
    "APPEARANCE",
    "ImageProfile",
    "OodModel",
    "OodScore",
    "appearance_statistics",
    "energy",
    "load_models",
    "token_statistics",
]

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
_POWERS = np.arange(256, dtype=np.int64) ** np.array([[1], [2], [3]])
"""(3, 256): every level to the first, second and third power."""
_FAR = 4
_BUFFERS = 32
_REASONS: dict[OodPart, str] = {
    "features": "what the vision encoder sees in it is",
    "appearance": "its grey levels, edges and colours are",
    "energy": "the energy of the task's outputs is",
}


class _Scratch(threading.local):
    """Buffers of one thread. Fresh memory costs more than the arithmetic on it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, tuple[int, ...]], npt.NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type[Any]) -> npt.NDArray[Any]:
        """The buffer of that name and shape, with whatever it held last."""
        found = self._kept.get((name, shape))
        if found is None:
            if len(self._kept) >= _BUFFERS:
                self._kept.clear()
            found = self._kept[name, shape] = np.empty(shape, dtype)
        return found


_scratch = _Scratch()


@dataclass(frozen=True, slots=True)
class OodScore:
    """How far one image is from what a task was fitted on."""

    value: float
    """1.0 is the threshold: above it the image is out of distribution."""
    part: OodPart
    """The part that is farthest from what it may be."""

    @property
    def is_out(self) -> bool:
        """Whether the status is `out_of_distribution`."""
        return self.value > 1.0

    @property
    def reason(self) -> str:
        """Why, for people; nothing where the image is within."""
        if not self.is_out:
            return ""
        return (
            f"the image is unlike those that the task was fitted on: {_REASONS[self.part]} "
            f"{self.value:.2f} times as far from them as the threshold allows"
        )


def token_statistics(image_tokens: npt.NDArray[np.float32]) -> Float64Array:
    """Mean, then standard deviation, of (N, D) float32 tokens over the tokens: (2 D,) float64.

    The sums run from the first token to the last in float32.
    """
    count, width = image_tokens.shape
    away = _scratch.array("away", image_tokens.shape, np.float32)
    sums = np.empty((2, width), np.float32)
    np.add.reduce(image_tokens, axis=0, out=sums[0])
    sums[0] /= np.float32(count)
    np.subtract(image_tokens, sums[0], out=away)
    np.multiply(away, away, out=away)
    np.add.reduce(away, axis=0, out=sums[1])
    sums[1] /= np.float32(count)
    np.sqrt(sums[1], out=sums[1])
    return sums.ravel().astype(np.float64)


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
    grey, tints = _grey_and_tints(image[::2, ::2])
    rows, columns = grey.shape
    size = rows * columns
    levels = _scratch.array("levels", (size,), np.intp)
    np.copyto(levels, grey.ravel())
    counts = np.bincount(levels, minlength=256)
    first, second, third = np.einsum("ij,j->i", _POWERS, counts).tolist()
    mean, variance = first / size, (second * size - first * first) / (size * size)
    spread = math.sqrt(variance) / 255.0
    central = third / size - 3.0 * mean * variance - mean * mean * mean
    coarse = [count / size for count in np.add.reduce(counts.reshape(16, 16), axis=1).tolist()]
    by_row = np.add.reduce(grey, axis=1, dtype=np.int32).tolist()
    by_column = np.add.reduce(grey, axis=0, dtype=np.int32).tolist()
    top, side = rows // 4, columns // 4
    middle = grey[top : rows - top, side : columns - side]
    inner = int(np.add.reduce(middle, axis=(0, 1), dtype=np.int32))
    sums = [_sum(tint) / size / 255.0 for tint in tints]
    colour = sum(_sum(np.abs(tint)) / size / 255.0 for tint in tints)
    values = [
        mean / 255.0,
        _log(spread),
        central / 255.0**3 / (spread + 0.02) ** 3,
        -sum(share * math.log(share) for share in coarse if share > 0.0),
        _log(coarse[0]),
        _log(coarse[15]),
        _log(_mean_step(grey[:, 1:], grey[:, :-1])),
        _log(_mean_step(grey[1:], grey[:-1])),
        _log(_mean_step(grey[:, _FAR:], grey[:, :-_FAR])),
        _log(_mean_step(grey[_FAR:], grey[:-_FAR])),
        (inner / middle.size - (first - inner) / (size - middle.size)) / 255.0,
        _halves(by_row) / columns / 255.0,
        _halves(by_column) / rows / 255.0,
        _log(colour),
        *(sums or (0.0, 0.0)),
        _log(sum(_mean_step(tint[:, 1:], tint[:, :-1]) for tint in tints)),
    ]
    return np.array(values)


def _grey_and_tints(
    image: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.int16], tuple[npt.NDArray[np.int16], ...]]:
    """(H, W) levels, and red minus green and green minus blue of a colour picture."""
    if image.shape[2] == 1:
        return image[..., 0].astype(np.int16), ()
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    red, green, blue = planes.astype(np.uint16)  # 256 * 255 fits
    grey = ((77 * red + 150 * green + 29 * blue + 128) >> 8).astype(np.int16)
    red, green, blue = planes.astype(np.int16)
    return grey, (red - green, green - blue)


def _log(value: float) -> float:
    return math.log(value + 0.01)


def _sum(values: npt.NDArray[np.int16]) -> int:
    return int(np.add.reduce(values.ravel(), dtype=np.int32))


def _mean_step(ahead: npt.NDArray[np.int16], behind: npt.NDArray[np.int16]) -> float:
    """Mean absolute difference as a share of the whole range."""
    difference = _scratch.array("difference", ahead.shape, np.int16)
    np.subtract(ahead, behind, out=difference)
    np.abs(difference, out=difference)
    return _sum(difference) / difference.size / 255.0


def _halves(sums: list[int]) -> float:
    """Mean of the first half of the sums minus that of the rest."""
    half = len(sums) // 2
    return sum(sums[:half]) / half - sum(sums[half:]) / (len(sums) - half)


def energy(logits: npt.NDArray[np.float32], *, multi_label: bool) -> float:
    """Energy of (K,) float32 logits before any scaling; higher is less like the fitted images."""
    if multi_label:
        # log(1 + exp(z)) without overflow; few labels, so numbers are faster than arrays.
        total = 0.0
        for value in logits.tolist():
            total += max(value, 0.0) + math.log1p(math.exp(-abs(value)))
        return -total
    values = logits.astype(np.float64)
    highest = float(np.maximum.reduce(values))
    values -= highest
    return -(highest + math.log(float(np.add.reduce(np.exp(values, out=values)))))


@dataclass(frozen=True, slots=True)
class OodModel:
    """Where a task's fitted images lie. `docs/bundle-format.md` states each array."""

    spec: OodSpec
    centre: Float64Array
    """(2 D,) of the token statistics."""
    scale: Float64Array
    """(2 D,): the centred statistics are multiplied by it."""
    basis: Float64Array
    """(k, 2 D): orthonormal rows, the directions of most variance."""
    weights: Float64Array
    """(k,): of the squared coordinates along them."""
    rest: float
    """Of the squared length of what is left."""
    appearance_centre: Float64Array
    """(17,)."""
    whitening: Float64Array
    """(17, 17): rows that turn the centred appearance into a vector of its distance's length."""

    def features_distance(self, statistics: Float64Array) -> float:
        """Distance of (2 D,) token statistics; about 1 for the fitted images.

        Raises:
            BundleIntegrityError: The vision graph gives tokens of another width.
        """
        if statistics.shape != self.centre.shape:
            raise BundleIntegrityError(
                f"{self.spec.file!r} of the bundle was fitted on tokens of another width than its "
                "vision graph gives; fit it again with umd-edge-export trust"
            )
        scaled = (statistics - self.centre) * self.scale
        along = np.einsum("ij,j->i", self.basis, scaled)  # no BLAS: the same bits at every call
        squares = along * along
        left = float(np.add.reduce(scaled * scaled)) - float(np.add.reduce(squares))
        inside = float(np.add.reduce(squares * self.weights))
        # The difference of two rounded sums can be below 0 by a rounding.
        return math.sqrt(inside + max(left, 0.0) * self.rest)

    def appearance_distance(self, statistics: Float64Array) -> float:
        """Distance of (17,) appearance statistics."""
        turned = np.einsum("ij,j->i", self.whitening, statistics - self.appearance_centre)
        return math.sqrt(float(np.add.reduce(turned * turned)))

    def image_score(self, profile: ImageProfile) -> OodScore:
        """The score of the two parts that the image alone gives."""
        limits = self.spec.limits
        features = self.features_distance(profile.tokens) / limits["features"]
        appearance = self.appearance_distance(profile.appearance) / limits["appearance"]
        if appearance > features:
            return OodScore(appearance, "appearance")
        return OodScore(features, "features")

    def score(
        self, image: OodScore, logits: npt.NDArray[np.float32], *, multi_label: bool
    ) -> OodScore:
        """The whole score: that of the image, and the energy of one call's logits (K,)."""
        centre = self.spec.energy_centre
        span = self.spec.limits["energy"] - centre
        # The energy is at most the negative highest logit: mostly that settles it.
        if not multi_label and (-float(logits.max()) - centre) / span <= image.value:
            return image
        value = (energy(logits, multi_label=multi_label) - centre) / span
        return OodScore(value, "energy") if value > image.value else image


class ImageProfile:
    """What the scores need of one image: its statistics, and each task's image score, once."""

    __slots__ = ("_scores", "appearance", "tokens")

    def __init__(self, appearance: Float64Array, image_tokens: npt.NDArray[np.float32]) -> None:
        self.tokens = token_statistics(image_tokens)
        self.appearance = appearance
        self._scores: dict[int, OodScore] = {}

    def score(self, model: OodModel) -> OodScore:
        """`OodModel.image_score`, computed at the first call for a model."""
        found = self._scores.get(id(model))
        if found is None:
            # Two threads may both come here; both compute the same bits.
            found = self._scores[id(model)] = model.image_score(self)
        return found


def load_models(tasks: Iterable[TaskSpec], read: Callable[[str], bytes]) -> dict[str, OodModel]:
    """Models of those tasks that have one, by name.

    Args:
        tasks: Of a manifest.
        read: Gives the bytes of a file of the bundle.

    Raises:
        BundleIntegrityError: A file is no npz, or an array is missing or of another shape.
    """
    files: dict[str, dict[str, npt.NDArray[Any]]] = {}
    models = {}
    for task in tasks:
        spec = task.out_of_distribution
        if spec is None:
            continue
        if spec.file not in files:
            files[spec.file] = read_arrays(read(spec.file), f"file {spec.file!r}")
        models[task.name] = _load(task.name, spec, files[spec.file])
    return models


def _load(task: str, spec: OodSpec, arrays: Mapping[str, npt.NDArray[Any]]) -> OodModel:
    names = ("centre", "scale", "basis", "weights", "rest", "appearance_centre", "whitening")
    found = [arrays.get(f"{task}/{name}") for name in names]
    if any(array is None or array.dtype != np.float32 for array in found):
        raise _bad(spec.file, task, f"needs the float32 arrays {list(names)}")
    ready = [np.ascontiguousarray(array, np.float64) for array in found if array is not None]
    width, rank, count = ready[0].size, ready[3].size, len(APPEARANCE)
    shapes = [(width,), (width,), (rank, width), (rank,), (1,), (count,), (count, count)]
    if [array.shape for array in ready] != shapes or width < 2 or rank < 1:
        raise _bad(spec.file, task, "holds arrays whose shapes do not fit together")
    if not all(np.isfinite(array).all() for array in ready):
        raise _bad(spec.file, task, "holds numbers that are not finite")
    centre, scale, basis, weights, rest, appearance_centre, whitening = ready
    if weights.min() < 0 or rest[0] < 0:
        raise _bad(spec.file, task, "holds weights below 0")
    return OodModel(
        spec, centre, scale, basis, weights, float(rest[0]), appearance_centre, whitening
    )


def _bad(file: str, task: str, problem: str) -> BundleIntegrityError:
    return BundleIntegrityError(
        f"{file!r} of the bundle {problem} for task {task!r}; fetch the bundle again"
    )
