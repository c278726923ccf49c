"""`umd-edge explain`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .._explanation import METHODS, Explanation
from .._files import write_whole
from .._predictor import Predictor
from ..errors import UsageError
from ._options import (
    as_json,
    frame_option,
    patient_options,
    read_structured,
    with_audited_predictor,
)
from ._output import each_image, note, percent
from ._places import check_place

__all__ = ["explain"]

_BLOCKS = " .:-=+*#%@"


@click.command()
@click.argument("image")
@click.option("--question", metavar="TEXT", help="Explain the answer to this question.")
@click.option("--task", metavar="NAME", help="Explain the classification by this task.")
@click.option("--label", metavar="NAME", help="Label or answer to explain. [the most probable one]")
@patient_options
@click.option(
    "--method",
    metavar="|".join(METHODS),
    help="How the map is made. [the best that the bundle proves for the task]",
)
@click.option("--unproven", is_flag=True, help="Show a map although none is proven for the task.")
@click.option("--out", metavar="FILE.png", help="Write the map over the image here.")
@frame_option
@with_audited_predictor
@as_json
def explain(
    predictor: Predictor,
    image: str,
    question: str | None,
    task: str | None,
    label: str | None,
    text: str | None,
    structured: str | None,
    method: str | None,
    unproven: bool,
    out: str | None,
    frame: int | None,
    as_json: bool,
) -> int:
    """Show where on an image a decision came from.

    IMAGE is a PNG, JPEG or DICOM file. Prints the map as numbers, and draws it over the image.

    \b
    umd-edge explain breast.png --task breast-ultrasound --out map.png
    umd-edge explain scan.png --question "What plane is shown?" --method ablation --json

    Where the bundle has no map that was measured to beat a centre prior for the task, none is shown
    (code 2) unless --method or --unproven asks for it.
    """
    values = read_structured(structured)
    _check_out(out, image)

    def show(path: str) -> Mapping[str, Any]:
        encoded = predictor.encode(path, frame=frame)
        explanation = encoded.explain(
            question=question,
            task=task,
            label=label,
            text=text,
            structured=values,
            method=method,
            unproven=unproven,
        )
        if out is not None:
            _write(out, path, frame, explanation)
        timed = replace(explanation, timing=encoded.timing + explanation.timing)
        return timed.to_dict()

    return each_image([image], show, _show, as_json=as_json)


def _check_out(out: str | None, image: str) -> None:
    if out is None:
        return
    if Path(out).suffix.lower() != ".png":
        raise UsageError(f"--out {out!r}: the picture is a PNG; give a name that ends in .png")
    check_place("--out", out, sources=[image])


def _write(out: str, image: str, frame: int | None, explanation: Explanation) -> None:
    write_whole(out, explanation.to_png(image, frame=frame))
    note(f"picture: {out}")


def _show(image: str, result: Mapping[str, Any]) -> None:
    click.echo(f"{image}: {result['task']}: {result['status']}")
    if result["reason"]:
        click.echo(f"  {result['reason']}")
    if result["map"] is None:
        return
    proof = "proven for this task" if result["proven"] else "UNPROVEN for this task"
    click.echo(f"  {result['target']}  ({percent(result['probability'])})")
    click.echo(f"  {result['method']}, {proof}; {result['unit']}, in 1/1000:")
    highest = max(max(row) for row in result["map"])
    for row in result["map"]:
        numbers = " ".join(f"{round(1000 * value):6d}" for value in row)
        marks = "".join(2 * _mark(value, highest) for value in row)
        click.echo(f"    {numbers}   |{marks}|")
    x, y = result["peak"]["x"], result["peak"]["y"]
    click.echo(f"  strongest at {percent(x)} from the left, {percent(y)} from the top")


def _mark(value: float, highest: float) -> str:
    share = max(0.0, value) / highest if highest > 0 else 0.0
    return _BLOCKS[min(len(_BLOCKS) - 1, int(share * len(_BLOCKS)))]
