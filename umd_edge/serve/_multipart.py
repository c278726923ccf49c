"""`multipart/form-data` (RFC 7578) into memory: few parts, small texts, one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import python_multipart.multipart as forms
from python_multipart.exceptions import FormParserError

from ._errors import BadRequestError

__all__ = ["Part", "PartsReader", "boundary_of"]

_MOST_PARTS = 80
_MOST_TEXT_BYTES = 1 << 16
_MOST_HEADER_BYTES = 4096


@dataclass(slots=True)
class Part:
    """One part; the name decides what it is, its own type is not looked at."""

    name: str = ""
    filename: str = ""
    data: bytes = field(default=b"", repr=False)


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names.

    Raises:
        BadRequestError: It names none of 1 to 70 characters.
    """
    _, parameters = forms.parse_options_header(content_type)
    boundary = parameters.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise BadRequestError("multipart/form-data without a boundary of 1 to 70 characters")
    return boundary


class PartsReader:
    """Fed chunk by chunk, it keeps the parts; the caller bounds the body as a whole."""

    def __init__(self, boundary: bytes) -> None:
        self._parts: list[Part] = []
        self._data = bytearray()
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._complete = False
        callbacks: dict[str, Callable[..., Any]] = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        self._parser = forms.MultipartParser(boundary, callbacks)  # type: ignore[arg-type]

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body.

        Raises:
            BadRequestError: They break the format, or a limit of the parts.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequestError("the multipart body is damaged") from error

    def finish(self) -> list[Part]:
        """The parts in order.

        Raises:
            BadRequestError: The last boundary is missing, so that the body may be cut off.
        """
        if not self._complete:
            raise BadRequestError("the multipart body ends before its last boundary")
        return self._parts

    def _begin(self) -> None:
        if len(self._parts) >= _MOST_PARTS:
            raise BadRequestError(f"more than {_MOST_PARTS} parts in the multipart body")
        self._parts.append(Part())
        self._data = bytearray()
        self._headers = {}

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._extend(self._header, data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._extend(self._value, data[start:end])

    @staticmethod
    def _extend(text: bytearray, more: bytes) -> None:
        text += more
        if len(text) > _MOST_HEADER_BYTES:
            raise BadRequestError("a header in the multipart body is too long")

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()
        if len(self._headers) > 8:
            raise BadRequestError("a part of the multipart body has more than 8 headers")

    def _end_headers(self) -> None:
        _, options = forms.parse_options_header(self._headers.get(b"content-disposition", b""))
        part = self._parts[-1]
        part.name = options.get(b"name", b"").decode("utf-8", "replace")
        part.filename = options.get(b"filename", b"").decode("utf-8", "replace")
        if not part.name:
            raise BadRequestError("a part of the multipart body has no name")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if self._parts[-1].name != "image" and len(self._data) > _MOST_TEXT_BYTES:
            raise BadRequestError(
                f"a part other than 'image' has more than {_MOST_TEXT_BYTES} bytes"
            )

    def _end_part(self) -> None:
        self._parts[-1].data = bytes(self._data)
        self._data = bytearray()

    def _end(self) -> None:
        self._complete = True
