"""Which frames of a file are meant: one, or so many of a clip as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._defaults import FRAMES
from ._encoded import EncodedImage
from ._image import ImageInput, kind_of
from ._predictor import Predictor

if TYPE_CHECKING:
    from ._clip import EncodedClip

__all__ = ["MOST_FRAMES", "encode_frames"]

MOST_FRAMES = 256
"""How many frames of a clip may be asked for."""


def encode_frames(
    predictor: Predictor, image: ImageInput, frame: int | None, frames: int | None
) -> EncodedImage | EncodedClip:
    """Encode an image, or frames of a clip.

    MP4, AVI and MPEG files are clips unless a frame is named; a DICOM object with several frames is
    one where `frames` says so.

    Args:
        predictor: Encodes.
        image: As in `Predictor.encode`.
        frame: The frame that is meant, from 1.
        frames: How many frames of a clip are taken; not beside `frame`.

    Raises:
        InputError: As `Predictor.encode` and `Predictor.encode_clip`.
    """
    kind = kind_of(image)
    if frame is None and kind == "clip":
        return predictor.encode_clip(image, frames or FRAMES)
    if frames is None or kind == "image":
        return predictor.encode(image, frame=frame)
    return predictor.encode_clip(image, frames)
