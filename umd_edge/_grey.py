"""Grey values of any depth to 8 bits: window functions, tables, scaling. No DICOM library here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._preprocess import window_to_uint8
from .errors import DicomInputError

__all__ = ["VoiWindow", "grey_to_uint8", "lookup", "to_uint8"]

UInt8Array = npt.NDArray[np.uint8]

_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True, slots=True)
class VoiWindow:
    """A window of interest, as DICOM PS3.3 C.11.2.1.2 defines it."""

    centre: float
    width: float
    function: str = "LINEAR"

    def __post_init__(self) -> None:
        if self.function not in _FUNCTIONS:
            raise DicomInputError(f"VOILUTFunction (0028,1056) is not one of {list(_FUNCTIONS)}")
        lowest = 1.0 if self.function == "LINEAR" else 0.0
        if self.width < lowest or self.width <= 0:
            raise DicomInputError(
                "WindowWidth (0028,1051) is too small: at least 1 is needed for LINEAR, more than "
                "0 for the other functions"
            )

    def apply(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Brightness 0..1 of each value; same shape."""
        x = values.astype(np.float64)
        if self.function == "SIGMOID":
            # Clipped where the result is 0 or 1 to 8 bits anyway, so that exp cannot overflow.
            return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (x - self.centre) / self.width, -50, 50)))
        if self.function == "LINEAR_EXACT":
            return np.clip((x - self.centre) / self.width + 0.5, 0.0, 1.0)
        if self.width == 1.0:
            return (x > self.centre - 0.5).astype(np.float64)
        return np.clip((x - (self.centre - 0.5)) / (self.width - 1.0) + 0.5, 0.0, 1.0)


def _round(brightness: npt.NDArray[np.float64]) -> UInt8Array:
    return np.floor(brightness * 255.0 + 0.5).astype(np.uint8)


def grey_to_uint8(
    values: npt.NDArray[Any],
    window: VoiWindow | None,
    padding: npt.NDArray[np.bool_] | None,
    *,
    full_range: bool,
) -> UInt8Array:
    """Bring modality values to 8 bits.

    Args:
        values: (H, W), integers or float64.
        window: What the header asks for. Without one the values are windowed from the smallest to
            the largest outside the padding, unless they are display values already.
        padding: (H, W) bool, pixels that the smallest and largest value are not taken from.
        full_range: The values are unsigned bytes, meant for display as they are.

    Returns:
        (H, W) uint8.

    Raises:
        DicomInputError: There is nothing to see: all values are equal or padding.
    """
    if window is not None:
        return _round(window.apply(values))
    if full_range:
        return values.astype(np.uint8)
    seen = values if padding is None else values[~padding]
    if seen.size == 0 or seen.min() == seen.max():
        raise DicomInputError("all pixels of the DICOM image are equal; there is nothing to see")
    if np.issubdtype(values.dtype, np.integer):
        return window_to_uint8(values, int(seen.min()), int(seen.max()))
    low, high = float(seen.min()), float(seen.max())
    return _round(np.clip((values - low) / (high - low), 0.0, 1.0))


def to_uint8(values: npt.NDArray[Any], bits: int) -> UInt8Array:
    """Scale display values of 0..2**bits - 1 to 0..255."""
    if bits == 8:
        return values.astype(np.uint8)
    return window_to_uint8(values, 0, (1 << bits) - 1)


def lookup(
    values: npt.NDArray[Any], table: npt.NDArray[np.int64], first: int
) -> npt.NDArray[np.int64]:
    """Entries of a table that begins at value `first`; values outside take the nearest entry."""
    index = np.clip(np.floor(values.astype(np.float64)) - first, 0, table.size - 1)
    return np.asarray(table[index.astype(np.int64)])
