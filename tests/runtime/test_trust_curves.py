from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge._postprocess import check_operating_request, decide
from umd_edge._task import TaskSpec
from umd_edge._trust_curves import OperatingCurve
from umd_edge.errors import ManifestError, UsageError

CURVE: dict[str, Any] = {
    "thresholds": [0.1, 0.4, 0.8],
    "sensitivities": [0.9, 0.9, 0.5],
    "specificities": [0.2, 0.6, 0.95],
    "n_positive": 9,
    "n_negative": 19,
}


def _task(multi_label: bool = True, **changes: Any) -> TaskSpec:
    return TaskSpec.from_dict(
        {
            "name": "t",
            "kind": "classification",
            "labels": ["a", "b"],
            "prompt": "p",
            "multi_label": multi_label,
            "operating_curves": {"a": CURVE},
            **changes,
        }
    )


def test_a_curve_comes_back_from_json_as_it_was():
    assert OperatingCurve.from_dict(CURVE, "c").to_dict() == CURVE
    task = _task()
    assert TaskSpec.from_dict(task.to_dict()) == task


@pytest.mark.parametrize(
    ("wanted", "threshold", "reached"),
    [(0.5, 0.8, True), (0.51, 0.4, True), (0.9, 0.4, True), (0.91, 0.4, False)],
)
def test_a_sensitivity_takes_the_highest_threshold_that_reaches_it(
    wanted: float, threshold: float, reached: bool
):
    point = OperatingCurve.from_dict(CURVE, "c").at_sensitivity(wanted)
    assert (point.threshold, point.reached) == (threshold, reached)


@pytest.mark.parametrize(
    ("wanted", "threshold", "reached"),
    [(0.1, 0.1, True), (0.6, 0.4, True), (0.61, 0.8, True), (0.96, 0.8, False)],
)
def test_a_specificity_takes_the_lowest_threshold_that_reaches_it(
    wanted: float, threshold: float, reached: bool
):
    point = OperatingCurve.from_dict(CURVE, "c").at_specificity(wanted)
    assert (point.threshold, point.reached) == (threshold, reached)


def test_a_label_is_positive_from_the_picked_threshold_on():
    decided, points = decide(np.array([0.4, 0.2]), _task(), sensitivity=0.9)
    assert decided == [True, False]
    assert points[0] is not None and points[0].threshold == 0.4
    assert points[1] is None  # without a curve it is decided at 0.5, and says so
    assert decide(np.array([0.39, 0.6]), _task(), sensitivity=0.9)[0] == [False, True]


def test_without_a_request_nothing_changes():
    decided, points = decide(np.array([0.45, 0.6]), _task())
    assert decided == [False, True]
    assert points == [None, None]


def test_a_single_label_task_decides_each_label_against_the_rest():
    task = _task(multi_label=False, operating_curves={"a": CURVE, "b": CURVE})
    assert decide(np.array([0.55, 0.45]), task)[0] == [True, False]
    assert decide(np.array([0.55, 0.45]), task, sensitivity=0.9)[0] == [True, True]
    assert decide(np.array([0.55, 0.45]), task, specificity=0.95)[0] == [False, False]


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.9), st.floats(0.01, 0.9), st.floats(0, 1))
def test_more_sensitivity_never_takes_a_positive_away(low: float, high: float, p: float):
    low, high = sorted((low, high))
    fewer, _ = decide(np.array([p, 0.0]), _task(), sensitivity=low)
    more, _ = decide(np.array([p, 0.0]), _task(), sensitivity=high)
    assert more[0] >= fewer[0]


@pytest.mark.parametrize("value", [0, 1, -0.5, 95, float("nan"), "0.9", True])
def test_a_share_that_is_none_is_refused(value: Any):
    with pytest.raises(UsageError, match="above 0 and below 1"):
        check_operating_request(_task(), value, None)


def test_both_at_once_are_refused():
    with pytest.raises(UsageError, match="not both"):
        check_operating_request(_task(), 0.9, 0.9)


def test_what_no_label_can_promise_is_refused_with_what_it_can():
    with pytest.raises(UsageError, match=r"sensitivity 0.95 .* 0\.900 at most, from 9 positive"):
        check_operating_request(_task(), 0.95, None)


def test_a_bundle_without_curves_says_how_to_fit_them():
    with pytest.raises(UsageError, match="no operating curves; fit them with `umd-edge-export"):
        check_operating_request(_task(operating_curves={}), 0.9, None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"thresholds": [0.4, 0.1, 0.8]}, "must rise"),
        ({"sensitivities": [0.5, 0.9, 0.9]}, "sensitivities must fall"),
        ({"specificities": [0.9, 0.6, 0.2]}, "specificities must rise"),
        ({"thresholds": [0.1, 0.4]}, "one length"),
        ({"thresholds": [], "sensitivities": [], "specificities": []}, "at least 1"),
        ({"thresholds": [0.1, 0.4, 1.2]}, "numbers in 0..1"),
        ({"thresholds": [0.1, 0.4, float("nan")]}, "numbers in 0..1"),
        ({"thresholds": [0.1, 0.4, True]}, "numbers in 0..1"),
        ({"n_positive": 0}, "n_positive: an integer"),
        ({"n_positive": 2.0}, "n_positive: an integer"),
        ({"colour": 1}, "unknown keys"),
    ],
)
def test_a_bad_curve_is_refused_with_its_place(change: dict[str, Any], told: str):
    with pytest.raises(ManifestError, match=told) as caught:
        _task(operating_curves={"a": {**CURVE, **change}})
    assert "operating_curves.a" in str(caught.value)


def test_a_curve_of_an_unknown_label_is_refused():
    with pytest.raises(ManifestError, match=r"operating curves of unknown outputs \['c'\]"):
        _task(operating_curves={"c": CURVE})
