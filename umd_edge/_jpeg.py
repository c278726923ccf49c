"""Checks the headers of a JPEG before GDCM reads it, which ends the process on damaged ones.

Only the segments that decoding needs are handed on. What stands in the compressed data itself may
be anything: a decoder makes some picture of it, or an error, and no crash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .errors import DicomInputError

__all__ = ["checked_jpeg"]

_SOI, _EOI, _SOS = b"\xff\xd8", 0xD9, 0xDA
_DHT, _DQT, _DRI, _ADOBE = 0xC4, 0xDB, 0xDD, 0xEE
_SOF_SEQUENTIAL, _SOF_LOSSLESS = (0xC0, 0xC1), 0xC3
_DROPPED = frozenset({*range(0xE0, 0xF0), 0xFE} - {_ADOBE})
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def checked_jpeg(data: bytes, samples: int, name: str) -> bytes:
    """The same picture with headers that a decoder can trust.

    Args:
        data: One frame of JPEG Extended or Lossless.
        samples: SamplesPerPixel of the DICOM header.
        name: How messages call the file.

    Raises:
        DicomInputError: A segment is damaged, or of a process that is not read.

    Source: ITU-T T.81, B.2.
    """
    parts = [_SOI]
    components: list[int] = []
    for marker, segment, scan in _segments(data):
        if marker in _DROPPED:
            continue
        if marker in (*_SOF_SEQUENTIAL, _SOF_LOSSLESS):
            sound = not components and _is_sound_frame(marker, segment, samples)
            components = list(segment[6::3])
        elif marker == _SOS:
            sound = bool(components) and _is_sound_scan(segment, components)
        else:
            sound = _is_sound_table(marker, segment)
        if not sound:
            raise DicomInputError(
                f"{name}: the compressed pixels have a damaged JPEG header, or one of a process "
                "that is not read; copy or export the file again"
            )
        size = (len(segment) + 2).to_bytes(2, "big")
        parts += [bytes([0xFF, marker]), size, segment, scan]
    return b"".join([*parts, bytes([0xFF, _EOI])])


def _segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Marker, content, and the compressed data behind it (of a scan) of each segment."""
    place = 2
    while True:
        found = _NEXT_MARKER.match(data, place)
        if found is None:
            while data[place : place + 2] == b"\xff\xff":  # fill bytes
                place += 1
            found = _NEXT_MARKER.match(data, place)
        marker = -1 if found is None else data[place + 1]
        if marker == _EOI:
            return
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        content = data[place + 4 : place + 2 + length]
        place += 2 + length
        if marker < 0 or length < 2 or len(content) != length - 2:
            yield -1, b"", b""  # which is sound for nobody
            return
        end = place
        if marker == _SOS:
            following = _NEXT_MARKER.search(data, place)
            end = len(data) if following is None else following.start()
        yield marker, content, data[place:end]
        place = end


def _is_sound_frame(marker: int, segment: bytes, samples: int) -> bool:
    if len(segment) < 6 or segment[5] != samples or len(segment) != 6 + 3 * samples:
        return False
    if marker == _SOF_LOSSLESS:
        sound_precision = 2 <= segment[0] <= 16
    else:
        sound_precision = segment[0] in (8, 12)
    factors = [(cell >> 4, cell & 15) for cell in segment[7::3]]
    return (
        sound_precision
        and all(1 <= a <= 4 and 1 <= b <= 4 for a, b in factors)
        and all(cell <= 3 for cell in segment[8::3])
        and len(set(segment[6::3])) == samples
    )


def _is_sound_scan(segment: bytes, components: list[int]) -> bool:
    count = segment[0] if segment else 0
    return (
        1 <= count <= len(components)
        and len(segment) == 4 + 2 * count
        and all(cell in components for cell in segment[1 : 1 + 2 * count : 2])
        and all(cell >> 4 <= 3 and cell & 15 <= 3 for cell in segment[2 : 2 + 2 * count : 2])
    )


def _is_sound_table(marker: int, segment: bytes) -> bool:
    if marker == _DRI:
        return len(segment) == 2
    if marker == _ADOBE:
        return len(segment) <= 64
    if marker not in (_DQT, _DHT):
        return False
    place = 0
    while place < len(segment):
        kind, number = segment[place] >> 4, segment[place] & 15
        if kind > 1 or number > 3:
            return False
        if marker == _DQT:
            place += 129 if kind else 65
        else:
            codes = segment[place + 1 : place + 17]
            if not _is_prefix_code(codes):
                return False
            place += 17 + sum(codes)
    return place == len(segment)


def _is_prefix_code(codes: bytes) -> bool:
    """Whether there is room for that many codes of 1, 2, ... 16 bits."""
    room = 1
    for count in codes:
        room = 2 * room - count
        if room < 0:
            return False
    return len(codes) == 16 and sum(codes) <= 256
