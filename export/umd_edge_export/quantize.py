"""INT8 by static quantisation: U8 activations, S8 weights by channel, QuantizeLinear pairs.

Ranges are fixed at export, so a sample's result never depends on the other samples of its batch.
Only convolutions and products with constant weights are quantised; activation-by-activation
products, normalisation, softmax, additions and the task heads stay in float.
Weights have 8 bits: with 7 about twice as many decisions change. Sums of two such products overflow
the 16 bits of processors without VNNI instructions; there the runtime asks for products that cannot
(`session.x64quantprecision`), because the variant's notes say `weight_bits: 8`.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from .graphs import strip_model
from .runner import GraphTrio
from .samples import Sample, SampleSource
from .targets import Target

__all__ = [
    "QUANTISED_PARTS",
    "WEIGHT_BITS",
    "QuantiseOptions",
    "QuantisedVariant",
    "early_convolutions",
    "float_nodes",
    "head_products",
    "part_feeds",
    "quantise_variant",
    "quantize_graphs",
    "quantize_part",
]

WEIGHT_BITS = 8
QUANTISED_PARTS = ("vision", "fusion")
"""The text graph stays in float: it is small, and an error in a word is one in every answer."""
_QUANTISED = ("Conv", "MatMul", "Gemm")
_EARLY = 3

Feeds = Mapping[str, npt.NDArray[Any]]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands one sample after the other to the calibrator, which keeps two numbers a tensor."""

    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def part_feeds(part: str, samples: Iterable[Sample], reference: GraphTrio) -> Iterator[Feeds]:
    """Inputs of one graph for each sample; those of the fusion come from the float graphs."""
    for sample in samples:
        words = {"input_ids": sample.input_ids, "attention_mask": sample.attention_mask}
        pixels = {"pixel_values": sample.pixel_values}
        if part == "vision":
            yield pixels
        elif part == "text":
            yield words
        else:
            yield {
                "image_tokens": reference.run_part("vision", pixels)["image_tokens"],
                "text_tokens": reference.run_part("text", words)["text_tokens"],
                "attention_mask": sample.attention_mask,
                "structured_values": sample.structured_values,
                "structured_mask": sample.structured_mask,
            }


def float_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of products without a constant weight: they are left in float."""
    constants = {item.name for item in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _QUANTISED and node.input[1] not in constants
    ]


def early_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that stay in float: of a stem the first three, else the first.

    They see the finest detail with the fewest channels: in float they save a third of the decisions
    that 8 bits would change, for a third of the stem's arithmetic.
    """
    pixels = {item.name for item in model.graph.input}
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    reads_pixels = any(
        node.op_type == "Conv" and node.input[0] in pixels for node in model.graph.node
    )
    if not reads_pixels:
        return []
    return names[:_EARLY] if len(names) > _EARLY + 1 else names[:1]


def head_products(model: onnx.ModelProto) -> list[str]:
    """Names of the products that make logits of the joint vector: small, and next to the decision.

    From each output `logits_*` back the last two, and the one that gives `match_logit`.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    names: dict[str, None] = {}
    for output in model.graph.output:
        if output.name.startswith("logits_"):
            wanted = 2
        else:
            wanted = 1 if output.name == "match_logit" else 0
        node = makers.get(output.name)
        while node is not None and wanted:
            if node.op_type in _QUANTISED:
                names[node.name] = None
                wanted -= 1
            node = next((makers[name] for name in node.input if name in makers), None)
    return list(names)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice to the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def quantize_part(
    model: onnx.ModelProto, feeds: Iterable[Feeds], keep_float: Iterable[str] = ()
) -> onnx.ModelProto:
    """Quantise one graph.

    Args:
        model: A float32 graph; left as it is.
        feeds: Inputs from whose runs the ranges of activations are taken.
        keep_float: Further nodes to leave in float.

    Returns:
        The graph with QuantizeLinear and DequantizeLinear pairs.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, ready, result = (Path(folder, name) for name in ("a.onnx", "b.onnx", "c.onnx"))
        onnx.save(model, str(source))
        # Symbolic shape inference fails on named batch and length axes.
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True, skip_optimization=True)
        prepared = onnx.load(str(ready))
        # Shapes inferred for weights of one graph contradict those of the transposed ones.
        del prepared.graph.value_info[:]
        onnx.save(prepared, str(ready))
        quantize_static(
            str(ready),
            str(result),
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=True,
            reduce_range=False,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[
                *float_nodes(prepared),
                *early_convolutions(prepared),
                *head_products(prepared),
                *keep_float,
            ],
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                # The integer sums go straight to float: more exact than another 8-bit step.
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            },
        )
        quantised = onnx.load(str(result))
    strip_model(quantised)
    return quantised


def quantize_graphs(
    graphs: Mapping[str, onnx.ModelProto], samples: Iterable[Sample], reference: GraphTrio
) -> dict[str, onnx.ModelProto]:
    """Quantise the three graphs with ranges from real samples.

    Args:
        graphs: Part -> float32 graph.
        samples: Can be iterated several times; one sample is in memory at a time.
        reference: Sessions of the float32 graphs.
    """
    return {
        part: quantize_part(model, part_feeds(part, samples, reference))
        if part in QUANTISED_PARTS
        else model
        for part, model in graphs.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantiseOptions:
    """What may be asked of a quantisation beside its target."""

    budget: float = 0.5
    """Points of accuracy that every task may lose."""
    budget_source: SampleSource | None = None
    """Labelled records on which the loss is measured; without them a rule says what stays float."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedVariant:
    """What `quantise_variant` made."""

    graphs: dict[str, onnx.ModelProto]
    notes: dict[str, Any]
    """For the manifest's variant."""
    sensitivity: dict[str, Any] = field(default_factory=dict)
    """For the report: how much each layer loses, and what became of it; empty if not measured."""


def quantise_variant(
    graphs: Mapping[str, onnx.ModelProto],
    source: SampleSource,
    reference: GraphTrio,
    target: Target,
    options: QuantiseOptions,
) -> QuantisedVariant:
    """Quantise the three graphs for one target.

    Args:
        graphs: Part -> float32 graph; left as they are.
        source: Real records whose runs give the ranges; one is in memory at a time.
        reference: Sessions of the float32 graphs.
        target: What the processor wants.
        options: See there.
    """
    notes = {
        "method": "static QuantizeLinear/DequantizeLinear, ranges by minimum and maximum",
        **target.to_dict(),
        "float": "text graph, first convolutions, normalisation, softmax, products of two "
        "activations, task heads",
    }
    return QuantisedVariant(graphs=quantize_graphs(graphs, source, reference), notes=notes)
