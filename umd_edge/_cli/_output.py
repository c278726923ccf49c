"""What goes to standard output and what to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ..errors import DeadlineExceededError, InputError, MissingDependencyError, UmdEdgeError

__all__ = ["each_image", "emit", "note", "percent", "progress", "report", "table"]


def emit(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of standard output."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """A line on standard error."""
    click.echo(text, err=True)


def report(image: str, error: UmdEdgeError) -> str:
    """Say on standard error, in one line, why an image cannot be used; gives the message back."""
    message = " ".join(str(error).split())
    note(f"error: {message}" if image in message else f"error: {image}: {message}")
    return message


def each_image(
    images: Sequence[str],
    predict: Callable[[str], Mapping[str, Any]],
    show: Callable[[str, Mapping[str, Any]], None],
    *,
    as_json: bool,
) -> int:
    """Predict image by image; one that cannot be used is reported and the rest go on.

    Args:
        images: Paths as given.
        predict: Image -> JSON object of its result.
        show: Prints a result for people.
        as_json: Print JSON Lines.

    Returns:
        Exit code: 4 if an image could not be used, 5 if only optional packages or time were
        missing, or 0.
    """
    codes = []
    for index, image in enumerate(images):
        try:
            result = predict(image)
        except (InputError, MissingDependencyError, DeadlineExceededError) as error:
            codes.append(error.exit_code)
            message = report(image, error)
            result = {"error": {"type": type(error).__name__, "message": message}}
            if not as_json:
                continue
        if as_json:
            emit({"image": image, "index": index, **result})
        else:
            show(image, result)
    return min(codes, default=0)


def percent(probability: float) -> str:
    """`87.3 %`."""
    return f"{100 * probability:.1f} %"


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Progress on standard error, to be told steps done and all steps; a bar only on a terminal."""
    if not sys.stderr.isatty():
        note(f"{label} ...")
        yield lambda done, total: None
        return
    bar: Any
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def advance(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield advance


def table(rows: Sequence[Sequence[str]], *, indent: int = 0, right: Sequence[int] = ()) -> str:
    """Columns of text, two spaces apart.

    Args:
        rows: Cells; every row as long as the first.
        indent: Spaces before each line.
        right: Columns whose cells end flush.
    """
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return "\n".join(lines)
