"""The command `umd-edge-export report`."""

from __future__ import annotations

from pathlib import Path

import click

from umd_edge.errors import UsageError
from umd_edge_train.options import PATH

from .compare_cli import count_progress
from .options import data_sets_option, pictures_option, tasks_option

__all__ = ["report"]


@click.command()
@click.argument("bundle", type=PATH, metavar="A.umd")
@data_sets_option("--data", help="JSONL of labelled records; repeatable.")
@click.option("--out", type=PATH, default=Path("report.html"), show_default=True)
@click.option(
    "--against", type=PATH, help="Bundle or checkpoint to compare with, in place of fp32."
)
@tasks_option
@pictures_option
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
