"""`umd-edge-train pretrain | adapt | finetune | bench`: the commands that train."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .options import PATH, data_option, json_option, recipe_options

__all__ = ["RUNS", "print_metrics", "run_options"]


def run_options(
    *,
    recipe_help: str = "TOML recipe.",
    init_help: str = "Checkpoint to start from.",
    init_required: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that all runs share; the metrics that the command gives back are printed.

    The command gets `recipe`, `data`, `out`, `init` and `resume`, as `finetune` takes them.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @recipe_options(recipe_help)
        @data_option
        @click.option("--out", type=PATH, required=True, help="Run folder.")
        @click.option("--init", type=PATH, required=init_required, help=init_help)
        @click.option("--resume", is_flag=True, help="Continue the run in --out.")
        @functools.wraps(command)
        def wrapped(out: Path, **given: Any) -> None:
            try:
                metrics = command(out=out, **given)
            except KeyboardInterrupt:
                click.echo(
                    "stopped; the same command with --resume goes on from the newest checkpoint "
                    f"in {str(out / 'checkpoints')!r}, or starts afresh where there is none",
                    err=True,
                )
                raise
            for task, values in metrics.items():
                print_metrics(task, values)
            click.echo(f"checkpoint: {out / 'final'}", err=True)

        return wrapped

    return decorate


@click.command()
@run_options()
def pretrain(**given: Any) -> dict[str, Any]:
    """Pre-train on pairs of picture and text (MR-Pretrain, M3AE)."""
    from .pretraining import pretrain as run

    return run(**given)


@click.command()
@run_options(init_required=True)
def adapt(**given: Any) -> dict[str, Any]:
    """Continue a pre-training on one downstream set, without its labels (TD-Calib)."""
    from .pretraining import adapt as run

    return run(**given)


@click.command()
@run_options()
def finetune(**given: Any) -> dict[str, Any]:
    """Fine-tune on several tasks and data sets in one run (GM-Coord)."""
    from .finetuning import finetune as run

    return run(**given)


@click.command()
@click.option("--preset", multiple=True, help="Preset; repeatable. All where none is given.")
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--images", type=click.IntRange(min=2), default=16, show_default=True)
@click.option("--texts", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="float16 needs a GPU.",
)
@click.option(
    "--algorithm", type=click.Choice(["adamw", "muon"]), default="adamw", show_default=True
)
@json_option
def bench(preset: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Throughput and memory of a training step of each preset, on generated pictures."""
    from .bench import bench_presets

    report = bench_presets(
        preset, **given, on_preset=lambda name: click.echo(f"measuring {name}", err=True)
    )
    if as_json:
        click.echo(json.dumps(report))
        return
    setting = report["setting"]
    click.echo(
        f"on {setting['device']} ({setting['device_name']}), threads: {setting['threads']}, "
        f"{setting['precision']}, {setting['algorithm']}, {setting['images']} pictures a step; "
        f"memory: {setting['memory']}"
    )
    for name, found in report["presets"].items():
        click.echo(f"{name}  {found['parameters'] / 1e6:.1f} M parameters")
        for kind in ("finetune", "pretrain"):
            step, memory = found[kind], found[kind]["peak_memory_bytes"]
            click.echo(
                f"  {kind}  {step['images_per_second']:8.2f} pictures/s "
                f"[{step['low']:.2f}, {step['high']:.2f}]  "
                + ("peak memory unknown" if memory is None else f"peak {memory / 1e9:.2f} GB")
            )


RUNS: tuple[click.Command, ...] = (pretrain, adapt, finetune, bench)


def print_metrics(task: str, metrics: dict[str, dict[str, Any]]) -> None:
    """Metrics of a task as lines."""
    click.echo(task)
    for name, metric in metrics.items():
        if metric["value"] is None:
            click.echo(f"  {name:<34} undefined  n={metric['n']}")
            continue
        interval = ""
        if metric["low"] is not None:
            interval = f"  [{metric['low']:.3f}, {metric['high']:.3f}]"
        click.echo(f"  {name:<34} {metric['value']:.3f}{interval}  n={metric['n']}")
