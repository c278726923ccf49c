"""The measuring behind the gates, on a packed bundle."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from support.bundles import repack, tiny_files
from support.labelled import make_labelled
from umd_edge.errors import DataError, UsageError
from umd_edge_export.candidate import (
    Candidate,
    check_gate_data,
    check_size_only,
    choose_variants,
)
from umd_edge_export.gates import GateOptions
from umd_edge_export.speed import measure_speed, ratio_interval
from umd_edge_export.targets import TARGETS


@pytest.fixture(scope="module")
def candidate(tiny_bundle):
    return Candidate.open(tiny_bundle, {"int8": TARGETS["cpu"]})


@pytest.mark.parametrize(
    ("names", "keep_float", "variants"),
    [
        (["fp32", "int8"], True, {"int8": "cpu"}),
        (["cpu"], False, {"int8": "cpu"}),
        (["openvino", "fp32"], True, {"int8-trt": "openvino"}),
        (["int8-trt", "cpu"], False, {"int8": "cpu", "int8-trt": "tensorrt"}),
        (["fp32"], True, {}),
    ],
)
def test_a_variant_is_named_by_itself_or_by_its_target(names, keep_float, variants):
    kept, targets = choose_variants(names)
    assert kept == keep_float
    assert {name: target.name for name, target in targets.items()} == variants
    assert list(targets) == list(variants)  # in the order of a bundle


@pytest.mark.parametrize("names", [[], ["int4"], ["fp32", "gpu"]])
def test_an_unknown_variant_is_refused(names):
    with pytest.raises(UsageError, match=r"fp32.*tensorrt"):
        choose_variants(names)


def test_size_only_of_a_variant_that_is_not_built_is_refused():
    check_size_only(["int8"], ["int8"])
    with pytest.raises(UsageError, match="int8-trt"):
        check_size_only(["int8-trt"], ["int8"])


def test_gate_data_are_checked_before_the_work(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    check_gate_data([data], [tmp_path / "other.jsonl"])
    with pytest.raises(UsageError, match="nothing was tuned"):
        check_gate_data([data], [tmp_path / "x" / ".." / "data.jsonl"])
    with pytest.raises(DataError, match="cannot be read"):
        check_gate_data([tmp_path / "none.jsonl"], [data])


def test_accuracy_is_that_of_the_packed_variant(candidate, tmp_path):
    data = make_labelled(tmp_path / "data", candidate.predictors["fp32"], 20)
    lines = []
    predictions = candidate.predict([data], lines.append, tasks=["vqa"])
    (result,) = candidate.gate_accuracy(predictions, GateOptions(max_drop=0.0))
    int8 = candidate.predictors["int8"]
    agree = [
        int8.ask(example.image_path, example.text).answer in example.reference.answers
        for example in predictions.tasks["vqa"].examples
    ]
    assert result.figures["pooled"]["accuracy_b"] == pytest.approx(np.mean(agree))
    assert (result.status == "failed") == (not all(agree))
    assert lines == ["measured vqa: 40 runs"]
    (unmeasured,) = candidate.gate_accuracy(None, GateOptions())
    assert unmeasured.status == "not_run"


def _burn(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def _predictor(tiny, work):
    return SimpleNamespace(
        manifest=tiny.manifest,
        tasks=tiny.tasks,
        encode=lambda pixels: pixels,
        probabilities=lambda *given: work(),
    )


def test_a_variant_that_computes_more_is_slower_and_one_that_computes_less_faster(candidate):
    tiny = candidate.predictors["fp32"]
    short, long = (_predictor(tiny, lambda t=t: _burn(t)) for t in (0.0005, 0.002))
    slow = measure_speed(short, long, rounds=(8, 16))
    assert slow.verdict == "slower" and 2 < slow.ratio < 8 and slow.rounds == 8
    assert measure_speed(long, short, rounds=(8, 16)).verdict == "faster"


def test_waiting_for_a_busy_machine_is_not_counted(candidate):
    tiny = candidate.predictors["fp32"]

    def interrupted():
        _burn(0.002)
        time.sleep(0.01)

    report = measure_speed(
        _predictor(tiny, lambda: _burn(0.002)), _predictor(tiny, interrupted), rounds=(8, 8)
    )
    assert report.ratio < 1.5
    assert report.variant_ms < 10  # the pauses alone are as long


def test_rounds_go_on_while_the_interval_holds_one(candidate, monkeypatch):
    tiny = _predictor(candidate.predictors["fp32"], lambda: None)
    times = iter([1.0, 1.5] * 100)  # ratios 1.5 and 0.67 in turn
    monkeypatch.setattr("umd_edge_export.speed._time", lambda call: next(times))
    report = measure_speed(tiny, tiny, rounds=(8, 24))
    assert (report.rounds, report.verdict) == (24, "not told apart")


def test_the_ratio_of_equal_rounds_has_no_width_and_an_outlier_does_not_move_it():
    assert ratio_interval([0.5] * 9) == (0.5, 0.5, 0.5)
    middle, low, high = ratio_interval([0.5] * 30 + [50.0])
    assert middle == 0.5 and low == high == 0.5


@pytest.mark.parametrize(
    ("target", "machine", "reason"),
    [
        ("cpu", "aarch64", ""),
        ("arm64", "x86_64", "this machine is x86_64, not arm64"),
        ("arm64", "arm64", ""),
        ("tensorrt", "x86_64", "says nothing about tensorrt"),
        ("openvino", "x86_64", "says nothing about openvino"),
    ],
)
def test_speed_is_judged_on_the_target_alone(candidate, monkeypatch, target, machine, reason):
    monkeypatch.setattr("umd_edge_export.candidate.platform.machine", lambda: machine)
    timed = []
    monkeypatch.setattr(
        "umd_edge_export.candidate.measure_speed", lambda *given: timed.append(given)
    )
    here = Candidate(candidate.predictors, {"int8": TARGETS[target]})
    (result,) = here.gate_speed(GateOptions())
    assert bool(timed) == (not reason)
    assert result.status == "not_run" and reason in result.message


def _for_tensorrt(folder, graphs_of):
    """The tiny bundle with a variant for TensorRT that holds another variant's graphs."""
    import onnx

    files = tiny_files()
    path = f"graphs/fusion.{graphs_of}.onnx"
    fusion = onnx.load_from_string(files[path])
    tokens = next(item for item in fusion.graph.input if item.name == "image_tokens")
    tokens.type.tensor_type.shape.dim[1].dim_value = 5  # TensorRT wants it fixed

    def add(manifest):
        manifest["variants"]["int8-trt"] = manifest["variants"][graphs_of]

    return repack(folder / "a.umd", {**files, path: fusion.SerializeToString()}, add)


def test_what_tensorrt_refuses_fails_the_linter_gate(tmp_path):
    path = _for_tensorrt(tmp_path, "int8")  # unsigned activations
    (result,) = Candidate.open(path, {"int8-trt": TARGETS["tensorrt"]}).gate_linter()
    assert result.status == "failed" and result.figures["errors"] > 0
    assert "vision: zero-point" in result.message


def test_what_tensorrt_takes_passes_and_other_targets_are_not_linted(tmp_path, candidate):
    path = _for_tensorrt(tmp_path, "fp32")
    (result,) = Candidate.open(path, {"int8-trt": TARGETS["tensorrt"]}).gate_linter()
    assert (result.status, result.figures) == ("passed", {"errors": 0})
    assert candidate.gate_linter() == []
