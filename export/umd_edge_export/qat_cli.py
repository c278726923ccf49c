"""`umd-edge-export qat`: fine-tune a checkpoint on the grids of its INT8 graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from umd_edge_train.run_cli import run_options

from .options import range_options, teachers_option

__all__ = ["qat"]


@click.command()
@run_options(
    recipe_help="TOML recipe of the checkpoint.",
    init_help="Checkpoint to fine-tune.",
    init_required=True,
)
@range_options("JSONL whose records set the INT8 ranges; those of the bundle.")
@click.option("--target", default="cpu", show_default=True, help="INT8 target of the export.")
@teachers_option()
def qat(
    range_data: tuple[Path, ...], range_samples: int, target: str, **given: Any
) -> dict[str, Any]:
    """Fine-tune a checkpoint for what static INT8 loses, on the grids of its INT8 graph."""
    from .qat import RangeData, quantisation_aware

    return quantisation_aware(ranges=RangeData(range_data, range_samples, target), **given)
