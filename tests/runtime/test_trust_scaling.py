from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from umd_edge._postprocess import best_outputs, confidence, probabilities
from umd_edge._task import TaskSpec
from umd_edge.errors import ManifestError

LOGITS = hnp.arrays(np.float32, (4, 3), elements=st.floats(-1e3, 1e3, width=32))
VECTORS = {"scale": [0.5, 1.5, 1.0], "bias": [0.1, -0.4, 0.0]}
ANSWERS = {"temperature": 0.8, "other": -2.0, "platt": {"a": 0.6, "b": -1.0}}


def _task(kind: str = "softmax", multi_label: bool = False, **probability: Any) -> TaskSpec:
    return TaskSpec.from_dict(
        {
            "name": "t",
            "kind": "classification",
            "labels": ["a", "b", "c"],
            "prompt": "p",
            "multi_label": multi_label,
            "probability": {"kind": kind, **probability},
        }
    )


def test_vectors_are_applied_after_the_temperature():
    logits = [2.0, -1.0, 0.5]
    z = [x / 2 * a + b for x, a, b in zip(logits, *VECTORS.values(), strict=True)]
    task = _task("sigmoid", temperature=2.0, **VECTORS)
    wanted = [1 / (1 + math.exp(-x)) for x in z]
    np.testing.assert_allclose(
        probabilities(np.array(logits, np.float32), task), wanted, rtol=1e-12
    )
    weights = [math.exp(x) for x in z]
    task = _task(temperature=2.0, **VECTORS)
    wanted = [x / sum(weights) for x in weights]
    np.testing.assert_allclose(
        probabilities(np.array(logits, np.float32), task), wanted, rtol=1e-12
    )


def test_the_last_sigmoid_is_of_the_log_odds():
    logits = np.array([2.0, -1.0, 0.5], np.float32)
    before = probabilities(logits, _task())
    wanted = 1 / (1 + np.exp(-(0.6 * np.log(before / (1 - before)) - 1.0)))
    after = probabilities(logits, _task(platt={"a": 0.6, "b": -1.0}))
    np.testing.assert_allclose(after, wanted, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.sampled_from(["plain", "vectors", "answers"]))
def test_a_batch_gives_the_same_bits_as_its_samples(logits: np.ndarray, kind: str):
    task = _task(**({"plain": {}, "vectors": VECTORS, "answers": ANSWERS}[kind]))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        together = probabilities(logits, task)
    assert np.array_equal(together, np.stack([probabilities(row, task) for row in logits]))
    assert ((together >= 0) & (together <= 1)).all()
    assert np.array_equal(
        confidence(together, task), [float(confidence(row, task)) for row in together]
    )


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, 40, elements=st.floats(-30, 30, width=32)), st.integers(1, 7))
def test_the_best_answers_have_the_bits_of_all_answers(logits: np.ndarray, count: int):
    task = TaskSpec.from_dict(
        {
            "name": "vqa",
            "kind": "vqa",
            "answers": [str(i) for i in range(40)],
            "probability": {"kind": "softmax", **ANSWERS},
        }
    )
    everything = probabilities(logits, task)
    best = best_outputs(logits, task, count)
    assert [value for _, value in best] == [everything[row] for row, _ in best]
    assert best[0][1] == everything.max()


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, 3, elements=st.floats(-50, 50, width=32)), st.floats(0.05, 20))
def test_neither_temperature_nor_other_nor_platt_changes_the_best_output(
    logits: np.ndarray, temperature: float
):
    task = _task(temperature=temperature, other=1.0, platt={"a": 2.0, "b": -1.0})
    p = probabilities(logits, task)
    assert p[int(logits.argmax())] == p.max()


def test_an_answer_outside_the_list_takes_its_share():
    logits = np.zeros(3, np.float32)
    np.testing.assert_allclose(probabilities(logits, _task(other=0.0)), [0.25] * 3, rtol=1e-15)
    assert probabilities(logits, _task(other=800.0)).max() == 0.0


def test_confidence_of_several_labels_is_the_mean_of_the_surer_state():
    task = _task("sigmoid", multi_label=True)
    assert float(confidence(np.array([0.9, 0.2, 0.5]), task)) == pytest.approx(2.2 / 3)
    assert float(confidence(np.array([0.7, 0.2, 0.1]), _task())) == 0.7


@pytest.mark.parametrize(
    ("probability", "told"),
    [
        ({"scale": [1.0, 1.0, 1.0]}, "both or neither"),
        ({"bias": [0.0, 0.0, 0.0]}, "both or neither"),
        ({"scale": [1.0, 1.0], "bias": [0.0, 0.0]}, "one number for each output"),
        ({"scale": [1.0, 0.0, 1.0], "bias": [0.0] * 3}, "scale must be above 0"),
        ({"scale": [1.0, -2.0, 1.0], "bias": [0.0] * 3}, "scale must be above 0"),
        ({"scale": [1.0] * 3, "bias": [0.0, float("inf"), 0.0]}, "bias finite"),
        ({"scale": [True, 1, 1], "bias": [0, 0, 0]}, r"scale: a list of numbers"),
        ({"scale": [], "bias": []}, r"scale: a list of numbers"),
        ({"other": None}, "other: a number"),
        ({"other": float("nan")}, "must be finite"),
        ({"platt": {"a": 1.0}}, r"platt: missing keys \['b'\]"),
        ({"platt": {"a": 0.0, "b": 0.0}}, "a must be above 0"),
        ({"platt": [1, 0]}, "platt: an object"),
    ],
)
def test_a_bad_scaling_is_refused(probability: dict[str, Any], told: str):
    with pytest.raises(ManifestError, match=told):
        _task(**probability)


def test_other_answers_belong_to_a_softmax():
    with pytest.raises(ManifestError, match="other belongs to a softmax"):
        _task("sigmoid", multi_label=True, other=0.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
FITTED = {
    "name": "t",
    "kind": "classification",
    "labels": ["a"],
    "prompt": "p",
    "probability": {"kind": "softmax", "scale": [1.0], "bias": [0.0], "other": 0.0},
    "operating_curves": {
        "a": {
            "thresholds": [0.5],
            "sensitivities": [0.5],
            "specificities": [0.5],
            "n_positive": 1,
            "n_negative": 1,
        }
    },
    "conformal": {"method": "lac", "coverages": [0.5], "n": 1, "thresholds": [0.5]},
}
PLACES = [
    *("probability", "operating_curves", "conformal", "probability.scale", "probability.bias"),
    *("probability.other", "probability.platt", "operating_curves.a", "conformal.method"),
    *("operating_curves.a.thresholds", "operating_curves.a.n_positive", "conformal.coverages"),
    *("conformal.n", "conformal.thresholds", "conformal.other", "conformal.labels"),
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_any_value_in_any_fitted_place_is_read_or_refused_as_a_manifest_error(
    place: str, value: Any
):
    document = copy.deepcopy(FITTED)
    *path, last = place.split(".")
    table: Any = document
    for part in path:
        table = table[part]
    table[last] = value
    try:
        task = TaskSpec.from_dict(document)
    except ManifestError as error:
        assert str(error)
    else:
        assert TaskSpec.from_dict(task.to_dict()) == task
