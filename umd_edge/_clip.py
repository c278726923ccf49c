"""A clip, answered as one: its sampled frames are combined like the images of a study.

The rule: the frames are spread evenly over the clip (`sampled_frames`), each is encoded alone, and
the probability of each output is the mean over the frames used; see `_combine` for the rest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ._audit_trail import AuditTrail
from ._combine import EncodedStudy
from ._deadline import check_limits
from ._encoded import EncodedImage
from ._image import read_image_file
from ._results import Answer, Classification, ClipFrames
from ._video import Clip, load_clip
from .errors import UmdEdgeError

if TYPE_CHECKING:
    from ._audit import AuditLog
    from ._engine import Engine
    from ._image import ImageInput

__all__ = ["EncodedClip", "encode_clip"]


class EncodedClip(EncodedStudy):
    """The encoded frames of a clip, which are answered together; made by `Predictor.encode_clip`.

    Attributes:
        frames: Which frames these are.
    """

    def __init__(self, engine: Engine, images: list[EncodedImage], clip: Clip) -> None:
        super().__init__(engine, images)
        self.frames = ClipFrames(clip.numbers, clip.total)
        first = clip.images[0].dicom
        self._dicom = None if first is None else replace(first, frame=None)

    def classify(self, task: str, **given: Any) -> Classification:
        """Classify the clip by one task; see `EncodedStudy.classify`."""
        result = super().classify(task, **given)
        return replace(result, frames=self.frames, dicom=self._dicom)

    def ask(self, question: str, **given: Any) -> Answer:
        """Answer one question about the clip; see `EncodedStudy.ask`."""
        answer = super().ask(question, **given)
        return replace(answer, frames=self.frames, dicom=self._dicom)


def encode_clip(
    engine: Engine, source: ImageInput, frames: int, audit: AuditLog | None
) -> EncodedClip:
    """See `Predictor.encode_clip`."""
    check_limits()
    start = perf_counter()
    hashes: Mapping[str, str] = {}
    try:
        if audit is not None and isinstance(source, (str, os.PathLike)):
            source = read_image_file(Path(source))
        if audit is not None and isinstance(source, (bytes, bytearray, memoryview)):
            hashes = {"file_sha256": hashlib.sha256(source).hexdigest()}
        clip = load_clip(source, frames)
    except UmdEdgeError as error:
        if audit is not None:
            AuditTrail(audit, engine, hashes).record_error(error)
        raise
    spent = (perf_counter() - start) * 1e3
    # One clip is one entry of the audit log, so one frame alone has a trail.
    trail = None if audit is None else AuditTrail(audit, engine, hashes)
    images = []
    for loaded in clip.images:
        check_limits()
        image = EncodedImage(engine, loaded, spent, trail)
        image.features()
        images.append(image)
        spent, trail = 0.0, None
    return EncodedClip(engine, images, clip)
