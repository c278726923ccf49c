from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from umd_edge._postprocess import check_coverage, other_share, prediction_set, probabilities
from umd_edge._task import TaskSpec
from umd_edge.errors import ManifestError, UsageError

LAC: dict[str, Any] = {
    "method": "lac",
    "coverages": [0.8, 0.9, 0.95],
    "n": 12,
    "thresholds": [0.3, 0.1, None],
}
BY_CLASS: dict[str, Any] = {
    "method": "lac_by_class",
    "coverages": [0.8, 0.9],
    "labels": {
        "a": {
            "present": {"n": 30, "thresholds": [0.6, 0.2]},
            "absent": {"n": 40, "thresholds": [0.7, 0.5]},
        },
        "b": {
            "present": {"n": 4, "thresholds": [0.4, None]},
            "absent": {"n": 66, "thresholds": [0.9, 0.8]},
        },
    },
}


def _single(**changes: Any) -> TaskSpec:
    return TaskSpec.from_dict(
        {
            "name": "t",
            "kind": "classification",
            "labels": ["a", "b", "c"],
            "prompt": "p",
            "conformal": LAC,
            **changes,
        }
    )


def _multi(**changes: Any) -> TaskSpec:
    return TaskSpec.from_dict(
        {
            "name": "t",
            "kind": "classification",
            "labels": ["a", "b"],
            "prompt": "p",
            "multi_label": True,
            "probability": {"kind": "sigmoid"},
            "conformal": BY_CLASS,
            **changes,
        }
    )


def _logits(*p: float) -> np.ndarray:
    return np.log(np.array(p)).astype(np.float32)


def _sigmoid_logits(*p: float) -> np.ndarray:
    return np.array([np.log(x / (1 - x)) for x in p], np.float32)


def test_thresholds_come_back_from_json_as_they_were():
    for task in (_single(), _multi()):
        assert TaskSpec.from_dict(task.to_dict()) == task
    assert _single().to_dict()["conformal"] == LAC
    assert _multi().to_dict()["conformal"] == BY_CLASS


@pytest.mark.parametrize(
    ("coverage", "outputs"),
    [(0.5, ("b",)), (0.8, ("b",)), (0.81, ("b", "a")), (0.9, ("b", "a"))],
)
def test_a_set_holds_what_is_at_or_above_the_threshold_the_best_first(
    coverage: float, outputs: tuple[str, ...]
):
    found = prediction_set(_logits(0.25, 0.7, 0.05), _single(), coverage)
    assert (found.outputs, found.complete, found.n) == (outputs, False, 12)


@pytest.mark.parametrize("coverage", [0.91, 0.95, 0.999])
def test_too_few_records_give_everything_and_say_so(coverage: float):
    found = prediction_set(_logits(0.25, 0.7, 0.05), _single(), coverage)
    assert found.outputs == ("b", "a", "c")
    assert found.complete
    assert "12 validation records exclude nothing" in found.reason


def test_a_set_may_be_empty():
    task = _single(conformal={**LAC, "thresholds": [0.9, 0.8, 0.7]})
    found = prediction_set(_logits(0.4, 0.35, 0.25), task, 0.9)
    assert found.outputs == () and not found.complete


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, 3, elements=st.floats(-20, 20, width=32)))
def test_a_higher_coverage_never_excludes_more(logits: np.ndarray):
    sets = [set(prediction_set(logits, _single(), c).outputs) for c in (0.5, 0.8, 0.9, 0.95)]
    assert all(small <= large for small, large in itertools.pairwise(sets))


def test_a_multi_label_set_says_present_and_absent_for_each_label():
    found = prediction_set(_sigmoid_logits(0.65, 0.05), _multi(), 0.8)
    assert found.states == {"a": ("present",), "b": ("absent",)}
    assert (found.outputs, found.complete, found.n) == (("a",), False, 4)
    unsure = prediction_set(_sigmoid_logits(0.5, 0.15), _multi(), 0.9)
    assert unsure.states == {"a": ("present", "absent"), "b": ("present", "absent")}
    assert unsure.complete and unsure.reason.endswith("0.9 of ['b']")
    assert unsure.to_dict()["states"]["a"] == ["present", "absent"]


def test_answers_that_are_not_listed_are_excluded_by_their_own_threshold():
    task = TaskSpec.from_dict(
        {
            "name": "vqa",
            "kind": "vqa",
            "answers": ["yes", "no"],
            "probability": {"kind": "softmax", "other": 0.0},
            "conformal": {**LAC, "other": {"n": 12, "thresholds": [0.6, 0.3, 0.1]}},
        }
    )
    sure = np.array([3.0, -3.0], np.float32)
    lost = np.array([-3.0, -3.0], np.float32)
    assert prediction_set(sure, task, 0.8).other is False
    assert prediction_set(lost, task, 0.8).other is True
    assert prediction_set(sure, task, 0.99).other is True
    assert prediction_set(lost, task, 0.8).to_dict()["other"] is True
    # exp(0) besides the two listed ones
    weights = np.exp([3.0, -3.0])
    assert float(other_share(sure, task)) == pytest.approx(1 / (1 + weights.sum()), rel=1e-12)
    np.testing.assert_allclose(probabilities(sure, task), weights / (1 + weights.sum()), rtol=1e-12)
    assert TaskSpec.from_dict(task.to_dict()) == task


def test_other_is_left_out_where_the_bundle_says_nothing_of_it():
    assert "other" not in prediction_set(_logits(0.2, 0.7, 0.1), _single(), 0.8).to_dict()


@pytest.mark.parametrize("coverage", [0, 1, -1, 90, float("nan"), "0.9"])
def test_a_coverage_that_is_none_is_refused(coverage: Any):
    with pytest.raises(UsageError, match=r"coverage .* above 0 and below 1"):
        check_coverage(_single(), coverage)


def test_a_bundle_without_thresholds_says_how_to_fit_them():
    task = TaskSpec.from_dict({"name": "t", "kind": "vqa", "answers": ["yes"]})
    with pytest.raises(UsageError, match="no conformal thresholds; fit them"):
        check_coverage(task, 0.9)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "aps"}, r"conformal\.method: lac or lac_by_class"),
        ({"coverages": [0.9, 0.8, 0.95]}, "rising numbers"),
        ({"coverages": []}, "rising numbers"),
        ({"coverages": [0.8, 0.9, 1.5]}, "numbers in 0..1"),
        ({"thresholds": [0.3, 0.1]}, "one for each coverage"),
        ({"thresholds": [0.3, None, 0.1]}, "null from some point on"),
        ({"thresholds": [0.1, 0.3, None]}, "must fall"),
        ({"thresholds": [float("nan"), 0.3, None]}, "numbers in 0..1"),
        ({"n": -1}, "n: an integer"),
        ({"labels": {}}, "unknown keys"),
    ],
)
def test_bad_thresholds_are_refused_with_their_place(change: dict[str, Any], told: str):
    with pytest.raises(ManifestError, match=told) as caught:
        _single(conformal={**LAC, **change})
    assert "conformal" in str(caught.value)


def test_the_method_must_fit_the_task():
    with pytest.raises(ManifestError, match="multi-label tasks need lac_by_class"):
        _single(multi_label=True)
    with pytest.raises(ManifestError, match="multi-label tasks need lac_by_class"):
        _multi(multi_label=False)


def test_every_label_needs_its_thresholds():
    labels = {"a": BY_CLASS["labels"]["a"]}
    with pytest.raises(ManifestError, match=r"missing keys \['b'\]"):
        _multi(conformal={**BY_CLASS, "labels": labels})
