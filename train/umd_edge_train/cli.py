"""The `umd-edge-train` command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from umd_edge._task import OnUnmapped
from umd_edge.errors import UmdEdgeError

from .data_cli import data as data_group

__all__ = ["main"]


def _reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """One line for an error of ours, and its exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UmdEdgeError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="umd-edge")
@click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads of torch.")
def main(threads: int | None) -> None:
    """Train and evaluate UMD models, and check their data."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


main.add_command(data_group)


@main.command()
@click.option("--recipe", type=click.Path(path_type=Path), required=True, help="TOML recipe.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Data sets' folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Overrides a setting.")
@click.option("--init", type=click.Path(path_type=Path), help="Checkpoint to start from.")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@_reports_errors
def finetune(
    recipe: Path,
    data: Path,
    out: Path,
    settings: tuple[str, ...],
    init: Path | None,
    resume: bool,
) -> None:
    """Fine-tune on several tasks and data sets in one run."""
    from .finetuning import finetune as run
    from .recipe import load_recipe

    metrics = run(load_recipe(recipe, settings), data, out, init=init, resume=resume)
    for task, values in metrics.items():
        _print_metrics(task, values)
    click.echo(f"checkpoint: {out / 'final'}", err=True)


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--task", required=True, help="Name of a task of the checkpoint.")
@click.option(
    "--data",
    "manifests",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="JSONL manifest; may be given several times.",
)
@click.option("--on-unmapped", type=click.Choice(["error", "drop"]), help="Unknown labels.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--log", type=click.Path(path_type=Path), help="Append the figures to this log.")
@_reports_errors
def evaluate(
    checkpoint: Path,
    task: str,
    manifests: tuple[Path, ...],
    on_unmapped: OnUnmapped | None,
    as_json: bool,
    log: Path | None,
) -> None:
    """Evaluate a checkpoint with the metrics of `umd-edge evaluate`."""
    from .checkpoint import load_checkpoint
    from .evaluate import append_log, evaluate_checkpoint

    report = evaluate_checkpoint(load_checkpoint(checkpoint), task, manifests, on_unmapped)
    if log:
        append_log(log, f"checkpoint {checkpoint.name}", manifests, report)
    if as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(f"{report['n']} records, {report['dropped']} dropped")
        _print_metrics(task, report["metrics"])


def _print_metrics(task: str, metrics: dict[str, dict[str, Any]]) -> None:
    click.echo(task)
    for name, metric in metrics.items():
        if metric["value"] is None:
            click.echo(f"  {name:<34} undefined  n={metric['n']}")
            continue
        interval = ""
        if metric["low"] is not None:
            interval = f"  [{metric['low']:.3f}, {metric['high']:.3f}]"
        click.echo(f"  {name:<34} {metric['value']:.3f}{interval}  n={metric['n']}")


if __name__ == "__main__":
    main()
