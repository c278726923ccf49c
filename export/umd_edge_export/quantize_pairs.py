"""Writes QuantizeLinear and DequantizeLinear pairs into a float32 graph.

The result is ONNX that any runtime can read; each target's row says which form its kernels take. A
weight becomes int8 in the file, with one scale a channel and no zero point. A tensor has one pair,
whoever reads it. Of a table the rows that are looked up are scaled, one scale a row, and no more.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from .errors import ExportError
from .quantize_layers import Layer
from .targets import Target

__all__ = [
    "Step",
    "activation_step",
    "quantise_weight",
    "replace_nodes",
    "table_nodes",
    "write_pairs",
]

Ranges = Mapping[str, tuple[float, float]]
"""Tensor -> lowest and highest value."""

_BIAS_LIMIT = float(1 << 30)
_FOLLOWS = ("MaxPool",)
"""Operators that only choose among values: their output lies on the grid of their input."""


@dataclass(frozen=True, slots=True)
class Step:
    """An affine 8-bit grid: value = (level - zero) * scale."""

    scale: np.float32
    zero: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
    """Scalar array; its dtype is the dtype of the levels."""


def activation_step(low: float, high: float, target: Target) -> Step:
    """The grid of an activation with that range; 0 is on it exactly.

    Raises:
        ExportError: The range is not finite.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ExportError(
            f"a range of {low} to {high} was measured; the model or the range data hold values "
            "that are not finite"
        )
    low, high = min(low, 0.0), max(high, 0.0)
    kind = np.dtype(target.activations)
    lowest = int(np.iinfo(kind).min)
    scale = max(-low, high) / 127 if target.symmetric else (high - low) / 255
    if scale < np.finfo(np.float32).tiny:
        scale = 1.0  # as good as always 0: any step holds it
    zero = 0 if target.symmetric else lowest + round(-low / scale)
    return Step(np.float32(scale), np.array(np.clip(zero, lowest, lowest + 255), dtype=kind))


def quantise_weight(
    weight: npt.NDArray[np.float32], axis: int, least: npt.NDArray[np.float32] | float = 0.0
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Weight as int8 in -127..127 and the scale (C,) float32 of each channel.

    Args:
        weight: Any rank.
        axis: Of the C channels.
        least: Smallest scale (C,) allowed.
    """
    others = tuple(index for index in range(weight.ndim) if index != axis)
    scale = np.maximum(np.abs(weight).max(axis=others) / 127, least).astype(np.float32)
    scale[scale == 0] = 1.0
    shape = [1] * weight.ndim
    shape[axis] = -1
    levels = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127)
    return levels.astype(np.int8), scale


class _Writer:
    """One graph while pairs are written into it."""

    def __init__(self, graph: onnx.GraphProto, ranges: Ranges, target: Target) -> None:
        self._ranges = ranges
        self.target = target
        self.constants = {item.name: item for item in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.steps: dict[str, Step] = {}
        """Tensors that have a pair."""
        self.added: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        self.added[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def add_step(self, tensor: str) -> Step:
        if tensor not in self.steps:
            maker = self.makers.get(tensor)
            if maker is not None and maker.op_type in _FOLLOWS and maker.input[0] in self.steps:
                self.steps[tensor] = self.steps[maker.input[0]]
            else:
                self.steps[tensor] = activation_step(*self._range(tensor), self.target)
        return self.steps[tensor]

    def _range(self, tensor: str) -> tuple[float, float]:
        if tensor not in self._ranges:
            raise ExportError(f"no range was taken for tensor {tensor!r}")
        return self._ranges[tensor]

    def pair(self, tensor: str) -> list[onnx.NodeProto]:
        """Nodes that round a tensor to its grid; the result is `<tensor>_dequantized`."""
        step = self.steps[tensor]
        scale = self.constant(f"{tensor}_scale", np.asarray(step.scale))
        zero = self.constant(f"{tensor}_zero_point", step.zero)
        levels, values = f"{tensor}_quantized", f"{tensor}_dequantized"
        return [
            helper.make_node("QuantizeLinear", [tensor, scale, zero], [levels], f"{tensor}_q"),
            helper.make_node("DequantizeLinear", [levels, scale, zero], [values], f"{tensor}_dq"),
        ]

    def weight(self, layer: Layer) -> tuple[list[onnx.NodeProto], list[str]]:
        """Nodes that give the layer's weight (and bias), and the names of those inputs."""
        weight = numpy_helper.to_array(self.constants[layer.weight])
        is_quantised = bool(layer.bias) and self.target.bias
        step = self.steps[layer.activation]
        bias = numpy_helper.to_array(self.constants[layer.bias]) if is_quantised else None
        # The bias counts in steps of the product, which must not be too fine for 32 bits.
        least = np.abs(bias) / (step.scale * _BIAS_LIMIT) if bias is not None else 0.0
        levels, scale = quantise_weight(weight, layer.axis, least)
        # Two layers may share a weight and differ in the smallest scale.
        name = f"{layer.node}_weight" if f"{layer.weight}_scale" in self.added else layer.weight
        nodes = [self._dequantise(name, levels, scale, layer.axis)]
        inputs = [f"{name}_dequantized"]
        if bias is not None:
            product = (scale * step.scale).astype(np.float32)
            whole = np.rint(bias / product).astype(np.int32)
            name = f"{layer.node}_bias"
            nodes.append(self._dequantise(name, whole, product, 0))
            inputs.append(f"{name}_dequantized")
        elif layer.bias:
            inputs.append(layer.bias)
        return nodes, inputs

    def _dequantise(
        self,
        name: str,
        levels: npt.NDArray[np.int8] | npt.NDArray[np.int32],
        scale: npt.NDArray[np.float32],
        axis: int,
    ) -> onnx.NodeProto:
        inputs = [
            self.constant(f"{name}_quantized", levels),
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero_point", np.zeros(scale.shape, dtype=levels.dtype)),
        ]
        outputs = [f"{name}_dequantized"]
        return helper.make_node("DequantizeLinear", inputs, outputs, f"{name}_dq", axis=axis)


def write_pairs(
    model: onnx.ModelProto, layers: Iterable[Layer], ranges: Ranges, target: Target
) -> onnx.ModelProto:
    """Quantise some layers of one graph.

    Args:
        model: A float32 graph; left as it is.
        layers: Of this graph; every other layer stays in float.
        ranges: Of each layer's activation and output.
        target: A static one.

    Raises:
        ExportError: A range is missing or not finite.
    """
    chosen = {layer.node: layer for layer in layers}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    writer = _Writer(graph, ranges, target)
    rounded = _add_steps(graph, chosen, writer)
    nodes: list[onnx.NodeProto] = []
    for item in graph.input:
        if item.name in writer.steps:
            nodes += writer.pair(item.name)
    for node in graph.node:
        nodes += _rewire(node, chosen.get(node.name), rounded, writer)
        for name in node.output:
            if name in writer.steps:
                nodes += writer.pair(name)
    replace_nodes(graph, nodes, writer.added)
    return result


def _add_steps(
    graph: onnx.GraphProto, chosen: Mapping[str, Layer], writer: _Writer
) -> frozenset[str]:
    """Give the layers' tensors their grids; return those that whoever reads them reads rounded."""
    public = {item.name for item in graph.output}
    rounded = set()
    for node in graph.node:
        layer = chosen.get(node.name)
        if layer is None or layer.is_table:
            continue
        writer.add_step(layer.activation)
        if layer.operator in writer.target.outputs and layer.output not in public:
            writer.add_step(layer.output)
            rounded.add(layer.output)
    return frozenset(rounded)


def _rewire(
    node: onnx.NodeProto, layer: Layer | None, rounded: frozenset[str], writer: _Writer
) -> list[onnx.NodeProto]:
    """The node, reading rounded values, behind the nodes that give its weight."""
    made = copy.deepcopy(node)
    for index, name in enumerate(node.input):
        if name in rounded:
            made.input[index] = f"{name}_dequantized"
    if layer is None:
        return [made]
    if layer.is_table:
        table = numpy_helper.to_array(writer.constants[layer.weight])
        return table_nodes(layer, made, table, writer.added)
    before, inputs = writer.weight(layer)
    del made.input[:]
    made.input.extend([f"{layer.activation}_dequantized", *inputs])
    return [*before, made]


def table_nodes(
    layer: Layer,
    node: onnx.NodeProto,
    table: npt.NDArray[np.float32],
    added: dict[str, onnx.TensorProto],
) -> list[onnx.NodeProto]:
    """Nodes that look up int8 rows and scale each by its own.

    A DequantizeLinear in front of the Gather would say the same and, in ONNX Runtime, compute the
    whole table in every run.

    Args:
        layer: A table.
        node: Its Gather.
        table: (R, D) float32.
        added: Receives the constants.
    """
    levels, scale = quantise_weight(table, 0)
    made = node.output[0]
    for name, value in ((f"{layer.weight}_quantized", levels), (f"{layer.weight}_scale", scale)):
        # (R, 1), so that a scale broadcasts over its row
        added[name] = numpy_helper.from_array(value.reshape(len(table), -1), name)
    rows, cast, scales = f"{made}_rows", f"{made}_cast", f"{made}_scales"
    ids = node.input[1]
    return [
        helper.make_node("Gather", [f"{layer.weight}_quantized", ids], [rows], node.name),
        helper.make_node("Cast", [rows], [cast], f"{node.name}_to_float", to=1),
        helper.make_node("Gather", [f"{layer.weight}_scale", ids], [scales], f"{node.name}_steps"),
        helper.make_node("Mul", [cast, scales], [made], f"{node.name}_scaled"),
    ]


def replace_nodes(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], added: Mapping[str, onnx.TensorProto]
) -> None:
    """Put the nodes in, and drop constants that nobody reads any more."""
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [item for item in graph.initializer if item.name in used and item.name not in added]
    kept += [added[name] for name in added]
    del graph.initializer[:]
    graph.initializer.extend(kept)
