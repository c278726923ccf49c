"""The calls of `Predictor` that encode images, studies and clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING

from ._audit_trail import load_recorded
from ._deadline import check_limits
from ._defaults import FRAMES
from ._encoded import EncodedImage
from ._image import kind_of, load_image
from .errors import UmdEdgeError

if TYPE_CHECKING:
    from ._audit import AuditLog
    from ._clip import EncodedClip
    from ._combine import EncodedStudy
    from ._engine import Engine
    from ._image import ImageInput

__all__ = ["EncodingCalls"]


class EncodingCalls:
    """`encode`, `encode_study` and `encode_clip`, for a class that has an engine."""

    _engine: Engine
    _audit: AuditLog | None

    def encode(self, image: ImageInput, *, frame: int | None = None) -> EncodedImage:
        """Decode, window, resize and encode an image, once for everything that follows.

        Args:
            image: Path, file bytes, PIL image, or array (H, W) or (H, W, 3) of uint8 or uint16.
            frame: Which frame of a DICOM object with several, counted from 1 as DICOM does.

        Raises:
            ImageInputError: The image cannot be used; `DicomInputError` for DICOM.
            MissingDependencyError: DICOM was given and the extra `dicom` is not installed.
            InferenceError: The vision graph failed.
        """
        encoded = self._decode(image, frame)
        encoded.features()
        return encoded

    def encode_study(
        self,
        images: Iterable[ImageInput],
        *,
        frame: int | None = None,
        on_error: Callable[[int, UmdEdgeError], None] | None = None,
    ) -> EncodedStudy:
        """Encode several images, frames or views of one study, to be answered together.

        Args:
            images: Each as in `encode`; a picture that is given twice counts once.
            frame: As in `encode`, for all of them.
            on_error: Called with the place and the error of an image that cannot be used, which is
                then left out and counted; None raises the error.

        Raises:
            ImageInputError: As in `encode`; there is no image, or none that can be used.
        """
        from ._views import encode_views

        return encode_views(self, images, frame, on_error)

    def encode_clip(self, source: ImageInput, frames: int = FRAMES) -> EncodedClip:
        """Encode frames spread evenly over a clip, to be answered together.

        `classify` and `ask` do so by themselves for MP4, AVI and MPEG files; a DICOM object with
        several frames is taken as a clip only here.

        Args:
            source: Path or bytes of an MP4, AVI, MPEG or DICOM file.
            frames: How many frames; all of a clip that has no more.

        Raises:
            ImageInputError: No clip, damaged, cut off, too long or too large.
            MissingDependencyError: The extra `video`, or `dicom`, is not installed.
        """
        from ._clip import encode_clip

        return encode_clip(self._engine, source, frames, self._audit)

    def _image_or_clip(self, image: ImageInput, frame: int | None) -> EncodedImage | EncodedClip:
        if frame is None and kind_of(image) == "clip":
            return self.encode_clip(image)
        return self._decode(image, frame)

    def _decode(self, image: ImageInput, frame: int | None) -> EncodedImage:
        check_limits()
        start = perf_counter()
        if self._audit is None:
            loaded, trail = load_image(image, frame=frame), None
        else:
            loaded, trail = load_recorded(self._audit, self._engine, image, frame)
        return EncodedImage(self._engine, loaded, (perf_counter() - start) * 1e3, trail)
