"""From 8-bit pixels to `pixel_values`: the only preprocessing code, used in training too.

Everything here is integer arithmetic or a table look-up, so that another language can repeat it bit
for bit. There is no floating-point sum and no BLAS.

* Windowing: `floor((value - low) * 255 / (high - low) + 1/2)` in integers, clipped to 0..255.
* Resize: separable triangle filter whose support grows with the reduction (so it does not alias).
  The weight of input pixel `i` for output pixel `x` is the integer
  `max(0, 2 * max(n_in, n_out) - |(2 i + 1) n_out - (2 x + 1) n_in|)`; weights are divided by their
  sum and rounded half up to `coefficient_bits` bits. Columns first, then rows; each pass
  accumulates without overflow, rounds half up and clips to 8 bits.
* Normalisation: a 256-entry float32 table per channel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ._record import dataclass
from .errors import ImageInputError, ManifestError

__all__ = [
    "PreprocessSpec",
    "normalise",
    "preprocess",
    "resize",
    "resize_for",
    "window_to_uint8",
]

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

_MAX_SIDE = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSpec:
    """What a model expects of its pixels; it travels with the weights."""

    height: int
    """Rows of `pixel_values`."""
    width: int
    """Columns of `pixel_values`."""
    channels: int = 3
    """1 (grey) or 3 (red, green, blue)."""
    coefficient_bits: int = 22
    """Fixed-point bits of the resize coefficients."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, of pixel values scaled to 0..1."""
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    """Per channel, of pixel values scaled to 0..1."""

    def __post_init__(self) -> None:
        if not (8 <= self.height <= 4096 and 8 <= self.width <= 4096):
            raise ManifestError(
                f"preprocessing: height {self.height!r} and width {self.width!r} given; "
                "8..4096 allowed"
            )
        if self.channels not in (1, 3):
            raise ManifestError(f"preprocessing.channels: {self.channels!r} given; 1 or 3 allowed")
        if not 8 <= self.coefficient_bits <= 24:
            raise ManifestError(
                f"preprocessing.coefficient_bits: {self.coefficient_bits!r} given; 8..24 allowed"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ManifestError("preprocessing.mean and .std need one number per channel")
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(s) and s > 0 for s in self.std):
            raise ManifestError("preprocessing.mean must be finite and .std positive")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PreprocessSpec:
        """Read the manifest's `preprocessing` object.

        Raises:
            ManifestError: A key is missing or unknown, or a value has a wrong type or range.
        """
        expected = {"height", "width", "channels", "coefficient_bits", "mean", "std"}
        if not isinstance(data, dict) or set(data) != expected:
            raise ManifestError(f"preprocessing: exactly the keys {sorted(expected)} are needed")
        integers = ("height", "width", "channels", "coefficient_bits")
        if not all(type(data[key]) is int for key in integers):
            raise ManifestError(f"preprocessing: {', '.join(integers)} must be integers")
        try:
            mean = tuple(float(value) for value in data["mean"])
            std = tuple(float(value) for value in data["std"])
        except (TypeError, ValueError) as error:
            raise ManifestError("preprocessing.mean and .std must be lists of numbers") from error
        return cls(mean=mean, std=std, **{key: data[key] for key in integers})

    def to_dict(self) -> dict[str, Any]:
        """The manifest's `preprocessing` object."""
        return {
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "coefficient_bits": self.coefficient_bits,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def window_to_uint8(values: npt.NDArray[Any], low: int, high: int) -> UInt8Array:
    """Map `low`..`high` to 0..255 and clip.

    Args:
        values: Any shape, integer dtype of at most 32 bits.
        low: Value that becomes 0.
        high: Value that becomes 255; must exceed `low`.

    Raises:
        ImageInputError: `high` does not exceed `low`.
    """
    if high <= low:
        raise ImageInputError(f"window of {low} to {high} is empty; the upper end must be larger")
    span = int(high) - int(low)
    shifted = np.clip(values.astype(np.int64) - int(low), 0, span)
    # floor(a / b + 1/2) == (2 a + b) // (2 b) in integers
    levels: UInt8Array = ((shifted * 510 + span) // (2 * span)).astype(np.uint8)
    return levels


@lru_cache(maxsize=64)
def _coefficients(
    n_in: int, n_out: int, bits: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First input index (n_out,) and fixed-point coefficients (n_out, taps) of one axis."""
    reach = 2 * max(n_in, n_out)
    x = np.arange(n_out, dtype=np.int64)
    centre = (2 * x + 1) * n_in
    # |(2 i + 1) n_out - centre| < reach  <=>  (centre - reach) / n_out < 2 i + 1 < ...
    first = np.maximum(0, -((reach + n_out - centre) // (2 * n_out)))
    taps = int(reach // n_out) + 2
    index = first[:, None] + np.arange(taps, dtype=np.int64)[None, :]
    weight = np.maximum(0, reach - np.abs((2 * index + 1) * n_out - centre[:, None]))
    weight[index >= n_in] = 0
    total = weight.sum(axis=1, keepdims=True)
    coefficients = (2 * (weight << bits) + total) // (2 * total)
    used = max(1, int(np.flatnonzero(coefficients.any(axis=0)).max()) + 1)
    return first, np.ascontiguousarray(coefficients[:, :used])


def _resize_rows(image: UInt8Array, n_out: int, bits: int) -> UInt8Array:
    """Resize axis 0 of (N, M) uint8 to (n_out, M)."""
    n_in = image.shape[0]
    if n_in == n_out:
        return image
    first, coefficients = _coefficients(n_in, n_out, bits)
    # With at most 22 bits and 8-bit pixels the sum stays below 2**31: 32-bit arithmetic is exact.
    dtype = np.int32 if bits <= 22 else np.int64
    total = np.full((n_out, image.shape[1]), 1 << (bits - 1), dtype=dtype)
    for tap in range(coefficients.shape[1]):
        rows = image[np.minimum(first + tap, n_in - 1)].astype(dtype)
        rows *= coefficients[:, tap].astype(dtype)[:, None]
        total += rows
    total >>= bits
    clipped: UInt8Array = np.clip(total, 0, 255).astype(np.uint8)
    return clipped


def resize(image: UInt8Array, height: int, width: int, bits: int = 22) -> UInt8Array:
    """Resize to exactly `height` x `width` (the aspect ratio is not kept).

    Args:
        image: (H, W, C) uint8.
        height: Output rows.
        width: Output columns.
        bits: Fixed-point bits of the coefficients.

    Returns:
        (height, width, C) uint8.

    Raises:
        ImageInputError: Wrong rank or dtype, or a side that is zero or above 65,535.
    """
    if image.ndim != 3 or image.dtype != np.uint8:
        raise ImageInputError(
            f"image of shape {image.shape} and dtype {image.dtype} given; (H, W, C) uint8 needed"
        )
    rows, columns, channels = image.shape
    if not (0 < rows <= _MAX_SIDE and 0 < columns <= _MAX_SIDE):
        raise ImageInputError(
            f"image of {rows} x {columns} pixels; sides of 1..{_MAX_SIDE} allowed"
        )
    if (rows, columns) == (height, width):
        return image
    turned = np.ascontiguousarray(image.transpose(1, 0, 2)).reshape(columns, rows * channels)
    across = _resize_rows(turned, width, bits).reshape(width, rows, channels)
    down = np.ascontiguousarray(across.transpose(1, 0, 2)).reshape(rows, width * channels)
    return _resize_rows(down, height, bits).reshape(height, width, channels)


@lru_cache(maxsize=16)
def _normalisation_table(mean: float, std: float) -> Float32Array:
    """The 256 float32 values that the grey levels become: (level / 255 - mean) / std."""
    levels = np.arange(256, dtype=np.float64)
    return ((levels / 255.0 - mean) / std).astype(np.float32)


def preprocess(image: UInt8Array, spec: PreprocessSpec) -> Float32Array:
    """Resize and normalise one image.

    Args:
        image: (H, W, 1 or 3) uint8. Grey is repeated for a colour model; colour is turned to grey
            for a grey model by the integer ITU-R BT.601 weights 77, 150, 29 (of 256).
        spec: What the model expects.

    Returns:
        (channels, height, width) float32, C-contiguous.

    Raises:
        ImageInputError: Wrong rank, dtype, channel count or size.
    """
    return normalise(resize_for(image, spec), spec)


def resize_for(image: UInt8Array, spec: PreprocessSpec) -> UInt8Array:
    """The first half of `preprocess`: (height, width, 1 or 3) uint8; see there."""
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ImageInputError(f"image of shape {image.shape} given; (H, W, 1) or (H, W, 3) needed")
    return resize(image, spec.height, spec.width, spec.coefficient_bits)


def normalise(image: UInt8Array, spec: PreprocessSpec) -> Float32Array:
    """Bring a resized (height, width, 1 or 3) uint8 image to (channels, height, width) float32."""
    if image.shape[2] == 3 and spec.channels == 1:
        wide = image.astype(np.int32)
        grey = (77 * wide[..., 0] + 150 * wide[..., 1] + 29 * wide[..., 2] + 128) >> 8
        image = grey.astype(np.uint8)[..., None]
    values = np.empty((spec.channels, spec.height, spec.width), dtype=np.float32)
    scales = tuple(zip(spec.mean, spec.std, strict=True))
    for channel, scale in enumerate(scales):
        if channel and image.shape[2] == 1 and scale == scales[0]:
            values[channel] = values[0]  # copying is a tenth of looking up
            continue
        table = _normalisation_table(*scale)
        levels = image[..., min(channel, image.shape[2] - 1)]
        # 256 entries cover every level; "wrap" lets numpy write without a copy between.
        np.take(table, levels, out=values[channel], mode="wrap")
    return values
