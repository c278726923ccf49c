"""What can be wrong with a request beyond its image, and the HTTP status of every error.

A body `{"error": {"type", "message"}}` goes with each status; `type` is the class's name.
"""

from __future__ import annotations

from typing import ClassVar

from ..errors import (
    BundleError,
    CancelledError,
    DeadlineExceededError,
    InputError,
    MissingDependencyError,
    ProviderError,
    UmdEdgeError,
    UnknownTaskError,
    UsageError,
)

__all__ = [
    "AccessDeniedError",
    "BadRequestError",
    "CrowdedError",
    "InternalError",
    "MediaTypeError",
    "MethodNotAllowedError",
    "MisdirectedRequestError",
    "NotFoundError",
    "QueueFullError",
    "RequestTooLargeError",
    "ServiceError",
    "SlowRequestError",
    "StoppingError",
    "UnauthorizedError",
    "status_of",
]


class ServiceError(UmdEdgeError):
    """A request that the service does not carry out."""

    status: ClassVar[int] = 500
    retry_after_s: ClassVar[int | None] = None


class BadRequestError(ServiceError):
    """A field is missing, unknown, given twice, or not readable."""

    status = 400


class UnauthorizedError(ServiceError):
    """The token is missing or wrong."""

    status = 401


class AccessDeniedError(ServiceError):
    """A page of another origin calls."""

    status = 403


class NotFoundError(ServiceError):
    """No such address, or no such image any more."""

    status = 404


class MethodNotAllowedError(ServiceError):
    """The address is there, the method is not."""

    status = 405


class SlowRequestError(ServiceError):
    """The body did not arrive in time."""

    status = 408


class RequestTooLargeError(ServiceError):
    """The body is larger than the service takes."""

    status = 413


class MediaTypeError(ServiceError):
    """The body is of a kind that is not read."""

    status = 415


class MisdirectedRequestError(ServiceError):
    """The Host header names another machine."""

    status = 421


class QueueFullError(ServiceError):
    """As many requests wait as may; try again."""

    status = 429
    retry_after_s = 1


class InternalError(ServiceError):
    """A defect of the service; its log says where."""

    status = 500


class StoppingError(ServiceError):
    """The service is about to stop."""

    status = 503
    retry_after_s = 5


class CrowdedError(ServiceError):
    """Too many connections are open."""

    status = 503
    retry_after_s = 1


_STATUS: tuple[tuple[type[UmdEdgeError], int], ...] = (
    (DeadlineExceededError, 504),
    (CancelledError, 503),
    (UnknownTaskError, 404),
    (UsageError, 400),
    (InputError, 422),
    (MissingDependencyError, 501),
    (ProviderError, 503),
    (BundleError, 503),
)


def status_of(error: UmdEdgeError) -> int:
    """The HTTP status that goes with an error."""
    if isinstance(error, ServiceError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
