from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from umd_edge_export.stored_weights import store_weights

WIDTH = 80


def _model(operator: str, weight: np.ndarray, *, twice: str = "", **attributes: int):
    """One product; `twice` names another reader of the weight."""
    nodes = [helper.make_node(operator, ["x", "w"], ["y"], "product", **attributes)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])]
    if twice:
        nodes.append(helper.make_node(twice, ["w"], ["z"], "other"))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        outputs,
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(model: onnx.ModelProto, x: np.ndarray, saved: Path | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    result: np.ndarray = session.run(["y"], {"x": x})[0]
    return result


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})]),
    st.integers(0, 999),
    st.floats(1e-3, 1e3),
)
def test_a_product_errs_by_half_a_step_of_each_weight(kind, seed: int, size: float):
    operator, attributes = kind
    rng = np.random.default_rng(seed)
    weight = (size * rng.normal(size=(WIDTH, 64))).astype(np.float32)
    weight[:, 3] = 0.0  # an output without weights
    weight[:, 5] *= 100.0  # a large one does not coarsen its neighbours
    x = rng.normal(size=(4, WIDTH)).astype(np.float32)
    given_weight = np.ascontiguousarray(weight.T) if attributes else weight
    model = _model(operator, given_weight, **attributes)
    stored = store_weights(model)
    onnx.checker.check_model(stored)
    steps = np.abs(weight).max(axis=0) / 127
    allowed = 0.5 * np.abs(x).sum(axis=1, keepdims=True) * steps * 1.01 + 1e-5 * size
    difference = np.abs(_run(stored, x) - x.astype(np.float64) @ weight)
    assert (difference <= allowed).all()
    assert difference.max() > 0.0
    assert stored.ByteSize() < 0.45 * model.ByteSize()


def test_the_runtime_scales_once_when_it_opens_the_file(tmp_path: Path):
    rng = np.random.default_rng(0)
    stored = store_weights(_model("MatMul", rng.normal(size=(WIDTH, 64)).astype(np.float32)))
    assert {node.op_type for node in stored.graph.node} == {"Cast", "Mul", "MatMul"}
    _run(stored, np.ones((1, WIDTH), np.float32), tmp_path / "opened.onnx")
    opened = onnx.load(tmp_path / "opened.onnx")
    assert [node.op_type for node in opened.graph.node] == ["MatMul"]


@pytest.mark.parametrize(
    ("weight", "twice"),
    [
        (np.ones((WIDTH, 8), np.float32), ""),  # small
        (np.ones((2, WIDTH, 64), np.float32), ""),  # three axes
        (np.ones((WIDTH, 64), np.float32), "Neg"),  # read by something else
    ],
)
def test_other_weights_stay(weight: np.ndarray, twice: str):
    model = _model("MatMul", weight, twice=twice)
    assert store_weights(model) == model


def test_a_weight_read_along_both_axes_stays():
    weight = np.ones((WIDTH, WIDTH), np.float32)
    model = _model("Gemm", weight)
    model.graph.node.append(helper.make_node("Gemm", ["x", "w"], ["v"], "turned", transB=1))
    model.graph.output.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n", None]))
    assert store_weights(model) == model


def test_the_graph_given_is_left_as_it_is():
    model = _model("MatMul", np.ones((WIDTH, 64), np.float32))
    before = model.SerializeToString()
    store_weights(model)
    assert model.SerializeToString() == before
