"""Ranges against NumPy on all values at once, and the memory that they take."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from umd_edge.errors import DataError, UsageError
from umd_edge_export.errors import ExportError
from umd_edge_export.ranges import Histogram, RangeOptions, TensorRecord, measure_ranges


def _doubling_graph() -> onnx.ModelProto:
    node = helper.make_node("Add", ["x", "x"], ["twice"])
    last = helper.make_node("Neg", ["twice"], ["y"])
    graph = helper.make_graph(
        [node, last],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _record(values, method="minmax", **options) -> tuple[float, float]:
    record = TensorRecord(method != "minmax")
    record.add("t", np.asarray(values, dtype=np.float32).reshape(-1, 1))
    return record.range(RangeOptions(method=method, **options))


# A value far below a bin's width lies on the edge at 0, on whichever side rounding puts it.
floats = st.floats(-1e6, 1e6, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(floats, min_size=1, max_size=20), min_size=1, max_size=6))
def test_a_histogram_in_pieces_is_the_histogram_at_once(pieces):
    parts, whole = Histogram(64), Histogram(64)
    for piece in pieces:
        parts.add(np.array(piece, dtype=np.float32))
    everything = np.array([value for piece in pieces for value in piece], dtype=np.float32)
    whole.add(everything)
    assert parts.reach == whole.reach
    assert parts.counts.tolist() == whole.counts.tolist()
    assert parts.counts.sum() == everything.size
    assert parts.reach == 0 or parts.reach > np.abs(everything).max()


def test_minmax_is_that_of_every_run():
    rng = np.random.default_rng(0)
    runs = [rng.normal(size=(n, 4)).astype(np.float32) for n in (1, 3, 2)]
    found = measure_ranges(
        _doubling_graph(), ["x", "twice", "y"], [{"x": run} for run in runs], RangeOptions()
    )
    everything = np.concatenate(runs)
    low, high = float(everything.min()), float(everything.max())
    assert found["x"].range(RangeOptions()) == (low, high)
    assert found["twice"].range(RangeOptions()) == (2 * low, 2 * high)
    assert found["y"].range(RangeOptions()) == (-2 * high, -2 * low)
    assert found["twice"].rows == 3


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_a_percentile_is_numpys_within_a_bin(percentile):
    values = np.random.default_rng(1).gamma(2.0, size=50_000).astype(np.float32) - 1
    low, high = _record(values, "percentile", percentile=percentile)
    tail = (100 - percentile) / 2
    wanted = np.percentile(values, [tail, 100 - tail])
    width = 2 * 32 / 4096
    assert abs(low - wanted[0]) <= width and abs(high - wanted[1]) <= width


def test_a_percentile_of_all_is_never_wider_than_the_values():
    values = np.array([-0.3, 0.1, 0.7], dtype=np.float32)
    assert _record(values, "percentile", percentile=100.0) == _record(values)


def test_entropy_cuts_an_outlier_off_and_keeps_even_values():
    rng = np.random.default_rng(2)
    even = rng.uniform(-1, 1, 50_000)
    low, high = _record(even, "entropy")
    assert low < -0.95 and high > 0.95
    outlier = np.append(rng.normal(0, 0.05, 50_000), 3.0)
    low, high = _record(outlier, "entropy")
    assert high < 2.0
    assert high > 0.15  # three standard deviations stay


def test_a_tensor_that_is_always_the_same_keeps_its_value():
    for method in ("minmax", "percentile", "entropy"):
        assert _record([0.0, 0.0], method) == (0.0, 0.0)
        assert _record([0.5, 0.5], method) == (0.5, 0.5)


def test_memory_does_not_grow_with_the_data():
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def feeds():
        nonlocal most
        for index in range(30):
            run = np.full((50, 4), index, dtype=np.float32)
            alive.append(weakref.ref(run))
            yield {"x": run}
            del run
            gc.collect()
            most = max(most, sum(item() is not None for item in alive))

    options = RangeOptions(method="entropy")
    found = measure_ranges(_doubling_graph(), ["x", "twice"], feeds(), options)
    assert most <= 2
    assert found["twice"].histogram.counts.nbytes == TensorRecord(True).histogram.counts.nbytes
    assert found["twice"].histogram.counts.sum() == 30 * 50 * 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(value):
    run = np.zeros((1, 4), dtype=np.float32)
    run[0, 2] = value
    with pytest.raises(ExportError, match="'x' has values that are not finite"):
        measure_ranges(_doubling_graph(), ["x"], [{"x": run}], RangeOptions())


def test_no_records_are_refused():
    with pytest.raises(DataError, match="--range-data"):
        measure_ranges(_doubling_graph(), ["x"], [], RangeOptions())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "kurtosis"}, "'kurtosis'.*minmax"),
        ({"percentile": 50.0}, "more than 50"),
        ({"percentile": 101.0}, "at most 100"),
    ],
)
def test_unknown_ways_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        RangeOptions(**options)
