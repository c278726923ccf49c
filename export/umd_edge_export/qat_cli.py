"""`umd-edge-export qat`: fine-tune a checkpoint on the grids of its INT8 graph."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["qat"]

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--recipe", type=_PATH, required=True, help="TOML recipe of the checkpoint.")
@click.option("--data", type=_PATH, required=True, help="Data sets' folder.")
@click.option("--init", type=_PATH, required=True, help="Checkpoint to fine-tune.")
@click.option(
    "--range-data",
    type=_PATH,
    multiple=True,
    required=True,
    help="JSONL whose records set the INT8 ranges; those of the bundle.",
)
@click.option("--range-samples", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--target", default="cpu", show_default=True, help="INT8 target of the export.")
@click.option("--teacher", "teachers", type=_PATH, multiple=True, help="As in distil.")
@click.option("--out", type=_PATH, required=True, help="Run folder.")
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Overrides a setting.")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
def qat(
    recipe: Path,
    data: Path,
    init: Path,
    range_data: tuple[Path, ...],
    range_samples: int,
    target: str,
    teachers: tuple[Path, ...],
    out: Path,
    settings: tuple[str, ...],
    resume: bool,
) -> None:
    """Fine-tune a checkpoint for what static INT8 loses, on the grids of its INT8 graph."""
    from umd_edge_train.recipe import load_recipe
    from umd_edge_train.run_cli import print_metrics

    from .qat import RangeData, quantisation_aware

    metrics = quantisation_aware(
        load_recipe(recipe, settings),
        data,
        out,
        init=init,
        ranges=RangeData(range_data, range_samples, target),
        teachers=teachers,
        resume=resume,
    )
    for task, values in metrics.items():
        print_metrics(task, values)
    click.echo(f"checkpoint: {out / 'final'}", err=True)
