"""The service on a real port: slow and rude clients, many connections, and its end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from support.command import run
from support.pictures import encode

from .conftest import exchange, post, read_all

HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
ASK = "/v1/ask?question=which+organ"


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body_of(answer: bytes) -> dict:
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])


def read_one(connection: socket.socket) -> bytes:
    """One answer of a connection that stays open."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1 << 16)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head)[1])
    while len(body) < length:
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def test_a_request_is_answered_over_a_socket(run_server, png):
    answer = exchange(run_server(), post(ASK, png, Content_Type="image/png"))
    assert status_of(answer) == 200
    assert body_of(answer)["answers"][0]["status"] == "ok"
    assert b"server:" not in answer.lower()


def test_a_slow_head_is_cut_off(run_server):
    running = run_server(head_timeout_s=0.3)
    with running.connect() as connection:
        started = time.monotonic()
        connection.sendall(b"GET / HT")
        assert read_all(connection) == b""
        assert time.monotonic() - started < 5
    with running.connect() as connection:
        assert read_all(connection) == b""  # nor does it wait for the first byte
    with running.connect() as dripping:
        with pytest.raises(OSError):
            for _ in range(60):  # bytes now and then do not buy time
                dripping.sendall(b"x")
                time.sleep(0.05)
            raise AssertionError("the service was patient")


def test_a_slow_body_is_408(run_server):
    running = run_server(body_timeout_s=0.3)
    with running.connect() as connection:
        request = post(ASK, b"x" * 1000, Content_Type="image/png")
        connection.sendall(request[:-900])
        answer = read_one(connection)
    assert status_of(answer) == 408
    assert body_of(answer)["error"]["type"] == "SlowRequestError"
    assert running.service.queue.admitted == 0


def test_a_client_that_goes_away_frees_its_place(run_server, slow_predictor, png):
    running = run_server(slow_predictor, workers=1)
    with running.connect() as connection:
        connection.sendall(post("/v1/images", png))
        wait_for(lambda: running.service.queue.running == 1)
    wait_for(lambda: running.service.queue.admitted == 0)
    assert len(running.service.images) == 0


def wait_for(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_oversize_body_is_answered_before_it_is_sent_in_full(run_server):
    running = run_server(max_request_bytes=4096)
    with running.connect() as connection:
        head = post(ASK, b"", Content_Length=str(10**9))
        connection.sendall(head + b"x" * 2000)
        answer = read_one(connection)
    assert status_of(answer) == 413


def test_a_client_that_sends_on_after_its_answer_is_cut_off(run_server):
    running = run_server(max_request_bytes=4096)
    with running.connect() as connection:
        connection.sendall(post(ASK, b"", Content_Length=str(10**9)))
        with pytest.raises(OSError):
            for _ in range(10_000):
                connection.sendall(b"x" * 4096)


def test_a_refused_request_leaves_the_connection_usable(run_server, png):
    running = run_server()
    with running.connect() as connection:
        for status, path in ((404, "/v1/classify?task=none"), (200, ASK), (400, "/v1/ask")):
            request = post(path, png, Content_Type="image/png", Connection="keep-alive")
            connection.sendall(request)
            assert status_of(read_one(connection)) == status


def test_a_body_that_waits_for_leave_is_not_asked_for_in_vain(run_server, png):
    running = run_server(max_request_bytes=4096)
    head = post(ASK, b"", Content_Length="10000", Expect="100-continue", Connection="keep-alive")
    answer = exchange(running, head)  # ends: what comes next could be body or request
    assert status_of(answer) == 413
    with running.connect() as connection:
        whole = post(ASK, png, Expect="100-continue")
        connection.sendall(whole[: -len(png)])
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        connection.sendall(png)
        assert status_of(read_all(connection)) == 200


def test_rubbish_is_400_and_an_endless_head_too(run_server):
    running = run_server()
    assert status_of(exchange(running, b"\x16\x03\x01 rubbish\r\n\r\n")) == 400
    endless = HEAD + b"X: " + b"y" * 40_000
    with running.connect() as connection:
        connection.sendall(endless)
        assert status_of(read_all(connection)) == 400
    assert status_of(exchange(running, HEAD + b"Connection: close\r\n\r\n")) == 200


def test_smuggled_lengths_are_refused(run_server):
    double = post(ASK, b"x").replace(
        b"Content-Length: 1", b"Content-Length: 1\r\nContent-Length: 2"
    )
    both = post(ASK, b"0\r\n\r\n", Transfer_Encoding="chunked")
    running = run_server()
    assert status_of(exchange(running, double)) == 400
    assert status_of(exchange(running, both)) in (400, 422)


def test_a_web_socket_is_not_opened(run_server):
    upgrade = HEAD + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert status_of(exchange(run_server(), upgrade)) == 200  # answered as the plain GET it is


def test_an_answer_that_is_not_read_is_not_held_for_ever(run_server, monkeypatch):
    from umd_edge.serve import _server

    monkeypatch.setattr(_server, "_KEEP_ALIVE_S", 0.2)
    monkeypatch.setattr(_server, "_UNREAD_S", 0.2)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    running = run_server()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", running.port))
        body = encode(Image.fromarray(noise), compress_level=0)
        request = post("/v1/preview?side=1500", body, Connection="keep-alive")
        connection.sendall(request)
        assert connection.recv(12) == b"HTTP/1.1 200"
        wait_for(lambda: not running.server.server_state.connections)


def test_too_many_connections_are_503(run_server):
    running = run_server(connections=3)
    idle = [running.connect() for _ in range(3)]
    wait_for(lambda: len(running.server.server_state.connections) == 3)
    answer = exchange(running, HEAD + b"\r\n")
    assert status_of(answer) == 503
    assert b"retry-after: 1" in answer
    assert body_of(answer)["error"]["type"] == "CrowdedError"
    for connection in idle:
        connection.close()
    wait_for(lambda: not running.server.server_state.connections)
    assert status_of(exchange(running, HEAD + b"Connection: close\r\n\r\n")) == 200


def test_stopping_finishes_what_was_accepted_and_refuses_the_rest(run_server, slow_predictor, png):
    running = run_server(slow_predictor, workers=1)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(exchange(running, post("/v1/images", png))))
        for _ in range(3)  # one runs, two wait
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: running.service.queue.admitted == 3)
    running.server.stop()
    refused = exchange(running, post("/v1/images", png))
    assert status_of(refused) == 503
    assert body_of(refused)["error"]["type"] == "StoppingError"
    slow_predictor.let_go.set()
    for thread in threads:
        thread.join()
    assert [status_of(answer) for answer in answers] == [201] * 3
    assert running.ended()
    with pytest.raises(OSError):
        running.connect()


def test_what_outlasts_the_grace_is_answered_too(run_server, slow_predictor, png):
    running = run_server(slow_predictor, workers=1, grace_s=0.3)
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(exchange(running, post("/v1/images", png)))
    )
    thread.start()
    wait_for(lambda: running.service.queue.running == 1)
    running.server.stop()
    thread.join()
    assert running.ended()
    assert status_of(answers[0]) == 503


def test_a_taken_port_is_told(run_server, tiny_bundle):
    running = run_server()
    done = run("serve", "--port", running.port, "--bundle", tiny_bundle)
    assert done.code == 2
    assert "--port" in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--host", "0.0.0.0", "--token-file", "nowhere"], "cannot be read"),
        (["--queue", "0"], "--queue"),
        (["--timeout", "0"], "--timeout"),
    ],
)
def test_a_wrong_command_line_is_exit_2(arguments, says, tiny_bundle):
    done = run("serve", *arguments, "--bundle", tiny_bundle)
    assert done.code == 2
    assert says in done.err
    assert "Traceback" not in done.err


def test_without_the_extra_it_is_exit_5(tiny_bundle, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("umd_edge.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("umd_edge.serve", raising=False)
    monkeypatch.setitem(sys.modules, "starlette", None)
    done = run("serve", "--bundle", tiny_bundle)
    assert done.code == 5
    assert 'pip install "umd-edge[serve]"' in done.err


class Command:
    """`umd-edge serve` as a process of its own."""

    def __init__(self, *arguments: object) -> None:
        given = [sys.executable, "-m", "umd_edge", "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(given, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found[1])
                return
        raise AssertionError("".join(self.lines))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def end(self) -> tuple[int, str]:
        try:
            _, more = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, "".join(self.lines) + more


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_request_lets_it_finish(loopback, tiny_bundle, png, number):
    command = Command("--bundle", tiny_bundle)
    try:
        request = post(ASK, png, Content_Type="image/png")
        with command.connect() as connection:
            connection.sendall(request[:-10])
            time.sleep(0.3)  # the head is there, the body is not
            os.kill(command.process.pid, number)
            time.sleep(0.3)
            refused = exchange(command, post(ASK, png))
            connection.sendall(request[-10:])
            answer = read_all(connection)
    finally:
        code, log = command.end()
    assert status_of(answer) == 200
    assert status_of(refused) == 503
    assert code == 0, log
    assert log.rstrip().endswith("stopped")
    assert "POST /v1/ask 200" in log
    assert "question" not in log
    assert "Traceback" not in log


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_second_signal_ends_it_at_once(loopback, tiny_bundle, png):
    command = Command("--bundle", tiny_bundle)
    with command.connect() as connection:
        connection.sendall(post(ASK, png, Content_Type="image/png")[:-10])
        time.sleep(0.3)
        for _ in range(2):
            os.kill(command.process.pid, signal.SIGTERM)
            time.sleep(0.2)
        started = time.monotonic()
        code, log = command.end()
    assert time.monotonic() - started < 5
    assert code == 0
    assert "Traceback" not in log


_HANGING = """
import sys, time
from umd_edge import Predictor
from umd_edge.serve import ServeOptions, serve

class Hanging(Predictor):
    def encode(self, image, *, frame=None):
        time.sleep(600)

options = ServeOptions(port=0, workers=1, timeout_s=0.3, grace_s=0.5)
serve(Hanging.load(sys.argv[1]), options, on_start=lambda url: print(url, flush=True))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_worker_that_hangs_for_ever_does_not_keep_the_process(loopback, tiny_bundle, png):
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGING, str(tiny_bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(post("/v1/images", png))
            assert status_of(read_all(connection)) == 504
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=15)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
