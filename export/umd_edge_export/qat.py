"""Quantisation-aware fine-tuning: the last steps of a training, on the grids of the INT8 graph.

The checkpoint it starts from is exported and quantised once, as for a bundle, and the training
computes on the grids found there. What comes out is a checkpoint like any other: weights alone, in
float32, to be exported and quantised anew. The validation of the run is that of the rounded model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import Checkpoint, CheckpointError
from umd_edge_train.recipe import Recipe

from .distil import Distillation, TeacherPaths
from .graphs import PARTS, export_graphs, graph_io
from .qat_layers import LayerGrids, attach_grids, fold_stem, read_grids
from .quantize import QuantiseOptions, quantise_variant
from .runner import GraphTrio
from .samples import SampleSource, choose_samples, read_free_records
from .targets import find_target

__all__ = ["RangeData", "quantisation_aware", "quantised_layers"]


@dataclass(frozen=True, slots=True)
class RangeData:
    """Records that set the ranges of activations, as for a bundle."""

    files: tuple[Path, ...]
    samples: int = 256
    target: str = "cpu"
    """Of the export's INT8 targets."""


def quantised_layers(
    checkpoint: Checkpoint, ranges: RangeData, *, allow_non_commercial: bool = False
) -> list[LayerGrids]:
    """Prepare a model for fake quantisation, and find what is quantised and how.

    Args:
        checkpoint: Its model's stem is folded and equalised in place; the function stays the same.
        ranges: Real records, and the target.
        allow_non_commercial: Also take records that are not marked `non_commercial: false`.

    Raises:
        UsageError: There is no such target, or it has no fixed ranges.
        DataError: The records fit no task, or are not free and that was not allowed.
        ExportError: The model cannot be exported or quantised.
    """
    target = find_target(ranges.target)
    if target.dynamic:
        raise UsageError(
            f"target {ranges.target!r} takes its ranges at run time and has none to train with; "
            "give one of fixed ranges, such as cpu"
        )
    files = read_free_records(ranges.files, allow_non_commercial=allow_non_commercial)
    source = SampleSource(checkpoint, choose_samples(files, checkpoint, ranges.samples))
    fold_stem(checkpoint.model, (sample.pixel_values for sample in source))
    graphs = export_graphs(checkpoint, (sample.pixel_values for sample in source))
    serialised = {part: graphs[part].SerializeToString(deterministic=True) for part in PARTS}
    reference = GraphTrio(serialised, graph_io(checkpoint))
    made = quantise_variant(graphs, source, reference, target, QuantiseOptions())
    return [
        layer for graph in made.graphs.values() for layer in read_grids(graph, checkpoint.model)
    ]


class QuantisationAware(Distillation):
    """A supervised run, with teachers or without, of a model that rounds as the INT8 graph does."""

    def __init__(
        self,
        recipe: Recipe,
        data: Path,
        out: Path,
        init: Path,
        teachers: TeacherPaths,
        ranges: RangeData,
    ) -> None:
        self._ranges = ranges
        super().__init__(recipe, data, out, init, teachers)
        note = {
            "target": ranges.target,
            "layers": sorted(layer.module for layer in self.layers),
            "range_data": [hashlib.sha256(path.read_bytes()).hexdigest() for path in ranges.files],
        }
        provenance = {**self.checkpoint.provenance, "quantisation_aware": note}
        self.checkpoint = replace(self.checkpoint, provenance=provenance)

    def build(self) -> nn.Module:
        """The model on its grids, with losses and teachers."""
        if self.parent is None or self.parent.tasks != self.corpus.tasks:
            raise CheckpointError(
                "the checkpoint has other tasks than the recipe; quantisation-aware fine-tuning is "
                "the last step of a training: give the recipe's own checkpoint as --init"
            )
        own = replace(self.parent, model=self.model)
        self.layers = quantised_layers(
            own, self._ranges, allow_non_commercial=self.recipe.allow_non_commercial
        )
        attach_grids(self.model, self.layers)
        return super().build()


def quantisation_aware(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    init: Path,
    ranges: RangeData,
    teachers: Sequence[Path] = (),
    resume: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Fine-tune a checkpoint for INT8, evaluate and save.

    Args:
        recipe: That of the checkpoint, with fewer epochs and a lower learning rate. Steps are
            computed in float32, whatever it says: bfloat16 is coarser than the grids.
        data: Folder of the data sets.
        out: Run folder; created.
        init: Checkpoint to fine-tune.
        ranges: Records that set the grids; those of the bundle.
        teachers: Checkpoints whose soft answers count too, such as `init` itself.
        resume: Continue the run in `out`, with the losses of a run that was never stopped.
        on_step: Called after each optimiser step with its number.

    Returns:
        Validation metrics of the rounded model at the end, by task.

    Raises:
        UsageError: The target has no fixed ranges, or the folder holds another run.
        CheckpointError: A checkpoint is missing or damaged, or has other tasks than the recipe.
        DataError: The data do not fit the recipe or the tasks.
        ExportError: The checkpoint cannot be exported or quantised.
        TrainingDivergedError: The loss is not finite.
    """
    distillation = recipe.distillation
    if not teachers:
        distillation = replace(
            distillation, soft_weight=0.0, token_weight=0.0, pooled_weight=0.0, relation_weight=0.0
        )
    optim = replace(recipe.optim, precision="float32")
    recipe = replace(recipe, optim=optim, distillation=distillation)
    run = QuantisationAware(recipe, data, out, init, TeacherPaths(tuple(teachers)), ranges)
    return run.execute(resume=resume, on_step=on_step)
