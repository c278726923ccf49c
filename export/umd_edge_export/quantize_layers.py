"""The layers of a graph that can be quantised, found in the ONNX file itself.

A layer is a convolution or a product with a constant weight, or a large embedding table, of which
only the weights are quantised. What holds no weight, such as a product of two activations, a
softmax or a normalisation, is no layer and stays in float. A weight that we cannot quantise is
refused rather than passed over: the graph would be called INT8 and not be it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from .errors import ExportError

__all__ = ["Layer", "find_layers"]

_LAYERS = ("Conv", "MatMul", "Gemm")
_HARMLESS = frozenset(
    {"Gather", "Add", "Sub", "Mul", "Div", "Concat", "Expand", "Where", "LayerNormalization"}
)
"""Operators that may read large constants and have nothing to multiply in 8 bits."""
_QUANTISED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}
    | {"QLinearConv", "QLinearMatMul", "MatMulNBits", "GatherBlockQuantized"}
)
_LARGE = 1024
"""Elements from which a constant counts as a weight."""
_TABLE = 1 << 14
"""Elements from which a table is worth three more nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One convolution or product with a constant weight, or one table."""

    part: str
    node: str
    """Name of the ONNX node."""
    label: str
    """Name of the module in the model, as far as the graph still knows it."""
    operator: str
    activation: str
    """Tensor that is multiplied; of a table the row numbers."""
    weight: str
    shape: tuple[int, ...]
    """Of the weight."""
    axis: int
    """Of the output channels, in the weight; of the rows, in a table."""
    bias: str
    """Added inside the operator; empty where there is none."""
    output: str
    """Tensor that holds the result, behind a ReLU if one follows."""

    @property
    def weights(self) -> int:
        """Number of the weight's elements."""
        return math.prod(self.shape)

    @property
    def is_table(self) -> bool:
        """Whether rows are looked up and nothing is multiplied."""
        return self.operator == "Gather"

    @property
    def key(self) -> str:
        """Part and node: names it within the bundle."""
        return f"{self.part}/{self.node}"


def _consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _label(node: onnx.NodeProto, constants: Iterable[str], after: onnx.NodeProto | None) -> str:
    """The exporter renames transposed weights, but keeps the names of biases."""
    known = set(constants)
    names: list[str] = [
        *node.input[1:],
        *(after.input if after is not None and after.op_type == "Add" else ()),
    ]
    for name in names:
        if name in known and "." in name:
            return name.removeprefix("model.").rpartition(".")[0]
    return str(node.name)


def _axis(node: onnx.NodeProto, shape: tuple[int, ...]) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "MatMul":
        return len(shape) - 1
    settings = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if settings.get("transA", 0) or settings.get("alpha", 1.0) != 1.0:
        raise ExportError(
            f"layer {node.name!r} is a Gemm with transA or alpha, which has no 8-bit form; write "
            f"it as a plain product, or leave it in float with --keep-float {node.name}"
        )
    return 0 if settings.get("transB", 0) else 1


def _refuse(graph: onnx.GraphProto, part: str, keep_float: frozenset[str]) -> None:
    large = {
        item.name: tuple(item.dims)
        for item in graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT and math.prod(item.dims) >= _LARGE
    }
    for node in graph.node:
        if node.op_type in _QUANTISED:
            raise ExportError(
                f"graph {part!r} already holds {node.op_type} ({node.name!r}); quantise the "
                "float32 graphs"
            )
        if node.op_type in _LAYERS or node.op_type in _HARMLESS or node.name in keep_float:
            continue
        weights = [name for name in node.input if name in large and len(large[name]) > 1]
        if weights:
            raise ExportError(
                f"layer {node.name!r} of graph {part!r} is a {node.op_type} with a weight of shape "
                f"{large[weights[0]]}, which cannot be quantised; {list(_LAYERS)} can. Write it "
                f"with those, or leave it in float with --keep-float {node.name}"
            )


def _is_table(
    node: onnx.NodeProto,
    shapes: Mapping[str, tuple[int, ...]],
    consumers: Mapping[str, list[onnx.NodeProto]],
) -> bool:
    if node.op_type != "Gather" or any(item.name == "axis" and item.i for item in node.attribute):
        return False
    shape = shapes.get(node.input[0], ())
    # A table that somebody else reads too would stay in the file a second time.
    return len(shape) == 2 and math.prod(shape) >= _TABLE and len(consumers[node.input[0]]) == 1


def _table(part: str, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> Layer:
    return Layer(
        part=part,
        node=node.name,
        label=_label(node, shapes, None),
        operator=node.op_type,
        activation=node.input[1],
        weight=node.input[0],
        shape=shapes[node.input[0]],
        axis=0,
        bias="",
        output=node.output[0],
    )


def find_layers(
    part: str, model: onnx.ModelProto, keep_float: Iterable[str] = ()
) -> tuple[Layer, ...]:
    """The layers of one graph in its order.

    Args:
        part: Name of the graph.
        model: A float32 graph.
        keep_float: Nodes to leave out.

    Raises:
        ExportError: The graph is quantised already, or has a layer that cannot be.
    """
    graph = model.graph
    kept = frozenset(keep_float)
    _refuse(graph, part, kept)
    shapes: Mapping[str, tuple[int, ...]] = {
        item.name: tuple(item.dims) for item in graph.initializer
    }
    consumers = _consumers(graph)
    outputs = {item.name for item in graph.output}
    layers = []
    for node in graph.node:
        if node.name in kept:
            continue
        if _is_table(node, shapes, consumers):
            layers.append(_table(part, node, shapes))
        if node.op_type not in _LAYERS or node.input[0] in shapes:
            continue
        shape = shapes.get(node.input[1], ())
        if len(shape) < 2 or (node.op_type == "MatMul" and len(shape) > 2):
            continue  # a product of two activations, or of a vector
        following = consumers.get(node.output[0], [])
        after = following[0] if len(following) == 1 else None
        fused = after is not None and after.op_type == "Relu" and node.output[0] not in outputs
        layers.append(
            Layer(
                part=part,
                node=node.name,
                label=_label(node, shapes, after),
                operator=node.op_type,
                activation=node.input[0],
                weight=node.input[1],
                shape=shape,
                axis=_axis(node, shape),
                bias=node.input[2] if len(node.input) > 2 else "",
                output=after.output[0] if fused and after is not None else node.output[0],
            )
        )
    return tuple(layers)
