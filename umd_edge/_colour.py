"""YCbCr to RGB for pixels that no decoder has turned into RGB. No DICOM library here."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ybr_to_rgb"]


def ybr_to_rgb(values: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """Turn YBR_FULL into RGB.

    Args:
        values: (H, W, 3) unsigned whole numbers: brightness, blueness, redness.
        bits: How many bits a value has.

    Returns:
        The same shape and dtype. Every value is less than one level from the formula, and at most
        one level from what DCMTK shows, which rounds the parts of the sum towards zero.

    Source: PS3.3 C.7.6.3.1.2, solved for red, green and blue.
    """
    middle, top = 1 << (bits - 1), (1 << bits) - 1
    y = values[..., 0].astype(np.int64)
    blueness = values[..., 1].astype(np.float64) - middle
    redness = values[..., 2].astype(np.float64) - middle
    red = y + np.trunc(1.402 * redness)
    # 0.55 rather than 0.5: DCMTK's green lies half a level below the formula on average.
    green = y - np.floor(0.344136 * blueness + 0.714136 * redness + 0.55)
    blue = y + np.trunc(1.772 * blueness)
    return np.clip(np.stack([red, green, blue], axis=-1), 0, top).astype(values.dtype)
