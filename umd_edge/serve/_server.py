"""Run the application with uvicorn: one process, its own patience with slow clients, a calm end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import prometheus_client
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .._predictor import Predictor
from ..errors import UsageError
from ._answers import error_answer
from ._app import App, create_app
from ._errors import CrowdedError, StoppingError
from ._options import ServeOptions

__all__ = ["Server", "serve"]

_KEEP_ALIVE_S = 15
_HEAD_BYTES = 16 << 10
_TICK_S = 0.05
_LAST_WORDS_S = 2
_UNREAD_S = 60


def serve(
    predictor: Predictor,
    options: ServeOptions | None = None,
    *,
    on_start: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was accepted, and return.

    Args:
        predictor: Answers; `workers` threads use it at the same time.
        options: Address and limits.
        on_start: Called with the address, once requests are answered.

    Raises:
        UsageError: The address cannot be listened on.
    """
    server = Server(create_app(predictor, options), on_start)
    # Spares one more line for each counter, of no use here.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    _warm_up(predictor)
    server.run()
    server.leave()


def _warm_up(predictor: Predictor) -> None:
    """Load and run everything once, so that the first request is as fast as the others."""
    predictor.warm_up()
    with contextlib.suppress(ImportError):  # the extra `dicom` need not be there
        import pydicom.pixels  # noqa: F401


class Server(uvicorn.Server):
    """uvicorn's server, which on a signal refuses new requests while it finishes the others."""

    def __init__(self, app: App, on_start: Callable[[str], None] = lambda url: None) -> None:
        self._app = app
        self._options = options = app.service.options
        self._on_start = on_start
        self._socket = _listen(options)
        self._signals = 0

        class Protocol(_ImpatientProtocol):
            patience_s = options.head_timeout_s
            most_discarded = options.max_request_bytes
            most_connections = options.connections

        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                loop="asyncio",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_LAST_WORDS_S,
                h11_max_incomplete_event_size=_HEAD_BYTES,
            )
        )

    @property
    def url(self) -> str:
        """The address that was given, with the port that was taken."""
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        return f"http://{host}:{self._socket.getsockname()[1]}"

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `stop` or a signal."""
        super().run(sockets=sockets or [self._socket])

    async def main_loop(self) -> None:
        """Serve; then, told to stop, refuse and drain before connections are closed."""
        self._on_start(self.url)
        draining = asyncio.ensure_future(self._drain_when_told())
        try:
            await super().main_loop()
        finally:
            draining.cancel()

    async def _drain_when_told(self) -> None:
        service = self._app.service
        while not service.stopping:
            await asyncio.sleep(_TICK_S)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._options.grace_s
        while service.queue.admitted and loop.time() < until and self._signals < 2:
            await asyncio.sleep(_TICK_S)
        service.queue.abandon(StoppingError("the service stops, and the time for it is up"))
        self.should_exit = True

    def stop(self) -> None:
        """Begin to stop, from any thread."""
        self._app.service.stopping = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop calmly at the first signal, at once at the second."""
        self._signals += 1
        self.stop()
        if self._signals > 1:
            self.should_exit = self.force_exit = True

    def leave(self) -> None:
        """End the process if a worker hangs: the interpreter would wait for its native code."""
        if not self._app.service.queue.stop(timeout_s=0.5):
            logging.getLogger("umd_edge.serve").error("a job did not end; leaving without it")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


async def _overcrowded(scope: Scope, receive: Receive, send: Send) -> None:
    answer = error_answer(
        CrowdedError("too many connections are open; close some and try again in a second")
    )
    answer.headers["connection"] = "close"
    await answer(scope, receive, send)


def _listen(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # With the protocol named, asyncio sends at once instead of waiting 40 ms to fill a packet.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {options.host!r} port {options.port} ({error.strerror}); choose "
            "another with --host and --port; port 0 takes a free one"
        ) from error
    listener.set_inheritable(True)
    return listener


class _ImpatientProtocol(H11Protocol):
    """Closes connections that uvicorn would hold without end.

    Those that are slow to send a head, that go on sending after their answer, or that do not read
    it.
    """

    patience_s = 10.0
    most_discarded = 1 << 20
    most_connections = 256

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._discarded = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            self.app = _overcrowded
        if len(self.connections) > 2 * self.most_connections:
            transport.abort()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take bytes; what belongs to no request that is being answered has little time."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._discarded = 0
            self._stop_waiting()
            return
        if self.conn.our_state is h11.DONE:
            self._discarded += len(data)
            if self._discarded > self.most_discarded:
                self.transport.abort()
                return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one whose answer is not read does not hold it for ever."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(_UNREAD_S, self.transport.abort)

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.patience_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
