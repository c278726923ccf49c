"""The ASGI application: routes behind one gate that checks, measures and lets no error out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from pathlib import Path
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._predictor import Predictor
from ..errors import UmdEdgeError
from ._access import check_access
from ._answers import JSONAnswer, error_answer
from ._errors import (
    BadRequestError,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    StoppingError,
)
from ._options import ServeOptions
from ._routes import OPEN_PATHS, Handler, handlers
from ._service import ClientGone, Service

__all__ = ["App", "create_app"]

_LOG = logging.getLogger("umd_edge.serve")
_SWEEP_S = 5.0
_UNMATCHED = "other"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": _CSP,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def create_app(predictor: Predictor, options: ServeOptions | None = None) -> App:
    """The service as an ASGI application, for a server of your own.

    Args:
        predictor: Answers; shared by all workers.
        options: Limits and access; host and port are what the Host header is checked against.
    """
    return App(Service(predictor, options or ServeOptions()))


class App:
    """ASGI 3: access, limits, security headers, metrics and the log, around the routes."""

    def __init__(self, service: Service) -> None:
        self.service = service
        routes = [
            Route(path, _marked(path, handler), methods=[method])
            for (method, path), handler in handlers(service).items()
        ]
        self._routes: ASGIApp = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; only a connection that is not HTTP raises, as ASGI asks."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise NotImplementedError(f"ASGI connections of type {scope['type']!r}")
        started = perf_counter()
        options = self.service.options
        scope["umd_edge.route"] = _UNMATCHED
        scope["umd_edge.deadline"] = asyncio.get_running_loop().time() + options.timeout_s
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            await self._answer(scope, receive, observed)
        except ClientGone:
            status = 499
        self._observe(scope, status, perf_counter() - started)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Sweep the images kept, from the server's start to its end."""
        await receive()
        sweeper = asyncio.ensure_future(_sweep(self.service))
        await send({"type": "lifespan.startup.complete"})
        with contextlib.suppress(asyncio.CancelledError):  # the server was told to end at once
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        sweeper.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            path = scope["path"]
            headers, open_to_all = Headers(scope=scope), path in OPEN_PATHS
            check_access(headers, self.service.options, scope["scheme"], open_to_all=open_to_all)
            if self.service.stopping and not open_to_all:
                raise StoppingError("the service is about to stop; try again when it is back")
            scope["app"] = self  # asks the router for exceptions instead of plain text
            await self._routes(scope, receive, noting)
            return
        except ClientGone:
            raise
        except UmdEdgeError as error:
            answer = error_answer(error)
        except HTTPException as error:
            answer = _refused(error)
        except Exception as error:
            _LOG.error("internal error: %s", _place(error))
            answer = error_answer(
                InternalError(
                    f"internal error ({type(error).__name__}); its place stands in the service's "
                    "log; please report it with the output of `umd-edge doctor`"
                )
            )
        if "expect" in Headers(scope=scope):
            # The client waits with its body, and may leave it out now: no telling what comes next.
            answer.headers["connection"] = "close"
        if not started:
            await answer(scope, receive, send)

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["umd_edge.route"]
        metrics = self.service.metrics
        metrics.requests.labels(route, str(status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        # No query, no path beyond the route, no address of the client.
        method = scope["method"] if scope["method"] in _METHODS else "-"
        _LOG.info("%s %s %d %.1f ms", method, route, status, seconds * 1e3)


def _marked(path: str, handler: Handler) -> Handler:
    async def endpoint(request: Request) -> Response:
        request.scope["umd_edge.route"] = path
        return await handler(request)

    return endpoint


def _refused(error: HTTPException) -> JSONAnswer:
    """What the router refuses by itself: unknown paths and methods."""
    given: dict[int, UmdEdgeError] = {
        404: NotFoundError("no such address; /openapi.json lists all"),
        405: MethodNotAllowedError("this address takes another method; see the Allow header"),
    }
    answer = error_answer(
        given.get(error.status_code, BadRequestError("the request cannot be read"))
    )
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(min(_SWEEP_S, service.options.image_ttl_s / 2))
        service.images.sweep()


def _place(error: BaseException) -> str:
    """Type and place of an error; its text may quote what a client has sent."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {where}"
