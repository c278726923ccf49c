from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge_export.compare import Comparison, paired_difference
from umd_edge_export.errors import (
    AccuracyError,
    GateError,
    InvarianceError,
    LinterError,
    ParityError,
    SpeedError,
)
from umd_edge_export.gates import (
    GateResult,
    accuracy_gate,
    invariance_gate,
    linter_gate,
    parity_gate,
    require_passed,
    speed_gate,
)
from umd_edge_export.speed import SpeedReport


def _comparison(**tasks):
    """Task -> (right under A, right under B), lists of 0 and 1; one patient a record."""
    differences, pooled = {}, ([], [])
    for name, (a, b) in tasks.items():
        changed = [x != y for x, y in zip(a, b, strict=True)]
        patients = [f"{name}{index}" for index in range(len(a))]
        differences[name] = paired_difference(a, b, changed, patients)
        pooled[0].extend(a)
        pooled[1].extend(b)
    changed = [x != y for x, y in zip(*pooled, strict=True)]
    together = paired_difference(*pooled, changed, [str(i) for i in range(len(changed))])
    return Comparison(differences, together, 0)


def _lost(count, lost):
    return [1] * count, [0] * lost + [1] * (count - lost)


def _speed(low, high):
    return SpeedReport(10.0, 10.0 * low, (low + high) / 2, low, high, 16)


class TestParityAndInvariance:
    @staticmethod
    def _parity(problem, **differences):
        return SimpleNamespace(
            problem=problem,
            differences=differences,
            tolerance=1e-4,
            to_dict=lambda: {"differences": differences},
        )

    def test_equal_graphs_pass(self):
        result = parity_gate(self._parity("", match_logit=2e-7))
        assert (result.status, result.figures["differences"]) == ("passed", {"match_logit": 2e-7})

    @pytest.mark.parametrize("differences", [{"match_logit": float("nan")}, {}])
    def test_a_difference_that_is_no_number_fails(self, differences):
        result = parity_gate(self._parity("they differ", **differences))
        assert (result.status, result.message) == ("failed", "they differ")
        json.dumps(result.to_dict(), allow_nan=False)

    @pytest.mark.parametrize(
        ("problem", "alone_only", "status"),
        [("", False, "passed"), ("depends", False, "failed"), ("depends", True, "waived")],
    )
    def test_dependence_fails_unless_the_variant_is_for_samples_alone(
        self, problem, alone_only, status
    ):
        report = SimpleNamespace(problem=problem, comparisons=7, to_dict=dict)
        result = invariance_gate(report, "int8-dynamic", alone_only=alone_only)
        assert result.status == status
        assert problem in result.message


class TestAccuracy:
    def test_without_labelled_records_it_says_that_nothing_was_measured(self):
        result = accuracy_gate(None, "int8", max_drop=0.5)
        assert (result.status, result.figures) == ("not_run", {})
        assert "--gate-data" in result.message

    def test_no_change_on_many_patients_is_shown(self):
        result = accuracy_gate(_comparison(vqa=_lost(1000, 0)), "int8", max_drop=0.5)
        assert (result.status, result.figures["shown"]) == ("passed", True)
        assert result.figures["tasks"]["vqa"]["changed_decisions"] == 0.0

    def test_no_change_on_few_patients_passes_and_promises_nothing(self):
        comparison = _comparison(vqa=_lost(30, 0))
        result = accuracy_gate(comparison, "int8", max_drop=0.5)
        assert (result.status, result.figures["shown"]) == ("passed", False)
        assert "not shown" in result.message and "3.33 points" in result.message
        assert accuracy_gate(comparison, "int8", max_drop=0.5, proven=True).status == "failed"

    def test_a_certain_loss_fails(self):
        result = accuracy_gate(_comparison(vqa=_lost(1000, 40)), "int8", max_drop=0.5)
        assert result.status == "failed"
        assert "-4.00 points" in result.message and "range data" in result.message
        assert result.figures["pooled"]["high"] < -0.005

    def test_a_loss_that_few_records_suggest_fails_and_asks_for_more(self):
        result = accuracy_gate(_comparison(vqa=_lost(20, 1)), "int8", max_drop=0.5)
        assert result.status == "failed"
        assert "does not settle it" in result.message and "5.00 points" in result.message

    def test_the_budget_itself_is_allowed(self):
        assert accuracy_gate(_comparison(a=_lost(200, 1)), "int8", max_drop=0.5).status == "passed"
        assert accuracy_gate(_comparison(a=_lost(200, 2)), "int8", max_drop=0.5).status == "failed"

    def test_one_task_that_surely_collapsed_fails_within_a_large_pool(self):
        comparison = _comparison(vqa=_lost(5000, 0), skin=_lost(60, 20))
        assert -0.005 < comparison.pooled.difference < 0
        result = accuracy_gate(comparison, "int8", max_drop=0.5)
        assert result.status == "failed" and "task 'skin'" in result.message

    def test_one_task_that_only_may_have_lost_passes(self):
        comparison = _comparison(vqa=_lost(5000, 0), skin=_lost(60, 1))
        assert comparison.tasks["skin"].difference < -0.005
        assert accuracy_gate(comparison, "int8", max_drop=0.5).status == "passed"

    def test_a_gain_passes(self):
        a, b = _lost(1000, 40)
        assert accuracy_gate(_comparison(vqa=(b, a)), "int8", max_drop=0.0).status == "passed"

    def test_a_single_patient_has_no_interval_and_shows_nothing(self):
        value = paired_difference([1, 1], [1, 1], [0, 0], ["p", "p"])
        assert (value.low, value.high) == (None, None)
        result = accuracy_gate(Comparison({"vqa": value}, value, 0), "int8", max_drop=0.5)
        assert (result.status, result.figures["shown"]) == ("passed", False)
        assert "no interval" in result.message

    @settings(deadline=None)
    @given(
        count=st.integers(2, 400),
        data=st.data(),
        budget=st.sampled_from([0.0, 0.5, 1.0, 5.0, 50.0]),
    )
    def test_the_pooled_difference_decides(self, count, data, budget):
        lost = data.draw(st.integers(0, count))
        result = accuracy_gate(_comparison(vqa=_lost(count, lost)), "int8", max_drop=budget)
        # in whole records, without a float between
        assert (result.status == "failed") == (1000 * lost > round(10 * budget) * count)
        json.dumps(result.to_dict(), allow_nan=False)


class TestSpeed:
    @pytest.mark.parametrize(
        ("low", "high", "verdict", "status"),
        [
            (0.4, 0.6, "faster", "passed"),
            (0.9, 1.2, "not told apart", "passed"),
            (1.1, 1.3, "slower", "failed"),
        ],
    )
    def test_only_a_proven_slowness_fails(self, low, high, verdict, status):
        report = _speed(low, high)
        assert report.verdict == verdict
        assert speed_gate(report, "int8").status == status

    def test_a_failure_says_how_to_keep_the_variant(self):
        assert "--size-only int8" in speed_gate(_speed(1.1, 1.3), "int8").message

    @pytest.mark.parametrize("interval", [(0.4, 0.6), (1.1, 1.3)])
    def test_size_only_gives_the_same_report_whatever_was_measured(self, interval):
        result = speed_gate(_speed(*interval), "int8", size_only=True)
        assert result.status == "waived"
        assert result.to_dict() == speed_gate(_speed(1, 1), "int8", size_only=True).to_dict()
        assert "0.50 of float32" in speed_gate(_speed(0.4, 0.6), "int8").to_line()

    def test_another_target_than_this_machine_is_not_judged(self):
        result = speed_gate(None, "int8-arm64", reason="this machine is x86_64, not arm64")
        assert result.status == "not_run"
        assert "x86_64" in result.message and "umd-edge bench" in result.message


class TestLinter:
    def test_findings_fail_and_the_first_are_named(self):
        result = linter_gate([f"fusion: node {i}" for i in range(5)], "int8-trt")
        assert (result.status, result.figures) == ("failed", {"errors": 5})
        assert "node 2; and 2 more" in result.message and "node 3" not in result.message

    def test_a_clean_graph_passes(self):
        assert linter_gate([], "int8-trt").status == "passed"


def _result(gate, status="failed", variant="int8"):
    return GateResult(gate=gate, variant=variant, status=status, message=f"{gate} is bad")


class TestRequirePassed:
    @pytest.mark.parametrize(
        ("gate", "error"),
        [
            ("parity", ParityError),
            ("invariance", InvarianceError),
            ("accuracy", AccuracyError),
            ("speed", SpeedError),
            ("linter", LinterError),
        ],
    )
    def test_one_kind_of_failure_has_its_own_class(self, gate, error):
        with pytest.raises(error, match=f"{gate} is bad") as raised:
            require_passed([_result("parity", "passed"), _result(gate), _result(gate)])
        assert type(raised.value) is error and raised.value.exit_code == 3
        assert len(raised.value.results) == 3

    def test_several_kinds_are_told_together(self):
        with pytest.raises(
            GateError, match=r"2 gate\(s\).*speed is bad.*accuracy is bad"
        ) as raised:
            require_passed([_result("speed"), _result("accuracy")])
        assert type(raised.value) is GateError

    @pytest.mark.parametrize("status", ["passed", "waived", "not_run"])
    def test_anything_else_than_failed_goes_on(self, status):
        require_passed([_result("speed", status)])
