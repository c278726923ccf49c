"""What a task's `out_of_distribution` says in the manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ._fields import fail, file_, integer, object_
from ._record import dataclass

__all__ = ["MIN_SIDE", "PARTS", "OodPart", "OodSpec"]

OodPart = Literal["features", "appearance", "energy"]

PARTS: tuple[OodPart, ...] = ("features", "appearance", "energy")
"""`features`: distance of what the vision encoder saw; `appearance`: distance of the picture's grey
levels, edges and colours; `energy`: of the task's logits (Liu et al. 2020)."""
MIN_SIDE = 16
"""Rows and columns of the resized picture from which on its appearance can be judged."""
_METHOD = "mahalanobis"
_COUNTS = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class OodSpec:
    """From where on an image is too far from what a task was fitted on."""

    file: str
    """Path of the arrays inside the bundle; see `umd_edge._ood`."""
    limits: Mapping[OodPart, float]
    """Value of each part at which the score is 1."""
    energy_centre: float
    """Energy at which that part of the score is 0; below its limit."""
    quantile: float
    """Share of the validation images whose score is at most 1."""
    n: int
    """Validation images behind the limits."""

    def __post_init__(self) -> None:
        path = "out_of_distribution"
        if set(self.limits) != set(PARTS) or not all(map(math.isfinite, self.limits.values())):
            raise fail(f"{path}.limits", f"one finite number for each of {list(PARTS)} is needed")
        if min(self.limits["features"], self.limits["appearance"]) <= 0:
            raise fail(f"{path}.limits", "those of features and appearance must be above 0")
        if not self.energy_centre < self.limits["energy"]:
            raise fail(f"{path}.energy_centre", "a number below the limit of the energy is needed")
        if not 0 < self.quantile < 1:
            raise fail(f"{path}.quantile", "a number between 0 and 1 is needed")

    @classmethod
    def from_dict(cls, data: object, path: str) -> OodSpec:
        """Read the JSON object; unknown keys are refused.

        Raises:
            ManifestError: With the JSON path of what is wrong.
        """
        needed = {"method", "file", "limits", "energy_centre", "quantile", "n"}
        given = object_(data, path, needed, set())
        if given["method"] != _METHOD:
            raise fail(f"{path}.method", f"{_METHOD!r} is the only one allowed")
        limits = object_(given["limits"], f"{path}.limits", set(PARTS), set())
        return cls(
            file=file_(given["file"], f"{path}.file"),
            limits={part: _number(limits[part], f"{path}.limits.{part}") for part in PARTS},
            energy_centre=_number(given["energy_centre"], f"{path}.energy_centre"),
            quantile=_number(given["quantile"], f"{path}.quantile"),
            n=integer(given["n"], f"{path}.n", 1, _COUNTS),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `from_dict` gives an equal one back."""
        return {
            "method": _METHOD,
            "file": self.file,
            "limits": dict(self.limits),
            "energy_centre": self.energy_centre,
            "quantile": self.quantile,
            "n": self.n,
        }


def _number(value: object, path: str) -> float:
    if type(value) not in (int, float):
        raise fail(path, "a number is needed")
    return float(value)  # type: ignore[arg-type]
