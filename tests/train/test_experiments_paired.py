from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge._evaluation import evaluate_classification, evaluate_vqa
from umd_edge._records import VQAReference
from umd_edge.errors import DataError
from umd_edge_train.experiments.paired import (
    Outcomes,
    Rankings,
    paired_difference,
    summarise,
)


def _outcomes(
    right: npt.ArrayLike, groups: list[str] | None = None, strata: npt.ArrayLike | None = None
) -> Outcomes:
    table = np.atleast_2d(np.asarray(right, dtype=bool))
    n = table.shape[1]
    return Outcomes(
        ids=tuple(f"r{i}" for i in range(n)),
        groups=tuple(groups or [f"p{i}" for i in range(n)]),
        strata=np.zeros(n, np.int64) if strata is None else np.asarray(strata, np.int64),
        right=table,
    )


def _metric(right: list[bool], strata: list[int]) -> float:
    """Mean over the strata present of the mean of right records."""
    means = []
    for stratum in sorted(set(strata) - {-1}):
        inside = [r for r, s in zip(right, strata, strict=True) if s == stratum]
        means.append(sum(inside) / len(inside))
    return sum(means) / len(means) if means else float("nan")


def _naive_difference(first: Outcomes, second: Outcomes) -> tuple[float, float, float]:
    """Resample lists of patients one by one and count with plain loops."""
    patients = sorted(set(first.groups))
    draws = np.random.default_rng(0).integers(0, len(patients), size=(1000, len(patients)))

    def difference(chosen: list[str]) -> float:
        rows = [i for p in chosen for i, group in enumerate(first.groups) if group == p]
        strata = [int(first.strata[i]) for i in rows]
        return float(
            np.mean(
                [
                    _metric([bool(a[i]) for i in rows], strata)
                    - _metric([bool(b[i]) for i in rows], strata)
                    for a, b in zip(first.right, second.right, strict=True)
                ]
            )
        )

    values = [difference([patients[k] for k in draw]) for draw in draws]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return difference(patients), float(low), float(high)


@settings(max_examples=2, deadline=None)
@given(st.data())
def test_it_equals_a_naive_bootstrap(data: st.DataObject):
    n = data.draw(st.integers(4, 10))
    bits = st.lists(st.booleans(), min_size=n, max_size=n)
    groups = data.draw(st.lists(st.sampled_from("abcd"), min_size=n, max_size=n))
    groups[:2] = ["a", "b"]
    strata = data.draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=n, max_size=n))
    strata[0] = 0
    first = _outcomes([data.draw(bits) for _ in range(2)], groups, strata)
    second = _outcomes([data.draw(bits) for _ in range(2)], groups, strata)
    found = paired_difference(first, second)
    value, low, high = _naive_difference(first, second)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=1e-12)


def test_a_difference_of_independent_records_has_the_interval_of_its_standard_error():
    rng = np.random.default_rng(3)
    n = 4000
    first, second = rng.random(n) < 0.7, rng.random(n) < 0.6
    found = paired_difference(_outcomes(first), _outcomes(second))
    difference = first.astype(float) - second.astype(float)
    error = difference.std() / np.sqrt(n)  # the quantiles of 1,000 resamples: to 0.25 of it
    assert found.value == pytest.approx(difference.mean(), abs=1e-12)
    assert found.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.25 * error)
    assert found.excludes_zero


def test_records_of_one_patient_count_as_one_piece_of_evidence():
    rng = np.random.default_rng(4)
    first, second = rng.random(60) < 0.7, rng.random(60) < 0.5
    alone = paired_difference(_outcomes(first), _outcomes(second))
    groups = [f"p{i}" for i in range(60) for _ in range(10)]
    many = paired_difference(
        _outcomes(np.repeat(first, 10), groups), _outcomes(np.repeat(second, 10), groups)
    )
    assert (many.value, many.low, many.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert (many.n, many.patients) == (600, 60)


def test_an_arm_does_not_differ_from_itself():
    arm = _outcomes([[1, 0, 1, 1], [0, 0, 1, 1]])
    found = paired_difference(arm, arm)
    assert (found.value, found.low, found.high, found.by_seed) == (0.0, 0.0, 0.0, (0.0, 0.0))
    assert not found.excludes_zero


def test_seeds_are_averaged_inside_a_resample():
    # Each seed is right on one half of the patients; their mean is the same for all patients.
    one, other = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
    both = summarise(_outcomes([one, other]))
    assert (both.value, both.low, both.high) == pytest.approx((0.5, 0.5, 0.5))
    assert both.by_seed == (0.5, 0.5)
    single = summarise(_outcomes([one]))
    assert single.low is not None
    assert single.high is not None
    assert single.low < 0.4 < 0.6 < single.high


def test_intervals_are_those_of_the_runtime():
    rng = np.random.default_rng(5)
    right = rng.random(80) < 0.6
    groups = [f"p{i}" for i in rng.integers(0, 25, 80)]
    vqa = evaluate_vqa(
        predictions=["yes" if value else "no" for value in right],
        confidences=np.ones(80),
        references=[VQAReference(("yes",))] * 80,
        groups=groups,
    )["accuracy"]
    found = summarise(_outcomes(right, groups))
    assert (found.value, found.low, found.high) == pytest.approx((vqa.value, vqa.low, vqa.high))
    truth = rng.integers(0, 3, 80)
    called = np.where(right, truth, (truth + 1) % 3)
    balanced = evaluate_classification(
        probabilities=np.eye(3)[called],
        targets=np.eye(3)[truth],
        groups=groups,
        labels=("a", "b", "c"),
        multi_label=False,
        operating_points={},
    )["balanced_accuracy"]
    found = summarise(_outcomes(right, groups, truth))
    expected = (balanced.value, balanced.low, balanced.high)
    assert (found.value, found.low, found.high) == pytest.approx(expected)


def test_a_single_patient_has_no_interval():
    found = summarise(_outcomes([1, 0], ["p", "p"]))
    assert (found.value, found.low, found.high, found.patients) == (0.5, None, None, 1)
    assert not found.excludes_zero


def test_records_outside_every_stratum_do_not_count():
    found = summarise(_outcomes([1, 0, 0, 0], strata=[0, 0, -1, -1]))
    assert (found.value, found.n, found.patients) == (0.5, 2, 2)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (_outcomes([1, 0, 1], ["p0", "p1", "p9"]), "patients"),
        (_outcomes([1, 0, 1], strata=[0, 0, 1]), "classes or labels"),
        (_outcomes([[1, 0, 1], [1, 1, 1]]), "numbers of seeds"),
        (_outcomes([1, 0]), "records"),
    ],
)
def test_arms_on_other_records_are_not_compared(other: Outcomes, what: str):
    with pytest.raises(DataError, match=f"differ in their {what}"):
        paired_difference(_outcomes([1, 0, 1]), other)


@pytest.mark.parametrize(
    ("groups", "strata", "right", "message"),
    [
        (("a",), [0, 0], [[1, 0]], "one of each"),
        (("a", "b"), [0, 0], [[1, 0, 1]], "one of each"),
        (("a", "b"), [-1, -1], [[1, 0]], "no outcome"),
        (("a", "b"), [0, 0], np.zeros((0, 2)), "no outcome"),
    ],
)
def test_outcomes_must_fit_together(groups, strata, right, message):
    with pytest.raises(DataError, match=message):
        Outcomes(("x", "y"), groups, np.asarray(strata), np.asarray(right, dtype=bool))


# --- several labels -----------------------------------------------


def _rankings(seed: int, seeds: int = 1, records: int = 30) -> Rankings:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (records, 3)).astype(np.float64)
    truth[0], truth[1] = 1.0, 0.0
    truth[2:5, 2] = np.nan
    scores = np.clip(0.3 * truth + rng.random((seeds, records, 3)) * 0.7, 0, 1)
    return Rankings(
        ids=tuple(f"r{i}" for i in range(records)),
        groups=tuple(f"p{i // 2}" for i in range(records)),
        truth=truth,
        scores=np.nan_to_num(scores, nan=0.5),
    )


def test_an_auroc_is_that_of_the_evaluation_with_its_interval():
    arm = _rankings(0)
    wanted = evaluate_classification(
        probabilities=arm.scores[0],
        targets=arm.truth,
        groups=arm.groups,
        labels=("a", "b", "c"),
        multi_label=True,
        operating_points={},
    )["macro_auroc"]
    found = summarise(arm)
    assert (found.value, found.low, found.high) == (wanted.value, wanted.low, wanted.high)
    assert (found.n, found.patients) == (30, 15)


def test_a_better_ranking_is_better_by_the_difference_of_the_areas():
    worse = _rankings(1, seeds=2)
    better = replace(worse, scores=np.nan_to_num(np.stack([worse.truth] * 2), nan=0.5))
    found = paired_difference(better, worse)
    assert found.value == pytest.approx(1.0 - summarise(worse).value)
    assert found.excludes_zero
    assert len(found.by_seed) == 2


def test_a_ranking_is_not_compared_with_outcomes_or_other_labels():
    arm = _rankings(2)
    right = np.ones((1, 30), dtype=bool)
    other = Outcomes(arm.ids, arm.groups, np.zeros(30, np.int64), right)
    with pytest.raises(DataError, match="differ in their metrics"):
        paired_difference(arm, other)
    turned = replace(arm, truth=arm.truth[:, ::-1])
    with pytest.raises(DataError, match="differ in their classes or labels"):
        paired_difference(arm, turned)


def test_rankings_must_fit_together_and_have_both_classes():
    arm = _rankings(3)
    with pytest.raises(DataError, match="one of each"):
        replace(arm, scores=arm.scores[:, :-1])
    with pytest.raises(DataError, match="no AUROC is defined"):
        replace(arm, truth=np.ones_like(arm.truth))
