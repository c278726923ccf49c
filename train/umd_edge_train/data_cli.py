"""`umd-edge-train data`: convert data sets, check them, and generate small ones."""

from __future__ import annotations

import json
from pathlib import Path

import click

from umd_edge._files import write_whole
from umd_edge._program import Program
from umd_edge._task import TaskSpec
from umd_edge.errors import ManifestError, UsageError

from ._check_render import to_html, to_text
from .convert_cli import convert_command
from .data_check import check
from .data_progress import progress_bar
from .options import PATH, json_option
from .synth import MIN_IMAGES, SETS, synthesise

__all__ = ["data"]


@click.group(cls=Program)
def data() -> None:
    """Convert data sets, check them, and generate small ones."""


data.add_command(convert_command)


def _write(path: Path, text: str) -> None:
    """Write a whole file or none: an interrupted run leaves the old one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode("utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}); name another file"
        ) from error


def _read_tasks(path: Path) -> list[TaskSpec]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"{path}: cannot be read as JSON; a checkpoint's tasks.json fits"
        ) from error
    if not isinstance(listed, list):
        raise ManifestError(f"{path}: a list of tasks is needed, as in a checkpoint's tasks.json")
    return [TaskSpec.from_dict(task, f"tasks[{index}]") for index, task in enumerate(listed)]


@data.command("check")
@click.argument("paths", nargs=-1, required=True, metavar="DIR_OR_JSONL...")
@click.option("--tasks", type=PATH, help="A checkpoint's tasks.json.")
@json_option
@click.option("--report", type=PATH, help="Write an HTML report here too.")
@click.pass_context
def check_command(
    context: click.Context,
    paths: tuple[str, ...],
    tasks: Path | None,
    as_json: bool,
    report: Path | None,
) -> None:
    """Count, and look for broken pictures, shared patients, look-alikes and leaking fields.

    The exit code is 4 when there are errors, such as a missing picture or a patient in two splits,
    and 0 with warnings alone.
    """
    recipe_tasks = _read_tasks(tasks) if tasks is not None else None
    with progress_bar("reading pictures") as advance:
        found = check(paths, recipe_tasks, on_progress=advance)
    if report is not None:
        _write(report, to_html(found))
    click.echo(json.dumps(found.to_dict()) if as_json else to_text(found))
    context.exit(found.exit_code)


@data.command("synth")
@click.option("--out", required=True, type=PATH, help="Folder to write to.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same files.")
@click.option(
    "--images", default=240, show_default=True, help=f"Pictures of each set; {MIN_IMAGES} or more."
)
def synth_command(out: Path, seed: int, images: int) -> None:
    """Generate small data sets with known findings, for tests and smoke runs."""
    with progress_bar("writing sets") as advance:
        done: list[str] = []

        def on_set(name: str) -> None:
            done.append(name)
            advance(len(done), len(SETS))

        folders = synthesise(out, seed=seed, images=images, on_set=on_set)
    for folder in folders:
        click.echo(folder)
