from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from umd_edge._postprocess import best_outputs, positives, probabilities
from umd_edge._task import TaskSpec

LOGITS = hnp.arrays(np.float32, (3,), elements=st.floats(-1e4, 1e4, width=32))


def _task(kind: str = "softmax", **changes: Any) -> TaskSpec:
    return TaskSpec(
        name="t",
        kind="classification",
        outputs=("a", "b", "c"),
        prompt="p",
        probability_kind=kind,
        **changes,
    )


def test_softmax_is_the_formula():
    logits = np.array([1.0, -2.0, 0.5], np.float32)
    weights = [math.exp(x / 2) for x in logits.tolist()]
    wanted = [weight / sum(weights) for weight in weights]
    np.testing.assert_allclose(probabilities(logits, _task(temperature=2.0)), wanted, rtol=1e-12)


def test_sigmoid_is_the_formula():
    logits = np.array([1.0, -2.0, 0.0], np.float32)
    wanted = [1 / (1 + math.exp(-x / 0.5)) for x in logits.tolist()]
    got = probabilities(logits, _task("sigmoid", temperature=0.5))
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


@settings(max_examples=80, deadline=None)
@given(LOGITS, st.sampled_from(["softmax", "sigmoid"]), st.floats(0.05, 20))
def test_probabilities_are_probabilities(logits: np.ndarray, kind: str, temperature: float):
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        got = probabilities(logits, _task(kind, temperature=temperature))
    assert got.dtype == np.float64
    assert ((got >= 0) & (got <= 1)).all()
    if kind == "softmax":
        assert got.sum() == pytest.approx(1.0, abs=1e-12)
    order = np.argsort(logits, kind="stable")
    assert (np.diff(got[order]) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(LOGITS, LOGITS)
def test_rows_do_not_depend_on_each_other(one: np.ndarray, other: np.ndarray):
    both = probabilities(np.stack([one, other]), _task())
    assert np.array_equal(both[0], probabilities(one, _task()))
    assert np.array_equal(both[1], probabilities(other, _task()))


@settings(max_examples=40, deadline=None)
@given(LOGITS)
def test_a_higher_temperature_makes_the_best_answer_less_certain(logits: np.ndarray):
    cold = probabilities(logits, _task()).max()
    warm = probabilities(logits, _task(temperature=3.0)).max()
    assert warm <= cold + 1e-12


def test_one_label_is_positive_where_only_one_is_right():
    assert positives(np.array([0.2, 0.5, 0.3]), _task()).tolist() == [False, True, False]
    assert positives(np.array([0.4, 0.4, 0.2]), _task()).tolist() == [True, False, False]


def test_many_labels_are_positive_from_their_operating_points_on():
    task = _task("sigmoid", multi_label=True, operating_points={"a": 0.2, "c": 0.9})
    assert positives(np.array([0.2, 0.5, 0.89]), task).tolist() == [True, True, False]
    assert positives(np.array([0.19, 0.49, 0.9]), task).tolist() == [False, False, True]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-200.0, -1.0, 0.0, 0.0, 1e-30, 3.0]), min_size=1, max_size=30),
    st.integers(1, 8),
    st.sampled_from(["softmax", "sigmoid"]),
)
def test_best_outputs_are_the_front_of_a_stable_sort(values: list[float], count: int, kind: str):
    logits = np.array(values, np.float32)
    probability = probabilities(logits, _task(kind))
    expected = np.argsort(-probability, kind="stable")[:count].tolist()
    best = best_outputs(logits, _task(kind), count)
    assert best == [(row, float(probability[row])) for row in expected]
    assert np.array_equal(logits, np.array(values, np.float32))
