from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from support.command import png
from support.pictures import gradient
from umd_edge import (
    CancelledError,
    CancelToken,
    DeadlineExceededError,
    ImageInputError,
    Predictor,
    StructuredInputError,
    TextInputError,
    UnknownTaskError,
    UsageError,
    limited,
)

IMAGE = gradient()
IMAGES = [np.roll(IMAGE, shift, axis=1) for shift in range(7)]
QUESTIONS = ("Which organ is shown?", "what modality ?")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(Path(__file__).resolve().parent.parent / "data" / "tiny.umd")


def plain(line: dict) -> dict:
    """A line without its times, which differ from call to call."""
    return {key: value for key, value in line.items() if key != "timing_ms"}


def map_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("umd-edge-map")]


@pytest.mark.parametrize("workers", [1, 2, 5, 16])
def test_outcomes_are_the_single_results_in_the_order_of_the_images(predictor, workers):
    values = {"age": 50, "itch": True}
    outcomes = list(predictor.map(IMAGES, task="skin-lesion", structured=values, workers=workers))
    assert [outcome.index for outcome in outcomes] == list(range(len(IMAGES)))
    for outcome, image in zip(outcomes, IMAGES, strict=True):
        single = predictor.classify(image, "skin-lesion", structured=values)
        assert plain(outcome.result.to_dict()) == plain(single.to_dict())
        assert outcome.classification is outcome.result


def test_questions_are_answered_for_each_image(predictor):
    outcomes = list(predictor.map(iter(IMAGES), questions=QUESTIONS))
    for outcome, image in zip(outcomes, IMAGES, strict=True):
        singles = [predictor.ask(image, question) for question in QUESTIONS]
        assert [a.to_dict() for a in outcome.answers] == [a.to_dict() for a in singles]
        assert outcome.encoding.vision_ms > 0
        assert outcome.to_dict()["timing_ms"]["vision"] > 0


def test_an_image_that_cannot_be_used_has_an_error_in_its_place(predictor, tmp_path):
    good, bad = png(tmp_path / "good.png"), tmp_path / "bad.png"
    bad.write_text("no image", encoding="utf-8")
    outcomes = list(predictor.map([good, str(bad), good], task="skin-lesion"))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert [outcome.image for outcome in outcomes] == [str(good), str(bad), str(good)]
    with pytest.raises(ImageInputError, match=r"bad\.png"):
        _ = outcomes[1].result
    line = outcomes[1].to_dict()
    assert set(line) == {"image", "index", "error"}
    assert line["error"]["type"] == "ImageInputError"
    assert outcomes[2].to_dict()["findings"] == outcomes[0].to_dict()["findings"]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_than_the_stated_number_of_images_is_on_its_way(predictor, workers):
    taken = 0

    def endless():
        nonlocal taken
        for _ in itertools.count():
            taken += 1
            yield IMAGE

    mapped = predictor.map(endless(), task="skin-lesion", workers=workers)
    for count, _ in enumerate(mapped, start=1):
        assert taken - count < 2 * workers
        if count == 30:
            break
    mapped.close()
    assert not map_threads()


def test_a_result_does_not_wait_for_an_image_that_has_not_come(predictor):
    got = threading.Event()

    def camera():
        yield IMAGE
        time.sleep(0.3)
        yield IMAGE
        assert got.wait(5), "the first result was held back"
        yield IMAGE

    for outcome in predictor.map(camera(), task="skin-lesion", workers=4):
        assert outcome.error is None
        got.set()


def test_progress_counts_images_and_knows_their_number(predictor):
    seen: list = []
    report = lambda done, total: seen.append((done, total))  # noqa: E731
    assert len(list(predictor.map(IMAGES, task="skin-lesion", on_progress=report))) == 7
    assert seen == [(count, 7) for count in range(1, 8)]
    seen.clear()
    unknown = (image for image in IMAGES[:2])
    assert len(list(predictor.map(unknown, task="skin-lesion", on_progress=report))) == 2
    assert seen == [(1, None), (2, None)]


def test_nothing_to_do_is_done(predictor):
    assert list(predictor.map([], task="skin-lesion")) == []
    assert not map_threads()


def test_a_slow_image_has_a_deadline_error_and_the_others_go_on(predictor, monkeypatch):
    from umd_edge import _encoding_calls

    original = _encoding_calls.load_image

    def slow(image, **options):
        if image is IMAGES[1]:
            time.sleep(0.6)
        return original(image, **options)

    monkeypatch.setattr(_encoding_calls, "load_image", slow)
    outcomes = list(predictor.map(IMAGES[:3], task="skin-lesion", timeout_s=0.5))
    assert isinstance(outcomes[1].error, DeadlineExceededError)
    assert outcomes[0].error is None
    assert outcomes[2].error is None


def test_cancelling_ends_the_run_and_its_threads(predictor):
    token = CancelToken()
    mapped = predictor.map(itertools.repeat(IMAGE), task="skin-lesion", cancel=token)
    next(mapped)
    token.cancel()
    with pytest.raises(CancelledError):
        for _ in range(10):
            next(mapped)
    assert not map_threads()


def test_a_block_around_bounds_the_images_of_a_map_too(predictor):
    with limited(timeout_s=0.2):
        mapped = predictor.map(itertools.repeat(IMAGE), task="skin-lesion")
        next(mapped)
        time.sleep(0.25)
        later = [next(mapped) for _ in range(6)]
    mapped.close()
    assert isinstance(later[-1].error, DeadlineExceededError)


def test_a_failing_source_of_images_is_heard_and_ends_the_threads(predictor):
    def broken():
        yield IMAGE
        raise OSError("camera unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(predictor.map(broken(), task="skin-lesion"))
    assert not map_threads()


def test_a_defect_of_the_program_is_no_record(predictor, monkeypatch):
    monkeypatch.setattr(predictor._engine, "run_vision", lambda pixels: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(predictor.map(IMAGES, task="skin-lesion"))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, UsageError, "neither task nor questions"),
        ({"task": "nothing"}, UnknownTaskError, "nothing"),
        ({"task": "skin-lesion", "text": "fever"}, TextInputError, "reads no text"),
        ({"task": "skin-lesion", "structured": {"itch": 7}}, StructuredInputError, "itch"),
        ({"questions": []}, UsageError, "list"),
        ({"questions": "Which organ?"}, UsageError, "list"),
        ({"questions": ["Which organ?", " "]}, TextInputError, "empty"),
        ({"questions": ["Which organ?"], "text": "fever"}, TypeError, "text"),
        ({"task": "skin-lesion", "nonsense": 1}, TypeError, "nonsense"),
        ({"task": "skin-lesion", "workers": 0}, UsageError, "workers"),
        ({"task": "skin-lesion", "workers": 2.0}, UsageError, "workers"),
        ({"task": "skin-lesion", "timeout_s": -1}, UsageError, "timeout_s"),
    ],
)
def test_what_is_wrong_for_all_images_is_told_before_the_first(predictor, options, error, words):
    def untouched():
        raise AssertionError("an image was taken")
        yield

    with pytest.raises(error, match=words):
        predictor.map(untouched(), **options)


@pytest.mark.parametrize("images", ["film.png", b"bytes", Path("film.png"), 7])
def test_a_single_image_in_place_of_many_is_refused(predictor, images):
    with pytest.raises(UsageError, match="list"):
        predictor.map(images, task="skin-lesion")


def test_repr_of_an_outcome_names_no_path(predictor, tmp_path):
    image = png(tmp_path / "JANE-DOE.png")
    (outcome,) = predictor.map([image], task="skin-lesion")
    assert "JANE" not in repr(outcome)
