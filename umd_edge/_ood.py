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
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ._appearance import APPEARANCE
from ._arrays import read_arrays
from ._ood_spec import OodPart, OodSpec
from ._record import dataclass
from ._task import TaskSpec
from .errors import BundleIntegrityError

__all__ = [
    "ImageProfile",
    "OodModel",
    "OodScore",
    "energy",
    "load_models",
    "token_statistics",
]

Float64Array = npt.NDArray[np.float64]

_REASONS: dict[OodPart, str] = {
    "features": "what the vision encoder sees in it is",
    "appearance": "its grey levels, edges and colours are",
    "energy": "the energy of the task's outputs is",
}


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
    sums = np.empty((2, width), np.float32)
    np.add.reduce(image_tokens, axis=0, out=sums[0])
    sums[0] /= np.float32(count)
    away = image_tokens - sums[0]
    np.multiply(away, away, out=away)
    np.add.reduce(away, axis=0, out=sums[1])
    sums[1] /= np.float32(count)
    np.sqrt(sums[1], out=sums[1])
    return sums.ravel().astype(np.float64)


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

    def known(self, model: OodModel) -> OodScore | None:
        """What `score` gave before for this model."""
        return self._scores.get(id(model))

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
