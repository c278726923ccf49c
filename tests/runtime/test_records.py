from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge._records import Record, build_examples, read_records
from umd_edge._structured import StructuredField
from umd_edge._task import TaskSpec, compose_text
from umd_edge.errors import DataError, StructuredInputError, UmdEdgeError

FIELDS = (
    StructuredField(name="structured.itch", kind="binary"),
    StructuredField(name="age", kind="numeric", mean=50.0, std=10.0),
    StructuredField(name="region", kind="categorical", categories=("arm", "leg")),
)


def _record(**values: Any) -> Record:
    raw = {"id": "s-1", "patient_id": "p-1", "image": "a.png", **values}
    return Record({k: v for k, v in raw.items() if v is not ...}, 3, Path("/data/x.jsonl"))


def _task(**changes: Any) -> TaskSpec:
    table = {
        "name": "t",
        "kind": "classification",
        "labels": ["normal", "ill"],
        "prompt": "what is it",
        "target": {"field": "labels", "map": {"sick": "ill", "other": None}},
        **changes,
    }
    return TaskSpec.from_dict(table)


def _vqa(**changes: Any) -> TaskSpec:
    table = {"name": "v", "kind": "vqa", "answers": ["yes"], "reads": ["question"], **changes}
    return TaskSpec.from_dict(table)


def _one(record: Record, task: TaskSpec, **options: Any) -> Any:
    found = build_examples([record], task, FIELDS, **options)
    assert len(found.examples) == 1, found.dropped
    return found.examples[0]


def _dropped(record: Record, task: TaskSpec, **options: Any) -> dict[str, int]:
    found = build_examples([record], task, FIELDS, **options)
    assert not found.examples
    return dict(found.dropped)


# --- reading ------------------------------------------------------


def _write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "set.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_records_are_read_with_their_lines_and_blank_ones_skipped(tmp_path: Path):
    path = _write(tmp_path, '{"image": "a/b.png", "structured": {"itch": true}}\n\n  \n{"id": 1}')
    first, second = read_records(path)
    assert (first.line, second.line) == (1, 4)
    assert first.where == "set.jsonl:1"
    assert first.image_path == tmp_path / "a" / "b.png"
    assert first.get("structured.itch") is True
    assert first.get("structured.hurt") is None
    assert first.get("image.width") is None


def test_a_separator_inside_a_text_does_not_split_a_record(tmp_path: Path):
    text = "one\u2028two\u0085three"
    path = _write(tmp_path, json.dumps({"note": text}, ensure_ascii=False))
    assert read_records(path)[0].get("note") == text


def test_windows_line_ends_are_read(tmp_path: Path):
    assert len(read_records(_write(tmp_path, '{"id": "1"}\r\n{"id": "2"}\r\n'))) == 2


def test_a_record_shows_where_it_stands_and_never_what_it_says():
    shown = repr(_record(note="SECRET", patient_id="SECRET"))
    assert "SECRET" not in shown
    assert "line=3" in shown


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "holds no records"),
        ("\n \n", "holds no records"),
        ('{"id": 1}\n{"id": ', r"set\.jsonl:2: not valid JSON"),
        ("[1]\n", r"set\.jsonl:1: a JSON object"),
        ("3\n", r"set\.jsonl:1: a JSON object"),
        (b"\xff\xfe{}", "UTF-8"),
        ("[" * 100_000, r"set\.jsonl:1: not valid JSON"),
    ],
    ids=["empty", "blank", "cut", "list", "number", "binary", "deep"],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, content: Any, expected: str):
    with pytest.raises(DataError, match=expected):
        read_records(_write(tmp_path, content))


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_missing_file_is_refused(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=r"cannot be read as JSONL: (No such|Is a dir)"):
        read_records(tmp_path / name)


@pytest.mark.parametrize("image", [..., None, "", 3, ["a.png"]])
def test_a_record_without_a_picture_is_refused(image: Any):
    with pytest.raises(DataError, match=r"x\.jsonl:3: no `image`"):
        _ = _record(image=image).image_path


@pytest.mark.parametrize("image", ["/etc/passwd", "../a.png", "a/../../b.png"])
def test_a_picture_outside_the_folder_is_refused(image: str):
    with pytest.raises(DataError, match="stay below it"):
        _ = _record(image=image).image_path


# --- examples of a classification ---------------------------------


def test_an_example_has_everything_a_task_reads_and_nothing_else():
    task = _task(reads=["note", "age", "structured.itch"])
    record = _record(labels=["sick"], note=" Itches. ", age=70, region="arm")
    record.raw["structured"] = {"itch": True, "hurt": True}  # type: ignore[index]
    example = _one(record, task)
    assert example.text == "what is it Itches."
    assert example.structured_values.tolist() == [1.0, 2.0, 0.0]
    assert example.structured_mask.tolist() == [1.0, 1.0, 0.0]
    assert example.target.tolist() == [0.0, 1.0]
    assert (example.id, example.group) == ("s-1", "p-1")


def test_a_value_that_the_task_does_not_read_is_never_fed():
    example = _one(_record(labels=["ill"], age=70), _task())
    assert not example.structured_mask.any()


def test_a_missing_text_leaves_the_prompt():
    assert _one(_record(labels=["ill"]), _task(reads=["note"])).text == "what is it"


def test_a_single_label_may_be_a_string():
    assert _one(_record(labels="normal"), _task()).target.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([], "no labels"),
        (None, "no labels"),
        (["other"], "0 labels where one is needed"),
        (["ill", "normal"], "2 labels where one is needed"),
    ],
)
def test_a_record_without_exactly_one_label_is_dropped_and_counted(labels: Any, reason: str):
    assert _dropped(_record(labels=labels), _task()) == {reason: 1}


def test_an_unmapped_label_is_an_error_unless_it_is_dropped_on_purpose():
    record = _record(labels=["cough"])
    with pytest.raises(DataError, match=r"x\.jsonl:3: label 'cough' is not among"):
        build_examples([record], _task(), FIELDS)
    assert _dropped(record, _task(), on_unmapped="drop") == {"unmapped label": 1}
    rule = {"field": "labels", "on_unmapped": "drop"}
    assert _dropped(record, _task(target=rule)) == {"unmapped label": 1}
    with pytest.raises(DataError):
        build_examples([record], _task(target=rule), FIELDS, on_unmapped="error")


@pytest.mark.parametrize("labels", [3, {}, {"a": 1}, [["ill"]], [None], [{}]])
def test_a_label_that_is_no_string_is_refused(labels: Any):
    with pytest.raises(DataError, match="`labels` must hold strings"):
        build_examples([_record(labels=labels)], _task(), FIELDS)


@pytest.mark.parametrize(
    ("absent", "expected"), [("negative", [0.0, 1.0]), ("unknown", [np.nan, 1.0])]
)
def test_an_absent_label_means_what_the_task_says(absent: str, expected: list[float]):
    task = _task(multi_label=True, target={"field": "labels", "absent": absent})
    np.testing.assert_array_equal(_one(_record(labels=["ill"]), task).target, expected)


def test_an_absent_label_can_be_an_error():
    task = _task(multi_label=True)
    assert _one(_record(labels=["ill", "normal"]), task).target.tolist() == [1.0, 1.0]
    with pytest.raises(DataError, match="a label is absent"):
        build_examples([_record(labels=["ill"])], task, FIELDS)


def test_only_selected_records_take_part():
    task = _task(select={"modality": ["CT", "MR"], "views": ["PA"]})
    good = _record(labels=["ill"], modality="CT", views=["AP", "PA"])
    assert _one(good, task)
    for bad in ({"modality": "US", "views": ["PA"]}, {"modality": "CT"}, {"views": ["PA"]}):
        assert _dropped(_record(labels=["ill"], **bad), task) == {"not selected": 1}


def test_an_unknown_category_is_missing_and_counted():
    task = _task(reads=["region"])
    found = build_examples(
        [_record(labels=["ill"], region=r) for r in ("arm", "nose", None)], task, FIELDS
    )
    assert [e.structured_mask.tolist()[2] for e in found.examples] == [1.0, 0.0, 0.0]
    assert found.unknown_categories == 1


def test_a_value_of_a_wrong_type_is_refused():
    with pytest.raises(StructuredInputError, match="age: a finite number"):
        build_examples([_record(labels=["ill"], age="old")], _task(reads=["age"]), FIELDS)


def test_a_text_of_a_wrong_type_is_refused():
    with pytest.raises(DataError, match="`note` must be a string"):
        build_examples([_record(labels=["ill"], note=3)], _task(reads=["note"]), FIELDS)


def test_a_record_without_a_patient_is_its_own_group():
    assert _one(_record(labels=["ill"], patient_id=...), _task()).group == "s-1"
    lonely = _record(labels=["ill"], patient_id=..., id=...)
    assert _one(lonely, _task()).group == "x.jsonl:3"


# --- examples of questions and of retrieval -----------------------


def test_a_question_comes_with_all_answers_that_count():
    record = _record(
        question="where?",
        answer="left lung",
        answers=["left lung", "left", 3],
        answer_type="OPEN",
        question_type="position",
    )
    example = _one(record, _vqa())
    assert example.text == "where?"
    assert example.target is None
    assert example.reference.answers == ("left lung", "left")
    assert (example.reference.answer_type, example.reference.question_type) == ("OPEN", "position")
    assert "left" not in repr(example)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"question": "where?"}, "no answer"),
        ({"question": "where?", "answer": 3}, "no answer"),
        ({"answer": "left"}, "no question"),
        ({"question": " ", "answer": "left"}, "no question"),
    ],
)
def test_half_a_question_is_dropped_and_counted(values: dict[str, Any], reason: str):
    assert _dropped(_record(**values), _vqa()) == {reason: 1}


def test_a_caption_is_an_example_of_retrieval():
    task = TaskSpec.from_dict({"name": "r", "kind": "retrieval", "reads": ["caption"]})
    example = _one(_record(caption="CT of a chest"), task)
    assert (example.text, example.target, example.reference) == ("CT of a chest", None, None)
    assert _dropped(_record(), task) == {"no caption": 1}


@pytest.mark.parametrize(
    ("prompt", "texts", "expected"),
    [("p", [], "p"), (" p ", [" a", "", "b "], "p a b"), ("", ["a"], "a"), ("", [""], "")],
)
def test_texts_are_joined(prompt: str, texts: list[str], expected: str):
    assert compose_text(prompt, texts) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
KEYS = st.sampled_from(
    "labels note age region structured image id patient_id question answer answers modality".split()
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=5))
def test_any_record_is_an_example_or_dropped_or_an_error_of_ours(values: dict[str, Any]):
    reads = ["note", "age", "region", "structured.itch"]
    for task in (_task(reads=reads, select={"modality": ["CT", None]}), _vqa()):
        try:
            found = build_examples([_record(**values)], task, FIELDS)
        except UmdEdgeError:
            continue
        assert len(found.examples) + sum(found.dropped.values()) == 1
