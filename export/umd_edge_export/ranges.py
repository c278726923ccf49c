"""Ranges of activations on real data, in memory that does not grow with the data.

Three ways to take a range from the values that a tensor had:

* `minmax`: the lowest and the highest. Nothing is cut off; one outlier makes all steps coarse.
* `percentile`: cuts off the outermost share of the values on either side.
* `entropy`: the cuts with which the distribution of the rounded values is closest to the original
  one, by the Kullback-Leibler divergence, as TensorRT's calibrator chose its one cut.

The last two read a histogram with a fixed number of bins, whose width doubles when a value falls
outside: one pass over the data, and the same result wherever the data are cut into pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from umd_edge.errors import DataError, UsageError

from .errors import ExportError

__all__ = [
    "Histogram",
    "RangeMethod",
    "RangeOptions",
    "TensorRecord",
    "measure_ranges",
    "open_graph",
]

RangeMethod = Literal["minmax", "percentile", "entropy"]
Feeds = Mapping[str, npt.NDArray[Any]]

_BINS = 4096
_CUTS = 96
_LEAST_CUT = 0.05
_LEVELS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeOptions:
    """How a range is taken from the values of a tensor."""

    method: RangeMethod = "minmax"
    percentile: float = 99.999
    """Of the values that stay inside, in percent; half of the others are cut off on either side."""

    def __post_init__(self) -> None:
        if self.method not in get_args(RangeMethod):
            raise UsageError(
                f"ranges by {self.method!r} asked for; one of {list(get_args(RangeMethod))} is "
                "allowed"
            )
        if not 50.0 < self.percentile <= 100.0:
            raise UsageError(
                f"percentile {self.percentile!r} given; more than 50 and at most 100 is allowed"
            )


class Histogram:
    """Counts of values in bins of equal width about 0; the width doubles as values grow."""

    def __init__(self, bins: int = _BINS) -> None:
        self.counts = np.zeros(bins, dtype=np.int64)
        self.reach = 0.0
        """The bins cover -reach..reach, beyond any value; a power of two, 0 while all are 0."""

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Take in finite values of any shape."""
        largest = float(np.abs(values).max(initial=0.0))
        if largest >= self.reach and largest > 0:
            self._grow(2.0 ** (np.floor(np.log2(largest)) + 1))
        bins = len(self.counts)
        if self.reach == 0:
            self.counts[bins // 2] += values.size
            return
        places = (values.reshape(-1).astype(np.float64) / self.reach + 1) * (bins / 2)
        self.counts += np.bincount(places.astype(np.int64), minlength=bins)

    def _grow(self, reach: float) -> None:
        bins = len(self.counts)
        if self.reach == 0:
            self.reach = float(reach)
        while self.reach < reach:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(bins, dtype=np.int64)
            self.counts[bins // 4 : bins // 4 + bins // 2] = pairs
            self.reach *= 2

    def edges(self) -> npt.NDArray[np.float64]:
        """(bins + 1,) from -reach to reach."""
        return np.linspace(-self.reach, self.reach, len(self.counts) + 1)


@dataclass(slots=True)
class TensorRecord:
    """What is kept of a tensor's values."""

    keep_histogram: bool
    low: float = np.inf
    high: float = -np.inf
    rows: int = 0
    """Vectors along the last axis, or positions of a picture, in the largest value seen."""
    histogram: Histogram = field(default_factory=Histogram, repr=False)

    def add(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Take in one run's values.

        Raises:
            ExportError: One is not finite.
        """
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ExportError(
                f"tensor {name!r} has values that are not finite on the range data; use another "
                "checkpoint, or find the record with `umd-edge-train data check`"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        # (B, C, H, W) of a picture, (..., D) otherwise
        width = values.shape[1] if values.ndim == 4 else values.shape[-1]
        self.rows = max(self.rows, values.size // width)
        if self.keep_histogram:
            self.histogram.add(values)

    def range(self, options: RangeOptions) -> tuple[float, float]:
        """(low, high) as the options say, never wider than the values."""
        if options.method == "minmax" or self.low == self.high:
            return self.low, self.high
        if options.method == "percentile":
            low, high = _percentile_range(self.histogram, options.percentile)
        else:
            low, high = _entropy_range(self.histogram, self.low, self.high)
        return max(low, self.low), min(high, self.high)


def _percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    edges = histogram.edges()
    outside = (100.0 - percentile) / 200.0 * histogram.counts.sum()
    below = np.cumsum(histogram.counts)
    # The first edge with more than that below it, the last one with more than that above it.
    first = int(np.searchsorted(below, outside, side="right"))
    last = int(np.searchsorted(below, below[-1] - outside, side="left"))
    return float(edges[first]), float(edges[last + 1])


def _entropy_range(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """The cuts that lose least information: first that of the wider side, then the other."""
    centres = (histogram.edges()[1:] + histogram.edges()[:-1]) / 2
    seen = histogram.counts > 0
    values, counts = centres[seen], histogram.counts[seen].astype(np.float64)
    best = [low, high]
    for side in sorted((0, 1), key=lambda index: -abs(best[index])):
        ends = best[side] * np.linspace(1.0, _LEAST_CUT, _CUTS)
        cuts = [(float(end), best[1]) if side == 0 else (best[0], float(end)) for end in ends]
        losses = [_divergence(values, counts, *cut) for cut in cuts]
        best = list(cuts[int(np.argmin(losses))])
    return best[0], best[1]


def _divergence(
    values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], low: float, high: float
) -> float:
    """Kullback-Leibler divergence from the clipped distribution to the rounded one, in nats."""
    low, high = min(low, 0.0), max(high, 0.0)
    inside = (values >= low) & (values <= high)
    if not inside.any():
        return float("inf")
    original = counts[inside].copy()
    own = original.copy()
    # What is cut off lands on the outermost values that remain; the rounded one cannot know.
    original[0] += counts[values < low].sum()
    original[-1] += counts[values > high].sum()
    levels = np.rint((values[inside] - low) / (high - low) * (_LEVELS - 1)).astype(np.int64)
    total = np.bincount(levels, weights=own, minlength=_LEVELS)
    members = np.bincount(levels, minlength=_LEVELS)
    rounded = (total / np.maximum(members, 1))[levels]
    p, q = original / original.sum(), rounded / rounded.sum()
    return float(np.sum(p * np.log(p / q)))


def open_graph(model: onnx.ModelProto) -> Any:
    """A session of any graph, on one thread, for measurements."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors come back as exceptions
    settings.intra_op_num_threads = 1
    settings.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def _with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """The graph with further tensors as outputs."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    known = {item.name for item in copied.graph.output} | {i.name for i in copied.graph.input}
    for name in tensors:
        if name not in known:
            item = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            copied.graph.output.append(item)
    return copied


def measure_ranges(
    model: onnx.ModelProto,
    tensors: Iterable[str],
    feeds: Iterable[Feeds],
    options: RangeOptions,
) -> dict[str, TensorRecord]:
    """Run a float32 graph and record tensors of it; one run's values are in memory at a time.

    Args:
        model: The graph.
        tensors: Names of float tensors, inputs of the graph among them.
        feeds: Inputs of each run.
        options: Say whether histograms are needed.

    Raises:
        DataError: No runs.
        ExportError: A value is not finite.
    """
    wanted = list(dict.fromkeys(tensors))
    session = open_graph(_with_outputs(model, wanted))
    given = {item.name for item in session.get_inputs()}
    made = [name for name in wanted if name not in given]
    records = {name: TensorRecord(options.method != "minmax") for name in wanted}
    runs = 0
    for feed in feeds:
        runs += 1
        for name in given & records.keys():
            records[name].add(name, feed[name])
        if made:
            for name, values in zip(made, session.run(made, dict(feed)), strict=True):
                records[name].add(name, values)
    if not runs:
        raise DataError("no records to take ranges from; give --range-data with training records")
    return records
