"""Pictures of the records that disagree most, with what each side says, side by side.

They show patients' pictures: they are written to a folder that the user names, never into a bundle
and never into the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from umd_edge._image import load_image
from umd_edge.errors import DataError, InputError, UsageError

from .compare import Comparison, Disagreement

__all__ = ["check_outside", "write_pictures"]

_SIDE, _TITLE, _CAPTION, _GAP = 360, 26, 46, 12


def check_outside(bundle: Path, *places: Path | None) -> None:
    """Refuse places inside a bundle's directory.

    Raises:
        UsageError: One is.
    """
    inside = bundle.resolve()
    for place in places:
        if place is not None and inside in (place.resolve(), *place.resolve().parents):
            raise UsageError(
                f"{str(place)!r} lies in the bundle {str(bundle)!r}; records are named and shown "
                "outside a bundle only: give another folder"
            )


def _draw(item: Disagreement, reference: str, variant: str) -> Image.Image:
    try:
        pixels = load_image(item.image_path).pixels
    except InputError as error:
        raise DataError(f"a picture of the report cannot be read: {error}") from error
    if pixels.dtype.itemsize > 1:  # 16 bits to what a screen shows
        pixels = (pixels >> 8).astype("uint8")
    # grey pictures have one channel, which pillow knows without an axis only
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    shown = Image.fromarray(pixels[:, :, 0] if grey else pixels).convert("RGB")
    shown.thumbnail((_SIDE, _SIDE))
    canvas = Image.new("RGB", (2 * _SIDE + 3 * _GAP, _SIDE + _TITLE + _CAPTION), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    draw.text((_GAP, 4), f"{item.task}, record {item.id}", fill="black", font=font)
    sides = (
        (reference, item.output_a, item.probability_a, item.score_a),
        (variant, item.output_b, item.probability_b, item.score_b),
    )
    for column, (side, output, probability, score) in enumerate(sides):
        x = _GAP + column * (_SIDE + _GAP)
        canvas.paste(shown, (x, _TITLE))
        caption = f"{side}: {output} ({probability:.2f})\nright: {score:.2f}"
        draw.text((x, _TITLE + _SIDE + 4), caption, fill="black", font=font)
    return canvas


def write_pictures(
    folder: Path, comparisons: Mapping[str, Comparison], reference: str
) -> dict[tuple[str, str, str], str]:
    """Write one PNG for each disagreement.

    Args:
        folder: Made if it is not there; files of an earlier report of the same names are replaced.
        comparisons: Variant -> against the reference.
        reference: Name of the reference.

    Returns:
        (variant, task, record) -> file name.

    Raises:
        UsageError: The folder cannot be made.
        DataError: A picture cannot be read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{str(folder)!r} cannot be made a folder; name another one") from error
    names: dict[tuple[str, str, str], str] = {}
    for variant, found in comparisons.items():
        for rank, item in enumerate(found.disagreements, start=1):
            name = f"{variant}-{rank:02d}-{item.task}.png"
            _draw(item, reference, variant).save(folder / name)
            names[variant, item.task, item.id] = name
    return names
