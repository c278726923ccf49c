"""The command `umd-edge-export compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from umd_edge.errors import UsageError
from umd_edge_train.options import PATH, json_option, threads_option

from .options import data_sets_option, tasks_option

if TYPE_CHECKING:
    from .compare import PairedDifference

__all__ = ["compare", "count_progress"]


def count_progress(task: str, done: int, total: int) -> None:
    """A line on stderr for every 100 runs of a task."""
    if done == total or done % 100 == 0:
        click.echo(f"{task}: {done} of {total} runs", err=True)


def _line(name: str, value: PairedDifference) -> str:
    interval = "[no interval]"
    if value.low is not None and value.high is not None:
        interval = f"[{100 * value.low:+.2f}, {100 * value.high:+.2f}]"
    return (
        f"{name:<22} {value.accuracy_a:.4f} -> {value.accuracy_b:.4f}  "
        f"difference {100 * value.difference:+.2f} points {interval}  "
        f"changed {100 * value.changed_decisions:.2f} %  n={value.n}"
    )


@click.command()
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="A [B]")
@click.option("--variants", nargs=2, metavar="A B", help="Variants, such as fp32 int8.")
@data_sets_option("--data", required=True, help="JSONL; repeatable.")
@tasks_option
@threads_option
@json_option
def compare(
    models: tuple[Path, ...],
    variants: tuple[str, str] | None,
    data: tuple[Path, ...],
    tasks: tuple[str, ...],
    threads: int,
    as_json: bool,
) -> None:
    """Paired difference of accuracy between A and B, each a bundle or a checkpoint (a directory).

    Or between two --variants of one bundle. A checkpoint runs in torch.
    """
    from .compare import compare as run_comparison
    from .sides import open_side

    if len(models) > 2 or (len(models) == 1 and variants is None):
        raise UsageError(
            f"{len(models)} models given; give two, or one bundle and --variants fp32 int8"
        )
    names = variants or (None, None)
    first = open_side(models[0], names[0], threads)
    second = open_side(models[-1], names[1], threads)
    result = run_comparison(first, second, data, tasks=tasks, progress=count_progress)
    if as_json:
        sides = {"a": first.to_dict(), "b": second.to_dict()}
        click.echo(json.dumps({**sides, **result.to_dict()}))
        return
    for name, value in [*result.tasks.items(), ("pooled", result.pooled)]:
        click.echo(_line(name, value))
