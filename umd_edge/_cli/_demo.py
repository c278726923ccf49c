"""`umd-edge demo`."""

from __future__ import annotations

from pathlib import Path

import click

from .._demo import HEADER_BESIDE, DemoItem, DemoSource, look_at, packaged_images, write_output
from .._picture import draw
from .._predictor import Predictor
from ._options import frame_option, with_predictor
from ._output import note, percent, report, table
from ._places import check_folder

__all__ = ["demo"]


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE...]")
@click.option("--out", default="demo-output", metavar="DIR", help="Folder to write. [demo-output]")
@frame_option
@with_predictor
def demo(predictor: Predictor, images: tuple[str, ...], out: str, frame: int | None) -> int:
    """Ask about real medical images and classify them.

    Three questions for each IMAGE, and every classification task of the bundle. Without IMAGE, at
    four DICOM files that come with pydicom. Prints a table and writes demo.png (a picture of it
    all) and demo.jsonl to the folder.
    """
    check_folder("--out", out)
    sources = [DemoSource(image, Path(image).name, image) for image in images] or packaged_images()
    items = []
    for index, item in enumerate(look_at(predictor, sources, frame=frame), start=1):
        note(f"{index}/{len(sources)} {item.source.image}")
        if item.error is not None:
            report(item.source.image, item.error)
        items.append(item)
    drawn, listed = write_output(Path(out), items, draw(items, predictor))
    click.echo(table([("image", "asked", "answer", "probability", "DICOM header"), *_rows(items)]))
    click.echo("\nNot a medical device: for research and development only.")
    click.echo(f"Picture: {drawn}\nJSON Lines: {listed}")
    return min((item.error.exit_code for item in items if item.error), default=0)


def _rows(items: list[DemoItem]) -> list[tuple[str, str, str, str, str]]:
    """Table rows; the image's title and name stand in its first two."""
    result: list[tuple[str, str, str, str, str]] = []
    for item in items:
        own = _answer_rows(item) + _task_rows(item)
        if item.error is not None:
            own = [("", f"cannot be used: {type(item.error).__name__}", "", "")]
        names = [item.source.title, item.source.image]
        names = names if names[0] != names[1] else names[:1]
        own += [("", "", "", "")] * (len(names) - len(own) + 1)  # and one empty line
        names += [""] * (len(own) - len(names))
        result += [(name, *row) for name, row in zip(names, own, strict=True)]
        if any(result[-1]):
            result.append(("", "", "", "", ""))
    return result[:-1]


def _answer_rows(item: DemoItem) -> list[tuple[str, str, str, str]]:
    found: list[tuple[str, str, str, str]] = []
    for name, answer in item.answers.items():
        beside = HEADER_BESIDE.get(name)
        header = ""
        if item.header is None and not found:
            header = "none: judged by its look"
        elif beside is not None and item.header is not None:
            header = f"{beside}: {item.header[beside] or 'not given'}"
        shown = answer.answer if answer.status == "ok" else f"{answer.answer} [{answer.status}]"
        probability = percent(answer.probability) if answer.answer else ""
        found.append((name, shown.strip(), probability, header))
    return found


def _task_rows(item: DemoItem) -> list[tuple[str, str, str, str]]:
    found: list[tuple[str, str, str, str]] = []
    for result in item.classifications:
        top = result.top
        if top is None:
            found.append((result.task, result.status, "", ""))
            continue
        positive = [finding for finding in result.findings if finding.positive]
        best = max(positive, key=lambda finding: finding.probability, default=top)
        mark = best.label if best.positive else f"none positive (first: {best.label})"
        status = "" if result.status == "ok" else f" [{result.status}]"
        found.append((result.task, mark + status, percent(best.probability), ""))
    return found
