"""`umd-edge-export distil | soft-targets`: train a student with teachers, or store their word."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["distil", "soft_targets"]

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
