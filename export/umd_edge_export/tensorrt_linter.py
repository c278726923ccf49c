"""What TensorRT refuses, found in the ONNX graph itself: no TensorRT and no GPU are needed.

The rules are those of TensorRT 10.3's parser, the oldest that is supported: what passes here was
parsed by newer ones too. Each was seen to fail, or is stated in the operator list of onnx-tensorrt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from .errors import LinterError

__all__ = ["MAX_OPSET", "LinterFinding", "check_tensorrt", "lint_graph"]

MAX_OPSET = 20
"""The parser of TensorRT 10.3 knows no later one; 23 brings `Attention`, which came with 10.14."""
MIN_OPSET = 13
"""The first with scales by channel."""
_HALF_OPSET = 19
"""The first whose QuantizeLinear takes 16-bit float."""

_OPERATORS = frozenset(
    "Abs Acos Add And ArgMax ArgMin Asin Atan AveragePool BatchNormalization Cast Ceil Clip Concat "
    "Constant ConstantOfShape Conv ConvTranspose Cos CumSum DequantizeLinear Div Einsum Elu Equal "
    "Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool "
    "GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish Identity InstanceNormalization "
    "LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mod "
    "Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 "
    "ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign "
    "Sin Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh "
    "Tile TopK Transpose Trilu Unsqueeze Where Xor".split()
)
_INTEGER_PRODUCTS = frozenset(
    {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"}
)
_PAIRS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_INPUT_TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}
)
_TEXTS = frozenset({"input_ids", "attention_mask", "text_tokens"})


@dataclass(frozen=True, slots=True)
class LinterFinding:
    """One thing that TensorRT refuses."""

    rule: str
    """Short name, such as `zero-point`."""
    place: str
    """Node, tensor or `graph`."""
    message: str
    """What is there, why TensorRT refuses it, and what to do."""

    def __str__(self) -> str:
        return f"{self.rule}: {self.place}: {self.message}"


class _Graph:
    """A model with its constants and types at hand."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.constants = {item.name: item for item in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = node.attribute[0].t
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    @property
    def opset(self) -> int:
        versions = [i.version for i in self.model.opset_import if i.domain in ("", "ai.onnx")]
        return max(versions, default=0)

    def value(self, name: str) -> npt.NDArray[np.generic]:
        array: npt.NDArray[np.generic] = numpy_helper.to_array(self.constants[name])
        return array


Rule = Callable[[_Graph], Iterator[LinterFinding]]


def _opset(graph: _Graph) -> Iterator[LinterFinding]:
    if not MIN_OPSET <= graph.opset <= MAX_OPSET:
        yield LinterFinding(
            "opset",
            "graph",
            f"opset {graph.opset} given; {MIN_OPSET}..{MAX_OPSET} is allowed, as TensorRT 10.3 "
            "(JetPack 6) knows no later one: export with opset 20",
        )


def _operators(graph: _Graph) -> Iterator[LinterFinding]:
    for node in graph.nodes:
        if node.op_type in _INTEGER_PRODUCTS:
            yield LinterFinding(
                "dynamic-quantisation" if node.op_type != "QLinearConv" else "integer-operator",
                node.name,
                f"{node.op_type} is unknown to TensorRT, which takes 8 bits as QuantizeLinear and "
                "DequantizeLinear with fixed ranges alone: quantise for the target tensorrt",
            )
        elif node.domain not in ("", "ai.onnx"):
            yield LinterFinding(
                "operator",
                node.name,
                f"{node.op_type} of the domain {node.domain!r} is no standard operator; export "
                "without fused operators of onnxruntime",
            )
        elif node.op_type not in _OPERATORS:
            yield LinterFinding(
                "operator",
                node.name,
                f"{node.op_type} is not among the operators that TensorRT 10.3 is known to parse; "
                "write it with others",
            )


def _resize(graph: _Graph) -> Iterator[LinterFinding]:
    for node in graph.nodes:
        if node.op_type != "Resize":
            continue
        given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if given.get("antialias"):
            yield LinterFinding(
                "antialias",
                node.name,
                "Resize with antialias=1 is unknown to TensorRT; resize before the graph, as the "
                "runtime's preprocessing does",
            )
        if given.get("mode", b"nearest") == b"cubic":
            yield LinterFinding(
                "resize-mode",
                node.name,
                "Resize with mode=cubic is not what TensorRT computes; use linear or nearest",
            )


def _zero_points(graph: _Graph) -> Iterator[LinterFinding]:
    for node in graph.nodes:
        if node.op_type not in _PAIRS or len(node.input) < 3 or not node.input[2]:
            continue
        name = node.input[2]
        if name not in graph.constants:
            yield LinterFinding(
                "zero-point", node.name, f"the zero point {name!r} is computed; it must be constant"
            )
            continue
        kind = graph.constants[name].data_type
        if kind != TensorProto.INT8 and kind != TensorProto.INT32:
            yield LinterFinding(
                "zero-point",
                node.name,
                f"the zero point is {TensorProto.DataType.Name(kind)}; TensorRT takes signed bytes "
                "(INT8) alone: quantise with symmetric QInt8 activations and weights",
            )
        elif np.any(graph.value(name) != 0):
            yield LinterFinding(
                "zero-point",
                node.name,
                "the zero point is not 0; TensorRT takes symmetric ranges alone: quantise with "
                "ActivationSymmetric and WeightSymmetric",
            )


def _stored_types(graph: _Graph) -> Iterator[LinterFinding]:
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or node.input[0] not in graph.constants:
            continue
        kind = graph.constants[node.input[0]].data_type
        if kind == TensorProto.INT32:
            yield LinterFinding(
                "bias",
                node.name,
                "DequantizeLinear of an INT32 bias; TensorRT takes the bias in float: quantise "
                "with QuantizeBias=False",
            )
        elif kind != TensorProto.INT8:
            yield LinterFinding(
                "weight-type",
                node.name,
                f"DequantizeLinear of {TensorProto.DataType.Name(kind)}; TensorRT takes INT8 alone",
            )


def _scales(graph: _Graph) -> Iterator[LinterFinding]:
    for node in graph.nodes:
        if node.op_type not in _PAIRS:
            continue
        name = node.input[1]
        if name not in graph.constants:
            yield LinterFinding("scale", node.name, f"the scale {name!r} is computed; not constant")
            continue
        scale, kind = graph.value(name), graph.constants[name].data_type
        if kind == TensorProto.FLOAT16 and graph.opset < _HALF_OPSET:
            yield LinterFinding(
                "scale", node.name, f"a 16-bit scale needs opset {_HALF_OPSET}, not {graph.opset}"
            )
        values = scale.astype(np.float64)
        if not (np.isfinite(values).all() and (values > 0).all()):
            yield LinterFinding(
                "scale",
                node.name,
                "the scale is not positive and finite; take ranges from more records, or leave the "
                "node in float",
            )
        if node.input[0] not in graph.constants and scale.size > 1 and not _of_weight(graph, node):
            yield LinterFinding(
                "scale-per-channel",
                node.name,
                f"an activation with {scale.size} scales; TensorRT takes one a tensor",
            )


def _of_weight(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Whether a DequantizeLinear follows the QuantizeLinear of a constant."""
    maker = graph.makers.get(node.input[0])
    return (
        maker is not None
        and maker.op_type == "QuantizeLinear"
        and (maker.input[0] in graph.constants)
    )


def _pairs(graph: _Graph) -> Iterator[LinterFinding]:
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear":
            continue
        others = [
            n for n in graph.readers.get(node.output[0], []) if n.op_type != "DequantizeLinear"
        ]
        if others:
            yield LinterFinding(
                "pair",
                node.name,
                f"its output goes to {others[0].op_type} ({others[0].name}); TensorRT wants a "
                "DequantizeLinear behind every QuantizeLinear",
            )


def _types(graph: _Graph) -> Iterator[LinterFinding]:
    for name, item in graph.constants.items():
        if item.data_type in (TensorProto.DOUBLE, TensorProto.STRING):
            yield LinterFinding(
                "type",
                name,
                f"{TensorProto.DataType.Name(item.data_type)} is unknown to TensorRT; use float32",
            )
        if item.data_location == TensorProto.EXTERNAL:
            yield LinterFinding(
                "external-data", name, "its values are in another file; store them in the graph"
            )
    for node in graph.nodes:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                if attribute.i in (TensorProto.DOUBLE, TensorProto.STRING, TensorProto.UINT64):
                    yield LinterFinding(
                        "type", node.name, "a cast to a type that TensorRT does not have"
                    )


def _inputs(graph: _Graph) -> Iterator[LinterFinding]:
    for item in graph.model.graph.input:
        if item.name in graph.constants:
            continue
        kind = item.type.tensor_type.elem_type
        if kind not in _INPUT_TYPES:
            yield LinterFinding(
                "input",
                item.name,
                f"{TensorProto.DataType.Name(kind)} given; float, int32, int64 or bool is allowed",
            )
        for axis, size in enumerate(item.type.tensor_type.shape.dim):
            dynamic = not size.HasField("dim_value")
            if dynamic and not (axis == 0 or (axis == 1 and item.name in _TEXTS)):
                yield LinterFinding(
                    "dynamic-axis",
                    item.name,
                    f"axis {axis} has no fixed size; only the batch and the length of a text may "
                    "vary within an optimisation profile",
                )


_RULES: tuple[Rule, ...] = (
    _opset,
    _operators,
    _resize,
    _zero_points,
    _stored_types,
    _scales,
    _pairs,
    _types,
    _inputs,
)


def lint_graph(model: onnx.ModelProto) -> list[LinterFinding]:
    """Everything in a graph that TensorRT refuses; nothing where it takes the graph.

    Args:
        model: One of the bundle's graphs, shape inference not needed.
    """
    graph = _Graph(model)
    return [finding for rule in _RULES for finding in rule(graph)]


def check_tensorrt(graphs: Mapping[str, onnx.ModelProto]) -> None:
    """Refuse graphs that TensorRT would refuse on the device.

    Args:
        graphs: Name -> graph.

    Raises:
        LinterError: Names the first findings and how many there are.
    """
    found = [(name, finding) for name, model in graphs.items() for finding in lint_graph(model)]
    if found:
        shown = "; ".join(f"{name}: {finding}" for name, finding in found[:5])
        raise LinterError(f"TensorRT would refuse {len(found)} thing(s): {shown}")
