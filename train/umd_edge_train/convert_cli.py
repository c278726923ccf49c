"""`umd-edge-train data convert`: public data layouts into JSONL manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import click

from .converters import CONVERTERS, ConvertOptions, ConvertReport, convert
from .converters.melinda import LABELS
from .converters.sample import Images, Splits
from .converters.source import Missing
from .converters.vqa_med import CATEGORIES
from .data_progress import progress_bar
from .options import PATH

__all__ = ["convert_command"]


def _to_text(report: ConvertReport, out: Path) -> str:
    lines = [f"{report.title} -> {out}", f"split unit: {report.split_unit}"]
    for split, counts in report.counts.items():
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        lines.append(f"  {split:<5} {listed}")
    lines += [f"  left out: {count} ({reason})" for reason, count in report.dropped.items()]
    return "\n".join(lines)


@click.command("convert")
@click.argument("name", metavar="FORMAT", type=click.Choice(list(CONVERTERS)))
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--splits",
    type=click.Choice(["patients", "published"]),
    default="patients",
    show_default=True,
    help="By a hash of the split unit, or as the source has them.",
)
@click.option("--seed", default=0, show_default=True, help="Of the hash.")
@click.option("--val-share", default=0.1, show_default=True, help="Of the units, by patients.")
@click.option("--test-share", default=0.2, show_default=True, help="Of the units, by patients.")
@click.option("--carve-val", type=float, help="Published splits without val: share of train.")
@click.option(
    "--images",
    type=click.Choice(["reference", "link", "copy"]),
    default="reference",
    show_default=True,
    help="One link to SOURCE, a hard link for each picture, or copies.",
)
@click.option(
    "--missing",
    type=click.Choice(["error", "drop"]),
    default="error",
    show_default=True,
    help="Records without their picture.",
)
@click.option("--strict-counts", is_flag=True, help="Other counts than published are an error.")
@click.option("--language", type=click.Choice(["en", "zh", "all"]), help="slake: en by default.")
@click.option(
    "--category",
    "categories",
    type=click.Choice(CATEGORIES),
    multiple=True,
    help="vqa-med-2019: may be given several times; all by default.",
)
@click.option("--label", type=click.Choice(LABELS), help="melinda: p_meth_label by default.")
@click.option("--subset", type=click.Choice(["retrieval"]), help="roco: the retrieval set.")
@click.option("--references", type=PATH, help="roco: MedICaT's folder of references.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object on stdout.")
def convert_command(
    name: str,
    source: Path,
    out: Path,
    splits: str,
    images: str,
    missing: str,
    categories: tuple[str, ...],
    as_json: bool,
    seed: int,
    val_share: float,
    test_share: float,
    carve_val: float | None,
    strict_counts: bool,
    language: str | None,
    label: str | None,
    subset: str | None,
    references: Path | None,
) -> None:
    """Convert a public set in SOURCE, as its authors publish it, into JSONL manifests in OUT.

    OUT must not exist. OUT/convert.json says what was done, with the SHA-256 of what was read.
    """
    options = ConvertOptions(
        splits=cast(Splits, splits),
        seed=seed,
        val_share=val_share,
        test_share=test_share,
        carve_val=carve_val,
        images=cast(Images, images),
        missing=cast(Missing, missing),
        strict_counts=strict_counts,
        language=language,
        categories=categories or None,
        label=label,
        subset=subset,
        references=references,
    )
    with progress_bar("comparing pictures") as hashed, progress_bar("placing pictures") as placed:
        report = convert(name, source, out, options, on_hash=hashed, on_progress=placed)
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(json.dumps(report.to_dict()) if as_json else _to_text(report, out))
