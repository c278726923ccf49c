"""Float16 around the 8-bit products: what changes, what stays, and what is refused."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from umd_edge_export.errors import ExportError
from umd_edge_export.half import to_half
from umd_edge_export.targets import TARGETS
from umd_edge_export.tensorrt_linter import lint_graph

RNG = np.random.default_rng(0)


def _graph(weight: np.ndarray, *, quantised: bool = True) -> onnx.ModelProto:
    """Two products; the first in 8 bits where `quantised`, with a mask of large numbers."""
    floats = {"w2": RNG.normal(size=(8, 4)), "bias": np.full((1, 4), -3e38)}
    constants = [
        numpy_helper.from_array(v.astype(np.float32), k)
        for k, v in {**floats, "w1": weight}.items()
    ]
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["h"])]
    if quantised:
        scale = numpy_helper.from_array(np.float32(0.03), "scale")
        zero = numpy_helper.from_array(np.int8(0), "zero")
        constants += [scale, zero]
        nodes = []
        for name in ("x", "w1"):
            nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]))
            nodes.append(
                helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_d"])
            )
        nodes.append(helper.make_node("MatMul", ["x_d", "w1_d"], ["h"]))
    nodes += [
        helper.make_node("MatMul", ["h", "w2"], ["y"]),
        helper.make_node("Gather", ["bias", "row"], ["masked"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["b", 6]), info("row", TensorProto.INT64, [1])],
        [info("y", TensorProto.FLOAT, ["b", 4]), info("masked", TensorProto.FLOAT, [1, 4])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {"x": x.astype(np.float32), "row": np.zeros(1, np.int64)}
    values: np.ndarray = session.run(["y"], feeds)[0]
    return values


@pytest.mark.parametrize("quantised", [False, True])
def test_inputs_and_outputs_stay_and_weights_become_halves(quantised: bool) -> None:
    model = _graph(RNG.normal(size=(6, 8)), quantised=quantised)
    before = model.SerializeToString()
    half = to_half(model)
    assert model.SerializeToString() == before
    for old, new in zip(
        [*model.graph.input, *model.graph.output],
        [*half.graph.input, *half.graph.output],
        strict=True,
    ):
        assert old == new
    kinds = {item.name: item.data_type for item in half.graph.initializer}
    assert TensorProto.FLOAT not in kinds.values()
    assert kinds["w2"] == TensorProto.FLOAT16
    if quantised:
        assert kinds["zero"] == TensorProto.INT8
        assert kinds["scale"] == TensorProto.FLOAT16  # allowed from opset 19 on
    assert lint_graph(half) == []
    onnx.checker.check_model(half, full_check=True)
    x = RNG.normal(size=(5, 6))
    assert _run(half, x).dtype == np.float32
    assert np.allclose(_run(half, x), _run(model, x), rtol=0.01, atol=0.05)
    assert not np.array_equal(_run(half, x), _run(model, x))


def _softmax() -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    scale = numpy_helper.from_array(np.float32([0.125]), "scale")
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("Mul", ["weights", "scale"], ["y"]),
    ]
    ends = [[info(name, TensorProto.FLOAT, ["b", "n"])] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[0], ends[1], [scale])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("length", [7, 15])
@pytest.mark.parametrize("padding", [1, 8, 17])
def test_padding_changes_no_bit_of_a_softmax(length: int, padding: int) -> None:
    session = onnxruntime.InferenceSession(
        to_half(_softmax()).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(length).normal(0, 20, (4096, length)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, padding)), constant_values=-60000.0)
    wanted = session.run(["y"], {"x": x})[0]
    given = session.run(["y"], {"x": padded})[0]
    assert np.array_equal(given[:, :length], wanted)
    assert not given[:, length:].any()
    assert len(np.unique(wanted)) > 1000  # negative control: there is something to compare


def test_a_weight_that_a_half_cannot_hold_is_refused() -> None:
    weight = RNG.normal(size=(6, 8))
    weight[2, 3] = 7e4
    with pytest.raises(ExportError, match=r"'w1' holds 7e\+04"):
        to_half(_graph(weight))


def test_only_the_targets_with_fast_halves_have_them() -> None:
    assert {name for name, target in TARGETS.items() if target.half} == {"tensorrt", "openvino"}
    assert TARGETS["tensorrt"].to_dict()["float_weights"] == "float16"
    assert TARGETS["cpu"].to_dict()["float_weights"] == "int8 in the file, one scale an output"
