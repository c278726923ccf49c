"""The `umd-edge-export` command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from umd_edge import __version__
from umd_edge._program import Program
from umd_edge.errors import UsageError

from .distil_cli import distil

__all__ = ["main", "run"]

_PATH = click.Path(path_type=Path)


@click.group("umd-edge-export", cls=Program)
@click.version_option(__version__, prog_name="umd-edge-export")
def cli() -> None:
    r"""Turn a checkpoint into a bundle, and compare bundles.

    \b
    Exit codes: 0 ok, 1 internal error, 2 usage, 3 checkpoint, bundle or gate, 4 input, 5 provider
    or extra missing; 130 interrupted.
    """


def _progress(message: str) -> None:
    click.echo(message, err=True)


@cli.command()
@click.argument("checkpoint", type=_PATH)
@click.option(
    "--range-data",
    type=_PATH,
    multiple=True,
    required=True,
    help="JSONL whose records set the INT8 ranges and pass the gates; may be given several times.",
)
@click.option("--out", type=_PATH, required=True, help="The .umd file to write.")
@click.option("--variants", default="fp32,int8", show_default=True, help="Comma-separated.")
@click.option("--name", default="umd-edge", show_default=True, help="Name of the bundle.")
@click.option("--version", default="0.1.0", show_default=True, help="Version of the model.")
@click.option("--metrics", type=_PATH, help="JSON of measured metrics for the model card.")
@click.option("--range-samples", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--allow-non-commercial", is_flag=True, help="Take restricted records too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def bundle(
    checkpoint: Path,
    range_data: tuple[Path, ...],
    out: Path,
    variants: str,
    name: str,
    version: str,
    metrics: Path | None,
    range_samples: int,
    allow_non_commercial: bool,
    as_json: bool,
) -> None:
    """Export, quantise, check and pack CHECKPOINT (a directory)."""
    from .bundle import build_bundle
    from .card import read_metrics

    built = build_bundle(
        checkpoint,
        range_data,
        out,
        variants=[item.strip() for item in variants.split(",") if item.strip()],
        name=name,
        version=version,
        metrics=read_metrics(metrics) if metrics else None,
        allow_non_commercial=allow_non_commercial,
        range_samples=range_samples,
        progress=_progress,
    )
    result = {
        "bundle": {"name": name, "version": version, "sha256": built.sha256},
        "path": str(out),
        "size_bytes": built.size_bytes,
        "report": json.loads(built.read("report.json")),
    }
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(f"{out}: {built.size_bytes / 1e6:.1f} MB, sha256 {built.sha256}")


@cli.command()
@click.argument("bundles", type=_PATH, nargs=-1, required=True, metavar="A.umd [B.umd]")
@click.option("--variants", nargs=2, metavar="A B", help="Variants, such as fp32 int8.")
@click.option("--data", type=_PATH, multiple=True, required=True, help="JSONL; repeatable.")
@click.option("--task", "tasks", multiple=True, help="Task; repeatable. All where none is given.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def compare(
    bundles: tuple[Path, ...],
    variants: tuple[str, str] | None,
    data: tuple[Path, ...],
    tasks: tuple[str, ...],
    threads: int,
    as_json: bool,
) -> None:
    """Paired difference of accuracy between two bundles, or two variants of one."""
    from umd_edge._predictor import Predictor

    from .compare import compare as run_comparison

    if len(bundles) > 2 or (len(bundles) == 1 and variants is None):
        raise UsageError(
            f"{len(bundles)} bundles given; give two bundles, or one and --variants fp32 int8"
        )
    names = variants or (None, None)
    first = Predictor.load(bundles[0], variant=names[0], threads=threads)
    second = Predictor.load(bundles[-1], variant=names[1], threads=threads)
    result = run_comparison(first, second, data, tasks=tasks, progress=_count)
    sides = {
        side: {"bundle": item.info.to_dict(), "variant": item.variant}
        for side, item in (("a", first), ("b", second))
    }
    if as_json:
        click.echo(json.dumps({**sides, **result.to_dict()}))
        return
    for name, value in [*result.tasks.items(), ("pooled", result.pooled)]:
        click.echo(
            f"{name:<22} {value.accuracy_a:.4f} -> {value.accuracy_b:.4f}  "
            f"difference {100 * value.difference:+.2f} points "
            f"[{100 * value.low:+.2f}, {100 * value.high:+.2f}]  "
            f"changed {100 * value.changed_decisions:.2f} %  n={value.n}"
        )


def _count(task: str, done: int, total: int) -> None:
    if done == total or done % 100 == 0:
        _progress(f"{task}: {done} of {total} records")


cli.add_command(distil)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code back; None means the process's arguments."""
    return cli.run(arguments)


def main() -> NoReturn:
    """Entry point of the `umd-edge-export` script."""
    cli.main()
