"""From float32 graphs to those of one target: ranges, the choice of layers, pairs.

Ranges are fixed at export, so a sample's result never depends on the other samples of its batch;
the target `dynamic` alone is different, and refused unless that is accepted in so many words.
Weights have 8 bits: with 7 about twice as many decisions change. Sums of two such products overflow
the 16 bits of processors without VNNI instructions; there the runtime asks for products that cannot
(`session.x64quantprecision`), because the variant's notes say `weight_bits: 8`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import onnx

from umd_edge.errors import UsageError

from .errors import ExportError
from .graphs import PARTS, strip_model
from .half import to_half
from .quantize_dynamic import write_dynamic
from .quantize_layers import Layer, find_layers
from .quantize_pairs import write_pairs
from .quantize_rule import (
    QUANTISED_PARTS,
    early_convolutions,
    float_nodes,
    head_products,
    rule_float,
)
from .ranges import RangeOptions, TensorRecord, measure_ranges
from .runner import GraphTrio
from .samples import Sample, SampleSource
from .sensitivity import LayerNoise, NoiseBench, measure_layers
from .sensitivity_search import BudgetBench, Choice, choose_float, rank_layers
from .stored_weights import store_weights
from .targets import Target, find_target

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
]

WEIGHT_BITS = 8
_DYNAMIC_SAMPLES = 8
"""Records whose sizes are measured for a target that needs no ranges."""

Feeds = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantiseOptions:
    """What may be asked of a quantisation beside its target."""

    ranges: RangeOptions = field(default_factory=RangeOptions)
    budget: float = 0.5
    """Points of accuracy that every task may lose."""
    max_changed: float | None = 1.0
    """Percent of all decisions that may change; None for any."""
    budget_source: SampleSource | None = None
    """Labelled records on which both are measured; without them a rule says what stays float."""
    noise_samples: int = 128
    """Records on which the noise of each layer is measured."""
    keep_float: tuple[str, ...] = ()
    """Nodes to leave in float whatever is measured."""
    allow_batch_dependence: bool = False
    """Accept the target `dynamic`."""
    progress: Callable[[str], None] = lambda message: None
    """Called with a line for each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedVariant:
    """What `quantise_variant` made."""

    graphs: dict[str, onnx.ModelProto]
    notes: dict[str, Any]
    """For the manifest's variant."""
    sensitivity: dict[str, Any] = field(default_factory=dict)
    """For the report: how much each layer loses, and what became of it; empty if not measured."""


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


class _Quantiser:
    """Float32 graphs with what was measured of them for one target."""

    def __init__(
        self,
        graphs: Mapping[str, onnx.ModelProto],
        samples: Iterable[Sample],
        reference: GraphTrio,
        target: Target,
        options: QuantiseOptions,
    ) -> None:
        self.graphs, self.target = graphs, target
        found = [
            layer
            for part in PARTS
            if part in graphs
            for layer in find_layers(part, graphs[part], self._kept(graphs[part], options))
        ]
        self.layers = tuple(layer for layer in found if self._has_form(layer))
        if not self.layers:
            raise ExportError(
                f"the graphs have no layer that target {target.name!r} can quantise; give a model "
                "of convolutions and products with constant weights, or leave fewer in float"
            )
        self._records: dict[str, dict[str, TensorRecord]] = {}
        for part in graphs:
            tensors = [
                name
                for layer in self.layers
                if layer.part == part and not layer.is_table
                for name in (layer.activation, layer.output)
            ]
            feeds = part_feeds(part, samples, reference)
            self._records[part] = measure_ranges(graphs[part], tensors, feeds, options.ranges)
        self._ranges = {
            part: {name: record.range(options.ranges) for name, record in records.items()}
            for part, records in self._records.items()
        }

    def _kept(self, graph: onnx.ModelProto, options: QuantiseOptions) -> tuple[str, ...]:
        """Nodes of a graph that are not even tried."""
        early = self.target.early_float and options.budget_source is not None
        return (*options.keep_float, *(early_convolutions(graph) if early else ()))

    def _has_form(self, layer: Layer) -> bool:
        return self.target.tables if layer.is_table else layer.operator in self.target.operators

    def multiplications(self, layer: Layer) -> int:
        """Of one sample in this layer."""
        if layer.is_table:
            return 0
        return self._records[layer.part][layer.output].rows * layer.weights

    def write(self, part: str, layers: Iterable[Layer]) -> onnx.ModelProto:
        """One graph with these layers quantised."""
        if self.target.dynamic:
            return write_dynamic(self.graphs[part], layers)
        return write_pairs(self.graphs[part], layers, self._ranges[part], self.target)

    def write_all(self, float_layers: Iterable[Layer]) -> dict[str, onnx.ModelProto]:
        """Every graph with all layers quantised but these."""
        kept = {layer.key for layer in float_layers}
        chosen = [layer for layer in self.layers if layer.key not in kept]
        written = {}
        for part, graph in self.graphs.items():
            own = [layer for layer in chosen if layer.part == part]
            written[part] = self.write(part, own) if own else graph
            if self.target.stored:
                written[part] = store_weights(written[part])
            if self.target.half:
                written[part] = to_half(written[part])
            if written[part] is not graph:
                strip_model(written[part])
        return written


def _choose(
    quantiser: _Quantiser, bench: NoiseBench, options: QuantiseOptions, source: SampleSource
) -> tuple[Choice, tuple[LayerNoise, ...]]:
    """Measure every layer, then look for the fewest that must stay in float."""
    options.progress(f"measuring {len(quantiser.layers)} layers on {len(bench)} records")
    noises = measure_layers(quantiser.layers, quantiser.write, bench)
    ranked = rank_layers(noises, quantiser.multiplications, bench.expected_changes, bench.tasks)
    options.progress(f"running float32 on {len(source)} labelled records")
    labelled = BudgetBench(quantiser.graphs, source)

    def measure(float_layers: Sequence[Layer]) -> Any:
        loss = labelled.measure(quantiser.write_all(float_layers))
        options.progress(
            f"{len(float_layers)} of {len(ranked)} layers in float: the worst task loses "
            f"{loss.worst():.2f} points, {loss.changed():.2f} % of decisions change"
        )
        return loss

    choice = choose_float(ranked, measure, budget=options.budget, max_changed=options.max_changed)
    return choice, ranked


def _describe(
    quantiser: _Quantiser,
    bench: NoiseBench,
    ranked: Sequence[LayerNoise],
    choice: Choice,
    options: QuantiseOptions,
) -> dict[str, Any]:
    """The section `sensitivity` of the report."""
    kept = {layer.key for layer in choice.float_layers}
    rows = []
    for item in ranked:
        layer = item.layer
        changes = {name: bench.expected_changes(name, item.noise[name]) for name in bench.tasks}
        rows.append(
            {
                "part": layer.part,
                "node": layer.node,
                "name": layer.label,
                "operator": layer.operator,
                "shape": list(layer.shape),
                "multiplications": quantiser.multiplications(layer),
                "float": layer.key in kept,
                "noise": dict(item.noise),
                "expected_changes": changes,
            }
        )
    chosen = [item for item in ranked if item.layer.key not in kept]
    return {
        "records": len(bench),
        "layers": rows,
        "budget": {"points": options.budget, "max_changed": options.max_changed},
        "steps": [{"float_layers": count, **loss.to_dict()} for count, loss in choice.steps],
        "noise": bench.measure_all(quantiser.write_all(choice.float_layers)),
        "predicted_noise": {
            name: sum(item.noise[name] for item in chosen) for name in ranked[0].noise
        },
    }


def _notes(
    target: Target, options: QuantiseOptions, float_layers: Sequence[Layer], *, measured: bool
) -> dict[str, Any]:
    kept = ", ".join(layer.label for layer in float_layers) or "no layer"
    others = "normalisation, softmax, products of two activations"
    if target.early_float and measured:
        others += ", the first convolutions"
    if "Gemm" not in target.operators:
        others += ", products of one row a sample"
    notes: dict[str, Any] = {
        "method": "ranges taken at run time"
        if target.dynamic
        else "static QuantizeLinear/DequantizeLinear",
        **target.to_dict(),
        "float": f"{kept}; {others}" + ("; convolutions" if target.dynamic else ""),
        "float_by": f"budget of {options.budget:g} points a task" if measured else "rule",
    }
    if target.dynamic:
        notes["batch_dependent"] = (
            "a result depends on the other samples of its batch and on padding; run each sample "
            "alone and without padding"
        )
    else:
        notes["ranges"] = options.ranges.method
        if options.ranges.method == "percentile":
            notes["range_percentile"] = options.ranges.percentile
    return notes


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
        options: With `budget_source` the layers that stay in float are chosen by measuring, else by
            `quantize_rule`.

    Raises:
        UsageError: The target is `dynamic`, and batch dependence was not accepted.
        DataError: There are no records, or none with a target.
        ExportError: A layer cannot be quantised, or a value is not finite.
    """
    if target.dynamic and not options.allow_batch_dependence:
        raise UsageError(
            f"target {target.name!r} makes results depend on the other samples of a batch and on "
            "padding; give --allow-batch-dependence to accept that, or take target 'cpu'"
        )
    samples = source.head(_DYNAMIC_SAMPLES) if target.dynamic else source
    options.progress(f"taking ranges from {len(samples)} records")
    quantiser = _Quantiser(graphs, samples, reference, target, options)
    if options.budget_source is None:
        kept = rule_float(graphs, quantiser.layers)
        notes = _notes(target, options, kept, measured=False)
        return QuantisedVariant(graphs=quantiser.write_all(kept), notes=notes)
    bench = NoiseBench(graphs, source.head(options.noise_samples))
    choice, ranked = _choose(quantiser, bench, options, options.budget_source)
    return QuantisedVariant(
        graphs=quantiser.write_all(choice.float_layers),
        notes=_notes(target, options, choice.float_layers, measured=True),
        sensitivity=_describe(quantiser, bench, ranked, choice, options),
    )


def quantize_graphs(
    graphs: Mapping[str, onnx.ModelProto], samples: Iterable[Sample], reference: GraphTrio
) -> dict[str, onnx.ModelProto]:
    """Some of the three graphs for the target `cpu`, by the rule.

    Args:
        graphs: Part -> float32 graph.
        samples: Can be iterated several times; one sample is in memory at a time.
        reference: Sessions of the float32 graphs.
    """
    quantiser = _Quantiser(graphs, samples, reference, find_target("cpu"), QuantiseOptions())
    return quantiser.write_all(rule_float(graphs, quantiser.layers))
