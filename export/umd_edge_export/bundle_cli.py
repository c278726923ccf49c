"""The command `umd-edge-export bundle`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from umd_edge.errors import UsageError

if TYPE_CHECKING:
    from .gates import GateResult

__all__ = ["bundle"]

_PATH = click.Path(path_type=Path)


def _note(message: str) -> None:
    click.echo(message, err=True)


@click.command()
@click.argument("checkpoint", type=_PATH)
@click.option(
    "--range-data",
    type=_PATH,
    multiple=True,
    required=True,
    help="JSONL whose records set the INT8 ranges, for every task; repeatable.",
)
@click.option("--out", type=_PATH, required=True, help="The .umd file to write.")
@click.option(
    "--variants",
    default="fp32,int8",
    show_default=True,
    help="Comma-separated: fp32 and targets (cpu, tensorrt, openvino, arm64, dynamic) or variants.",
)
@click.option("--name", default="umd-edge", show_default=True, help="Name of the bundle.")
@click.option("--version", default="0.1.0", show_default=True, help="Version of the model.")
@click.option("--metrics", type=_PATH, help="JSON of measured metrics for the model card.")
@click.option("--range-samples", type=click.IntRange(min=1), default=256, show_default=True)
@click.option(
    "--gate-data",
    type=_PATH,
    multiple=True,
    help="JSONL of labelled records for the accuracy gate; repeatable.",
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
@click.option(
    "--allow-batch-dependence",
    is_flag=True,
    help="Accept target dynamic: a result then depends on its batch and on padding.",
)
@click.option("--report", type=_PATH, help="HTML page to write; it names records.")
@click.option(
    "--with-pictures",
    type=_PATH,
    metavar="DIR",
    help="Folder for pictures of the records that disagree most. They show patients' pictures.",
)
@click.option(
    "--fit-data",
    type=_PATH,
    multiple=True,
    help="JSONL of labelled records to fit probabilities and thresholds on, as `trust` does.",
)
@click.option("--allow-non-commercial", is_flag=True, help="Take restricted records too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
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
        _note(result.to_line())

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
        progress=_note,
    )
    if not as_json:
        click.echo(f"{out}: {built.size_bytes / 1e6:.1f} MB, sha256 {built.sha256}")
        return
    timings = {item.variant: item.timings for item in results if item.timings}
    result = {
        "bundle": {"name": name, "version": version, "sha256": built.sha256},
        "path": str(out),
        "size_bytes": built.size_bytes,
        "timings": timings,
        "report": json.loads(built.read("report.json")),
    }
    click.echo(json.dumps(result))
