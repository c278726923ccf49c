"""Deadlines, cancel tokens, errors of threads and the log function of the C library."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import numpy as np
import pytest

from support.c_library import Call, CError, CPredictor, OpenOptions, library

IMAGE = np.random.default_rng(3).integers(0, 256, (50, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> CPredictor:
    return CPredictor(tiny_bundle)


def test_a_passed_deadline_ends_the_call_and_a_long_one_does_not(opened: CPredictor) -> None:
    image = opened.encode(IMAGE, Call(deadline_ms=1e6))
    assert image.ask("chest", call=Call(deadline_ms=1e6)).items == image.ask("chest").items
    with pytest.raises(CError, match="deadline") as caught:
        opened.encode(IMAGE, Call(deadline_ms=1e-6))
    assert caught.value.name == "DeadlineExceededError"
    with pytest.raises(CError, match="not a time"):
        image.ask("chest", call=Call(deadline_ms=-1.0))


def test_a_cancelled_token_ends_calls_until_it_is_reset(opened: CPredictor) -> None:
    token = ctypes.c_void_p()
    assert library().umd_cancel_create(None, ctypes.byref(token)) == 0
    call = Call(cancel=token.value)
    image = opened.encode(IMAGE, call)
    library().umd_cancel_request(token)
    with pytest.raises(CError, match="cancelled") as caught:
        image.ask("chest", call=call)
    assert caught.value.name == "CancelledError"
    library().umd_cancel_reset(token)
    assert image.ask("chest", call=call).status == 0
    library().umd_cancel_free(token)


def test_a_token_cancels_calls_of_another_thread(opened: CPredictor) -> None:
    token = ctypes.c_void_p()
    assert library().umd_cancel_create(None, ctypes.byref(token)) == 0
    image, names = opened.encode(IMAGE), []
    started = threading.Event()

    def work() -> None:
        try:
            for count in range(100_000):
                image.ask("chest " * (count % 30 + 1), call=Call(cancel=token.value))
                started.set()
        except CError as error:
            names.append(error.name)

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(60)
    library().umd_cancel_request(token)
    thread.join(60)
    library().umd_cancel_free(token)
    assert names == ["CancelledError"]


def test_the_last_error_belongs_to_its_thread(opened: CPredictor) -> None:
    messages = []

    def work() -> None:
        messages.append(library().umd_last_error())

    with pytest.raises(CError):
        opened.tokenize("")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert messages == [b""]
    assert library().umd_last_error()


def test_the_log_function_hears_what_went_wrong(tmp_path: Path) -> None:
    heard = []
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p)
    function = kind(lambda context, level, message: heard.append((level, message)))
    given = OpenOptions(log=ctypes.cast(function, ctypes.c_void_p))
    handle = ctypes.c_void_p()
    path = str(tmp_path / "none.umd").encode()
    assert library().umd_open(path, ctypes.byref(given), ctypes.byref(handle)) == 31
    assert [level for level, _ in heard] == [1]
    assert b"no bundle at" in heard[0][1]
