"""Products whose ranges are taken at run time.

No range data are needed, and every run has the tightest range there is. The price: the range is one
of the whole tensor, so what one sample gives depends on the others of its batch and on padding.
Convolutions stay in float, as the 8-bit kernel with ranges taken at run time is a slow one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .quantize_layers import Layer
from .quantize_pairs import quantise_weight, replace_nodes, table_nodes

__all__ = ["write_dynamic"]


def _product_nodes(
    layer: Layer,
    output: str,
    constants: dict[str, onnx.TensorProto],
    added: dict[str, onnx.TensorProto],
) -> list[onnx.NodeProto]:
    """Nodes of one product, behind those that quantise its activation."""
    weight = numpy_helper.to_array(constants[layer.weight])
    weight = weight.T if layer.axis == 0 else weight  # (K, N)
    levels, scale = quantise_weight(weight, 1)
    name = f"{layer.node}_weight"
    added[f"{name}_quantized"] = numpy_helper.from_array(
        np.ascontiguousarray(levels), f"{name}_quantized"
    )
    added[f"{name}_scale"] = numpy_helper.from_array(scale, f"{name}_scale")
    source, made = layer.activation, layer.node
    total = f"{made}_sum" if layer.bias else output
    nodes = [
        helper.make_node(
            "MatMulInteger",
            [f"{source}_quantized", f"{name}_quantized", f"{source}_zero_point"],
            [f"{made}_levels"],
            f"{made}_product",
        ),
        helper.make_node("Cast", [f"{made}_levels"], [f"{made}_cast"], f"{made}_to_float", to=1),
        helper.make_node(
            "Mul", [f"{source}_scale", f"{name}_scale"], [f"{made}_step"], f"{made}_steps"
        ),
        helper.make_node("Mul", [f"{made}_cast", f"{made}_step"], [total], layer.node),
    ]
    if layer.bias:
        nodes.append(helper.make_node("Add", [total, layer.bias], [output], f"{made}_add_bias"))
    return nodes


def write_dynamic(model: onnx.ModelProto, layers: Iterable[Layer]) -> onnx.ModelProto:
    """Quantise some products and tables of one graph.

    Args:
        model: A float32 graph; left as it is.
        layers: Of this graph: products and tables.
    """
    chosen = {layer.node: layer for layer in layers}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {item.name: item for item in model.graph.initializer}
    added: dict[str, onnx.TensorProto] = {}
    rounded: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        layer = chosen.get(node.name)
        if layer is None:
            nodes.append(copy.deepcopy(node))
            continue
        if layer.is_table:
            nodes += table_nodes(layer, node, numpy_helper.to_array(constants[layer.weight]), added)
            continue
        source = layer.activation
        if source not in rounded:
            rounded.add(source)
            outputs = [f"{source}_{kind}" for kind in ("quantized", "scale", "zero_point")]
            nodes.append(
                helper.make_node("DynamicQuantizeLinear", [source], outputs, f"{source}_q")
            )
        nodes += _product_nodes(layer, node.output[0], constants, added)
    replace_nodes(result.graph, nodes, added)
    return result
