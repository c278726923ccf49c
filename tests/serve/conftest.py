from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.pictures import encode, make_dicom
from umd_edge import Predictor, UsageError

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")

ADDRESS = "http://127.0.0.1:8765"


@pytest.fixture(scope="session")
def predictor(tiny_bundle) -> Predictor:
    return Predictor.load(tiny_bundle)


@pytest.fixture(scope="session")
def png() -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (48, 40), dtype=np.uint8)
    return encode(Image.fromarray(pixels))


@pytest.fixture(scope="session")
def clip() -> bytes:
    """A DICOM object of three frames."""
    pytest.importorskip("pydicom")
    frames = np.random.default_rng(2).integers(0, 200, (3, 24, 32), dtype=np.uint8)
    return make_dicom(frames, Modality="US")


@pytest.fixture
def make_client(predictor):
    """Builds clients of an application inside this process; no socket is opened."""
    from starlette.testclient import TestClient

    from umd_edge.serve import ServeOptions, create_app

    with contextlib.ExitStack() as stack:

        def build(given: Predictor = predictor, address: str = ADDRESS, **options) -> TestClient:
            app = create_app(given, ServeOptions(**options))
            client = TestClient(app, base_url=address)
            client.service = app.service
            return stack.enter_context(client)

        yield build


@pytest.fixture
def client(make_client):
    return make_client()


@pytest.fixture
def loopback(monkeypatch) -> None:
    """The tests of this folder alone may connect, and to this machine alone."""
    plain = super(socket.socket, socket.socket).connect

    def guarded(self, address):
        if self.family == socket.AF_INET and address[0] != "127.0.0.1":
            raise AssertionError("a test opened a network connection")
        return plain(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def explained(monkeypatch):
    """Every image is explained by the same map; the calls are kept."""
    from umd_edge._encoded import EncodedImage
    from umd_edge._explain import Explanation

    calls = []

    def explain(self, **given):
        calls.append(given)
        if not given["unproven"] and given["method"] is None:
            raise UsageError("no map is shown: none was measured to beat a centre prior")
        answer = self.ask("which organ is shown?")
        return Explanation(
            status=answer.status,
            bundle=answer.bundle,
            variant=answer.variant,
            provider=answer.provider,
            timing=answer.timing,
            task="vqa",
            method="ablation",
            target="lung",
            probability=0.75,
            map=np.eye(4, dtype=np.float32),
            image_size=self.image_size,
            proven=False,
        )

    monkeypatch.setattr(EncodedImage, "explain", explain)
    return calls


class Running:
    """A service on a port of this machine, in a thread."""

    def __init__(self, server) -> None:
        self.server = server
        self.service = server._app.service
        self.port = int(server.url.rsplit(":", 1)[1])
        self.url = server.url
        self._thread = threading.Thread(target=server.run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        until = time.monotonic() + 20
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.01)
        assert self.server.started

    def ended(self, seconds: float = 10.0) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@pytest.fixture
def run_server(loopback, predictor) -> Iterator[Callable[..., Running]]:
    """Starts services with options; they are stopped behind the test."""
    from umd_edge.serve import ServeOptions, create_app
    from umd_edge.serve._server import Server

    started = []

    def build(given: Predictor = predictor, **options) -> Running:
        options.setdefault("port", 0)
        running = Running(Server(create_app(given, ServeOptions(**options))))
        started.append(running)
        running.start()
        return running

    yield build
    for running in started:
        running.server.stop()
    for running in started:
        assert running.ended()


@pytest.fixture
def slow_predictor(tiny_bundle):
    """A predictor whose encoding lasts until `let_go` is set, or its caller gives up."""
    from umd_edge._deadline import check_limits

    class Slow(Predictor):
        let_go = threading.Event()
        stubborn = False
        entered = 0

        def encode(self, image, *, frame=None):
            type(self).entered += 1
            while not self.let_go.wait(0.005):
                if not self.stubborn:
                    check_limits()
            return super().encode(image, frame=frame)

    slow = Slow.load(tiny_bundle)
    yield slow
    Slow.let_go.set()


def exchange(running: Running, request: bytes, *, seconds: float = 20.0) -> bytes:
    """Send bytes; everything that comes back until the service closes the connection."""
    with running.connect() as connection:
        connection.settimeout(seconds)
        connection.sendall(request)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(1 << 16):
            answer += more
    return answer


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A whole request that asks for the connection to be closed."""
    given = {"Host": "127.0.0.1", "Connection": "close", "Content-Length": str(len(body))}
    given.update({name.replace("_", "-"): value for name, value in headers.items()})
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@pytest.fixture(scope="session")
def image_file(png, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "a.png"
    path.write_bytes(png)
    return path
