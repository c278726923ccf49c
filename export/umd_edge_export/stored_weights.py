"""Weights of products that stay in float, kept in 8 bits in the file.

The graph itself scales them back, `Cast` then `Mul`, on constants only: the runtime does it once
when it opens the file, and then multiplies in float as before. It costs a rounding of the weights
and saves three quarters of their space.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["store_weights"]

_SMALLEST = 4096
"""Values in a weight below which nothing is gained."""
_LEVELS = 127


def _output_axis(node: onnx.NodeProto) -> int:
    """Which axis of a (.., ..) weight runs over the outputs."""
    attributes = {item.name: item.i for item in node.attribute}
    return 0 if node.op_type == "Gemm" and attributes.get("transB", 0) else 1


def _axes(model: onnx.ModelProto) -> dict[str, int]:
    """Weight -> its output axis, for weights that only float products of one layout read."""
    axes: dict[str, set[int]] = {}
    elsewhere = {item.name for item in model.graph.output}
    for node in model.graph.node:
        product = node.op_type in ("MatMul", "Gemm")
        for place, name in enumerate(node.input):
            if product and place == 1:
                axes.setdefault(name, set()).add(_output_axis(node))
            else:
                elsewhere.add(name)
    return {
        name: next(iter(found))
        for name, found in axes.items()
        if len(found) == 1 and name not in elsewhere
    }


def store_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph whose float products read weights of int8, one scale an output.

    Args:
        model: Float32, or with pairs; left as it is. Weights of 4,096 values and more with two axes
            are stored; others, and those that are read by anything else, stay.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    axes = _axes(result)
    before: list[onnx.NodeProto] = []
    for item in list(result.graph.initializer):
        if item.name not in axes or item.data_type != onnx.TensorProto.FLOAT:
            continue
        weight = numpy_helper.to_array(item)
        if weight.ndim != 2 or weight.size < _SMALLEST:
            continue
        largest = np.abs(weight).max(axis=1 - axes[item.name], keepdims=True)
        scale = (np.where(largest > 0.0, largest, 1.0) / _LEVELS).astype(np.float32)
        stored = np.clip(np.rint(weight / scale), -_LEVELS, _LEVELS).astype(np.int8)
        names = [f"{item.name}_{part}" for part in ("stored", "scale", "cast")]
        result.graph.initializer.remove(item)
        result.graph.initializer.extend(
            [numpy_helper.from_array(stored, names[0]), numpy_helper.from_array(scale, names[1])]
        )
        before += [
            helper.make_node("Cast", [names[0]], [names[2]], f"{item.name}_to_float", to=1),
            helper.make_node("Mul", [names[2], names[1]], [item.name], f"{item.name}_scaled"),
        ]
    nodes = [*before, *result.graph.node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result
