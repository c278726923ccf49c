"""Whether a sample's outputs depend on its batch mates or on padding: they must not, to the bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvarianceError
from .graphs import GraphIO
from .runner import GraphTrio, largest_difference
from .samples import Sample, stack

__all__ = ["BATCHES", "InvarianceReport", "check_invariance", "measure_invariance"]

BATCHES = (2, 3, 5, 8, 16)
THREADS = (1, 2)
_PADDED_BATCH = 2

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class InvarianceReport:
    """What was compared with each sample run alone, without padding, on one thread."""

    samples: int
    comparisons: int
    """Sample and setting pairs that were compared."""
    differing: Mapping[str, float]
    """Output -> largest difference; only outputs with any differing bit."""

    @property
    def problem(self) -> str:
        """What depends on company or padding; empty where nothing does."""
        if not self.differing:
            return ""
        worst = ", ".join(f"{name} by {value:.3g}" for name, value in self.differing.items())
        return (
            f"a sample's outputs depend on its batch or on padding: {worst}; bit-identical outputs "
            "are needed"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "samples": self.samples,
            "comparisons": self.comparisons,
            "batches": [1, *BATCHES],
            "threads": list(THREADS),
            "bit_identical": not self.differing,
            "differing": dict(self.differing),
        }


def _row(outputs: Mapping[str, Array], index: int, length: int) -> dict[str, Array]:
    """One sample's outputs; the tokens of padding have no meaning and are cut off."""
    rows = {name: value[index] for name, value in outputs.items()}
    rows["text_tokens"] = rows["text_tokens"][:length]
    return rows


def _settings(samples: Sequence[Sample], max_length: int) -> list[tuple[list[int], int]]:
    """Batches (indices of samples) with the length that their texts are padded to."""
    own = [item.input_ids.shape[1] for item in samples]
    plans: list[tuple[list[int], int]] = []
    for size in BATCHES:
        for start in range(0, len(samples), size):
            rows = list(range(start, min(start + size, len(samples))))
            plans.append((rows, max(own[row] for row in rows)))
    for row, length in enumerate(own):
        paddings = {length, min(length + 1, max_length), (length + max_length) // 2, max_length}
        plans += [([row], padded) for padded in sorted(paddings)]
    last = list(range(min(_PADDED_BATCH, len(samples))))
    return [*plans, (last, max_length)]


def measure_invariance(
    graphs: Mapping[str, bytes],
    parts: Mapping[str, GraphIO],
    samples: Sequence[Sample],
    *,
    max_length: int,
    pad_id: int,
) -> InvarianceReport:
    """Compare every output of every sample, alone and in company, bit for bit.

    Args:
        graphs: Part -> serialised ONNX of one variant.
        parts: Part -> inputs and outputs.
        samples: A few; all are held in memory.
        max_length: Longest text in tokens: padding goes up to it.
        pad_id: Token id of padding.
    """
    alone = GraphTrio(graphs, parts, threads=1)
    reference = [
        _row(alone.run(stack([item], item.input_ids.shape[1], pad_id)), 0, item.input_ids.shape[1])
        for item in samples
    ]
    differing: dict[str, float] = {}
    comparisons = 0
    for threads in THREADS:
        trio = alone if threads == 1 else GraphTrio(graphs, parts, threads=threads)
        for rows, length in _settings(samples, max_length):
            outputs = trio.run(stack([samples[row] for row in rows], length, pad_id))
            for index, row in enumerate(rows):
                own = samples[row].input_ids.shape[1]
                comparisons += 1
                _compare(_row(outputs, index, own), reference[row], differing)
    return InvarianceReport(len(samples), comparisons, differing)


def _compare(
    given: Mapping[str, Array], wanted: Mapping[str, Array], differing: dict[str, float]
) -> None:
    for name, value in wanted.items():
        if not np.array_equal(given[name].view(np.int32), value.view(np.int32)):
            difference = largest_difference(given[name], value)
            differing[name] = max(differing.get(name, 0.0), difference)


def check_invariance(report: InvarianceReport, variant: str) -> None:
    """Refuse a variant whose results depend on company or padding.

    Raises:
        InvarianceError: With the outputs that differ and by how much.
    """
    if report.problem:
        raise InvarianceError(f"variant {variant!r}: {report.problem}")
