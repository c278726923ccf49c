"""`umd-edge-export distil | distil-report | soft-targets`: students and their teachers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

__all__ = ["distil", "distil_report", "soft_targets"]

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--recipe", type=_PATH, required=True, help="TOML recipe of the student.")
@click.option("--data", type=_PATH, required=True, help="Data sets' folder.")
@click.option("--out", type=_PATH, required=True, help="Run folder.")
@click.option(
    "--teacher",
    "teachers",
    type=_PATH,
    multiple=True,
    help="Checkpoint; several are one teacher, the mean of their probabilities.",
)
@click.option("--targets", type=_PATH, help="Soft targets, in place of --teacher.")
@click.option(
    "--feature-teacher",
    "published",
    multiple=True,
    metavar="MODEL",
    help="Directory or hub id of a transformers model, for features; repeatable.",
)
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Overrides a setting.")
@click.option("--init", type=_PATH, help="Checkpoint that the student starts from.")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
def distil(
    recipe: Path,
    data: Path,
    out: Path,
    teachers: tuple[Path, ...],
    targets: Path | None,
    published: tuple[str, ...],
    settings: tuple[str, ...],
    init: Path | None,
    resume: bool,
) -> None:
    """Train a student with teachers: their answers and features beside the labels."""
    from umd_edge_train.recipe import load_recipe
    from umd_edge_train.run_cli import print_metrics

    from .distil import distil as run

    loaded = load_recipe(recipe, settings)
    metrics = run(
        loaded,
        data,
        out,
        teachers=teachers,
        targets=targets,
        published=published,
        init=init,
        resume=resume,
    )
    for task, values in metrics.items():
        print_metrics(task, values)
    click.echo(f"checkpoint: {out / 'final'}", err=True)


@click.command()
@click.option("--recipe", type=_PATH, required=True, help="TOML recipe of the student.")
@click.option("--data", type=_PATH, required=True, help="Data sets' folder.")
@click.option("--teacher", "teachers", type=_PATH, multiple=True, required=True, help="Checkpoint.")
@click.option("--out", type=_PATH, required=True, help="File to write, *.safetensors.")
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Overrides a setting.")
def soft_targets(
    recipe: Path, data: Path, teachers: tuple[Path, ...], out: Path, settings: tuple[str, ...]
) -> None:
    """Store what teachers say to every training record, for `distil --targets`."""
    from umd_edge_train.recipe import load_recipe

    from .soft_targets import write_soft_targets

    count = write_soft_targets(load_recipe(recipe, settings), data, teachers, out)
    click.echo(f"{out}: {count} answers", err=True)


@click.command()
@click.option("--recipe", type=_PATH, required=True, help="TOML recipe of the student.")
@click.option("--data", type=_PATH, required=True, help="Data sets' folder.")
@click.option("--out", type=_PATH, required=True, help="Folder of the runs and of the report.")
@click.option("--teacher", "teachers", type=_PATH, multiple=True, help="As in distil.")
@click.option("--targets", type=_PATH, help="Soft targets; --teacher is then compared alone.")
@click.option("--feature-teacher", "published", multiple=True, metavar="MODEL", help="Likewise.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--split", type=click.Choice(["train", "val"]), default="val", show_default=True)
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Overrides a setting.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def distil_report(
    recipe: Path,
    data: Path,
    out: Path,
    teachers: tuple[Path, ...],
    targets: Path | None,
    published: tuple[str, ...],
    seeds: tuple[int, ...],
    split: str,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train students with and without teachers, one of each for every seed, and compare them."""
    from umd_edge_train.recipe import load_recipe

    from .distil import TeacherPaths
    from .distil_report import report_distillation

    given = TeacherPaths(teachers, targets, published)
    loaded = load_recipe(recipe, settings)
    report = report_distillation(loaded, data, out, teachers=given, seeds=seeds, split=split)
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
