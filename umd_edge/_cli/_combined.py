"""Several images of one study in one result: `classify --combine` and `ask --with`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from .._deadline import limited
from .._predictor import Predictor
from .._results import Answer, Classification, answers_to_dict
from ..errors import DeadlineExceededError, InputError, MissingDependencyError, UmdEdgeError
from ._output import emit, report
from ._reports import ReportFiles

if TYPE_CHECKING:
    from .._combine import EncodedStudy

__all__ = ["ask_study", "classify_study", "combine_option", "show_left_out", "with_option"]

Show = Callable[[str, Mapping[str, Any]], None]

combine_option = click.option(
    "--combine",
    is_flag=True,
    help="All images are views of one study: one result, from the mean of their probabilities.",
)
with_option = click.option(
    "--with",
    "further",
    metavar="IMAGE",
    multiple=True,
    help="A further image of the same study, combined with IMAGE; repeatable.",
)


def classify_study(
    predictor: Predictor,
    images: Sequence[str],
    task: str,
    options: Mapping[str, Any],
    reports: ReportFiles,
    show: Show,
    *,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Classify all images together; the exit code, as in `each_image`."""
    given = dict(options)
    frame = given.pop("frame")
    predictor._check_classify(task, **given)
    reports.prepare(images[:1])

    def predict(study: EncodedStudy) -> Mapping[str, Any]:
        result = study.classify(task, **given)
        result = replace(result, timing=study.timing + result.timing)
        return {**result.to_dict(), **_write_reports(reports, images, result)}

    return _one_result(
        predictor, images, predict, show, frame=frame, timeout_s=timeout_s, as_json=as_json
    )


def ask_study(
    predictor: Predictor,
    images: Sequence[str],
    questions: Sequence[str],
    options: Mapping[str, Any],
    reports: ReportFiles,
    show: Show,
    *,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Ask about all images together; the exit code, as in `each_image`."""
    given = dict(options)
    frame = given.pop("frame")
    for question in questions:
        predictor._check_ask(question, **given)
    reports.prepare(images[:1])

    def predict(study: EncodedStudy) -> Mapping[str, Any]:
        answers = [study.ask(question, **given) for question in questions]
        written = _write_reports(reports, images, *answers)
        return {**answers_to_dict(answers, study.timing), **written}

    return _one_result(
        predictor, images, predict, show, frame=frame, timeout_s=timeout_s, as_json=as_json
    )


def _write_reports(
    reports: ReportFiles, images: Sequence[str], *results: Answer | Classification
) -> dict[str, Any]:
    """Reports of the combined results, about the images that have a part in the first."""
    counted = results[0].images
    left = set() if counted is None else {item.index for item in counted.left_out}
    sources = [path for index, path in enumerate(images) if index not in left] or list(images)
    return reports.write(images[0], list(results), sources=sources)


def _one_result(
    predictor: Predictor,
    images: Sequence[str],
    predict: Callable[[EncodedStudy], Mapping[str, Any]],
    show: Show,
    *,
    frame: int | None,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Predict several images together; those that cannot be used are reported and left out."""
    codes: list[int] = []

    def failed(position: int, error: UmdEdgeError) -> None:
        codes.append(error.exit_code)
        report(images[position], error)

    name = f"{len(images)} images" if len(images) > 1 else "1 image"
    try:
        with limited(timeout_s=timeout_s):
            study = predictor.encode_study(images, frame=frame, on_error=failed)
            result = predict(study)
    except (InputError, MissingDependencyError, DeadlineExceededError) as error:
        codes.append(error.exit_code)
        result = {"error": {"type": type(error).__name__, "message": report(name, error)}}
    line = {"image": None, "index": 0, "study": list(images), **result}
    if as_json:
        emit(line)
    elif "error" not in result:
        show(name, line)
    return min(codes, default=0)


def show_left_out(result: Mapping[str, Any], study: Sequence[str], *, indent: int) -> None:
    """How many images a combined result comes from, and why others have no part in it."""
    images = result.get("images")
    if images is None:
        return
    click.echo(f"{' ' * indent}from {images['used']} of {images['given']} images")
    for item in images["left_out"]:
        path = study[item["index"]]
        click.echo(f"{' ' * indent}without {path}: {item['status']}: {item['reason']}")
