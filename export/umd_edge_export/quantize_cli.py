"""The command `umd-edge-export quantize`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from umd_edge_train.options import PATH, json_option

from .options import (
    batch_dependence_option,
    bundle_out_option,
    data_sets_option,
    naming_options,
    range_options,
    restricted_option,
)
from .output import bundle_facts, note, note_gate, show_bundle
from .targets import TARGETS

if TYPE_CHECKING:
    from umd_edge._bundle import Bundle

__all__ = ["quantize"]


def _is_checkpoint(path: Path) -> bool:
    return (path / "config.json").is_file() and not (path / "manifest.json").exists()


def _write_map(built: Bundle, folder: Path) -> None:
    """`sensitivity.<variant>.json` and `.png` for every variant that was measured."""
    from umd_edge._json import dump_canonical

    from .sensitivity_map import draw_layers

    folder.mkdir(parents=True, exist_ok=True)
    report = json.loads(built.read("report.json"))
    for variant, found in report.get("sensitivity", {}).items():
        title = f"{built.manifest.name} {built.manifest.version}: {variant}"
        for suffix, data in (
            ("json", dump_canonical(found)),
            ("png", draw_layers(found, title)),
        ):
            place = folder / f"sensitivity.{variant}.{suffix}"
            temporary = place.with_suffix(f".{suffix}.part")
            temporary.write_bytes(data)
            temporary.replace(place)


@click.command()
@click.argument("model", type=PATH)
@click.option(
    "--target",
    "targets",
    type=click.Choice(list(TARGETS)),
    multiple=True,
    required=True,
    help="What the graphs are made for; repeatable.",
)
@range_options("JSONL whose records set the ranges, for every task; repeatable.")
@bundle_out_option
@click.option(
    "--ranges",
    type=click.Choice(["minmax", "percentile", "entropy"]),
    default="minmax",
    show_default=True,
    help="How a range is taken from the values.",
)
@click.option("--percentile", type=float, default=99.999, show_default=True)
@data_sets_option(
    "--budget-data",
    help="Labelled JSONL that decides which layers stay in float; without it a rule does.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0, 100),
    default=0.5,
    show_default=True,
    help="Points of accuracy that any task may lose.",
)
@click.option(
    "--max-changed",
    type=click.FloatRange(0, 100),
    default=1.0,
    show_default=True,
    help="Percent of all decisions that may change.",
)
@click.option("--keep-float", multiple=True, metavar="NODE", help="Leave in float; repeatable.")
@batch_dependence_option
@data_sets_option(
    "--gate-data", help="Labelled JSONL for the accuracy gate, not the budget's; repeatable."
)
@click.option(
    "--size-only", multiple=True, metavar="VARIANT", help="May be slower than float32; repeatable."
)
@click.option("--without-fp32", is_flag=True, help="Leave the float32 graphs out of the bundle.")
@click.option("--report", type=PATH, metavar="DIR", help="Folder for the map of the layers.")
@naming_options(
    name_help="Of a checkpoint's bundle.",
    version_help="Of a checkpoint's bundle.",
    metrics_help="JSON of measured metrics for a checkpoint's card.",
)
@restricted_option
@json_option
def quantize(model: Path, out: Path, report: Path | None, as_json: bool, **given: Any) -> None:
    """Quantise MODEL, a checkpoint or a bundle that holds fp32, for one or several targets.

    Nothing is written where a gate fails: invariance, accuracy (with --gate-data), speed.
    """
    from .places import check_folder, check_place

    check_place(out)
    if report is not None:
        check_folder(report)
    with tempfile.TemporaryDirectory(prefix="umd-edge-") as folder:
        source = _float_bundle(model, Path(folder), given) if _is_checkpoint(model) else model
        built = _quantise(source, out, given)
    if report is not None:
        _write_map(built, report)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "bundle": bundle_facts(built),
                    "path": str(out),
                    "size_bytes": built.size_bytes,
                    "report": json.loads(built.read("report.json")),
                }
            )
        )
    else:
        show_bundle(out, built)


def _float_bundle(checkpoint: Path, folder: Path, given: dict[str, Any]) -> Path:
    from .bundle import build_bundle
    from .card import read_metrics

    built = build_bundle(
        checkpoint,
        given["range_data"],
        folder / "float.umd",
        variants=["fp32"],
        name=given["name"],
        version=given["version"],
        metrics=read_metrics(given["metrics"]) if given["metrics"] else None,
        allow_non_commercial=given["allow_non_commercial"],
        range_samples=given["range_samples"],
        on_gate=note_gate,
        progress=note,
    )
    return built.path


def _quantise(source: Path, out: Path, given: dict[str, Any]) -> Bundle:
    from .gates import GateOptions
    from .quantize import QuantiseOptions
    from .quantize_bundle import QuantiseData, quantise_bundle
    from .ranges import RangeOptions

    return quantise_bundle(
        source,
        given["targets"],
        QuantiseData(
            ranges=given["range_data"],
            budget=given["budget_data"],
            range_samples=given["range_samples"],
            allow_non_commercial=given["allow_non_commercial"],
        ),
        out,
        options=QuantiseOptions(
            ranges=RangeOptions(method=given["ranges"], percentile=given["percentile"]),
            budget=given["budget"],
            max_changed=given["max_changed"],
            keep_float=given["keep_float"],
            allow_batch_dependence=given["allow_batch_dependence"],
        ),
        gates=GateOptions(
            data=given["gate_data"], max_drop=given["budget"], size_only=given["size_only"]
        ),
        keep_fp32=not given["without_fp32"],
        on_gate=note_gate,
        progress=note,
    )
