"""Runs the three graphs together, through the runtime's own sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from umd_edge._options import SessionOptions
from umd_edge._session import GraphSession, GraphSpec

from .graphs import PARTS, GraphIO

__all__ = ["GraphTrio", "largest_difference"]

Array = npt.NDArray[Any]

_RANKS = {
    "pixel_values": 4,
    "image_tokens": 3,
    "text_tokens": 3,
}


def graph_spec(part: GraphIO) -> GraphSpec:
    """What the runtime will ask of the graph."""
    inputs = {
        name: ("int64" if name in part.integers else "float", _RANKS.get(name, 2))
        for name in part.inputs
    }
    return GraphSpec(inputs, tuple(part.outputs))


class GraphTrio:
    """`vision`, `text` and `fusion` of one variant.

    Args:
        graphs: Part -> serialised ONNX.
        parts: Part -> inputs and outputs.
        threads: Threads inside one operator.
    """

    def __init__(
        self, graphs: Mapping[str, bytes], parts: Mapping[str, GraphIO], threads: int = 1
    ) -> None:
        options = SessionOptions(threads=threads)
        self._sessions = {
            part: GraphSession(graphs[part], part, graph_spec(parts[part]), options, u8u8=False)
            for part in PARTS
        }

    def run_part(self, part: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one graph by name."""
        session = self._sessions[part]
        return dict(zip(session.output_names, session.run(feeds), strict=True))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of all graphs by name, for a batch of B pictures with a text each.

        Args:
            inputs: `pixel_values` (B, C, H, W), `input_ids` and `attention_mask` (B, L),
                `structured_values` and `structured_mask` (B, F).
        """
        outputs = self.run_part("vision", {"pixel_values": inputs["pixel_values"]})
        words = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        outputs |= self.run_part("text", words)
        outputs |= self.run_part(
            "fusion",
            {
                "image_tokens": outputs["image_tokens"],
                "text_tokens": outputs["text_tokens"],
                "attention_mask": inputs["attention_mask"],
                "structured_values": inputs["structured_values"],
                "structured_mask": inputs["structured_mask"],
            },
        )
        return outputs


def largest_difference(given: Array, wanted: Array) -> float:
    """Largest absolute difference; NaN when either holds one, infinite when shapes differ."""
    if given.shape != wanted.shape:
        return float("inf")
    if given.size == 0:
        return 0.0
    return float(np.abs(given.astype(np.float64) - wanted.astype(np.float64)).max())
