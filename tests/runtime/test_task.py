from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge._task import TaskSpec, output_name
from umd_edge.errors import ManifestError

FULL: dict[str, Any] = {
    "name": "chest-xray",
    "kind": "classification",
    "labels": ["No Finding", "Pneumonia"],
    "multi_label": True,
    "prompt": "findings in this film",
    "select": {"modality": ["X-ray"]},
    "reads": ["note", "structured.crp_mg_l", "age"],
    "target": {
        "field": "labels",
        "map": {"Mass": None, "PNA": "Pneumonia"},
        "absent": "negative",
        "on_unmapped": "drop",
    },
    "group": "patient_id",
    "probability": {"kind": "sigmoid", "temperature": 1.5},
    "operating_points": {"Pneumonia": 0.3},
    "thresholds": {"ood": 2.0},
    "applies_to": {"dicom_modality": ["CR", "DX"], "body_part": ["CHEST"]},
}
VQA = {"name": "vqa", "kind": "vqa", "answers": ["yes", "no"], "reads": ["question"]}


def _changed(path: str, value: Any) -> dict[str, Any]:
    """`FULL` with the value at a dotted path replaced; `...` removes it."""
    first, _, rest = path.partition(".")
    table = dict(FULL)
    if rest:
        table[first] = {**table[first], rest: value}
    elif value is ...:
        del table[first]
    else:
        table[first] = value
    return table


def test_round_trip():
    for table in (FULL, VQA, {"name": "r", "kind": "retrieval"}):
        task = TaskSpec.from_dict(table)
        assert TaskSpec.from_dict(task.to_dict()) == task
    assert TaskSpec.from_dict(FULL).to_dict() == FULL


def test_what_is_left_out_has_a_stated_value():
    table = {"name": "t", "kind": "classification", "labels": ["a"], "prompt": "p"}
    task = TaskSpec.from_dict(table)
    assert (task.multi_label, task.reads, task.group) == (False, (), "patient_id")
    assert (task.probability_kind, task.temperature) == ("softmax", 1.0)
    assert (task.target.field, task.target.absent, task.target.on_unmapped) == (
        "labels",
        "error",
        "error",
    )
    assert TaskSpec.from_dict(VQA).target.field == "answer"


def test_outputs_keep_their_order():
    assert TaskSpec.from_dict(VQA).outputs == ("yes", "no")
    assert TaskSpec.from_dict({**VQA, "answers": ["no", "yes"]}) != TaskSpec.from_dict(VQA)


def test_reads_are_split_into_texts_and_values():
    task = TaskSpec.from_dict(FULL)
    assert task.text_paths == ("note",)
    assert task.structured_paths == ("structured.crp_mg_l", "age")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vqa", "logits_vqa"), ("chest-xray", "logits_chest_xray"), ("A-b-1", "logits_A_b_1")],
)
def test_output_names_are_names_in_a_graph(name: str, expected: str):
    assert output_name(name) == expected
    assert expected.isidentifier()


@settings(max_examples=60, deadline=None)
@given(st.text("ab-", min_size=1, max_size=5), st.text("ab-", min_size=1, max_size=5))
def test_two_tasks_never_share_an_output(one: str, other: str):
    """Names cannot hold `_`, so that `-` may become one."""
    assert (output_name(one) == output_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("colour", 1, r"tasks\[0\]: unknown keys \['colour'\]"),
        ("name", ..., r"tasks\[0\]: missing keys \['name'\]"),
        ("kind", ..., r"tasks\[0\]: missing keys \['kind'\]"),
        ("name", 3, r"tasks\[0\]\.name: a string"),
        ("name", "", "ASCII letters"),
        ("name", "a_b", "ASCII letters"),
        ("name", "a b", "ASCII letters"),
        ("name", "é", "ASCII letters"),
        ("kind", "segmentation", "kind 'segmentation'"),
        ("labels", ..., "has 'labels'"),
        ("labels", [], "at least one label"),
        ("labels", ["a", "a"], "occur twice"),
        ("labels", "Pneumonia", r"tasks\[0\]\.labels: a list of strings"),
        ("labels", [1], r"tasks\[0\]\.labels: a list of strings"),
        ("answers", ["a"], "no 'answers'"),
        ("multi_label", "yes", r"tasks\[0\]\.multi_label: true or false"),
        ("prompt", " ", "needs a prompt"),
        ("prompt", 3, r"tasks\[0\]\.prompt: a string"),
        ("group", None, r"tasks\[0\]\.group: a string"),
        ("select", ["modality"], r"tasks\[0\]\.select: an object of lists"),
        ("select", {"modality": "CT"}, r"tasks\[0\]\.select: an object of lists"),
        ("reads", "note", r"tasks\[0\]\.reads: a list of strings"),
        ("target", [], r"tasks\[0\]\.target: an object"),
        ("target.field", "", r"tasks\[0\]\.target\.field: a record path"),
        ("target.map", {"a": 3}, r"tasks\[0\]\.target\.map: an object"),
        ("target.absent", "maybe", r"tasks\[0\]\.target\.absent: 'maybe'"),
        ("target.on_unmapped", "ignore", r"tasks\[0\]\.target\.on_unmapped: 'ignore'"),
        ("target.colour", 1, r"tasks\[0\]\.target: unknown keys"),
        ("probability.kind", "logit", "probability kind 'logit'"),
        ("probability.temperature", 0, "temperature 0"),
        ("probability.temperature", -1.0, "temperature -1"),
        ("probability.temperature", float("inf"), "temperature inf"),
        ("probability.temperature", float("nan"), "temperature nan"),
        ("probability.temperature", True, r"probability\.temperature: a number"),
        ("probability.colour", 1, r"tasks\[0\]\.probability: unknown keys"),
        ("probability.scale", 1, r"tasks\[0\]\.probability\.scale: a list of numbers"),
        ("operating_points", {"Cough": 0.5}, r"unknown outputs \['Cough'\]"),
        ("operating_points", {"Pneumonia": "half"}, r"operating_points: an object of numbers"),
        ("thresholds", [1], r"thresholds: an object of numbers"),
        ("applies_to", {"patient_name": ["x"]}, "applies_to may hold"),
        ("applies_to", {"body_part": "CHEST"}, r"applies_to\.body_part: a list of strings"),
        ("applies_to", [], r"applies_to: an object"),
    ],
)
def test_a_bad_task_is_refused_with_its_place(path: str, value: Any, expected: str):
    with pytest.raises(ManifestError, match=expected):
        TaskSpec.from_dict(_changed(path, value), "tasks[0]")


@pytest.mark.parametrize("data", [None, [], "task", 3])
def test_what_is_no_object_is_refused(data: object):
    with pytest.raises(ManifestError, match="an object is needed"):
        TaskSpec.from_dict(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(key=st.sampled_from(sorted(FULL)), value=JSON)
def test_any_value_in_any_place_is_read_or_refused_as_a_manifest_error(key: str, value: Any):
    try:
        TaskSpec.from_dict({**FULL, key: value})
    except ManifestError as error:
        assert str(error)
