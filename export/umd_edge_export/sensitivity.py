"""What each layer loses when it alone is quantised, measured on real records.

The measure is noise: the energy of the change of a task's logits, divided by the energy of the
logits about their mean. Errors of different layers are nearly independent, so the noise of several
layers is about the sum of theirs, which makes one measurement a layer enough to order them.

How many decisions a noise changes follows from how near the records are to changing theirs. A few
dozen records hold too few changed decisions to count, but enough margins to expect them from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from umd_edge._task import output_name

from .drift import decision_margins
from .quantize_layers import Layer
from .ranges import open_graph

if TYPE_CHECKING:
    from .samples import Sample

__all__ = ["GraphRunner", "LayerNoise", "NoiseBench", "measure_layers"]

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]

SHARED_OUTPUTS = ("match_logit", "image_embedding", "text_embedding")
"""Outputs that belong to no task, measured on every record: retrieval reads them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNoise:
    """What one layer changes when it alone is quantised."""

    layer: Layer
    noise: Mapping[str, float]
    """Task or shared output -> energy of the change / energy of the output about its mean."""

    @property
    def worst(self) -> float:
        """Largest noise of any output."""
        return max(self.noise.values(), default=0.0)


@dataclass(slots=True)
class _Kept:
    """One record with what the float32 graphs made of it."""

    sample: Sample
    image: Outputs
    text: Outputs
    wanted: Outputs

    def columns(self) -> dict[str, str]:
        """The record's task and the shared outputs -> name of the graph's output."""
        own = {self.sample.task.name: output_name(self.sample.task.name)}
        return own | {name: name for name in SHARED_OUTPUTS}


@dataclass(slots=True)
class _Column:
    """What the float32 graphs give for one task or shared output, over the records."""

    values: list[Array] = field(default_factory=list)
    margins: list[Array] = field(default_factory=list)

    def energy(self) -> float:
        """Of the values about their mean."""
        values = np.stack(self.values)
        return float(((values - values.mean(axis=0)) ** 2).sum())

    def deviation(self, noise: float) -> float:
        """Standard deviation of one value's change that is that noise."""
        size = sum(value.size for value in self.values)
        return math.sqrt(max(noise, 0.0) * self.energy() / size)


class NoiseBench:
    """A few dozen records, run through the float32 graphs once.

    Args:
        graphs: Part -> float32 graph.
        samples: All are held in memory, with the outputs of vision and text.
    """

    def __init__(self, graphs: Mapping[str, onnx.ModelProto], samples: Iterable[Sample]) -> None:
        self._fusion = GraphRunner(graphs["fusion"])
        vision, text = GraphRunner(graphs["vision"]), GraphRunner(graphs["text"])
        self._records: list[_Kept] = []
        self._columns: dict[str, _Column] = {}
        for sample in samples:
            inputs = sample.inputs()
            image, words = vision.run(inputs), text.run(inputs)
            wanted = {**image, **words, **self._fusion.run({**inputs, **image, **words})}
            self._keep(_Kept(sample, image, words, wanted))

    def __len__(self) -> int:
        return len(self._records)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the records."""
        return tuple(dict.fromkeys(item.sample.task.name for item in self._records))

    def _keep(self, item: _Kept) -> None:
        self._records.append(item)
        for name, output in item.columns().items():
            value = np.atleast_1d(item.wanted[output][0]).astype(np.float64)
            self._columns.setdefault(name, _Column()).values.append(value)
        task = item.sample.task
        logits = item.wanted[output_name(task.name)][0]
        self._columns[task.name].margins.append(decision_margins(task, logits))

    def expected_changes(self, task: str, noise: float) -> float:
        """Share of the task's decisions that noise of that size changes, on average."""
        column = self._columns[task]
        deviation = column.deviation(noise)
        if deviation == 0:
            return 0.0
        margins = np.concatenate(column.margins) / deviation
        return sum(0.5 * math.erfc(value / math.sqrt(2.0)) for value in margins) / len(margins)

    def measure(self, part: str, graph: onnx.ModelProto) -> dict[str, float]:
        """Task or shared output -> noise, with one part replaced.

        Args:
            part: `vision`, `text` or `fusion`.
            graph: What stands in its place; the other parts stay in float.
        """
        return self._compare(self._with(part, GraphRunner(graph)))

    def measure_all(self, graphs: Mapping[str, onnx.ModelProto]) -> dict[str, float]:
        """The same with all parts replaced."""
        opened = {part: GraphRunner(graph) for part, graph in graphs.items()}

        def run() -> Iterator[Outputs]:
            for item in self._records:
                inputs = item.sample.inputs()
                encoded = {**opened["vision"].run(inputs), **opened["text"].run(inputs)}
                yield {**encoded, **opened["fusion"].run({**inputs, **encoded})}

        return self._compare(run())

    def _with(self, part: str, other: GraphRunner) -> Iterator[Outputs]:
        for item in self._records:
            inputs = item.sample.inputs()
            encoded = {**item.image, **item.text}
            if part != "fusion":
                encoded |= other.run(inputs)
            fusion = other if part == "fusion" else self._fusion
            yield {**encoded, **fusion.run({**inputs, **encoded})}

    def _compare(self, runs: Iterable[Outputs]) -> dict[str, float]:
        change = dict.fromkeys(self._columns, 0.0)
        for item, given in zip(self._records, runs, strict=True):
            for name, output in item.columns().items():
                difference = given[output][0].astype(np.float64) - item.wanted[output][0]
                change[name] += float((difference**2).sum())
        energies = {name: column.energy() for name, column in self._columns.items()}
        return {name: change[name] / energies[name] if energies[name] else 0.0 for name in change}


class GraphRunner:
    """A graph that takes what it needs from more."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        self._session = open_graph(graph)
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._outputs = [item.name for item in self._session.get_outputs()]

    def run(self, given: Outputs) -> dict[str, Array]:
        """All outputs by name; inputs of other graphs may be among those given."""
        feeds = {name: given[name] for name in self._inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))


def measure_layers(
    layers: Sequence[Layer],
    write: Callable[[str, Sequence[Layer]], onnx.ModelProto],
    bench: NoiseBench,
) -> tuple[LayerNoise, ...]:
    """Quantise each layer alone and measure what it changes.

    Args:
        layers: Of any part.
        write: Gives one part with some of its layers quantised.
        bench: The records.
    """
    return tuple(
        LayerNoise(layer=layer, noise=bench.measure(layer.part, write(layer.part, [layer])))
        for layer in layers
    )
