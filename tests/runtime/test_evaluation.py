from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge._evaluation import MetricValue, evaluate_classification, evaluate_vqa, is_right
from umd_edge._records import VQAReference
from umd_edge.errors import DataError

LABELS = ("a", "b", "c")


def classification(probabilities, targets, *, groups=None, labels=LABELS, **options):
    options = {"multi_label": False, "operating_points": {}} | options
    groups = groups if groups is not None else [str(i) for i in range(len(targets))]
    return evaluate_classification(
        probabilities=probabilities, targets=targets, groups=groups, labels=labels, **options
    )


def single_label_case(seed, n=60):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), size=n).round(2)
    return (
        p / p.sum(axis=1, keepdims=True),
        rng.integers(0, 3, n),
        [str(g) for g in np.arange(n) // 2],
    )


def vqa(predictions, references, *, confidences=None, groups=None):
    n = len(predictions)
    return evaluate_vqa(
        predictions=predictions,
        confidences=[0.5] * n if confidences is None else confidences,
        references=references,
        groups=groups or [str(i) for i in range(n)],
    )


@pytest.mark.parametrize("seed", range(4))
def test_single_label_metrics_equal_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    p, y, groups = single_label_case(seed)
    found = classification(p, np.eye(3)[y], groups=groups)
    called = p.argmax(axis=1)
    assert found["accuracy"].value == pytest.approx(metrics.accuracy_score(y, called))
    assert found["balanced_accuracy"].value == pytest.approx(
        metrics.balanced_accuracy_score(y, called)
    )
    assert found["macro_f1"].value == pytest.approx(metrics.f1_score(y, called, average="macro"))
    for k, label in enumerate(LABELS):
        assert found[f"auroc_{label}"].value == pytest.approx(
            metrics.roc_auc_score(y == k, p[:, k])
        )
    assert found["macro_auroc"].value == pytest.approx(
        metrics.roc_auc_score(y, p, multi_class="ovr", average="macro")
    )


@pytest.mark.parametrize("seed", range(4))
def test_multi_label_metrics_with_unknown_cells_equal_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    p = rng.random((80, 3)).round(1)
    y = (rng.random((80, 3)) < p * 0.7).astype(float)
    y[rng.random((80, 3)) < 0.2] = np.nan
    found = classification(p, y, multi_label=True, operating_points={"a": 0.3})
    limits = np.array([0.3, 0.5, 0.5])
    balanced, f1 = [], []
    for k, label in enumerate(LABELS):
        known = np.isfinite(y[:, k])
        truth, called = y[known, k], p[known, k] >= limits[k]
        assert found[f"auroc_{label}"].value == pytest.approx(
            metrics.roc_auc_score(truth, p[known, k])
        )
        assert found[f"auroc_{label}"].n == known.sum()
        balanced.append(metrics.balanced_accuracy_score(truth, called))
        f1.append(metrics.f1_score(truth, called))
    known = np.isfinite(y)
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(balanced))
    assert found["macro_f1"].value == pytest.approx(np.mean(f1))
    assert found["accuracy"].value == pytest.approx(np.mean((p >= limits)[known] == y[known]))
    assert found["brier"].value == pytest.approx(np.mean((p[known] - y[known]) ** 2))


def test_hand_case():
    p = [[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]]
    y = [[1, 0], [0, 1], [0, 1], [1, 0]]
    found = classification(p, y, labels=("x", "y"))
    assert found["accuracy"].value == 0.75
    assert found["balanced_accuracy"].value == 0.75
    assert found["brier"].value == pytest.approx(2 * (0.04 + 0.36 + 0.09 + 0.01) / 4)
    # confidences 0.8, 0.6, 0.7, 0.9 fall into four different bins
    assert found["ece"].value == pytest.approx((0.2 + 0.6 + 0.3 + 0.1) / 4)
    assert found["macro_f1"].value == pytest.approx((2 * 2 / 5 + 2 * 1 / 3) / 2)


def test_interval_equals_a_plain_bootstrap_over_patients():
    p, y, groups = single_label_case(1)
    found = classification(p, np.eye(3)[y], groups=groups)["accuracy"]
    right = p.argmax(axis=1) == y
    names = sorted(set(groups))
    members = [[i for i, g in enumerate(groups) if g == name] for name in names]
    draws = np.random.default_rng(0).integers(0, len(names), size=(1000, len(names)))
    plain = [np.mean(right[[i for g in row for i in members[g]]]) for row in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])))


def test_whole_patients_are_resampled_so_copies_of_a_record_do_not_narrow_the_interval():
    p, y, _ = single_label_case(2, n=30)
    groups = [str(i) for i in range(30)]
    once = classification(p, np.eye(3)[y], groups=groups)["accuracy"]
    copies = classification(np.tile(p, (4, 1)), np.eye(3)[np.tile(y, 4)], groups=groups * 4)
    assert copies["accuracy"].low == pytest.approx(once.low)
    assert copies["accuracy"].high == pytest.approx(once.high)
    # Negative control: as patients of their own they would
    alone = classification(np.tile(p, (4, 1)), np.eye(3)[np.tile(y, 4)])["accuracy"]
    assert alone.high - alone.low < 0.7 * (once.high - once.low)


def test_one_class_present_gives_null_auroc_and_its_n():
    found = classification([[0.7, 0.2, 0.1]] * 5, [[1, 0, 0]] * 5)
    assert found["auroc_a"] == MetricValue(None, None, None, 5)
    assert found["macro_auroc"].value is None
    assert found["balanced_accuracy"].value == 1.0


def test_balanced_accuracy_averages_the_classes_present_only():
    p = [[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.9, 0.1, 0.0]]
    y = [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert classification(p, y)["balanced_accuracy"].value == 0.75


def test_unknown_single_label_records_do_not_count():
    p = [[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.1, 0.9]]
    nan = float("nan")
    found = classification(p, [[1, 0, 0], [0, 1, 0], [nan, nan, nan]])
    assert found["accuracy"].value == 1.0
    assert found["accuracy"].n == 2


def test_no_records_give_nulls_not_an_error():
    found = classification(np.zeros((0, 3)), np.zeros((0, 3)))
    assert {value.value for value in found.values()} == {None}
    assert {value.n for value in vqa([], []).values()} == {0}


def test_one_patient_gives_no_interval():
    found = classification([[0.9, 0.1, 0.0]] * 3, [[1, 0, 0]] * 3, groups=["p"] * 3)
    assert found["accuracy"] == MetricValue(1.0, None, None, 3)


def test_ties_count_half():
    found = classification([[0.5, 0.5]] * 4, [[1, 0], [0, 1]] * 2, labels=("x", "y"))
    assert found["auroc_x"].value == 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_order_of_records_does_not_matter(seed):
    p, y, groups = single_label_case(seed, n=20)
    order = np.random.default_rng(seed).permutation(20)
    first = classification(p, np.eye(3)[y], groups=groups)
    second = classification(p[order], np.eye(3)[y[order]], groups=[groups[i] for i in order])
    for name, value in first.items():
        assert second[name].value == pytest.approx(value.value)
        assert second[name].low == pytest.approx(value.low)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_values_are_in_range_and_inside_their_interval_or_near(seed, multi_label):
    p, y, groups = single_label_case(seed, n=20)
    found = classification(p, np.eye(3)[y], groups=groups, multi_label=multi_label)
    for name, value in found.items():
        if value.value is not None:
            assert 0 <= value.value <= (2 if name == "brier" else 1)
            assert value.low <= value.high


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_auroc_of_reversed_scores_is_the_complement(seed):
    p, y, groups = single_label_case(seed, n=20)
    p = np.round(p * 64) / 64  # so that 1 - p keeps ties exactly
    first = classification(p, np.eye(3)[y], groups=groups, multi_label=True)
    second = classification(1 - p, np.eye(3)[y], groups=groups, multi_label=True)
    for label in LABELS:
        value = first[f"auroc_{label}"].value
        if value is not None:
            assert second[f"auroc_{label}"].value == pytest.approx(1 - value)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_auroc_does_not_change_under_a_monotone_map(seed):
    p, y, groups = single_label_case(seed, n=20)
    first = classification(p, np.eye(3)[y], groups=groups, multi_label=True)
    second = classification(p**3, np.eye(3)[y], groups=groups, multi_label=True)
    assert second["macro_auroc"] == first["macro_auroc"]


def test_vqa_splits_by_the_references_types():
    references = [
        VQAReference(("Yes",), "CLOSED", "PRES"),
        VQAReference(("no",), "closed", "PRES, ATTRIB"),
        VQAReference(("CT", "ct scan"), "OPEN", "modality"),
        VQAReference(("pneumonia",), "OPEN", "abnormality"),
        VQAReference(("axial",), None, None),
    ]
    found = vqa(["yes.", "yes", "CT Scan", "edema", "axial"], references)
    assert found["accuracy"].value == pytest.approx(3 / 5)
    assert (found["closed_accuracy"].value, found["closed_accuracy"].n) == (0.5, 2)
    assert (found["open_accuracy"].value, found["open_accuracy"].n) == (0.5, 2)
    assert found["accuracy_pres"].value == 1.0
    assert found["accuracy_pres_attrib"].value == 0.0
    assert found["accuracy_modality"].value == 1.0
    assert found["accuracy_abnormality"].value == 0.0
    without = found["accuracy_excluding_abnormality"]
    assert (without.value, without.n) == (0.75, 4)


def test_vqa_without_closed_questions_reports_null_closed_accuracy():
    found = vqa(["ct"], [VQAReference(("ct",), "OPEN", "modality")])
    assert found["closed_accuracy"] == MetricValue(None, None, None, 0)
    assert "accuracy_excluding_abnormality" not in found


def test_vqa_calibration_of_the_top_answer():
    references = [VQAReference(("ct",)), VQAReference(("mr",))]
    found = vqa(["ct", "ct"], references, confidences=[0.8, 0.6])
    assert found["brier"].value == pytest.approx((0.04 + 0.36) / 2)
    assert found["ece"].value == pytest.approx((0.2 + 0.6) / 2)


@pytest.mark.parametrize(
    ("prediction", "expected"), [("The Left lung", True), ("left  LUNG.", True), ("lung", False)]
)
def test_an_answer_is_compared_in_its_normal_form(prediction, expected):
    assert is_right(prediction, VQAReference(("x-ray", "left lung"))) is expected


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), float("inf")])
def test_probability_outside_0_to_1_is_refused(bad):
    with pytest.raises(DataError, match=r"not in 0\.\.1"):
        classification([[bad, 0.0, 0.0]], [[1, 0, 0]])
    with pytest.raises(DataError, match=r"not in 0\.\.1"):
        vqa(["ct"], [VQAReference(("ct",))], confidences=[bad])


@pytest.mark.parametrize("row", [[1, 1, 0], [0, 0, 0]])
def test_single_label_record_without_exactly_one_label_is_refused(row):
    with pytest.raises(DataError, match="exactly one label"):
        classification([[0.5, 0.3, 0.2]], [row])


def test_different_lengths_are_refused():
    with pytest.raises(DataError, match="groups has 1 rows, the predictions 2"):
        classification([[1, 0, 0]] * 2, [[1, 0, 0]] * 2, groups=["p"])
    with pytest.raises(DataError, match="references has 0 rows"):
        vqa(["ct"], [])
