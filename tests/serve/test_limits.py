"""Every limit of the service, each told by its own status."""

from __future__ import annotations

import threading
import time

import pytest

from umd_edge.serve._multipart import PartsReader
from umd_edge.serve._options import ServeOptions

QUESTION = "which organ is shown?"


def kind_of(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["type"]


def until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_declared_oversize_body_is_refused_unread(make_client):
    client = make_client(max_request_bytes=2048)

    def never():
        yield b"x"
        raise AssertionError("the body was read")

    headers = {"content-length": "99999999999"}
    answer = client.post("/v1/images", content=b"", headers=headers)
    assert kind_of(answer) == (413, "RequestTooLargeError")
    assert "--max-request-mb" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["raw", "multipart"])
def test_an_undeclared_oversize_body_is_refused_while_it_comes(make_client, kind):
    client = make_client(max_request_bytes=2048)
    sent = 0

    def chunks():
        nonlocal sent
        if kind == "multipart":
            yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        for _ in range(64):
            sent += 1
            yield b"x" * 512

    headers = {"content-type": "multipart/form-data; boundary=b"} if kind == "multipart" else {}
    answer = client.post("/v1/images", content=chunks(), headers=headers)
    assert kind_of(answer) == (413, "RequestTooLargeError")
    assert client.service.queue.buffered == 0


def test_a_body_of_just_the_allowed_size_is_read(make_client, png):
    client = make_client(max_request_bytes=len(png))
    assert client.post("/v1/images", content=png).status_code == 201
    smaller = make_client(max_request_bytes=len(png) - 1)
    assert smaller.post("/v1/images", content=png).status_code == 413


def test_json_is_limited_to_what_it_may_need(client):
    answer = client.post("/v1/ask", json={"question": "x" * (1 << 20)})
    assert kind_of(answer) == (413, "RequestTooLargeError")


@pytest.mark.parametrize("kind", ["text/html", "application/x-www-form-urlencoded", "image/gif"])
def test_other_kinds_of_bodies_are_415(client, kind):
    answer = client.post("/v1/ask", content=b"x=1", headers={"content-type": kind})
    assert kind_of(answer) == (415, "MediaTypeError")
    assert "multipart/form-data" in answer.json()["error"]["message"]


def test_too_many_questions_are_refused_before_the_image_is_looked_at(client):
    data = {"question": [QUESTION] * 65}
    answer = client.post("/v1/ask", files={"image": b"no image"}, data=data)
    assert kind_of(answer) == (400, "BadRequestError")
    assert "1 to 64" in answer.json()["error"]["message"]


def test_64_questions_are_answered(client, png):
    answer = client.post("/v1/ask", files={"image": png}, data={"question": [QUESTION] * 64})
    assert len(answer.json()["answers"]) == 64


def test_too_many_parts_or_values_are_refused(client, png):
    parts = client.post("/v1/ask", files={"image": png}, data={"question": [QUESTION] * 100})
    assert kind_of(parts) == (400, "BadRequestError")
    query = client.post("/v1/ask", params={"question": [QUESTION] * 100}, content=png)
    assert kind_of(query) == (400, "BadRequestError")


def test_a_full_queue_refuses_at_once_and_recovers(make_client, slow_predictor, png):
    client = make_client(slow_predictor, workers=1, queue=2, timeout_s=20)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.post("/v1/images", content=png)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    queue = client.service.queue
    until(lambda: queue.running == 1 and queue.waiting == 2)
    started = time.monotonic()
    refused = client.post("/v1/images", content=png)
    assert time.monotonic() - started < 5
    assert kind_of(refused) == (429, "QueueFullError")
    assert refused.headers["retry-after"] == "1"
    slow_predictor.let_go.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert client.post("/v1/images", content=png).status_code == 201
    assert (queue.admitted, queue.buffered) == (0, 0)


def test_bodies_that_wait_share_one_allowance(make_client, slow_predictor, png):
    client = make_client(slow_predictor, workers=1, queue=8, buffered_bytes=2 * len(png))
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.post("/v1/images", content=png)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    until(lambda: client.service.queue.buffered == 2 * len(png))
    assert kind_of(client.post("/v1/images", content=png)) == (429, "QueueFullError")
    slow_predictor.let_go.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201, 201]


def test_a_request_past_its_deadline_is_504_and_its_place_is_free(make_client, slow_predictor, png):
    client = make_client(slow_predictor, workers=1, queue=4, timeout_s=0.2)
    started = time.monotonic()
    answer = client.post("/v1/images", content=png)
    assert kind_of(answer) == (504, "DeadlineExceededError")
    assert 0.15 < time.monotonic() - started < 5
    queue = client.service.queue
    until(lambda: queue.running == 0)  # the inference was told to end
    assert (queue.admitted, queue.buffered) == (0, 0)
    slow_predictor.let_go.set()
    assert client.post("/v1/images", content=png).status_code == 201


def test_a_request_that_waits_past_its_deadline_is_never_begun(make_client, slow_predictor, png):
    slow_predictor.__class__.stubborn = True
    client = make_client(slow_predictor, workers=1, queue=4, timeout_s=0.2)
    answers = [client.post("/v1/images", content=png).status_code for _ in range(3)]
    assert answers == [504, 504, 504]
    assert type(slow_predictor).entered == 1
    queue = client.service.queue
    assert queue.admitted == 3  # their memory is held as long as the worker hangs
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "restart" in ready.json()["status"]
    assert client.get("/healthz").status_code == 200
    slow_predictor.let_go.set()
    until(lambda: queue.admitted == 0)
    assert client.get("/readyz").json() == {"status": "ready"}


def test_stopping_refuses_new_requests_but_says_it_lives(client, png):
    client.service.stopping = True
    answer = client.post("/v1/images", content=png)
    assert kind_of(answer) == (503, "StoppingError")
    assert answer.headers["retry-after"] == "5"
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_nothing_of_an_image_is_written_to_a_disk(make_client, monkeypatch):
    import builtins
    import io
    import os
    import tempfile

    def refuse(*_, **__):
        raise AssertionError("a file was opened")

    client = make_client()
    big = bytes(4 << 20)  # larger than what form parsers keep in memory
    client.post("/v1/preview", files={"image": ("a.png", b"\x89PNG\r\n\x1a\n")})  # imports are done
    for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (tempfile, "mkstemp")):
        monkeypatch.setattr(module, name, refuse)
    answer = client.post("/v1/preview", files={"image": ("a.png", big)})
    monkeypatch.undo()
    assert kind_of(answer) == (422, "ImageInputError")


def test_a_part_header_without_end_is_refused():
    from umd_edge.serve._errors import BadRequestError

    reader = PartsReader(b"b")
    reader.feed(b"--b\r\nContent-Disposition: ")
    with pytest.raises(BadRequestError):
        for _ in range(100):
            reader.feed(b"x" * 1000)


def test_the_bytes_of_all_bodies_are_four_requests_by_default():
    assert ServeOptions(max_request_bytes=1 << 20).most_buffered_bytes == 4 << 20
