"""JSON answers, and errors as JSON."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from ..errors import UmdEdgeError
from ._errors import ServiceError, UnauthorizedError, status_of

__all__ = ["JSONAnswer", "error_answer"]


class JSONAnswer(Response):
    """Written as the command line writes it: UTF-8, no NaN, one line."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return (json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def error_answer(error: UmdEdgeError) -> JSONAnswer:
    """`{"error": {"type", "message"}}` with its status.

    An error that names the number of frames of an object carries it as `frames`.
    """
    content: dict[str, Any] = {
        "type": getattr(error, "type", type(error).__name__),
        "message": " ".join(str(error).split()),
    }
    frames = getattr(error, "frames", None)
    if frames is not None:
        content["frames"] = frames
    headers = {}
    if isinstance(error, ServiceError) and error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    return JSONAnswer({"error": content}, status_code=status_of(error), headers=headers)
