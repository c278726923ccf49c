"""The command `umd-edge-export report`."""

from __future__ import annotations

from pathlib import Path

import click

from umd_edge.errors import UsageError

from .compare_cli import count_progress

__all__ = ["report"]

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_PATH, metavar="A.umd")
@click.option("--data", type=_PATH, multiple=True, help="JSONL of labelled records; repeatable.")
@click.option("--out", type=_PATH, default=Path("report.html"), show_default=True)
@click.option(
    "--against", type=_PATH, help="Bundle or checkpoint to compare with, in place of fp32."
)
@click.option("--task", "tasks", multiple=True, help="Task; repeatable. All where none is given.")
@click.option(
    "--with-pictures",
    type=_PATH,
    metavar="DIR",
    help="Folder for pictures of the records that disagree most. They show patients' pictures.",
)
def report(
    bundle: Path,
    data: tuple[Path, ...],
    out: Path,
    against: Path | None,
    tasks: tuple[str, ...],
    with_pictures: Path | None,
) -> None:
    """Write one HTML page about a bundle, with the records that disagree most.

    Sizes, latency, accuracy of every variant with intervals, sensitivity of the layers.
    """
    from .report import report_bundle, show_pictures
    from .report_html import write_report
    from .report_pictures import check_outside
    from .sides import open_side

    if (against or with_pictures) and not data:
        raise UsageError("--against and --with-pictures need labelled records: give --data")
    check_outside(bundle, out, with_pictures)
    reference = None if against is None else open_side(against)
    content = report_bundle(bundle, data, against=reference, tasks=tasks, progress=count_progress)
    if with_pictures is not None:
        content = show_pictures(content, with_pictures)
    write_report(out, content)
    click.echo(str(out))
