"""`umd-edge-train grid`, `baseline` and `results`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from umd_edge.errors import UsageError

from ..options import PATH, data_option, json_option, recipe_options, split_options

if TYPE_CHECKING:
    from ..recipe import Recipe
    from .runner import GridRun

__all__ = ["baseline", "grid", "results"]

_KINDS = ("majority", "question-only", "pixels", "cnn")


class _Screen:
    """The table of a grid on stderr: redrawn in place on a terminal, below each other elsewhere."""

    def __init__(self) -> None:
        self.drawn = 0

    def show(self, run: GridRun) -> None:
        text = run.table()
        if sys.stderr.isatty() and self.drawn:
            click.echo(f"\033[{self.drawn}F\033[J", err=True, nl=False)
        self.drawn = len(text.splitlines())
        click.echo(text, err=True)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(f"--seeds {text!r} given; write numbers such as 0,1,2") from error


@click.command()
@click.argument("file", type=PATH)
@data_option
@click.option("--out", type=PATH, required=True, help="Grid's folder.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="Runs at once.")
@click.option("--only", multiple=True, metavar="ARM", help="Only these arms.")
@click.option("--dataset", "datasets", multiple=True, metavar="NAME", help="Only these data sets.")
@click.option("--seeds", default="", metavar="0,1,2", help="Only these seeds.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be run, and stop.")
def grid(
    file: Path,
    data: Path,
    out: Path,
    jobs: int,
    only: tuple[str, ...],
    datasets: tuple[str, ...],
    seeds: str,
    plan_only: bool,
) -> None:
    """Run the arms of a grid; the same command goes on after a stop."""
    from ..source import commit
    from .grid import load_grid, make_plan
    from .runner import GridRun, save_plan

    plan = make_plan(load_grid(file), file.resolve().parent)
    cells = plan.select(only, _seeds(seeds), datasets)
    run = GridRun(plan, cells, data, out, jobs=jobs, commit=commit())
    if plan_only:
        click.echo(run.table())
        return
    save_plan(plan, data, out)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        run.run(_Screen().show)
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command()
@split_options()
@recipe_options()
@data_option
@click.option("--kind", "kinds", type=click.Choice(_KINDS), multiple=True, help="All but `cnn`.")
@click.option("--task", "tasks", multiple=True, help="Only these tasks of the recipe.")
@click.option("--out", type=PATH, help="Run folder of `cnn`.")
@click.option("--resume", is_flag=True, help="Continue the `cnn` in --out.")
@json_option
def baseline(
    recipe: Recipe,
    data: Path,
    split: str,
    kinds: tuple[str, ...],
    tasks: tuple[str, ...],
    out: Path | None,
    resume: bool,
    log: Path | None,
    as_json: bool,
) -> None:
    """Baselines on a recipe's own records: majority, question-only, pixels, or a small CNN."""
    figures = {
        f"{kind}/{task}": metrics
        for kind in kinds or _KINDS[:-1]
        for task, metrics in _measure(kind, recipe, tasks, data, split, out, resume).items()
    }
    if log:
        _append(log, recipe.name, split, figures)
    if as_json:
        click.echo(json.dumps(figures))
        return
    for name, metrics in figures.items():
        click.echo(name)
        for metric, value in metrics.items():
            shown = "undefined" if value["value"] is None else f"{value['value']:.3f}"
            click.echo(f"  {metric:<34} {shown}  n={value['n']}")


def _measure(
    kind: str,
    recipe: Recipe,
    tasks: tuple[str, ...],
    data: Path,
    split: str,
    out: Path | None,
    resume: bool,
) -> dict[str, Any]:
    """Metrics of one kind of baseline, by task."""
    from .baselines import FITTED, baseline_predictions
    from .cnn import load_cnn, train_cnn
    from .run_predictions import predict_checkpoint

    suitable = [str(t["name"]) for t in recipe.tasks if t.get("kind") != "retrieval"]
    names = tasks or tuple(suitable)
    for fitted in FITTED:
        if fitted == kind:
            return {n: baseline_predictions(fitted, recipe, n, data, split).metrics for n in names}
    if out is None:
        raise UsageError("the baseline `cnn` is trained; give --out, its run folder")
    if not (resume and (out / "final").exists()):
        train_cnn(recipe, data, out, resume=resume)
    checkpoint = load_cnn(out / "final")
    return {name: predict_checkpoint(checkpoint, name, data, split).metrics for name in names}


def _append(log: Path, name: str, split: str, figures: dict[str, Any]) -> None:
    from datetime import datetime, timezone

    from ..source import commit

    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    lines = [f"\n## {now} UTC: {split} split, baselines of `{name}`", f"\nCommit `{commit()}`.\n"]
    lines += ["| baseline | metric | value | n |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {which} | {metric} | {value['value']:.3f} | {value['n']} |"
        for which, metrics in figures.items()
        for metric, value in metrics.items()
        if value["value"] is not None
    ]
    with log.open("a", encoding="utf-8") as handle:
        handle.write("\n".join(lines) + "\n")


@click.command()
@click.argument("folder", type=PATH, metavar="GRID_OUT")
@data_option
@split_options()
@click.option(
    "--grid",
    "file",
    type=PATH,
    metavar="FILE",
    help="The whole grid, where GRID_OUT is a part of it: the rest is listed as not run.",
)
@click.option("--out", type=PATH, required=True, help="Markdown page.")
def results(
    folder: Path, data: Path, split: str, file: Path | None, out: Path, log: Path | None
) -> None:
    """Measure a grid's finished arms on one split and write the page of results."""
    from .grid import load_grid, make_plan
    from .page import append_log, write_page
    from .results import measure_grid

    asked = make_plan(load_grid(file), file.resolve().parent) if file else None
    measured = measure_grid(folder, data, split, asked)
    if log:  # first, so that no look goes unlogged
        append_log(log, measured)
    write_page(measured, out)
    click.echo(str(out))
