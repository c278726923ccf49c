"""Grey values of any depth to 8 bits: window functions, tables, scaling. No DICOM library here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._preprocess import window_to_uint8
from .errors import DicomInputError

__all__ = [
    "GreyLook",
    "LookupTable",
    "VoiWindow",
    "grey_to_uint8",
    "stored_values",
    "to_uint8",
]

UInt8Array = npt.NDArray[np.uint8]
Float64Array = npt.NDArray[np.float64]

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

    def apply(self, values: npt.NDArray[Any]) -> Float64Array:
        """Brightness (...) float64, 0..1, of modality values (...) of any number type."""
        x = values.astype(np.float64)
        if self.function == "SIGMOID":
            # Clipped where the result is 0 or 1 to 8 bits anyway, so that exp cannot overflow.
            return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (x - self.centre) / self.width, -50, 50)))
        if self.function == "LINEAR_EXACT":
            return np.clip((x - self.centre) / self.width + 0.5, 0.0, 1.0)
        if self.width == 1.0:
            return (x > self.centre - 0.5).astype(np.float64)
        return np.clip((x - (self.centre - 0.5)) / (self.width - 1.0) + 0.5, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A table of PS3.3 C.11.1 (modality), C.11.2 (values of interest) or C.11.4 (presentation)."""

    entries: npt.NDArray[np.int64]
    """(N,) outputs, 0..2**bits - 1."""
    first: int
    """The input that the first entry is for; inputs outside take the nearest entry."""
    bits: int

    def apply(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The entries (...) int64 of values (...) of any number type."""
        last = self.entries.size - 1
        index = np.clip(np.floor(values.astype(np.float64)) - self.first, 0, last)
        return np.asarray(self.entries[index.astype(np.int64)])

    def present(self, brightness: Float64Array) -> Float64Array:
        """Brightness (...) float64, 0..1, of brightness (...) 0..1 spread over all entries."""
        index = np.minimum(np.floor(brightness * self.entries.size), self.entries.size - 1)
        return np.asarray(self.entries[index.astype(np.int64)] / ((1 << self.bits) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyLook:
    """How modality values become brightness."""

    interest: VoiWindow | LookupTable | None = None
    """Without one the values run from the smallest to the largest outside the padding, unless they
    are display values already."""
    presentation: LookupTable | None = None
    """Gives the final brightness, so nothing is inverted after it."""
    inverted: bool = False
    full_range: bool = False
    """The values are unsigned bytes, meant for display as they are."""


def grey_to_uint8(
    values: npt.NDArray[Any], look: GreyLook, padding: npt.NDArray[np.bool_] | None
) -> UInt8Array:
    """Bring modality values to 8 bits.

    Args:
        values: (H, W), integers or float64.
        look: What the header asks for.
        padding: (H, W) bool, pixels that the smallest and largest value are not taken from.

    Returns:
        (H, W) uint8.

    Raises:
        DicomInputError: There is nothing to see: all values are equal or padding.
    """
    if look.presentation is not None:
        return _round(look.presentation.present(_brightness(values, look, padding)))
    if isinstance(look.interest, LookupTable):
        pixels = to_uint8(look.interest.apply(values), look.interest.bits)
    elif look.interest is None and look.full_range:
        pixels = values.astype(np.uint8)
    elif look.interest is None and np.issubdtype(values.dtype, np.integer):
        pixels = window_to_uint8(values, *_extremes(values, padding))
    else:
        pixels = _round(_brightness(values, look, padding))
    return np.subtract(255, pixels, dtype=np.uint8) if look.inverted else pixels


def _brightness(
    values: npt.NDArray[Any], look: GreyLook, padding: npt.NDArray[np.bool_] | None
) -> Float64Array:
    """Brightness 0..1 after the values of interest, before presentation."""
    if isinstance(look.interest, LookupTable):
        top = (1 << look.interest.bits) - 1
        return np.clip(look.interest.apply(values) / top, 0.0, 1.0)
    if look.interest is not None:
        return look.interest.apply(values)
    low, high = (0, 255) if look.full_range else _extremes(values, padding)
    return np.clip((values.astype(np.float64) - low) / (high - low), 0.0, 1.0)


def _extremes(values: npt.NDArray[Any], padding: npt.NDArray[np.bool_] | None) -> tuple[Any, Any]:
    """Smallest and largest value outside the padding, which differ."""
    seen = values if padding is None else values[~padding]
    if seen.size == 0 or seen.min() == seen.max():
        raise DicomInputError("all pixels of the DICOM image are equal; there is nothing to see")
    return seen.min().item(), seen.max().item()


def _round(brightness: Float64Array) -> UInt8Array:
    return np.floor(brightness * 255.0 + 0.5).astype(np.uint8)


def to_uint8(values: npt.NDArray[Any], bits: int) -> UInt8Array:
    """Scale display values (...) of 0..2**bits - 1 to (...) uint8."""
    if bits == 8:
        return values.astype(np.uint8)
    return window_to_uint8(values, 0, (1 << bits) - 1)


def stored_values(
    cells: npt.NDArray[Any], stored: int, high: int, *, signed: bool
) -> npt.NDArray[Any]:
    """Cut the bits of the image out of the cells that hold them.

    Args:
        cells: Any shape, whole numbers of 8, 16 or 32 bits as they lie in the file.
        stored: How many bits belong to the image.
        high: Place of the highest of them, counted from 0.
        signed: They are a two's complement.

    Returns:
        Same shape, whole numbers as wide as the cells.

    Source: PS3.5 8.1.1: what stands in the other bits means nothing.
    """
    width = 8 * cells.dtype.itemsize
    plain = cells.astype(cells.dtype.newbyteorder("="))
    values = plain.view(f"i{cells.dtype.itemsize}" if signed else f"u{cells.dtype.itemsize}")
    # Up to the top and down again: the shift to the right fills with the sign, or with zeros.
    return np.asarray(np.right_shift(np.left_shift(values, width - 1 - high), width - stored))
