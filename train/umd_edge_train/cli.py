"""The `umd-edge-train` command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from umd_edge._program import Program
from umd_edge._task import OnUnmapped
from umd_edge.errors import UsageError

from .data_cli import data as data_group
from .experiments.cli import baseline, grid, results
from .experiments.facets_cli import facets
from .options import PATH, data_option, json_option, split_options
from .run_cli import RUNS, print_metrics

__all__ = ["main"]


@click.group("umd-edge-train", cls=Program, extra="train")
@click.version_option(package_name="umd-edge")
@click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads of torch.")
def main(threads: int | None) -> None:
    """Train and evaluate UMD models, and check their data."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


main.add_command(data_group)
for command in RUNS:
    main.add_command(command)
main.add_command(grid)
main.add_command(baseline)
main.add_command(results)
main.add_command(facets)


_CHECKPOINT = click.argument("checkpoint", type=PATH)


@main.command()
@_CHECKPOINT
@click.option("--task", required=True, help="Name of a task of the checkpoint.")
@click.option(
    "--data",
    "manifests",
    type=PATH,
    multiple=True,
    required=True,
    help="JSONL manifest; may be given several times.",
)
@click.option("--on-unmapped", type=click.Choice(["error", "drop"]), help="Unknown labels.")
@json_option
def evaluate(
    checkpoint: Path,
    task: str,
    manifests: tuple[Path, ...],
    on_unmapped: OnUnmapped | None,
    as_json: bool,
) -> None:
    """Evaluate one task on any JSONL, with the metrics of `umd-edge evaluate`."""
    from .checkpoint import load_checkpoint
    from .evaluate import evaluate_checkpoint

    report = evaluate_checkpoint(load_checkpoint(checkpoint), task, manifests, on_unmapped)
    if as_json:
        click.echo(json.dumps(report))
        return
    splits = "; ".join(report["splits"])
    click.echo(f"{report['n']} records, {report['dropped']} dropped; splits: {splits}")
    print_metrics(task, report["metrics"])


@main.command()
@_CHECKPOINT
@data_option
@split_options("Append the figures to this log.")
@click.option("--out", type=PATH, help="Write the metrics as JSON.")
@click.option("--bundle", type=PATH, help="Measure this bundle instead.")
def report(
    checkpoint: Path,
    data: Path,
    split: str,
    log: Path | None,
    out: Path | None,
    bundle: Path | None,
) -> None:
    """Report all tasks on one split, with baselines; a look at the test split must be logged."""
    from umd_edge import Predictor

    from .checkpoint import load_checkpoint, write_json
    from .report import append_report, report_split

    predictor = Predictor.load(bundle) if bundle else None
    figures = report_split(load_checkpoint(checkpoint), data, split, predictor)
    subject = f"checkpoint `{checkpoint.name}`"
    if predictor:
        subject += f" as {predictor.variant} bundle `{predictor.info.name}`"
    if log:
        append_report(log, subject, figures)
    if out:
        write_json(out, {name: task["metrics"] for name, task in figures["tasks"].items()})
    for name, task in figures["tasks"].items():
        print_metrics(f"{name}, splits: {task['splits']}", task["metrics"])


@main.command()
@_CHECKPOINT
@click.option("--out", type=PATH, required=True, help="New checkpoint.")
@click.option("--task", default="", help="Classification that --label-cost is of.")
@click.option(
    "--label-cost",
    "costs",
    multiple=True,
    metavar="LABEL=COST",
    help="What missing a label costs, in place of what the recipe said; the others cost 1.",
)
def pack(checkpoint: Path, out: Path, task: str, costs: tuple[str, ...]) -> None:
    """Write a checkpoint for keeping: half the size, without the optimiser's state."""
    from .checkpoint import load_checkpoint, pack_checkpoint
    from .label_costs import set_label_costs

    if bool(task) != bool(costs):
        raise UsageError("--task and --label-cost belong together; give both or neither")
    loaded = load_checkpoint(checkpoint)
    if task:
        loaded = set_label_costs(loaded, task, dict(map(_cost, costs)))
    pack_checkpoint(loaded, out)
    click.echo(str(out))


def _cost(text: str) -> tuple[str, float]:
    label, _, number = text.rpartition("=")
    try:
        return label, float(number)
    except ValueError as error:
        raise UsageError(f"--label-cost {text!r} given; LABEL=COST is needed") from error


@main.command()
@_CHECKPOINT
@click.option("--task", required=True, help="A single-label classification.")
@click.option("--train", type=PATH, required=True, help="JSONL manifest.")
@click.option("--data", type=PATH, required=True, help="JSONL manifest.")
@click.option("--positive", multiple=True, required=True, help="Label whose recall matters.")
def dependence(
    checkpoint: Path, task: str, train: Path, data: Path, positive: tuple[str, ...]
) -> None:
    """How a task fares without single inputs, and what their mere presence gives away (JSON)."""
    from .checkpoint import load_checkpoint
    from .dependence import dependence_report

    loaded = load_checkpoint(checkpoint)
    click.echo(json.dumps(dependence_report(loaded, task, train, data, positive), indent=1))


if __name__ == "__main__":
    main()
