"""What the HTML report says, gathered from a bundle and labelled records."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from umd_edge._bundle import Bundle
from umd_edge._evaluate import example_metrics
from umd_edge._evaluation import MetricValue
from umd_edge._predictor import Predictor

from .compare import Predictions, compare_predictions, predict
from .report_html import ReportContent
from .report_pictures import write_pictures
from .sides import PredictorSide, Side
from .speed import measure_speed

__all__ = ["describe_predictions", "report_bundle", "show_pictures"]

REFERENCE = "fp32"

Progress = Callable[[str, int, int], None]


def measure_metrics(
    predictions: Predictions,
) -> dict[str, dict[str, dict[str, MetricValue]]]:
    """Task -> side -> metric -> value with its interval."""
    return {
        name: {
            side: example_metrics(found.task[side], found.examples, probabilities)
            for side, probabilities in found.probabilities.items()
        }
        for name, found in predictions.tasks.items()
    }


def describe_predictions(content: ReportContent, predictions: Predictions) -> ReportContent:
    """The report with accuracy: the first side is the reference of the others."""
    sides = list(next(iter(predictions.tasks.values())).probabilities)
    reference, *variants = sides
    return replace(
        content,
        reference=reference,
        comparisons={name: compare_predictions(predictions, reference, name) for name in variants},
        metrics=measure_metrics(predictions),
    )


def show_pictures(content: ReportContent, folder: Path) -> ReportContent:
    """The report with the names of the pictures that it wrote to the folder.

    Raises:
        UsageError: The folder cannot be made.
        DataError: A picture cannot be read.
    """
    names = write_pictures(folder, content.comparisons, content.reference)
    return replace(content, pictures=names)


def _sizes(bundle: Bundle) -> dict[str, dict[str, int]]:
    manifest = bundle.manifest
    return {
        name: {part: manifest.files[path].size for part, path in spec.graphs.items()}
        for name, spec in manifest.variants.items()
    }


def _stored(bundle: Bundle) -> Mapping[str, Any]:
    """The bundle's own `report.json`, where it has one."""
    if "report.json" not in bundle.manifest.files:
        return {}
    found = json.loads(bundle.read("report.json"))
    return found if isinstance(found, dict) else {}


def report_bundle(
    path: Path,
    data: Sequence[Path] = (),
    *,
    against: Side | None = None,
    tasks: Sequence[str] = (),
    progress: Progress = lambda task, done, total: None,
) -> ReportContent:
    """Measure a bundle: sizes, speed against float32 and, with records, accuracy.

    Args:
        path: The bundle.
        data: JSONL of labelled records; without them accuracy is not measured.
        against: The reference, for a bundle without the variant `fp32` or in its place.
        tasks: Names; all but retrieval where none is given.
        progress: Called with task, runs done, all runs.

    Raises:
        BundleError: The bundle is missing or damaged.
        UnknownTaskError: A task that the reference does not have.
        UsageError: Reference and bundle have different tasks or fields.
        DataError: Unreadable data, or records that fit no task.
    """
    bundle = Bundle.open(path)
    variants = sorted(bundle.manifest.variants, key=lambda name: (name != REFERENCE, name))
    predictors = {name: Predictor.load(path, variant=name, threads=1) for name in variants}
    stored = _stored(bundle)
    can_answer = any(task.kind != "retrieval" for task in bundle.manifest.tasks)
    content = ReportContent(
        name=f"{bundle.manifest.name} {bundle.manifest.version}",
        sha256=bundle.sha256,
        data=tuple(f"{item.resolve().parent.name}/{item.name}" for item in data),
        sizes=_sizes(bundle),
        speed={
            name: measure_speed(predictors[REFERENCE], item)
            for name, item in predictors.items()
            if REFERENCE in predictors and name != REFERENCE and can_answer
        },
        sensitivity=stored.get("sensitivity", {}),
    )
    if not data:
        return content
    sides: dict[str, Side] = {} if against is None else {"reference": against}
    sides |= {name: PredictorSide(item) for name, item in predictors.items()}
    return describe_predictions(content, predict(sides, data, tasks=tasks, progress=progress))
