"""The views of a study, encoded; each picture has one part in the result, however often given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ._combine import EncodedStudy
from ._results import LeftOut
from .errors import InputError, MissingDependencyError, UmdEdgeError

if TYPE_CHECKING:
    from ._encoded import EncodedImage
    from ._encoding_calls import EncodingCalls
    from ._image import ImageInput

__all__ = ["encode_views"]


def encode_views(
    predictor: EncodingCalls,
    images: Iterable[ImageInput],
    frame: int | None,
    on_error: Callable[[int, UmdEdgeError], None] | None,
) -> EncodedStudy:
    """See `Predictor.encode_study`."""
    encoded: list[EncodedImage] = []
    positions: list[int] = []
    left_out: list[LeftOut] = []
    seen: dict[tuple[bytes, str | None], int] = {}
    for position, given in enumerate(images):
        try:
            image = predictor.encode(given, frame=frame)
        except (InputError, MissingDependencyError) as error:
            if on_error is None:
                raise
            on_error(position, error)
            left_out.append(LeftOut(position, "error", type(error).__name__))
            continue
        # By its pixels: a copy under another name would weigh as much in the mean. DICOM objects
        # that call themselves different images are taken at their word.
        instance = None if image.dicom is None else image.dicom.sop_instance_uid
        first = seen.setdefault((image.input_digest(), instance), position)
        if first != position:
            reason = f"the same picture as number {first + 1} of those given"
            left_out.append(LeftOut(position, "duplicate", reason))
            continue
        encoded.append(image)
        positions.append(position)
    return EncodedStudy(predictor._engine, encoded, positions=positions, unusable=left_out)
