from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge._structured import StructuredField, encode_structured
from umd_edge.errors import ManifestError, StructuredInputError

AGE = StructuredField(name="age", kind="numeric", unit="a", mean=60.0, std=20.0)
ITCH = StructuredField(name="structured.itch", kind="binary")
REGION = StructuredField(name="region", kind="categorical", categories=("ARM", "left leg"))
CRP = StructuredField(name="labs.crp", kind="numeric", unit="mg/L")
OLD_CRP = StructuredField(name="history.crp", kind="numeric", unit="mg/L")
FIELDS = (AGE, ITCH, REGION, CRP, OLD_CRP)


def _encode(**values: Any) -> tuple[list[float], list[float]]:
    numbers, mask = encode_structured(values, FIELDS)
    assert numbers.dtype == mask.dtype == np.float32
    return numbers.tolist(), mask.tolist()


def test_values_are_encoded_by_kind():
    numbers, mask = _encode(age=80, itch=True, region=" Left LEG ")
    assert numbers == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert mask == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_a_value_that_is_missing_or_null_is_missing_and_false_is_not():
    assert _encode() == ([0.0] * 5, [0.0] * 5)
    assert _encode(age=None, itch=None, region=None) == ([0.0] * 5, [0.0] * 5)
    assert _encode(itch=False)[1] == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_full_paths_work_and_last_parts_only_where_they_are_unique():
    numbers, mask = encode_structured({"structured.itch": 1, "labs.crp": 3}, FIELDS)
    assert (numbers.tolist(), mask.tolist()) == ([0, 1, 0, 3, 0], [0, 1, 0, 1, 0])
    with pytest.raises(StructuredInputError, match="'crp' is not read"):
        encode_structured({"crp": 3}, FIELDS)


@pytest.mark.parametrize("value", [np.int64(80), np.float32(80), np.bool_(True)])
def test_numpy_scalars_are_read(value: Any):
    name = "itch" if isinstance(value, np.bool_) else "age"
    numbers, mask = encode_structured({name: value}, FIELDS)
    assert 1.0 in numbers.tolist()
    assert mask.sum() == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("age", "61", r"age: a finite number in years \(a\) is needed"),
        ("age", math.nan, "a finite number"),
        ("age", math.inf, "a finite number"),
        ("age", True, "a finite number"),
        ("age", False, "a finite number"),
        ("age", [61], "a finite number"),
        ("itch", "yes", "true, false, 0 or 1"),
        ("itch", 2, "true, false, 0 or 1"),
        ("itch", 0.5, "true, false, 0 or 1"),
        ("itch", [], "true, false, 0 or 1"),
        ("region", 3, r"one of \['ARM', 'left leg'\]"),
        ("region", "nose", r"unknown category; one of \['ARM', 'left leg'\]"),
        ("height", 3, r"'height' is not read by this task; it reads \['age'"),
    ],
)
def test_a_wrong_value_is_refused_and_never_repeated(name: str, value: Any, expected: str):
    with pytest.raises(StructuredInputError, match=expected) as caught:
        encode_structured({name: value}, FIELDS)
    if isinstance(value, str):  # it may be patient data
        assert value not in str(caught.value)


def test_a_field_that_the_task_does_not_read_is_refused():
    with pytest.raises(StructuredInputError, match=r"reads \['age'\]"):
        encode_structured({"itch": True}, FIELDS, allowed=("age",))
    with pytest.raises(StructuredInputError, match="reads none"):
        encode_structured({"itch": True}, FIELDS, allowed=())


def test_an_unknown_category_is_missing_when_asked_for():
    numbers, mask = encode_structured({"region": "nose"}, FIELDS, on_unknown="missing")
    assert not numbers.any()
    assert not mask.any()


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["age", "itch", "region", "labs.crp"]),
        st.none() | st.booleans() | st.floats() | st.integers(-300, 300) | st.text(max_size=3),
    )
)
def test_numbers_are_finite_and_zero_where_missing_or_it_is_an_input_error(values):
    try:
        numbers, mask = encode_structured(values, FIELDS)
    except StructuredInputError:
        return
    assert np.isfinite(numbers).all()
    assert set(mask.tolist()) <= {0.0, 1.0}
    assert not numbers[mask == 0].any()


# --- the fields themselves ----------------------------------------


def test_field_round_trip():
    for field in FIELDS:
        assert StructuredField.from_dict(field.to_dict()) == field


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "text"},
        {"kind": 3},
        {"std": 0.0},
        {"std": math.inf},
        {"mean": math.nan},
        {"mean": "60"},
        {"mean": True},
        {"unit": 3},
        {"name": None},
        {"categories": ["a"]},
        {"categories": "ab"},
        {"colour": "red"},
        {"kind": "categorical"},
    ],
    ids=str,
)
def test_a_bad_field_is_refused(change: dict[str, Any]):
    with pytest.raises(ManifestError):
        StructuredField.from_dict({**AGE.to_dict(), **change})


@pytest.mark.parametrize("data", [None, [], {"name": "age"}, {"kind": "binary"}])
def test_what_is_no_field_is_refused(data: object):
    with pytest.raises(ManifestError, match="name and kind are needed"):
        StructuredField.from_dict(data)


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("", " is"),
        ("1", " is"),
        ("mg/L", " in mg/L is"),
        ("Cel", r" in degrees Celsius \(Cel\) is"),
    ],
)
def test_units_are_told_as_people_know_them(unit: str, words: str):
    field = StructuredField(name="labs.x", kind="numeric", unit=unit)
    with pytest.raises(StructuredInputError, match=f"labs.x: a finite number{words} needed"):
        field.encode("no number")
    assert field.to_dict()["unit"] == unit
