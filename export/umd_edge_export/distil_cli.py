"""`umd-edge-export distil`: train a student with teachers."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["distil"]

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
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Overrides a setting.")
@click.option("--init", type=_PATH, help="Checkpoint that the student starts from.")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
def distil(
    recipe: Path,
    data: Path,
    out: Path,
    teachers: tuple[Path, ...],
    settings: tuple[str, ...],
    init: Path | None,
    resume: bool,
) -> None:
    """Train a student with teachers: their soft answers beside the labels."""
    from umd_edge_train.recipe import load_recipe
    from umd_edge_train.run_cli import print_metrics

    from .distil import distil as run

    loaded = load_recipe(recipe, settings)
    metrics = run(loaded, data, out, teachers=teachers, init=init, resume=resume)
    for task, values in metrics.items():
        print_metrics(task, values)
    click.echo(f"checkpoint: {out / 'final'}", err=True)
