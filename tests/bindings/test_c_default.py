"""Every call of the C library on the default bundle and real records, compared with Python."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import umd_edge
from support.c_library import CPredictor, CResult, Match, library
from umd_edge._task_table import task_text

BUNDLE = Path(umd_edge.__file__).parent / "bundles" / "default.umd"
VALUES = ("itch", "hurt", "bleed", "elevation")
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def opened() -> CPredictor:
    return CPredictor(BUNDLE)


@pytest.fixture(scope="module")
def python() -> umd_edge.Predictor:
    return umd_edge.Predictor.load(BUNDLE)


def _records(folder: Path, name: str, count: int) -> list[dict[str, Any]]:
    lines = (folder / name / "val.jsonl").read_text(encoding="utf-8").splitlines()
    step = max(1, len(lines) // count)
    return [json.loads(line) for line in lines[: step * count : step]]


def _pixels(folder: Path, name: str, record: dict[str, Any]) -> Array:
    with Image.open(folder / name / record["image"]) as image:
        return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def _structured(record: dict[str, Any]) -> dict[str, Any]:
    known = record.get("structured", {})
    values = {name: known[name] for name in VALUES if known.get(name) is not None}
    return values | {name: record[name] for name in ("age", "region") if name in record}


def test_classification_with_values_is_that_of_python(
    opened: CPredictor, python: umd_edge.Predictor, shared_data: Path
) -> None:
    seen: set[str] = set()
    for record in _records(shared_data, "padufes", 12):
        pixels, values = _pixels(shared_data, "padufes", record), _structured(record)
        seen |= set(values)
        given = opened.encode(pixels).classify("skin-lesion", structured=values)
        _same_findings(given, python, pixels, values)
    assert seen == {*VALUES, "age", "region"}


def _same_findings(
    given: CResult, python: umd_edge.Predictor, pixels: Array, values: dict[str, Any]
) -> None:
    engine = python._engine
    task = engine.tasks.classification("skin-lesion")
    encoded = python.encode(pixels)
    found = encoded.classify(task.name, structured=values)
    features = engine.prompt_features(task_text(task, None), keep=True)
    logits, _ = engine.infer(encoded, task, features, engine.tasks.structured(task, values))
    assert [item[3] for item in given.items] == logits.tolist()
    assert [item[2] for item in given.items] == [f.positive for f in found.findings]
    assert ["ok", "abstain", "out_of_distribution"][given.status] == found.status
    wanted = [f.probability for f in found.findings]
    assert np.allclose([item[1] for item in given.items], wanted, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["vqarad", "vqamed19"])
def test_real_questions_are_answered_as_in_python(
    name: str, opened: CPredictor, python: umd_edge.Predictor, shared_data: Path
) -> None:
    for record in _records(shared_data, name, 8):
        pixels = _pixels(shared_data, name, record)
        given = opened.encode(pixels).ask(record["question"])
        _same_answer(given, python.ask(pixels, record["question"]))


def _same_answer(given: CResult, wanted: umd_edge.Answer) -> None:
    assert given.items[0][0] == wanted.answer
    assert [item[0] for item in given.items[1:]] == [a.answer for a in wanted.alternatives]
    assert given.items[0][1] == pytest.approx(wanted.probability, rel=1e-14)
    assert given.ood_score == pytest.approx(wanted.ood_score, rel=1e-6)


def _changed(pixels: Array) -> Array:
    """The picture with another pixel in its middle."""
    other = pixels.copy()
    other[other.shape[0] // 2, other.shape[1] // 2] ^= 0xFF
    return other


def test_one_changed_pixel_makes_the_comparisons_fail(
    opened: CPredictor, python: umd_edge.Predictor, shared_data: Path
) -> None:
    """Negative control of the two tests above."""
    (record,) = _records(shared_data, "padufes", 1)
    pixels, values = _pixels(shared_data, "padufes", record), _structured(record)
    given = opened.encode(_changed(pixels)).classify("skin-lesion", structured=values)
    with pytest.raises(AssertionError):
        _same_findings(given, python, pixels, values)
    (record,) = _records(shared_data, "vqarad", 1)
    pixels = _pixels(shared_data, "vqarad", record)
    answered = opened.encode(_changed(pixels)).ask(record["question"])
    with pytest.raises(AssertionError):
        _same_answer(answered, python.ask(pixels, record["question"]))


def test_one_changed_value_makes_the_comparison_fail(
    opened: CPredictor, python: umd_edge.Predictor, shared_data: Path
) -> None:
    (record,) = _records(shared_data, "padufes", 1)
    pixels, values = _pixels(shared_data, "padufes", record), _structured(record)
    other = {**values, "age": values["age"] + 1}
    given = opened.encode(pixels).classify("skin-lesion", structured=other)
    with pytest.raises(AssertionError):
        _same_findings(given, python, pixels, values)


def test_embeddings_and_ranking_are_those_of_python(
    opened: CPredictor, python: umd_edge.Predictor, shared_data: Path
) -> None:
    records = _records(shared_data, "vqarad", 5)
    arrays = [_pixels(shared_data, "vqarad", record) for record in records]
    texts = [record["question"] for record in records]
    images = [opened.encode(array) for array in arrays]
    for array, image in zip(arrays, images, strict=True):
        assert (image.embedding() == python.encode(array).embedding).all()
    count, row = len(texts), (ctypes.c_char_p * len(texts))(*[text.encode() for text in texts])
    for number, method in enumerate(("two_stage", "embedding", "fusion")):
        ranking = python.rank(arrays, texts, method=method, candidates=3)  # type: ignore[arg-type]
        for index, image in enumerate(images):
            matches = (Match * count)()
            rest = (None, number, ctypes.c_uint32(3), None, matches)
            assert library().umd_rank_texts(image.handle, row, count, *rest) == 0
            wanted = ranking.texts_for(index)
            assert [match.index for match in matches] == [match.index for match in wanted]
            # Python fuses the shortlists of both directions: it may know more pairs.
            fused = [(m.match_logit, w.match_logit) for m, w in zip(matches, wanted, strict=True)]
            known = [pair for pair in fused if not np.isnan(pair[0])]
            assert len(known) == (3, 0, count)[number]
            assert all(given == logit for given, logit in known)
            scores = [match.score for match in wanted]
            assert np.allclose([match.score for match in matches], scores, atol=1e-6)


def test_self_test_of_the_default_bundle_passes(
    opened: CPredictor, python: umd_edge.Predictor
) -> None:
    report = opened.selftest()
    assert report.checks == len(python.verify().checks)
    assert report.worst_difference == 0
