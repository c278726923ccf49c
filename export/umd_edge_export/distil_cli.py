"""`umd-edge-export distil | distil-report | soft-targets`: students and their teachers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from umd_edge_train.options import PATH, data_option, json_option, recipe_options
from umd_edge_train.run_cli import run_options

from .options import teachers_option

if TYPE_CHECKING:
    from umd_edge_train.recipe import Recipe

__all__ = ["distil", "distil_report", "soft_targets"]

_STUDENT = "TOML recipe of the student."


@click.command()
@run_options(recipe_help=_STUDENT, init_help="Checkpoint that the student starts from.")
@teachers_option("Checkpoint; several are one teacher, the mean of their probabilities.")
@click.option("--targets", type=PATH, help="Soft targets, in place of --teacher.")
@click.option(
    "--feature-teacher",
    "published",
    multiple=True,
    metavar="MODEL",
    help="Directory or hub id of a transformers model, for features; repeatable.",
)
def distil(**given: Any) -> dict[str, Any]:
    """Train a student with teachers: their answers and features beside the labels."""
    from .distil import distil as run

    return run(**given)


@click.command()
@recipe_options(_STUDENT)
@data_option
@teachers_option("Checkpoint.", required=True)
@click.option("--out", type=PATH, required=True, help="File to write, *.safetensors.")
def soft_targets(recipe: Recipe, data: Path, teachers: tuple[Path, ...], out: Path) -> None:
    """Store what teachers say to every training record, for `distil --targets`."""
    from .soft_targets import write_soft_targets

    count = write_soft_targets(recipe, data, teachers, out)
    click.echo(f"{out}: {count} answers", err=True)


@click.command()
@recipe_options(_STUDENT)
@data_option
@click.option("--out", type=PATH, required=True, help="Folder of the runs and of the report.")
@teachers_option()
@click.option("--targets", type=PATH, help="Soft targets; --teacher is then compared alone.")
@click.option("--feature-teacher", "published", multiple=True, metavar="MODEL", help="Likewise.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--split", type=click.Choice(["train", "val"]), default="val", show_default=True)
@json_option
def distil_report(
    recipe: Recipe,
    data: Path,
    out: Path,
    teachers: tuple[Path, ...],
    targets: Path | None,
    published: tuple[str, ...],
    seeds: tuple[int, ...],
    split: str,
    as_json: bool,
) -> None:
    """Train students with and without teachers, one of each for every seed, and compare them."""
    from .distil import TeacherPaths
    from .distil_report import report_distillation

    given = TeacherPaths(teachers, targets, published)
    report = report_distillation(recipe, data, out, teachers=given, seeds=seeds, split=split)
    if as_json:
        click.echo(json.dumps(report))
        return
    pooled = {"all tasks": report["pooled"]} if "pooled" in report else {}
    for task, found in (report["tasks"] | pooled).items():
        click.echo(f"{task} {found['metric']}")
        for name, summary in found["arms"].items():
            click.echo(_line(name, summary, ""))
        for name, summary in found["differences"].items():
            click.echo(_line(name, summary, "+"))
    click.echo(f"page: {out / 'report.html'}", err=True)


def _line(name: str, summary: Mapping[str, Any], sign: str) -> str:
    low, high = summary["low"], summary["high"]
    interval = "" if low is None else f"({low:{sign}.3f} to {high:{sign}.3f})"
    return f"  {name:<34} {summary['value']:{sign}.3f} {interval:<20} n={summary['n']}"
