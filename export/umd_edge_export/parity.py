"""Torch against ONNX on real inputs: the largest difference of any output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from umd_edge_train.checkpoint import Checkpoint

from .errors import ParityError
from .runner import GraphTrio, largest_difference
from .samples import Sample, stack

__all__ = ["TOLERANCE", "ParityReport", "check_parity", "measure_parity", "torch_outputs"]

TOLERANCE = 1e-4
BATCHES = (1, 2, 3, 8)

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Largest differences between the torch model and the float32 graphs."""

    samples: int
    settings: tuple[tuple[int, int], ...]
    """(batch size, text length) of each run."""
    differences: Mapping[str, float]
    """Output -> largest absolute difference."""
    tolerance: float = TOLERANCE

    @property
    def problem(self) -> str:
        """What differs too much, or was not compared; empty where nothing does."""
        failed = {k: v for k, v in self.differences.items() if not v <= self.tolerance}
        if not failed and self.differences:
            return ""
        worst = ", ".join(f"{name} by {value:.3g}" for name, value in failed.items())
        return (
            f"the ONNX graphs and the torch model differ: {worst or 'nothing was compared'}; at "
            f"most {self.tolerance:g} is allowed. Report it with the checkpoint's config.json"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "samples": self.samples,
            "batch_sizes": sorted({batch for batch, _ in self.settings}),
            "text_lengths": sorted({length for _, length in self.settings}),
            "max_difference": max(self.differences.values()),
            "differences": dict(self.differences),
            "tolerance": self.tolerance,
        }


@torch.inference_mode()
def torch_outputs(checkpoint: Checkpoint, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of the torch model, under the names of the graphs' outputs."""
    model = checkpoint.model.eval()
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    image_tokens, image_embedding = model.encode_image(given["pixel_values"])
    text_tokens, text_embedding = model.encode_text(given["input_ids"], given["attention_mask"])
    outputs = model.fuse(
        image_tokens,
        text_tokens,
        given["attention_mask"],
        given["structured_values"],
        given["structured_mask"],
    )
    outputs |= {"image_tokens": image_tokens, "image_embedding": image_embedding}
    outputs |= {"text_tokens": text_tokens, "text_embedding": text_embedding}
    return {name: value.numpy() for name, value in outputs.items()}


def measure_parity(
    checkpoint: Checkpoint, trio: GraphTrio, samples: Sequence[Sample], pad_id: int
) -> ParityReport:
    """Run both on real samples at several batch sizes and text lengths.

    Args:
        checkpoint: The torch model.
        trio: The float32 graphs.
        samples: At least one; all are held in memory.
        pad_id: Token id of padding, which is put after the text up to the longest length allowed.
    """
    differences: dict[str, float] = {}
    settings: list[tuple[int, int]] = []
    for batch in BATCHES:
        for start in range(0, len(samples), batch):
            rows = samples[start : start + batch]
            own = max(item.input_ids.shape[1] for item in rows)
            lengths = {own, checkpoint.max_length} if start == 0 else {own}
            for length in sorted(lengths):
                inputs = stack(rows, length, pad_id)
                given, wanted = trio.run(inputs), torch_outputs(checkpoint, inputs)
                settings.append((len(rows), length))
                _record(given, wanted, inputs["attention_mask"], differences)
    return ParityReport(len(samples), tuple(settings), differences)


def _record(
    given: Mapping[str, Array],
    wanted: Mapping[str, Array],
    mask: Array,
    differences: dict[str, float],
) -> None:
    for name, value in wanted.items():
        ours, theirs = given[name], value
        if name == "text_tokens":  # tokens of padding are masked by whoever reads them
            ours, theirs = ours[mask > 0], theirs[mask > 0]
        difference = largest_difference(ours, theirs)
        # NaN must stay: it fails the check.
        differences[name] = float(np.maximum(differences.get(name, 0.0), difference))


def check_parity(report: ParityReport) -> None:
    """Refuse graphs that do not compute what the model computes.

    Raises:
        ParityError: With the measured difference and the tolerance.
    """
    if report.problem:
        raise ParityError(report.problem)
