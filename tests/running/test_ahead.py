"""Work on the second thread: the same results, the same errors, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import umd_edge
from support.ood_bundle import smooth, with_ood
from umd_edge import Predictor, SessionOptions, TextInputError, UsageError
from umd_edge import _ahead as ahead_module
from umd_edge import _engine as engine_module
from umd_edge._ahead import Ahead, begin

QUESTION = "which organ is shown ?"
TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return with_ood(tmp_path_factory.mktemp("ahead") / "ood.umd")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Ahead]:
    """What was handed to the second thread."""
    works = []

    def recorded(work):
        works.append(begin(work))
        return works[-1]

    monkeypatch.setattr(engine_module, "begin", recorded)
    return works


def _plain(result) -> dict:
    return {key: value for key, value in result.to_dict().items() if key != "timing_ms"}


def _overlapping(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    monkeypatch.setattr(engine_module, "has_second_core", lambda: True)
    predictor = Predictor.load(bundle)
    predictor.encode(smooth(9)).features()
    return predictor


def test_results_are_those_of_one_thread(bundle: Path, monkeypatch: pytest.MonkeyPatch, begun):
    overlapping = _overlapping(bundle, monkeypatch)
    plain = Predictor.load(bundle, SessionOptions(overlap=False))
    for seed in range(5):
        asked = [_plain(p.ask(smooth(seed), QUESTION)) for p in (overlapping, plain)]
        found = [_plain(p.classify(smooth(seed), "chest-xray")) for p in (overlapping, plain)]
        assert asked[0] == asked[1] and found[0] == found[1]
    assert len(begun) >= 10  # the question and the picture of each


@pytest.mark.parametrize("off", ["option", "one core", "several calls", "first image"])
def test_nothing_is_handed_over_where_that_does_not_help(
    off: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, begun
):
    monkeypatch.setattr(engine_module, "has_second_core", lambda: off != "one core")
    predictor = Predictor.load(bundle, SessionOptions(overlap=off != "option"))
    if off != "first image":
        predictor.encode(smooth(9)).features()
        begun.clear()
    with predictor._engine.calls:
        predictor.ask(smooth(1), QUESTION) if off == "several calls" else None
    if off != "several calls":
        predictor.ask(smooth(1), QUESTION)
    assert begun == []
    assert predictor._engine.calls.running == 0


def test_error_in_the_question_comes_out_as_on_one_thread(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, begun
):
    predictor = _overlapping(bundle, monkeypatch)
    with pytest.raises(TextInputError, match="10000 are allowed"):
        predictor.ask(smooth(1), "x" * 10_001)
    assert predictor._engine.calls.running == 0
    assert predictor.ask(smooth(1), QUESTION).answer


def test_limits_of_the_caller_hold_on_the_second_thread(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, begun
):
    predictor = _overlapping(bundle, monkeypatch)
    seen = []
    original = predictor._engine.question_features

    def watched(text):
        from umd_edge._deadline import active_limits

        seen.append(active_limits.get())
        return original(text)

    monkeypatch.setattr(predictor._engine, "question_features", watched)
    with umd_edge.limited(timeout_s=60):
        predictor.ask(smooth(1), QUESTION)
    predictor.ask(smooth(1), QUESTION)
    assert seen[0] is not None and seen[0].timeout_s == 60
    assert seen[1] is None


def test_work_that_was_not_begun_is_done_by_who_needs_it():
    held = threading.Event()
    release = threading.Event()
    begin(lambda: (held.set(), release.wait(30)))
    assert held.wait(30)  # the second thread is busy
    try:
        late = begin(threading.get_ident)
        assert late.result() == threading.get_ident()
        assert late.seconds > 0
    finally:
        release.set()


def test_work_is_done_once():
    done = []
    for _ in range(200):
        work = begin(lambda: done.append(1))
        work.result()
        work.run()
        work.result()
    assert len(done) == 200


def test_error_is_raised_where_the_result_is_needed():
    def fail():
        raise UsageError("no")

    work = begin(fail)
    for _ in range(2):
        with pytest.raises(UsageError, match="no"):
            work.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_begins_a_thread_of_its_own(bundle: Path):
    code = f"""
import os, sys, numpy as np
from umd_edge import _engine
_engine.has_second_core = lambda: True
from umd_edge import Predictor
predictor = Predictor.load({str(bundle)!r})
image = np.zeros((20, 20), np.uint8)
before = predictor.ask(image, "which organ ?").probability
predictor.ask(image, "which plane ?")
child = os.fork()
if child == 0:
    os._exit(0 if predictor.ask(image, "which plane ?").answer is not None else 1)
assert os.waitpid(child, 0)[1] == 0
assert predictor.ask(image, "which organ ?").probability == before
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_program_ends_cleanly_while_the_second_thread_works(bundle: Path):
    code = f"""
import numpy as np
from umd_edge import Predictor
from umd_edge._ahead import begin
engine = Predictor.load({str(bundle)!r})._engine
for number in range(50):
    begin(lambda: engine.question_features(f"question {{number}}"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_one_core_is_told_from_two(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert not ahead_module.has_second_core()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    assert ahead_module.has_second_core()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert not ahead_module.has_second_core()


def test_option_must_be_a_truth_value():
    with pytest.raises(UsageError, match="overlap 1 given"):
        SessionOptions(overlap=1)  # type: ignore[arg-type]


def test_pixels_may_be_written_to_once_encoding_is_over(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, begun
):
    predictor = _overlapping(bundle, monkeypatch)
    picture = smooth(5)
    expected = predictor.encode(picture.copy()).profile().appearance
    encoded = predictor.encode(picture)
    encoded.features()
    picture[:] = 0
    assert np.array_equal(encoded.profile().appearance, expected)
