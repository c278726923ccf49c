"""Frames of ultrasound clips: MP4, AVI and MPEG through PyAV (extra `video`), multi-frame DICOM.

A clip is decoded twice, once to count its frames and once to take some of them, so that memory does
not grow with its length. The container's own count is only used to notice that frames are missing.
"""

from __future__ import annotations

import io
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._deadline import check_limits
from ._defaults import FRAMES
from ._image import (
    ImageInput,
    LoadedImage,
    file_kind,
    read_image_file,
)
from .errors import ImageInputError, MissingDependencyError, UmdEdgeError

__all__ = ["Clip", "check_taken", "load_clip", "load_clip_frames", "sampled_frames"]

UInt8Array = npt.NDArray[np.uint8]

"""How many frames are taken where the caller does not say."""
MAX_FRAMES = 5_000
MAX_FRAME_PIXELS = 9_000_000
MAX_CLIP_PIXELS = 12_000_000_000
MAX_TAKEN_PIXELS = 300_000_000
_INSTALL = 'pip install "umd-edge[video]"'
# Told to the demuxer rather than guessed by it: some of its formats are lists of other files.
_FORMATS = (
    (b"RIFF", "avi"),
    (b"\0\0\1\xba", "mpeg"),
    (b"\0\0\1\xb3", "mpegvideo"),
    (b"G", "mpegts"),
    (b"\0\0\0\1\x40", "hevc"),
    (b"\0\0\0\1", "h264"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Some frames of a clip."""

    images: tuple[LoadedImage, ...] = field(repr=False)
    numbers: tuple[int, ...]
    """Which frames these are, counted from 1."""
    total: int
    """How many frames the clip has."""


def sampled_frames(total: int, count: int) -> tuple[int, ...]:
    """Numbers, from 1, of `count` frames spread evenly: the middle one of each equal part.

    All frames where there are no more than `count`.

    Raises:
        ImageInputError: `count` is below 1.
    """
    if count < 1:
        raise ImageInputError(f"{count} frames of a clip asked for; at least 1 is needed")
    if total <= count:
        return tuple(range(1, total + 1))
    return tuple((2 * part + 1) * total // (2 * count) + 1 for part in range(count))


def load_clip(source: ImageInput, frames: int = FRAMES) -> Clip:
    """Take frames spread evenly over a clip; see `sampled_frames`.

    Args:
        source: Path or bytes of an MP4, AVI or MPEG file, or of a DICOM object with any number of
            frames.
        frames: How many to take.

    Raises:
        ImageInputError: No clip, damaged, cut off, or above 5,000 frames, 9 megapixels a frame or
            12 gigapixels in all.
        MissingDependencyError: PyAV is not installed; for DICOM, as `load_image`.
    """
    data, name = _bytes_of(source)
    kind = file_kind(data)
    if kind == "dicom":
        from ._dicom import load_dicom_frames

        totals = []

        def choose(total: int) -> Sequence[int]:
            totals.append(_checked_total(total, name))
            return sampled_frames(total, frames)

        images = load_dicom_frames(data, name, choose)
        return Clip(
            images=tuple(images), numbers=sampled_frames(totals[0], frames), total=totals[0]
        )
    if kind != "clip":
        raise ImageInputError(
            f"{name} is no clip by its content; MP4, AVI, MPEG and DICOM files are allowed"
        )
    total = _count(data, name)
    numbers = sampled_frames(total, frames)
    return Clip(images=_taken(data, name, numbers), numbers=numbers, total=total)


def load_clip_frames(
    data: bytes, name: str, numbers: Sequence[int | None]
) -> tuple[LoadedImage, ...]:
    """Decode frames of an MP4, AVI or MPEG file.

    Args:
        data: The file.
        name: How messages call it.
        numbers: Counted from 1, rising; a single None is refused with advice.

    Raises:
        ImageInputError: A frame is not there or not named, or as `load_clip`.
        MissingDependencyError: PyAV is not installed.
    """
    total = _count(data, name)
    if None in numbers:
        raise ImageInputError(
            f"{name} is a clip of {total} frames; name one of 1..{total} (frame=1 in Python, "
            "--frame 1 on the command line), or have it classified as a clip"
        )
    wanted = {int(number) for number in numbers if number is not None}
    if not wanted <= set(range(1, total + 1)):
        raise ImageInputError(f"frame {max(wanted)} of {name} given; 1..{total} is allowed")
    return _taken(data, name, sorted(wanted))


def _taken(data: bytes, name: str, numbers: Sequence[int]) -> tuple[LoadedImage, ...]:
    """Frames that are known to be there, by rising number."""
    taken: list[LoadedImage] = []
    with closing(_decoded(data, name)) as decoded:
        for number, frame in decoded:
            check_taken(len(numbers), frame.width * frame.height, name)
            if number == numbers[len(taken)]:
                taken.append(LoadedImage(_pixels(frame)))
                if len(taken) == len(numbers):
                    break
    return tuple(taken)


def _bytes_of(source: ImageInput) -> tuple[bytes, str]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), "the clip"
    if isinstance(source, (str, os.PathLike)):
        return read_image_file(Path(source)), repr(str(source))
    raise ImageInputError(f"{type(source).__name__} given; a clip is a path or the bytes of a file")


def check_taken(frames: int, frame_pixels: int, name: str) -> None:
    """Refuse frames that would not fit into memory at the same time.

    Raises:
        ImageInputError: They have more than 300 megapixels together.
    """
    if frames * frame_pixels > MAX_TAKEN_PIXELS:
        raise ImageInputError(
            f"{frames} frames of {name} have more than {MAX_TAKEN_PIXELS // 10**6} megapixels "
            "together; take fewer frames, or scale the clip down"
        )


def _checked_total(total: int, name: str) -> int:
    if total < 1:
        raise ImageInputError(f"{name} is a clip without a frame; copy or export it again")
    if total > MAX_FRAMES:
        raise ImageInputError(
            f"{name} has more than {MAX_FRAMES} frames; cut out the part that matters"
        )
    return total


def _count(data: bytes, name: str) -> int:
    """How many frames can be decoded; refused where that is none, too many, or too few."""
    total = pixels = 0
    for total, frame in _decoded(data, name):
        pixels += frame.width * frame.height
        _checked_total(total, name)
        if pixels > MAX_CLIP_PIXELS:
            raise ImageInputError(
                f"{name} has more than {MAX_CLIP_PIXELS // 10**9} gigapixels in all its frames; "
                "cut out the part that matters, or scale it down"
            )
    return _checked_total(total, name)


def _decoded(data: bytes, name: str) -> Generator[tuple[int, Any], None, None]:
    """Number, from 1, and frame, in the order of display; all of one size and none damaged."""
    with _opened(data, name) as (container, stream):
        size = stream.width, stream.height
        number = 0
        for number, frame in enumerate(container.decode(stream), start=1):
            check_limits()
            if frame.is_corrupt or (frame.width, frame.height) != size:
                raise ImageInputError(
                    f"{name}: frame {number} of the clip is damaged; copy or export it again"
                )
            yield number, frame
        if number < stream.frames:
            raise ImageInputError(
                f"{name} is a clip that is cut off: it has {number} of {stream.frames} frames; "
                "copy or export it again"
            )


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[tuple[Any, Any]]:
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} is a clip, and PyAV is not installed: {_INSTALL}"
        ) from error
    kind = next((kind for magic, kind in _FORMATS if data.startswith(magic)), "mp4")
    try:
        with av.open(io.BytesIO(data), format=kind) as container:
            if not container.streams.video:
                raise ImageInputError(f"{name} holds no video; give a clip with pictures")
            stream = container.streams.video[0]
            if not 0 < stream.width * stream.height <= MAX_FRAME_PIXELS:
                raise ImageInputError(
                    f"{name} has frames of {stream.width} x {stream.height} pixels; at most "
                    f"{MAX_FRAME_PIXELS // 10**6} megapixels are allowed. Scale it down first"
                )
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {
                "err_detect": "explode",
                "max_pixels": str(MAX_FRAME_PIXELS),
            }
            yield container, stream
    except UmdEdgeError:
        raise
    # PyAV raises UnicodeDecodeError, AttributeError and others beside its own errors.
    except Exception as error:
        problem = type(error).__name__
        raise ImageInputError(
            f"{name} is a clip that cannot be decoded ({problem}): it is damaged, truncated or of "
            "a kind that PyAV does not read; export it again as MP4 (H.264)"
        ) from error


def _pixels(frame: Any) -> UInt8Array:
    """(H, W, 1 or 3) uint8, turned as the container asks for."""
    grey = frame.format.name.startswith("gray")
    pixels = frame.to_ndarray(format="gray" if grey else "rgb24")
    if grey:
        pixels = pixels[..., None]
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
