"""`umd-edge classify` and `umd-edge ask`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from .._deadline import limited
from .._frames import encode_frames
from .._predictor import Predictor
from .._results import answers_to_dict
from ..errors import UsageError
from ._archive import Archive, archive_options
from ._clips import (
    check_frames,
    classify_frames,
    frames_line,
    frames_option,
    part_names,
)
from ._combined import (
    ask_study,
    classify_study,
    combine_option,
    show_left_out,
    with_option,
)
from ._listing import instance_line, listed
from ._options import (
    as_json,
    coverage_option,
    frame_option,
    patient_options,
    read_structured,
    with_audited_predictor,
)
from ._output import each_image, percent, table
from ._reports import ReportFiles, show_reports, with_reports

__all__ = ["ask", "classify"]

_SHOWN = 12
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Limit for one image; one that takes longer is reported and the others go on.",
)


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--task", required=True, metavar="NAME", help="Task of the bundle; see umd-edge info."
)
@patient_options
@click.option(
    "--sensitivity",
    type=float,
    metavar="SHARE",
    help="Decide each label where it reaches 0.95, say.",
)
@click.option(
    "--specificity", type=float, metavar="SHARE", help="The same for a specificity; not both."
)
@coverage_option
@frame_option
@frames_option
@combine_option
@archive_options
@timeout_option
@with_reports
@with_audited_predictor
@as_json
def classify(
    predictor: Predictor,
    images: tuple[str, ...],
    task: str,
    text: str | None,
    structured: str | None,
    sensitivity: float | None,
    specificity: float | None,
    coverage: float | None,
    frame: int | None,
    frames: int | None,
    combine: bool,
    out: str | None,
    workers: int,
    timeout_s: float | None,
    reports: ReportFiles,
    as_json: bool,
) -> int:
    """Classify images by one task.

    IMAGE is a PNG, JPEG or DICOM file, a clip (MP4, AVI, MPEG), a folder with all folders in it,
    or a DICOMDIR.

    \b
    umd-edge classify chest.dcm --task chest-xray --json
    umd-edge classify lesion.jpg --task skin-lesion --structured '{"itch": true, "age": 61}'
    umd-edge classify archive/ --task chest-xray --out results.csv
    umd-edge classify frontal.dcm lateral.dcm --task chest-xray --combine
    umd-edge classify clip.dcm --task breast-ultrasound --frames 16

    An image that cannot be used is reported and the others go on; the exit code is then 4.
    """
    options: dict[str, Any] = {
        "text": text,
        "structured": read_structured(structured),
        "frame": frame,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "coverage": coverage,
    }
    check_frames(frames, frame=frame, combine=combine, out=out)
    images = tuple(listed(images))
    if combine and out is not None:
        raise UsageError("--combine gives one result, --out a file of many; give one of the two")
    if combine:
        show = _show_classification
        return classify_study(
            predictor, images, task, options, reports, show, timeout_s=timeout_s, as_json=as_json
        )
    if out is not None:
        archive = Archive(predictor, task, out, workers, timeout_s, options)
        return archive.write(images, reports, as_json=as_json)
    reports.prepare(images)

    def predict(image: str) -> Mapping[str, Any]:
        with limited(timeout_s=timeout_s):
            result = classify_frames(predictor, image, task, options, frames)
        return {**result.to_dict(), **reports.write(image, result)}

    return each_image(images, predict, _show_classification, as_json=as_json)


@click.command()
@click.argument("image")
@click.argument("questions", nargs=-1, required=True, metavar="QUESTION...")
@click.option(
    "--task", metavar="NAME", help="Question-answering task, where the bundle has several."
)
@coverage_option
@frame_option
@frames_option
@with_option
@timeout_option
@with_reports
@with_audited_predictor
@as_json
def ask(
    predictor: Predictor,
    image: str,
    questions: tuple[str, ...],
    task: str | None,
    coverage: float | None,
    frame: int | None,
    frames: int | None,
    further: tuple[str, ...],
    timeout_s: float | None,
    reports: ReportFiles,
    as_json: bool,
) -> int:
    """Ask questions about an image.

    IMAGE is a PNG, JPEG or DICOM file, or a clip (MP4, AVI, MPEG); it is encoded once for all
    questions.

    \b
    umd-edge ask scan.png "Is this a CT?" "What plane is shown?"
    umd-edge ask frontal.dcm --with lateral.dcm "Is there a pleural effusion?"
    """
    check_frames(frames, frame=frame, **{"with": further})
    if further:
        options = {"task": task, "coverage": coverage, "frame": frame}
        return ask_study(
            predictor,
            (image, *further),
            questions,
            options,
            reports,
            _show_answers,
            timeout_s=timeout_s,
            as_json=as_json,
        )
    reports.prepare([image])

    def predict(path: str) -> Mapping[str, Any]:
        with limited(timeout_s=timeout_s):
            encoded = encode_frames(predictor, path, frame, frames)
            answers = [encoded.ask(text, task=task, coverage=coverage) for text in questions]
        return {**answers_to_dict(answers, encoded.timing), **reports.write(path, answers)}

    return each_image([image], predict, _show_answers, as_json=as_json)


def _show_classification(image: str, result: Mapping[str, Any]) -> None:
    click.echo(f"{image}: {result['task']}: {result['status']}")
    if "dicom" in result:
        click.echo(f"  {instance_line(result['dicom'])}")
    if "frames" in result:
        click.echo(f"  {frames_line(result['frames'])}")
    if result["reason"]:
        click.echo(f"  {result['reason']}")
    show_left_out(result, part_names(result), indent=2)
    rows = [
        (
            item["label"],
            percent(item["probability"]),
            "positive" if item["positive"] else "",
            _point(item.get("operating_point")),
        )
        for item in result["findings"]
    ]
    if rows:
        click.echo(table(rows, indent=2, right=[1]))
    _show_set(result, indent=2)
    show_reports(result)


def _point(picked: Mapping[str, Any] | None) -> str:
    """Where a label was decided, and what that reaches."""
    if picked is None:
        return ""
    short = "" if picked["reached"] else f", too few records: {picked['n_positive']} positive"
    return (
        f"from {percent(picked['threshold'])} on (sensitivity {picked['sensitivity']:.2f}, "
        f"specificity {picked['specificity']:.2f}{short})"
    )


def _show_set(result: Mapping[str, Any], *, indent: int) -> None:
    chosen = result.get("prediction_set")
    if chosen is None:
        return
    shown = ", ".join(chosen["outputs"][:_SHOWN]) or "nothing"
    more = len(chosen["outputs"]) - _SHOWN
    shown += f" and {more} more" if more > 0 else ""
    reason = f" ({chosen['reason']})" if chosen["reason"] else ""
    click.echo(f"{' ' * indent}not excluded at {percent(chosen['coverage'])}: {shown}{reason}")


def _show_answers(image: str, result: Mapping[str, Any]) -> None:
    click.echo(f"{image}:")
    if "frames" in result:
        click.echo(f"  {frames_line(result['frames'])}")
    for item in result["answers"]:
        click.echo(f"  {item['question']}")
        if item["status"] == "ok":
            click.echo(f"    {item['answer']}  ({percent(item['probability'])})")
        else:
            click.echo(f"    {item['answer'] or '-'}  [{item['status']}] {item['reason']}")
        show_left_out(item, part_names(result), indent=4)
        _show_set(item, indent=4)
    show_reports(result)
