"""The fits behind trustworthy answers, against short references and on made-up truths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge._postprocess import probabilities
from umd_edge._task import TaskSpec
from umd_edge_export.errors import ExportError
from umd_edge_export.trust import fit_task
from umd_edge_export.trust_decisions import (
    AbstainRule,
    abstain_threshold,
    conformal_spec,
    operating_curves,
    operating_points,
)
from umd_edge_export.trust_minimise import minimise
from umd_edge_export.trust_proof import (
    area_below_random,
    calibration_error,
    perfect_error,
    prove_task,
    risk_curve,
)
from umd_edge_export.trust_records import TaskRecords, split_groups, unfitted
from umd_edge_export.trust_scaling import cross_fit, fit_scaling, losses, select_scaling


def _task(kind: str = "single", **changes: Any) -> TaskSpec:
    common: dict[str, Any] = {"name": "t", "kind": "classification", "prompt": "p"}
    if kind == "vqa":
        answers = [f"answer {i}" for i in range(30)]
        return TaskSpec.from_dict({"name": "t", "kind": "vqa", "answers": answers, **changes})
    if kind == "multi":
        common |= {"multi_label": True, "probability": {"kind": "sigmoid"}}
    return TaskSpec.from_dict({**common, "labels": ["a", "b", "c"], **changes})


def _groups(n: int, size: int = 2) -> tuple[str, ...]:
    return tuple(f"patient {i // size}" for i in range(n))


def _single(n: int, temperature: float, seed: int = 0) -> TaskRecords:
    """Labels drawn from the softmax of the logits divided by `temperature`."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 2, (n, 3))
    p = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    logits = (true * temperature).astype(np.float32)
    return TaskRecords(_task(), logits, np.eye(3)[labels], _groups(n))


def _multi(n: int, scale: tuple[float, ...], bias: tuple[float, ...], seed: int = 0) -> TaskRecords:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 3)).astype(np.float32)
    p = 1 / (1 + np.exp(-(logits * np.array(scale) + np.array(bias))))
    targets = (rng.random((n, 3)) < p).astype(np.float64)
    return TaskRecords(_task("multi"), logits, targets, _groups(n))


def _questions(n: int, unlisted: float, seed: int = 0) -> TaskRecords:
    """A share of the answers is not listed; there the logits are flat."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 0.7, (n, 30))
    right = rng.integers(0, 30, n)
    known = rng.random(n) >= unlisted
    logits[np.arange(n), right] += np.where(known, rng.normal(4, 2, n), 0.0)
    targets = np.eye(30)[right] * known[:, None]
    return TaskRecords(_task("vqa"), logits.astype(np.float32), targets, _groups(n, 4))


class TestMinimise:
    def test_a_bowl(self):
        wanted = np.array([0.5, -2.0, 3.0])
        found = minimise(lambda x: float(((x - wanted) ** 2 * [1, 10, 0.1]).sum()), np.zeros(3))
        np.testing.assert_allclose(found, wanted, atol=1e-4)

    def test_a_curved_valley(self):
        def valley(x: np.ndarray) -> float:
            return float((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2)

        np.testing.assert_allclose(minimise(valley, [-1.2, 1.0]), [1.0, 1.0], atol=1e-3)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.floats(-3, 3), min_size=2, max_size=2))
    def test_never_ends_higher_than_it_began(self, start: list[float]):
        def bumpy(x: np.ndarray) -> float:
            return float(np.cos(3 * x[0]) + 0.1 * (x**2).sum())

        assert bumpy(minimise(bumpy, start)) <= bumpy(np.array(start))


class TestScaling:
    @pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
    def test_the_temperature_that_made_the_labels_is_found(self, temperature: float):
        records = _single(1500, temperature)
        found = fit_scaling(records, "temperature").temperature
        assert found == pytest.approx(temperature, rel=0.12)

    def test_the_temperature_is_the_best_of_a_fine_grid(self):
        records = _single(80, 2.0)

        def nll(temperature: float) -> float:
            p = probabilities(records.logits, replace(records.task, temperature=temperature))
            # as fitted: with the wide prior on its logarithm
            prior = 0.5 * (np.log(temperature) / 2) ** 2 / len(records)
            return float(losses(records.task, p, records.targets)[0].mean()) + prior

        grid = np.exp(np.linspace(-1, 2, 3001))
        best = grid[np.argmin([nll(value) for value in grid])]
        assert fit_scaling(records, "temperature").temperature == pytest.approx(best, rel=2e-3)

    def test_the_vectors_that_made_the_labels_are_found(self):
        records = _multi(4000, (1.0, 0.6, 1.4), (0.0, -0.5, 0.5))
        task = fit_scaling(records, "vector")
        slopes = np.array(task.scale) / task.temperature
        np.testing.assert_allclose(slopes, [1.0, 0.6, 1.4], rtol=0.15)
        np.testing.assert_allclose(task.bias, [0.0, -0.5, 0.5], atol=0.15)

    def test_two_positives_do_not_explode(self):
        records = _multi(60, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
        targets = records.targets.copy()
        targets[:, 2] = 0
        targets[np.argsort(records.logits[:, 2])[-2:], 2] = 1  # perfectly separable
        task = fit_scaling(replace(records, targets=targets), "vector")
        assert 0.2 < task.scale[2] < 5 and abs(task.bias[2]) < 3

    def test_unknown_labels_do_not_count(self):
        records = _multi(200, (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))
        targets = records.targets.copy()
        targets[100:, 1] = np.nan
        half = replace(records, targets=targets)
        flipped = targets.copy()
        flipped[100:, 1] = np.nan
        logits = records.logits.copy()
        logits[100:, 1] = 7.0
        other = replace(records, targets=flipped, logits=logits)
        assert fit_scaling(half, "vector").bias == fit_scaling(other, "vector").bias

    def test_unlisted_answers_get_their_share(self):
        records = _questions(800, 0.3)
        task = fit_scaling(records, "answers")
        assert task.other is not None
        p = probabilities(records.logits, task)
        right = records.targets[np.arange(800), p.argmax(axis=1)]
        assert p.max(axis=1).mean() == pytest.approx(right.mean(), abs=0.03)
        identity = probabilities(records.logits, records.task)
        nll = losses(task, p, records.targets)[0].mean()
        assert nll < losses(task, identity, records.targets)[0].mean()

    def test_a_wrong_temperature_is_mended(self):
        selection = select_scaling(_single(100, 3.0))
        assert selection.kind == "temperature"
        assert selection.nll["temperature"] < selection.nll["identity"]
        assert selection.brier["temperature"] < selection.brier["identity"]

    @pytest.mark.parametrize("n", [1, 12, 19])
    def test_few_records_keep_the_logits_as_they_are(self, n: int):
        records = _single(n, 3.0)
        assert select_scaling(records).kind == "identity"
        assert fit_task(records).task.temperature == 1.0

    def test_questions_with_unlisted_answers_choose_the_richer_scaling(self):
        assert select_scaling(_questions(200, 0.3)).kind == "answers"

    def test_cross_fitting_lowers_both_scores(self):
        records = _single(240, 3.0)
        after, _ = cross_fit(records)
        before = probabilities(records.logits, records.task)
        for old, new in zip(
            losses(records.task, before, records.targets),
            losses(records.task, after, records.targets),
            strict=True,
        ):
            assert new.mean() < old.mean()

    def test_cross_fitting_never_sees_the_judged_patients(self):
        records = _single(24, 2.0)
        after, _ = cross_fit(records)
        _, part = next(split_groups(records.groups, 10, np.random.default_rng(1)))
        wrong = records.targets.copy()
        wrong[part] = np.roll(wrong[part], 1, axis=1)
        again, _ = cross_fit(replace(records, targets=wrong))
        assert np.array_equal(after[part], again[part])
        assert not np.array_equal(after, again)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(2, 10))
def test_no_patient_is_in_two_parts(patients: list[int], parts: int):
    groups = [str(p) for p in patients]
    seen: list[int] = []
    for rest, part in split_groups(groups, parts, np.random.default_rng(0)):
        assert not {groups[r] for r in rest} & {groups[p] for p in part}
        assert sorted([*rest, *part]) == list(range(len(groups)))
        seen += part.tolist()
    assert sorted(seen) == list(range(len(groups)))


class TestConformal:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(4, 60), st.integers(0, 1000), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
    def test_of_exchangeable_records_enough_are_covered(self, n: int, seed: int, nominal: float):
        """Each of n records left out in turn: the guarantee holds exactly on average."""
        records = _single(n, 1.0, seed)
        covered = 0
        for left_out in range(n):
            rest = records.take(np.delete(np.arange(n), left_out))
            spec = conformal_spec(rest.task, rest, probabilities(rest.logits, rest.task))
            p = probabilities(records.logits[left_out], records.task)
            found = spec.prediction_set(p, records.task.outputs, nominal)
            covered += (
                records.task.outputs[int(records.targets[left_out].argmax())] in found.outputs
            )
        assert covered / n >= nominal - 1e-9

    @pytest.mark.parametrize(("n", "nominal", "empty"), [(8, 0.9, True), (9, 0.9, False)])
    def test_too_few_records_exclude_nothing(self, n: int, nominal: float, empty: bool):
        records = _single(n, 1.0)
        spec = conformal_spec(records.task, records, probabilities(records.logits, records.task))
        found = spec.prediction_set(np.array([0.9, 0.08, 0.02]), records.task.outputs, nominal)
        assert found.complete is empty
        assert found.n == n

    def test_a_label_without_positives_is_never_ruled_out(self):
        records = _multi(60, (1, 1, 1), (0, 0, 0))
        targets = records.targets.copy()
        targets[:, 1] = 0
        spec = conformal_spec(records.task, replace(records, targets=targets), targets * 0.5 + 0.1)
        found = spec.prediction_set(np.array([0.1, 0.0, 0.1]), records.task.outputs, 0.8)
        assert found.states is not None and "present" in found.states["b"]
        assert found.complete and found.n == 0

    def test_unlisted_answers_have_a_threshold_of_their_own(self):
        records = _questions(400, 0.3)
        task = fit_scaling(records, "answers")
        spec = conformal_spec(task, records, probabilities(records.logits, task))
        unlisted = int((records.targets.sum(axis=1) == 0).sum())
        assert spec.other is not None and spec.any_output is not None
        assert (spec.other.n, spec.any_output.n) == (unlisted, 400 - unlisted)


class TestOperatingPoints:
    def test_a_curve_counts_what_it_says(self):
        records = _multi(70, (1, 1, 1), (0, 0, 0))
        p = probabilities(records.logits, records.task)
        curves = operating_curves(records.task, records.targets, p)
        curve, column = curves["b"], p[:, 1]
        positive = records.targets[:, 1] == 1
        for t, sensitivity, specificity in zip(
            curve.thresholds, curve.sensitivities, curve.specificities, strict=True
        ):
            assert sensitivity == (column[positive] >= t).sum() / (positive.sum() + 1)
            assert specificity == (column[~positive] < t).sum() / ((~positive).sum() + 1)

    @pytest.mark.parametrize("n", [40, 3000])
    @pytest.mark.parametrize("wanted", [0.8, 0.9, 0.95])
    def test_the_best_threshold_is_on_the_curve(self, n: int, wanted: float):
        records = _multi(n, (1, 1, 1), (0, 0, 0))
        p = np.floor(probabilities(records.logits, records.task) * 1e6) / 1e6
        curve = operating_curves(records.task, records.targets, p)["a"]
        positive = np.sort(p[records.targets[:, 0] == 1, 0])
        negative = np.sort(p[records.targets[:, 0] == 0, 0])
        rank = int((len(positive) + 1) * (1 - wanted) + 1e-9)
        if rank:
            assert curve.at_sensitivity(wanted).threshold == positive[rank - 1]
            point = curve.at_specificity(wanted)
            count = int(np.ceil(wanted * (len(negative) + 1) - 1e-9))
            assert negative[count - 1] < point.threshold <= negative[count - 1] + 2e-6
        assert len(curve.thresholds) <= 64

    def test_a_label_that_never_occurs_has_no_curve(self):
        records = _multi(30, (1, 1, 1), (0, 0, 0))
        targets = records.targets.copy()
        targets[:, 0] = 0
        curves = operating_curves(records.task, targets, targets * 0.5)
        assert "a" not in curves

    def test_rare_labels_keep_the_even_point(self):
        targets = np.zeros((50, 3))
        targets[:12, 0] = 1
        targets[:9, 1] = 1
        targets[:45, 2] = 1
        targets[46:, 2] = np.nan
        assert operating_points(_task("multi"), targets) == {"a": 0.24}
        assert operating_points(_task(), targets) == {}


class TestAbstention:
    TARGETS = np.eye(3)[[0] * 100]

    def _certain(self, wrong_below: int) -> np.ndarray:
        """100 records of rising confidence; the first ones are wrong."""
        p = np.linspace(0.4, 0.9, 100)
        rows = np.stack([p, 0.6 * (1 - p), 0.4 * (1 - p)], axis=1)
        rows[:wrong_below] = rows[:wrong_below][:, [1, 0, 2]]
        return rows

    def test_wrong_and_uncertain_records_are_abstained_from(self):
        p = self._certain(10)
        limit = abstain_threshold(_task(), self.TARGETS, p, AbstainRule())
        assert limit is not None
        below = p.max(axis=1) < limit
        assert below[:10].all() and below.sum() <= 20
        assert (p[below].argmax(axis=1) != 0).mean() >= 2 / 3 or below.sum() * 0.15 <= 10

    def test_a_task_that_is_right_never_abstains(self):
        assert abstain_threshold(_task(), self.TARGETS, self._certain(0), AbstainRule()) is None

    def test_no_more_than_the_share_is_abstained_from(self):
        p = self._certain(90)
        limit = abstain_threshold(_task(), self.TARGETS, p, AbstainRule(max_share=0.1))
        assert limit is not None and (p.max(axis=1) < limit).sum() == 10

    def test_a_risk_that_is_asked_for_is_kept_with_the_fewest_abstentions(self):
        p = self._certain(10)
        limit = abstain_threshold(_task(), self.TARGETS, p, AbstainRule(max_risk=0.05))
        assert limit is not None
        assert (p.max(axis=1) < limit).sum() == 6  # 4 of 94 wrong; 5 of 95 would be too many
        none = abstain_threshold(_task(), self.TARGETS, p, AbstainRule(max_risk=0.1))
        assert none is None

    def test_a_risk_that_cannot_be_reached_is_told(self):
        with pytest.raises(ExportError, match=r"risk of 0\.01 is not reached .* 0\.375 is"):
            rule = AbstainRule(max_risk=0.01)
            abstain_threshold(_task(), self.TARGETS, self._certain(50), rule)


class TestProof:
    def test_calibration_error_of_one_bin(self):
        assert calibration_error(np.full(10, 0.91), np.ones(10)) == pytest.approx(0.09)
        assert calibration_error(np.ones(4), np.array([1.0, 1, 0, 0])) == 0.5

    def test_chance_allows_less_with_more_records(self):
        few, many = np.full(50, 0.7), np.full(5000, 0.7)
        assert perfect_error(many) < 0.02 < perfect_error(few)

    def test_risk_rises_where_certain_answers_are_right(self):
        share, risk = risk_curve(np.array([0.9, 0.2, 0.6]), np.array([0.0, 1.0, 0.0]))
        assert share.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
        assert risk.tolist() == pytest.approx([0, 0, 1 / 3])

    def test_a_true_model_passes_its_own_proof(self):
        records = _single(300, 2.5)
        proof = prove_task(records, fit_task(records)).figures
        assert proof["after"]["nll"] < proof["before"]["nll"]
        assert proof["after"]["brier"] < proof["before"]["brier"]
        assert proof["after"]["calibration_error"] <= proof["after"]["perfect_95"]
        for nominal, found in proof["coverage"].items():
            assert abs(found["mean"] - float(nominal)) < 0.02
        assert proof["risk_coverage"]["high"] < 0

    def test_a_confidence_that_knows_nothing_is_told_from_one_that_does(self):
        certain = np.random.default_rng(5).random(200)
        wrong = (np.random.default_rng(6).random(200) > certain).astype(np.float64)
        knowing = area_below_random(certain, wrong, _groups(200))
        assert knowing["high"] < 0
        lost = area_below_random(np.roll(certain, 50), wrong, _groups(200))
        assert lost["low"] < 0 < lost["high"]


def test_everything_that_was_fitted_can_be_taken_off():
    for records in (_single(40, 2.0), _multi(60, (1, 1, 1), (0, 0, 0)), _questions(60, 0.2)):
        task = fit_task(records).task
        assert task.conformal is not None
        assert unfitted(task) == records.task
        assert TaskSpec.from_dict(task.to_dict()) == task
