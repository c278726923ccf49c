"""The command `umd-edge-export bundle`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from umd_edge.errors import UsageError
from umd_edge_train.options import PATH, json_option

from .options import (
    batch_dependence_option,
    bundle_out_option,
    data_sets_option,
    naming_options,
    pictures_option,
    range_options,
    restricted_option,
)
from .output import bundle_facts, note, note_gate, show_bundle

if TYPE_CHECKING:
    from .gates import GateResult

__all__ = ["bundle"]


@click.command()
@click.argument("checkpoint", type=PATH)
@range_options("JSONL whose records set the INT8 ranges, for every task; repeatable.")
@bundle_out_option
@click.option(
    "--variants",
    default="fp32,int8",
    show_default=True,
    help="Comma-separated: fp32 and targets (cpu, tensorrt, openvino, arm64, dynamic) or variants.",
)
@naming_options(
    name_help="Name of the bundle.",
    version_help="Version of the model.",
    metrics_help="JSON of measured metrics for the model card.",
)
@data_sets_option(
    "--gate-data", help="JSONL of labelled records for the accuracy gate; repeatable."
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    default=0.5,
    show_default=True,
    help="Points of accuracy that a variant may lose, over all tasks together.",
)
@click.option("--proven", is_flag=True, help="The interval of the loss must lie within it too.")
@click.option(
    "--size-only",
    multiple=True,
    metavar="VARIANT",
    help="A variant that may be slower than float32; repeatable.",
)
@batch_dependence_option
@click.option("--report", type=PATH, help="HTML page to write; it names records.")
@pictures_option
@data_sets_option(
    "--fit-data",
    help="JSONL of labelled records to fit probabilities and thresholds on, as `trust` does.",
)
@restricted_option
@json_option
def bundle(
    checkpoint: Path,
    range_data: tuple[Path, ...],
    out: Path,
    variants: str,
    name: str,
    version: str,
    metrics: Path | None,
    range_samples: int,
    gate_data: tuple[Path, ...],
    max_drop: float,
    proven: bool,
    size_only: tuple[str, ...],
    allow_batch_dependence: bool,
    report: Path | None,
    with_pictures: Path | None,
    fit_data: tuple[Path, ...],
    allow_non_commercial: bool,
    as_json: bool,
) -> None:
    """Export, quantise, check and pack CHECKPOINT (a directory).

    Nothing is written where a gate fails: parity, invariance, linter (for TensorRT), accuracy (with
    --gate-data), speed.
    """
    from .bundle import build_bundle
    from .card import read_metrics
    from .gates import GateOptions
    from .quantize import QuantiseOptions

    if with_pictures is not None and not gate_data:
        raise UsageError("--with-pictures needs labelled records: give --gate-data")
    results: list[GateResult] = []

    def tell(result: GateResult) -> None:
        results.append(result)
        note_gate(result)

    built = build_bundle(
        checkpoint,
        range_data,
        out,
        variants=[item.strip() for item in variants.split(",") if item.strip()],
        name=name,
        version=version,
        metrics=read_metrics(metrics) if metrics else None,
        allow_non_commercial=allow_non_commercial,
        range_samples=range_samples,
        gates=GateOptions(data=gate_data, max_drop=max_drop, proven=proven, size_only=size_only),
        quantise=QuantiseOptions(allow_batch_dependence=allow_batch_dependence),
        fit_data=fit_data,
        report=report,
        pictures=with_pictures,
        on_gate=tell,
        progress=note,
    )
    if not as_json:
        show_bundle(out, built)
        return
    timings = {item.variant: item.timings for item in results if item.timings}
    result = {
        "bundle": bundle_facts(built),
        "path": str(out),
        "size_bytes": built.size_bytes,
        "timings": timings,
        "report": json.loads(built.read("report.json")),
    }
    click.echo(json.dumps(result))
