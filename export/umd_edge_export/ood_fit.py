"""Where a task's images lie: arrays and limits of the out-of-distribution score.

`umd_edge._ood` says what is computed; this module turns statistics of images into its arrays. The
directions come from reference images (those that the model was trained on), the limits from
validation images that it was not trained on: of the former the model is too sure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from umd_edge._appearance import APPEARANCE
from umd_edge._ood import OodModel
from umd_edge._ood_spec import OodPart, OodSpec

__all__ = [
    "QUANTILE",
    "Float32Array",
    "ImageStatistics",
    "build_model",
    "fit_model",
    "quantile_above",
]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

QUANTILE = 0.99
"""Share of the validation images that are to be within."""
RANK = 32
"""Directions that are kept at most."""
_PER_DIRECTION = 4
_FOLDS = 5
# Measured alone, the energy tells little apart in a small model; it is to speak up only when it is
# far from anything seen.
_ENERGY_MARGIN = 2.0
_SHRINKAGE = 0.1
_ARRAYS = ("centre", "scale", "basis", "weights", "rest", "appearance_centre", "whitening")
# No statistic may decide by less than this: a film saved with a trace of colour is still a film.
_FLOORS = np.array(
    [
        0.25 if name == "log colour" else 0.2 if name.startswith("log ") else 0.06
        for name in APPEARANCE
    ]
)


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """Statistics of n images, in one order."""

    tokens: Float64Array
    """(n, 2 D)."""
    appearance: Float64Array
    """(n, 17)."""
    energies: Float64Array
    """(n,) of the task's logits for one text each; NaN where none was computed."""
    groups: tuple[str, ...]
    """Unit of splitting of each, usually the patient."""

    def take(self, rows: npt.NDArray[np.intp]) -> ImageStatistics:
        """Those of some images."""
        groups = tuple(self.groups[row] for row in rows)
        return ImageStatistics(
            self.tokens[rows], self.appearance[rows], self.energies[rows], groups
        )

    def __len__(self) -> int:
        return len(self.groups)


def _features(statistics: Float64Array) -> dict[str, Float64Array]:
    """Arrays of the features' distance, of (n, 2 D) statistics."""
    count, width = statistics.shape
    centre = statistics.mean(axis=0)
    spread = statistics.std(axis=0)
    floor = 1e-3 * float(np.median(spread)) + 1e-9
    scale = 1.0 / (spread + floor)
    scaled = (statistics - centre) * scale
    _, singular, rows = np.linalg.svd(scaled, full_matrices=False)
    rank = max(1, min(RANK, count // _PER_DIRECTION, width - 1))
    # A direction and its opposite are the same; one of them is stored.
    largest = np.abs(rows).argmax(axis=1)
    rows = rows * np.sign(rows[np.arange(len(rows)), largest])[:, None]
    variances = singular[:rank] ** 2 / count
    variances = (1 - _SHRINKAGE) * variances + _SHRINKAGE * variances.mean() + 1e-12
    left = float((singular[rank:] ** 2).sum()) / count
    return {
        "centre": centre,
        "scale": scale,
        "basis": rows[:rank],
        "weights": 1.0 / (rank * variances),
        "rest": np.array([1.0 / (left + 1e-6 * width)]),
    }


def _appearance(statistics: Float64Array) -> dict[str, Float64Array]:
    """Arrays of the appearance's distance, of (n, 17) statistics."""
    covariance = np.cov(statistics.T, bias=True)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    covariance += np.diag(_FLOORS**2)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    return {"appearance_centre": statistics.mean(axis=0), "whitening": whitening}


def quantile_above(values: Float64Array, share: float) -> float:
    """The value that a further one exceeds with at most a chance of 1 - `share`.

    The largest where there are too few for that: fewer than 99 for 0.99.
    """
    rank = min(int(np.ceil(share * (len(values) + 1))), len(values))
    return float(np.sort(values)[rank - 1])


def build_model(arrays: Mapping[str, Float32Array], spec: OodSpec) -> OodModel:
    """The model that the runtime makes of these arrays."""
    centre, scale, basis, weights, rest, appearance_centre, whitening = (
        arrays[name].astype(np.float64) for name in _ARRAYS
    )
    return OodModel(
        spec, centre, scale, basis, weights, float(rest[0]), appearance_centre, whitening
    )


def _fit_arrays(statistics: ImageStatistics) -> dict[str, Float32Array]:
    fitted = {**_features(statistics.tokens), **_appearance(statistics.appearance)}
    return {name: _coarse(fitted[name]) for name in _ARRAYS}


def _coarse(values: Float64Array) -> Float32Array:
    """Values with 18 bits below the largest: fitting elsewhere then gives the same bytes."""
    step = 2.0 ** (math.floor(math.log2(float(np.abs(values).max()) + 1e-300)) - 18)
    # Adding 0 turns -0 into 0.
    rounded: Float64Array = np.round(values / step) * step + 0.0
    return rounded.astype(np.float32)


def _upward(value: float) -> float:
    """Six digits, never less: the image that sets a limit stays within it."""
    return float(f"{value + 1e-5 * abs(value):.6g}")


def _distances(
    arrays: Mapping[str, Float32Array], statistics: ImageStatistics
) -> dict[OodPart, Float64Array]:
    """What each part gives before its limit: (n,) each."""
    limits: dict[OodPart, float] = {"features": 1.0, "appearance": 1.0, "energy": 1.0}
    spec = OodSpec(file="none", limits=limits, energy_centre=0.0, quantile=QUANTILE, n=1)
    model = build_model(arrays, spec)
    return {
        "features": np.array([model.features_distance(row) for row in statistics.tokens]),
        "appearance": np.array([model.appearance_distance(row) for row in statistics.appearance]),
        "energy": statistics.energies,
    }


def _held_out_distances(statistics: ImageStatistics) -> dict[OodPart, Float64Array]:
    """Distances of each image from the others: those of its own group are left out."""
    names = sorted(set(statistics.groups))
    order = np.random.default_rng(0).permutation(len(names))
    fold_of = {names[index]: rank % _FOLDS for rank, index in enumerate(order)}
    folds = np.array([fold_of[name] for name in statistics.groups])
    held: dict[OodPart, Float64Array] = {
        part: np.empty(len(statistics)) for part in ("features", "appearance", "energy")
    }
    for fold in range(_FOLDS):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not len(inside):
            continue
        found = _distances(_fit_arrays(statistics.take(outside)), statistics.take(inside))
        for part, values in found.items():
            held[part][inside] = values
    return held


def fit_model(
    validation: ImageStatistics,
    reference: ImageStatistics | None,
    *,
    file: str,
    quantile: float = QUANTILE,
) -> tuple[dict[str, Float32Array], OodSpec]:
    """Arrays and limits of one task.

    Each part's limit is the quantile of the validation images, that of the energy twice as far
    from the median; all three are then widened by one factor, so that the largest of the parts
    keeps the quantile too.

    Args:
        validation: Images that set the limits; the model was not trained on them.
        reference: Images that say where the task's images lie. None: the validation images
            themselves, each measured by a fit to the other patients' (five folds).
        file: Where the arrays will stand in the bundle.
        quantile: Share of the validation images that are to be within.

    Returns:
        Name -> array, and what the manifest says.
    """
    if reference is None:
        arrays, distances = _fit_arrays(validation), _held_out_distances(validation)
    else:
        arrays = _fit_arrays(reference)
        distances = _distances(arrays, validation)
    centre = float(f"{np.median(distances['energy']):.6g}")
    limits = {part: quantile_above(values, quantile) for part, values in distances.items()}
    limits["energy"] = centre + _ENERGY_MARGIN * max(limits["energy"] - centre, 1e-6)
    scores = np.maximum.reduce(
        [
            distances["features"] / limits["features"],
            distances["appearance"] / limits["appearance"],
            (distances["energy"] - centre) / (limits["energy"] - centre),
        ]
    )
    factor = quantile_above(scores, quantile)
    widened: dict[OodPart, float] = {
        "features": _upward(limits["features"] * factor),
        "appearance": _upward(limits["appearance"] * factor),
        "energy": _upward(centre + (limits["energy"] - centre) * factor),
    }
    spec = OodSpec(
        file=file, limits=widened, energy_centre=centre, quantile=quantile, n=len(validation)
    )
    return arrays, spec
