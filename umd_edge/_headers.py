"""What the first bytes of PNG, JPEG and JPEG 2000 data say, read before any decoder runs.

A header can claim any size. Decoders believe it and allocate; so the claim is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator

from ._record import dataclass
from .errors import ImageInputError

__all__ = [
    "MAX_PIXELS",
    "Codestream",
    "check_size",
    "codestream_facts",
    "is_whole_codestream",
    "jpeg_facts",
    "jpeg_size",
    "png_facts",
    "repaired_sequential_jpeg",
]

MAX_PIXELS = 64_000_000
MAX_SIDE = 65_535
_MAX_JPEG_SCANS = 100
# SOF markers: all of C0..CF but the tables C4, C8, CC; F7 is JPEG-LS.
_SOF = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_EOI, _SOS = 0xD9, 0xDA
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})


def check_size(
    width: int, height: int, name: str, error: type[ImageInputError] = ImageInputError
) -> None:
    """Refuse images without pixels or of more than 64 megapixels.

    Raises:
        ImageInputError: With the size; `error` where a subclass is given.
    """
    if width < 1 or height < 1:
        raise error(f"{name} is {width} x {height} pixels large; it holds no pixels")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise error(
            f"{name} is {width} x {height} pixels large; at most {MAX_PIXELS // 10**6} megapixels "
            f"and {MAX_SIDE} a side are allowed. Scale it down first"
        )


def png_facts(data: bytes, name: str) -> tuple[int, int]:
    """Width and height from the IHDR chunk, after checking what this package can read.

    Raises:
        ImageInputError: Damaged, too large, animated, or colour of 16 bits a channel.
    """
    if len(data) < 33 or data[12:16] != b"IHDR" or data[8:12] != b"\0\0\0\r":
        raise ImageInputError(f"{name} is a PNG without a whole header; copy or export it again")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    check_size(width, height, name)
    depth, colour = data[24], data[25]
    if depth == 16 and colour != 0:
        raise ImageInputError(
            f"{name} is a PNG of 16 bits a channel in colour or with transparency; save it with 8 "
            "bits, or as 16-bit grey"
        )
    # The animation chunk stands before the image data.
    first = data.find(b"IDAT")
    if b"acTL" in data[: first if first >= 0 else len(data)]:
        raise ImageInputError(
            f"{name} is an animated PNG; save the picture you mean as a still one"
        )
    return width, height


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position (of its FF) of each segment up to the first scan."""
    position, end = 2, len(data)
    while position + 4 <= end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _STANDALONE:
            position += 2
        else:
            yield marker, position
            length = int.from_bytes(data[position + 2 : position + 4], "big")
            if marker in (_EOI, _SOS) or length < 2:
                return
            position += 2 + length


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the first SOF segment; None where there is none."""
    for marker, position in _jpeg_segments(data):
        if marker in _SOF and position + 9 <= len(data):
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            return int.from_bytes(data[position + 7 : position + 9], "big"), height
    return None


def repaired_sequential_jpeg(data: bytes) -> bytes:
    """The same bytes, with the end of the spectral selection set to 63 where 0 stands in its place.

    In the sequential processes the value means nothing and must be 63. Some old DICOM writers left
    0, which strict decoders refuse. Anything else is given back unchanged.
    """
    sequential = False
    for marker, position in _jpeg_segments(data):
        sequential = sequential or marker in (0xC0, 0xC1)
        if marker == _SOS and sequential:
            length = int.from_bytes(data[position + 2 : position + 4], "big")
            place = position + 2 + length - 3
            if data[place : place + 3] == b"\0\0\0":
                return data[: place + 1] + b"\x3f" + data[place + 2 :]
    return data


def jpeg_facts(data: bytes, name: str) -> tuple[int, int]:
    """Width and height, after checking what this package can read.

    Raises:
        ImageInputError: Damaged, too large, or with so many scans that decoding would take hours.
    """
    size = jpeg_size(data)
    if size is None:
        raise ImageInputError(
            f"{name} is a JPEG without a whole header; it is truncated, copy or export it again"
        )
    check_size(*size, name)
    # In the compressed data FF is followed by 00, so FF DA is a scan wherever it stands.
    if data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise ImageInputError(
            f"{name} is a JPEG of more than {_MAX_JPEG_SCANS} scans; save it again as a plain one"
        )
    return size


def _jpeg2000_start(data: bytes) -> int:
    """Where a JPEG 2000 codestream begins, bare or in a box; -1 where there is none."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    return start if len(data) >= start + 24 else -1


@dataclass(frozen=True, slots=True)
class Codestream:
    """What the header of a JPEG, JPEG-LS or JPEG 2000 codestream says."""

    width: int
    height: int
    samples: int
    bits: int
    """Of the deepest sample."""


def codestream_facts(data: bytes) -> Codestream | None:
    """Facts of a codestream; None where it is none, or its header is cut off."""
    if data[:2] == b"\xff\xd8":
        for marker, position in _jpeg_segments(data):
            if marker in _SOF and position + 10 <= len(data):
                height = int.from_bytes(data[position + 5 : position + 7], "big")
                width = int.from_bytes(data[position + 7 : position + 9], "big")
                return Codestream(width, height, data[position + 9], data[position + 4])
        return None
    start = _jpeg2000_start(data)
    if start < 0 or len(data) < start + 42:
        return None
    numbers = [
        int.from_bytes(data[start + 8 + 4 * index : start + 12 + 4 * index], "big")
        for index in range(4)
    ]
    samples = int.from_bytes(data[start + 40 : start + 42], "big")
    depths = data[start + 42 : start + 42 + 3 * samples : 3]
    bits = max(((depth & 0x7F) + 1 for depth in depths), default=0)
    return Codestream(numbers[0] - numbers[2], numbers[1] - numbers[3], samples, bits)


def is_whole_codestream(data: bytes) -> bool:
    """Whether a JPEG, JPEG-LS or JPEG 2000 codestream ends with its end marker.

    Decoders fill in what is missing from one that is cut off, and say nothing.
    """
    if data[:2] != b"\xff\xd8" and _jpeg2000_start(data) < 0:
        return False
    # At most one byte of padding follows in DICOM; some writers add a few more.
    return b"\xff\xd9" in data[-16:]
