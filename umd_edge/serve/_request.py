"""What a request carries: an image or the id of one, and named values; read within limits.

Three kinds of bodies are read: `multipart/form-data`, JSON (without an image), and the bytes of an
image with the values in the query. Nothing is written to a disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from .._json import load_strict
from ._errors import (
    BadRequestError,
    MediaTypeError,
    RequestTooLargeError,
    SlowRequestError,
)
from ._multipart import PartsReader, boundary_of
from ._options import ServeOptions
from ._queue import Ticket

__all__ = ["Fields", "read_fields"]

_IMAGE_TYPES = frozenset(
    {
        "",
        "application/octet-stream",
        "application/dicom",
        "image/jpeg",
        "image/jpg",
        "image/png",
        "video/avi",
        "video/mp4",
        "video/mpeg",
        "video/x-msvideo",
    }
)
_MOST_JSON_BYTES = 1 << 20
_MOST_QUERY_VALUES = 64


@dataclass(slots=True)
class Fields:
    """Values of a request by name; `take_*` hands one out once, `finish` refuses what is left."""

    image: bytes | None = field(default=None, repr=False)
    filename: str = field(default="", repr=False)
    values: dict[str, list[Any]] = field(default_factory=dict, repr=False)
    _known: list[str] = field(default_factory=list)

    def add(self, name: str, value: Any) -> None:
        """One more value of that name."""
        self.values.setdefault(name, []).append(value)

    def take(self, name: str) -> Any:
        """The only value of that name, or None.

        Raises:
            BadRequestError: It is given several times.
        """
        self._known.append(name)
        found = self.values.pop(name, [])
        if len(found) > 1:
            raise BadRequestError(f"{name!r} is given {len(found)} times; give it once")
        return found[0] if found else None

    def take_text(self, name: str) -> str | None:
        """A string.

        Raises:
            BadRequestError: It is none.
        """
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise BadRequestError(f"{name!r} must be a string")
        return value

    def take_texts(self, *names: str, most: int) -> list[str]:
        """Strings under any of these names, as values or as lists of them.

        Raises:
            BadRequestError: None, too many, or something else.
        """
        self._known += names
        found = [value for name in names for value in self.values.pop(name, [])]
        lists = [value if isinstance(value, list) else [value] for value in found]
        texts = [text for texts in lists for text in texts]
        if not 1 <= len(texts) <= most:
            raise BadRequestError(f"{len(texts)} given as {names[0]!r}; 1 to {most} are allowed")
        if not all(isinstance(text, str) for text in texts):
            raise BadRequestError(f"{names[0]!r} must be a string")
        return texts

    def take_whole(self, name: str) -> int | None:
        """A whole number from 1.

        Raises:
            BadRequestError: It is none.
        """
        value = self.take(name)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9:
            value = int(value)
        if value is None or (type(value) is int and 1 <= value < 10**9):
            return value
        raise BadRequestError(f"{name!r} must be a whole number from 1")

    def take_flag(self, name: str) -> bool:
        """True or false; false where it is not given.

        Raises:
            BadRequestError: It is neither.
        """
        value = self.take(name)
        known = {None: False, "": False, "false": False, "0": False, "true": True, "1": True}
        if isinstance(value, bool):
            return value
        if (value is not None and not isinstance(value, str)) or value not in known:
            raise BadRequestError(f"{name!r} must be true or false")
        return known[value]

    def take_number(self, name: str) -> float | None:
        """A finite number.

        Raises:
            BadRequestError: It is none.
        """
        value = self.take(name)
        if isinstance(value, str) and len(value) <= 40:
            try:
                value = float(value)
            except ValueError:
                pass
        if value is None:
            return None
        if type(value) in (int, float) and abs(value) < 1e300:
            return float(value)
        raise BadRequestError(f"{name!r} must be a number")

    def take_object(self, name: str) -> dict[str, Any] | None:
        """A JSON object, or the text of one.

        Raises:
            BadRequestError: It is none.
        """
        value = self.take(name)
        if isinstance(value, str):
            try:
                value = load_strict(value.encode("utf-8", "surrogatepass"))
            except ValueError as error:
                raise BadRequestError(f"{name!r} is not JSON: {error}") from error
        if value is not None and not isinstance(value, dict):
            raise BadRequestError(f'{name!r} must be a JSON object, such as {{"age": 61}}')
        return value

    def finish(self) -> None:
        """Refuse names that nobody has asked for.

        Raises:
            BadRequestError: There are some; a misspelt one must not be overlooked.
        """
        if self.values:
            # Not quoted: what stands in a wrong place may be anything.
            raise BadRequestError(
                f"{len(self.values)} unknown name(s) in the query or the body; known here are "
                f"{sorted(self._known)}"
            )


async def read_fields(
    request: Request, options: ServeOptions, ticket: Ticket, deadline: float
) -> Fields:
    """Read the query and the body.

    Args:
        request: Its body has not been touched.
        options: Limits.
        ticket: The body's bytes are counted to it.
        deadline: In the event loop's time; the body has `body_timeout_s` or until then.

    Raises:
        ServiceError: Too large, too slow, or of a kind or form that is not read.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    fields = Fields()
    body = _chunks(request, options, ticket, deadline)
    if kind == "multipart/form-data":
        await _read_multipart(request, body, fields)
    elif kind == "application/json":
        _read_json(await _joined(body, _MOST_JSON_BYTES), fields)
    elif kind in _IMAGE_TYPES:
        fields.image = await _joined(body, options.max_request_bytes) or None
    else:
        allowed = sorted(_IMAGE_TYPES - {""} | {"multipart/form-data", "application/json"})
        raise MediaTypeError(f"this Content-Type is not read; one of {allowed} is")
    query = request.query_params.multi_items()
    if len(query) > _MOST_QUERY_VALUES:
        raise BadRequestError(f"more than {_MOST_QUERY_VALUES} values in the query")
    for name, value in query:
        fields.add(name, value)
    return fields


async def _chunks(
    request: Request, options: ServeOptions, ticket: Ticket, deadline: float
) -> AsyncIterator[bytes]:
    """The body as it comes in, never more of it than is allowed."""
    most = options.max_request_bytes
    too_large = RequestTooLargeError(
        f"the body is larger than the {most} bytes that this service takes; send a smaller file, "
        "or start it with a larger --max-request-mb"
    )
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or len(declared) > 18 or int(declared) > most:
        raise too_large
    loop = asyncio.get_running_loop()
    until = min(deadline, loop.time() + options.body_timeout_s)
    total = 0
    while True:
        try:
            message = await asyncio.wait_for(request.receive(), until - loop.time())
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise SlowRequestError(
                f"the body did not arrive within {options.body_timeout_s:g} s; send it again"
            ) from error
        if message["type"] == "http.disconnect":
            raise BadRequestError("the client went away before its body was complete")
        chunk = message.get("body", b"")
        total += len(chunk)
        if total > most:
            raise too_large
        ticket.reserve(len(chunk))
        yield chunk
        if not message.get("more_body", False):
            return


async def _joined(body: AsyncIterator[bytes], most: int) -> bytes:
    whole = bytearray()
    async for chunk in body:
        whole += chunk
        if len(whole) > most:
            raise RequestTooLargeError(f"a body of this kind may have {most} bytes")
    return bytes(whole)


async def _read_multipart(request: Request, body: AsyncIterator[bytes], fields: Fields) -> None:
    reader = PartsReader(boundary_of(request.headers["content-type"]))
    async for chunk in body:
        reader.feed(chunk)
    for part in reader.finish():
        if part.name == "image":
            if fields.image is not None:
                raise BadRequestError("several parts named 'image'; send one image a request")
            fields.image, fields.filename = part.data, part.filename
            continue
        try:
            fields.add(part.name, part.data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadRequestError("a part other than 'image' is not UTF-8 text") from error


def _read_json(data: bytes, fields: Fields) -> None:
    try:
        document = load_strict(data)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadRequestError("the body must be a JSON object")
    for name, value in _present(document.items()):
        fields.add(name, value)


def _present(items: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    return ((name, value) for name, value in items if value is not None)
