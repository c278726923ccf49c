from __future__ import annotations

import json

import numpy as np
import pytest

from umd_edge import Alternative, Answer, BundleInfo, Classification, Embeddings, Finding, Timing
from umd_edge._results import answers_to_dict

COMMON = {"bundle": BundleInfo("n", "1.0.0", "ab"), "variant": "int8", "provider": "cpu"}


def _answer(question: str, total: float) -> Answer:
    return Answer(
        status="ok",
        timing=Timing(text_ms=1.0, fusion_ms=0.5, total_ms=total),
        question=question,
        answer="yes",
        probability=0.75,
        alternatives=(Alternative("no", 0.25),),
        **COMMON,
    )


def test_classification_has_the_documented_json():
    result = Classification(
        status="ok",
        timing=Timing(1, 2, 3, 4, 5, 15),
        task="chest-xray",
        findings=(Finding("Pneumonia", 0.75, True),),
        **COMMON,
    )
    assert result.to_dict() == {
        "bundle": {"name": "n", "version": "1.0.0", "sha256": "ab"},
        "variant": "int8",
        "provider": "cpu",
        "int8_path": "",
        "task": "chest-xray",
        "status": "ok",
        "reason": "",
        "findings": [{"label": "Pneumonia", "probability": 0.75, "positive": True}],
        "timing_ms": {
            **{"decode": 1, "preprocess": 2, "vision": 3, "text": 4, "fusion": 5, "total": 15}
        },
    }


def test_answer_has_the_documented_json():
    assert _answer("q", 2).to_dict() == {
        "question": "q",
        "answer": "yes",
        "probability": 0.75,
        "alternatives": [{"answer": "no", "probability": 0.25}],
        "status": "ok",
        "reason": "",
    }


def test_line_of_several_answers_adds_their_times_to_the_encoding():
    encoding = Timing(decode_ms=10, preprocess_ms=5, vision_ms=20, total_ms=36)
    line = answers_to_dict([_answer("a", 2), _answer("b", 3)], encoding)
    assert [item["question"] for item in line["answers"]] == ["a", "b"]
    assert line["timing_ms"] == {
        **{"decode": 10, "preprocess": 5, "vision": 20, "text": 2, "fusion": 1, "total": 41}
    }
    assert set(line) == {"bundle", "variant", "provider", "int8_path", "timing_ms", "answers"}


def test_every_record_becomes_json():
    vectors = Embeddings(values=np.ones((1, 2), np.float32), **COMMON)
    for record in (_answer("a", 1), vectors):
        assert json.loads(json.dumps(record.to_dict())) == record.to_dict()


def test_top_of_no_findings_is_none():
    empty = Classification(
        status="outside_intended_use", timing=Timing(), task="t", findings=(), **COMMON
    )
    assert empty.top is None


@pytest.mark.parametrize("word", ["secret question", "yes", "0.25"])
def test_repr_shows_neither_question_nor_answer(word: str):
    assert word not in repr(_answer("secret question", 1))
