"""Draws an explanation over its image, pixel for pixel.

The image keeps its own resolution and its grey levels: colour is laid over it as strongly as the
map says, and not at all where the map is zero. A strip below names the method, the target and the
status, and holds the scale. Pillow's own font is used: no other is on every machine.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import ImageInputError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    from ._explanation import Explanation

__all__ = ["colours", "draw_explanation", "overlay_png"]

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

_MOST = 0.6  # how much of a pixel the strongest colour covers
_STRIP_WIDTH = 360  # of the smallest image; a wider one gets larger letters
_STRIP_HEIGHT = 84
_INK, _MUTED, _PAGE, _WARN = (236, 240, 245), (160, 172, 188), (18, 24, 32), (246, 190, 80)
_ROWS_AT_ONCE = 256


def colours(strength: Float32Array) -> UInt8Array:
    """From violet over red and orange to yellow, in order of brightness.

    Args:
        strength: Any shape, 0 to 1.

    Returns:
        (..., 3) uint8.
    """
    t = np.clip(strength, 0.0, 1.0)
    red = np.minimum(1.0, 0.45 + 1.1 * t)
    green = t**1.6 * 0.95
    blue = 0.70 * (1.0 - t) ** 1.3 + 0.05
    return np.asarray(np.stack([red, green, blue], axis=-1) * 255.0 + 0.5, np.uint8)


def _blend(pixels: UInt8Array, strength: Float32Array) -> UInt8Array:
    """Lay the colours of `strength` (H, W) over an image (H, W, 1 or 3) -> (H, W, 3)."""
    cover = (_MOST * strength)[..., None]
    return np.asarray(pixels * (1.0 - cover) + colours(strength) * cover + 0.5, np.uint8)


def _blend_in_parts(pixels: UInt8Array, explanation: Explanation) -> UInt8Array:
    """The whole image; few rows at once, as numbers in between take far more memory."""
    out = np.empty((*pixels.shape[:2], 3), np.uint8)
    for start in range(0, len(out), _ROWS_AT_ONCE):
        rows = range(start, min(start + _ROWS_AT_ONCE, len(out)))
        part = slice(rows.start, rows.stop)
        out[part] = _blend(pixels[part], explanation.at_image_resolution(rows))
    return out


def draw_explanation(pixels: UInt8Array, explanation: Explanation) -> Image.Image:
    """The image with the map over it, and a strip below that says what is seen.

    Args:
        pixels: (H, W, 1 or 3) uint8: the image that was encoded, as `load_image` gives it.
        explanation: What was made of it; without a map the image stays as it is.

    Returns:
        RGB, as wide as the image (at least 360 pixels: a smaller image stands in a margin) and
        higher by the strip.

    Raises:
        ImageInputError: The pixels are not those of the explained image.
    """
    from PIL import Image

    if pixels.shape[:2] != explanation.image_size or pixels.shape[2:] not in ((1,), (3,)):
        raise ImageInputError(
            f"pixels of shape {pixels.shape} given; the explained image has "
            f"{explanation.image_size} rows and columns and 1 or 3 channels"
        )
    if explanation.map is None:
        shown = np.repeat(pixels, 3 // pixels.shape[2], axis=2)
    else:
        shown = _blend_in_parts(pixels, explanation)
    height, width = explanation.image_size
    scale = max(1.0, width / 640)
    full = max(width, _STRIP_WIDTH)
    picture = Image.new("RGB", (full, height + round(_STRIP_HEIGHT * scale)), _PAGE)
    picture.paste(Image.fromarray(shown), ((full - width) // 2, 0))
    _Strip(picture, height, scale).draw(explanation)
    return picture


def overlay_png(pixels: UInt8Array, explanation: Explanation) -> bytes:
    """`draw_explanation` as the bytes of a PNG file.

    Raises:
        ImageInputError: As there.
    """
    out = io.BytesIO()
    draw_explanation(pixels, explanation).save(out, "PNG")
    return out.getvalue()


class _Strip:
    """The lines and the scale below the image."""

    def __init__(self, picture: Image.Image, top: int, scale: float) -> None:
        from PIL import ImageDraw

        self.picture, self.top, self.scale = picture, top, scale
        self.pen: ImageDraw.ImageDraw = ImageDraw.Draw(picture)

    def draw(self, explanation: Explanation) -> None:
        title = f"{explanation.task}: {explanation.target} {100 * explanation.probability:.1f} %"
        if explanation.map is None:
            title = f"{explanation.task}: no map"
        self._text(16, title, 15, _INK)
        warnings = [] if explanation.status == "ok" else [explanation.status.replace("_", " ")]
        if explanation.map is not None and not explanation.proven:
            warnings.append("unproven map")
        if warnings:
            self._text(38, "! " + ", ".join(warnings) + "; not a medical device", 13, _WARN)
        else:
            self._text(38, "Not a medical device", 13, _MUTED)
        if explanation.map is not None:
            self._legend(explanation)

    def _legend(self, explanation: Explanation) -> None:
        from PIL import Image

        left, wide = round(10 * self.scale), round(110 * self.scale)
        ramp = np.tile(np.linspace(0, 1, wide, dtype=np.float32), (round(10 * self.scale), 1))
        under = np.full((*ramp.shape, 1), 70, np.uint8)
        bar = Image.fromarray(_blend(under, ramp))
        self.picture.paste(bar, (left, self.top + round(57 * self.scale)))
        unit = {"attention": "attention", "ablation": "loss without it"}[explanation.method]
        highest = float(explanation.map.max()) if explanation.map is not None else 0.0
        self._text(62, f"0 .. {max(highest, 0.0):.2g}  {unit} per patch", 12, _MUTED, 128)

    def _text(self, y: float, text: str, size: int, colour: Any, x: float = 10) -> None:
        from PIL import ImageFont

        font = ImageFont.load_default(round(size * self.scale))
        # The font has ASCII only; anything else would be drawn as an empty box.
        shown = text.encode("ascii", "replace").decode("ascii")
        room = self.picture.width - (x + 6) * self.scale
        while shown and self.pen.textlength(shown, font=font) > room:
            shown = shown[:-4] + "..." if len(shown) > 4 else ""
        place = (x * self.scale, self.top + y * self.scale)
        self.pen.text(place, shown, font=font, fill=colour, anchor="lm")
