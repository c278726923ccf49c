"""One HTML page about a bundle: gates, sizes, latency, accuracy, sensitivity, worst records.

The page is whole in itself: styles and charts are in it, and it asks for nothing over a network.
It names records by their identifiers, so it is written beside a bundle and never into one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umd_edge._evaluation import MetricValue
from umd_edge._files import write_whole
from umd_edge.errors import UsageError

from .compare import Comparison, Disagreement, PairedDifference
from .report_charts import Bar, Span, bar_chart, heat_map, span_chart
from .speed import SpeedReport

if TYPE_CHECKING:
    from .gates import GateResult

__all__ = ["ReportContent", "render_report", "write_report"]

_COMMAND = re.compile(r"`([^`]+)`")
_METRICS = (
    "accuracy",
    "accuracy_excluding_abnormality",
    "closed_accuracy",
    "open_accuracy",
    "balanced_accuracy",
    "macro_auroc",
    "macro_f1",
    "brier",
    "ece",
)
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 60em; color: #1b1b1b; }
h1 { margin-bottom: 0; } h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: .8em 0; }
th, td { border: 1px solid #d5d5d5; padding: .25em .6em; text-align: left; vertical-align: top; }
th { background: #f3f5f7; } svg text { font: 12px system-ui, sans-serif; fill: #1b1b1b; }
svg { max-width: 100%; height: auto; } code { background: #f3f5f7; }
.passed { color: #14691e; } .failed { color: #b3261e; font-weight: bold; }
.waived, .not_run { color: #8a5a00; } .note { color: #555; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """Everything that the page shows; what is empty was not measured, and the page says so."""

    name: str
    """Bundle and version, or checkpoint."""
    sha256: str = ""
    """Of the bundle; empty where none was written."""
    data: tuple[str, ...] = ()
    """Names of the files with the labelled records."""
    max_drop: float | None = None
    """Budget in points, drawn into the chart of differences."""
    gates: Sequence[GateResult] = ()
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Variant -> part -> bytes."""
    speed: Mapping[str, SpeedReport | None] = field(default_factory=dict)
    reference: str = ""
    """What the variants are compared with."""
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """Variant -> against the reference."""
    metrics: Mapping[str, Mapping[str, Mapping[str, MetricValue]]] = field(default_factory=dict)
    """Task -> variant -> metric -> value."""
    sensitivity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Variant -> what the quantisation measured of each layer."""
    pictures: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    """(variant, task, record) -> name of the file that shows it side by side."""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are HTML already."""
    lines = ["<table><tr>", *(f"<th>{escape(cell)}</th>" for cell in head), "</tr>"]
    for row in rows:
        lines += ["<tr>", *(f"<td>{cell}</td>" for cell in row), "</tr>"]
    return "".join([*lines, "</table>"])


def _prose(text: str) -> str:
    """Words for people, with `commands` set as such."""
    return _COMMAND.sub(r"<code>\1</code>", escape(text))


def _note(text: str) -> str:
    return f'<p class="note">{_prose(text)}</p>'


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f}"


def _gates(content: ReportContent) -> list[str]:
    if not content.gates:
        return []
    rows = [
        (
            escape(item.gate),
            f"<code>{escape(item.variant)}</code>",
            f'<span class="{item.status}">{escape(item.status.replace("_", " "))}</span>',
            _prose(item.message),
        )
        for item in content.gates
    ]
    return ["<h2>Gates</h2>", _table(("gate", "variant", "result", "what was found"), rows)]


def _sizes(content: ReportContent) -> list[str]:
    bars = [
        Bar(
            variant,
            {part: size / 1e6 for part, size in parts.items()},
            f"{sum(parts.values()) / 1e6:.2f} MB",
        )
        for variant, parts in content.sizes.items()
    ]
    chart = bar_chart(bars, "size of the graphs in MB")
    return ["<h2>Sizes</h2>", chart if bars else _note("Not measured.")]


def _speed(content: ReportContent) -> list[str]:
    lines = ["<h2>Latency</h2>"]
    timed = {name: item for name, item in content.speed.items() if item is not None}
    if timed:
        first = next(iter(timed.values()))
        bars = [Bar("fp32", {"ms": first.reference_ms}, f"{first.reference_ms:.2f} ms")]
        bars += [
            Bar(
                name,
                {"ms": item.variant_ms},
                f"{item.variant_ms:.2f} ms; {item.ratio:.2f} of fp32 "
                f"({item.low:.2f} to {item.high:.2f})",
            )
            for name, item in timed.items()
        ]
        lines.append(bar_chart(bars, "one answer to one picture, in ms"))
        lines.append(
            _note(
                "One answer to one picture of the model's size on one thread of this machine: "
                "median processor time, to which other programs do not add. The ratio is the "
                "median of those of rounds taken in turn; in brackets its 95 % interval."
            )
        )
    missing = [name for name in content.speed if name not in timed]
    if missing:
        names = ", ".join(missing)
        lines.append(_note(f"Not measured here: {names}. Run `umd-edge bench` on the device."))
    elif not timed:
        lines.append(_note("Not measured: the bundle has no float32 graphs beside a variant."))
    return lines


def _difference_row(task: str, value: PairedDifference) -> tuple[str, ...]:
    interval = "none: one patient"
    if value.low is not None:
        interval = f"{_points(value.low)} to {_points(value.high)}"
    return (
        escape(task),
        f"{value.n} of {value.groups}",
        f"{value.accuracy_a:.4f}",
        f"{value.accuracy_b:.4f}",
        _points(value.difference),
        interval,
        f"{100 * value.changed_decisions:.2f} %",
    )


def _differences(content: ReportContent) -> list[str]:
    lines = [f"<h2>Accuracy against {escape(content.reference or 'float32')}</h2>"]
    if not content.comparisons:
        return [*lines, _note("Not measured: labelled records and a reference are needed.")]
    head = ("task", "records of patients", "reference", "variant", "points", "95 % interval")
    for variant, found in content.comparisons.items():
        values = {**found.tasks, "all tasks": found.pooled}
        spans = [
            Span(
                task,
                100 * value.difference,
                None if value.low is None else 100 * value.low,
                None if value.high is None else 100 * value.high,
                f"{_points(value.difference)} points",
            )
            for task, value in values.items()
        ]
        limit = None if content.max_drop is None else -content.max_drop
        rows = (_difference_row(task, value) for task, value in values.items())
        lines += [
            f"<h3><code>{escape(variant)}</code></h3>",
            span_chart(spans, f"{variant} less reference, points of accuracy", limit),
            _table((*head, "changed decisions"), rows),
        ]
    lines.append(
        _note(
            "Paired on the same records; intervals from 1,000 resamples of whole patients. Where "
            "no record differs, the interval is what so many patients can rule out. Nothing is "
            "promised below an interval."
        )
    )
    return lines


def _metric(value: MetricValue | None) -> str:
    if value is None or value.value is None:
        return "-"
    interval = "" if value.low is None else f" ({value.low:.3f} to {value.high:.3f})"
    return f"{value.value:.3f}{interval}"


def _accuracy(content: ReportContent) -> list[str]:
    lines = ["<h2>Metrics of every variant</h2>"]
    if not content.metrics:
        return [*lines, _note("Not measured: give labelled records.")]
    for task, variants in content.metrics.items():
        first = next(iter(variants.values()))
        names = [name for name in _METRICS if name in first]
        rows = [
            (
                f"<code>{escape(name)}</code>",
                str(first[name].n),
                *(_metric(metrics.get(name)) for metrics in variants.values()),
            )
            for name in names
        ]
        lines += [f"<h3>{escape(task)}</h3>", _table(("metric", "n", *variants), rows)]
    return [*lines, _note("95 % intervals from 1,000 resamples of whole patients.")]


def _sensitivity(content: ReportContent) -> list[str]:
    lines: list[str] = []
    for variant, found in content.sensitivity.items():
        layers = [item for item in found.get("layers", ()) if isinstance(item, Mapping)]
        columns = list(dict.fromkeys(name for item in layers for name in item.get("noise", {})))
        if not columns:
            continue
        rows = [
            f"{item.get('part', '')}: {item.get('name', '')}"
            + (" (float)" if item.get("float") else "")
            for item in layers
        ]
        values = [[float(item["noise"].get(name, 0.0)) for name in columns] for item in layers]
        lines += [
            f"<h3><code>{escape(variant)}</code></h3>",
            heat_map(rows, columns, values, f"noise of each layer of {variant}"),
        ]
    if lines:
        lines.append(
            _note(
                "What each layer changes when it alone is quantised: energy of the change over "
                "energy of the output, on a logarithmic scale from white to blue."
            )
        )
    return ["<h2>Sensitivity of the layers</h2>", *(lines or [_note("Not measured.")])]


def _record_row(variant: str, item: Disagreement, content: ReportContent) -> tuple[str, ...]:
    picture = content.pictures.get((variant, item.task, item.id))
    return (
        escape(item.id),
        escape(item.task),
        f"{escape(item.output_a)} ({item.probability_a:.2f})",
        f"{escape(item.output_b)} ({item.probability_b:.2f})",
        f"{item.score_a:.2f} / {item.score_b:.2f}",
        f"{100 * item.changed:.0f} %",
        f"{item.distance:.3f}",
        "" if picture is None else escape(picture),
    )


def _records(content: ReportContent) -> list[str]:
    lines = ["<h2>Records that disagree most</h2>"]
    head = ("record", "task", "reference", "variant", "right", "changed", "distance", "picture")
    for variant, found in content.comparisons.items():
        if found.disagreements:
            rows = [_record_row(variant, item, content) for item in found.disagreements]
            lines += [f"<h3><code>{escape(variant)}</code></h3>", _table(head, rows)]
    if len(lines) == 1:
        return [*lines, _note("None, or not measured.")]
    lines.append(
        _note(
            "Most probable output with its probability on each side; right is 1 or 0, of a task "
            "with several labels the share decided rightly. This table names records: keep the "
            "page where the records may be named."
        )
    )
    return lines


def render_report(content: ReportContent) -> str:
    """The page."""
    about = [f"<p>SHA-256 <code>{escape(content.sha256)}</code></p>"] if content.sha256 else []
    if content.data:
        about.append(f"<p>Labelled records: {escape(', '.join(content.data))}</p>")
    sections = (_gates, _sizes, _speed, _differences, _accuracy, _sensitivity, _records)
    body = [line for section in sections for line in section(content)]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(content.name)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(content.name)}</h1>",
            "<p><strong>Not a medical device.</strong> For research and development only.</p>",
            *about,
            *body,
            "</body></html>\n",
        ]
    )


def write_report(path: Path, content: ReportContent) -> None:
    """Write the page under a temporary name, then give it its own.

    Raises:
        UsageError: The folder is missing or cannot be written; an older page is untouched.
    """
    try:
        write_whole(path, render_report(content).encode("utf-8"))
    except OSError as error:
        raise UsageError(
            f"{str(path)!r} cannot be written ({error.strerror}); name another place"
        ) from error
