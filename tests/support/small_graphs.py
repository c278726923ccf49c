"""Small ONNX graphs with the layers that quantisation meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def make_graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[object]],
    outputs: Mapping[str, Sequence[object]],
    constants: Mapping[str, np.ndarray],
    integers: Sequence[str] = (),
) -> onnx.ModelProto:
    """An opset 20 model; `integers` among the inputs are int64, the rest float32."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name in integers else TensorProto.FLOAT, shape
            )
            for name, shape in inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def dense_graph() -> onnx.ModelProto:
    """x (n, 8) -> product, Gelu -> Gemm with a bias -> product of two activations -> y (4, 4)."""
    rng = np.random.default_rng(5)
    constants = {
        "first": rng.normal(size=(8, 16)).astype(np.float32),
        "block.dense.weight": rng.normal(size=(4, 16)).astype(np.float32),
        "block.dense.bias": rng.normal(size=4).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"], "product"),
        helper.make_node("Gelu", ["hidden"], ["gelu"], "activation"),
        helper.make_node(
            "Gemm",
            ["gelu", "block.dense.weight", "block.dense.bias"],
            ["dense"],
            "gemm",
            transB=1,
        ),
        helper.make_node("Transpose", ["dense"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["turned", "dense"], ["y"], "pair"),
    ]
    return make_graph(nodes, {"x": ["n", 8]}, {"y": [4, 4]}, constants)


def convolution_graph() -> onnx.ModelProto:
    """x (n, 3, 8, 8) -> Conv, ReLU, MaxPool -> Conv -> y (n, 5, 4, 4)."""
    rng = np.random.default_rng(6)
    constants = {
        "w1": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "b1": rng.normal(size=4).astype(np.float32),
        "w2": rng.normal(size=(5, 4, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], "conv2"),
        helper.make_node("Neg", ["c2"], ["y"], "neg"),
    ]
    return make_graph(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 5, 4, 4]}, constants)


def table_graph(rows: int = 300, width: int = 64) -> onnx.ModelProto:
    """ids (n, l) int64 -> their rows of a table -> y (n, l, width)."""
    table = np.random.default_rng(7).normal(size=(rows, width)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["words.weight", "ids"], ["found"], "lookup"),
        helper.make_node("Neg", ["found"], ["y"], "neg"),
    ]
    return make_graph(
        nodes, {"ids": ["n", "l"]}, {"y": ["n", "l", width]}, {"words.weight": table}, ["ids"]
    )
