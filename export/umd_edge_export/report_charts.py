"""Charts of the report as SVG: no script, no font and no address outside the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from umd_edge._charts import line, rect, svg, text

__all__ = ["Bar", "Span", "bar_chart", "heat_map", "span_chart"]

_LABEL, _PLOT, _VALUE, _ROW = 220, 380, 260, 24
_COLOURS = ("#1f5f8b", "#5b9bbf", "#a9cbdd", "#d9a441")
_CELL = 34
_LETTER = 6.6
"""Width of a letter: wider than the mean of the page's font, so that no label is cut off."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, of one or several parts."""

    label: str
    parts: Mapping[str, float]
    text: str
    """Beside the bar."""


@dataclass(frozen=True, slots=True)
class Span:
    """A value with its interval."""

    label: str
    value: float
    low: float | None
    high: float | None
    text: str


def bar_chart(bars: Sequence[Bar], title: str) -> str:
    """Horizontal bars from 0, their parts stacked, with a legend where there are several."""
    names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    largest = max((sum(bar.parts.values()) for bar in bars), default=0.0) or 1.0
    body: list[str] = []
    for row, bar in enumerate(bars):
        top, x = row * _ROW, float(_LABEL)
        body.append(text(_LABEL - 8, top + 16, bar.label, "end"))
        for name, value in bar.parts.items():
            width = _PLOT * value / largest
            body.append(rect(x, top + 4, width, _ROW - 8, colours[name], f"{name}: {value:g}"))
            x += width
        body.append(text(x + 6, top + 16, bar.text))
    height = len(bars) * _ROW
    if len(names) > 1:
        for index, name in enumerate(names):
            body.append(rect(_LABEL + 110 * index, height + 8, 10, 10, colours[name], name))
            body.append(text(_LABEL + 110 * index + 15, height + 17, name))
        height += _ROW
    return svg(_LABEL + _PLOT + _VALUE, height + 4, body, title)


def span_chart(spans: Sequence[Span], title: str, limit: float | None = None) -> str:
    """Values with their intervals about 0.

    Args:
        spans: From top to bottom.
        title: Of the picture.
        limit: Where a dashed line is drawn: the budget.
    """
    ends = [abs(end) for span in spans for end in (span.value, span.low or 0.0, span.high or 0.0)]
    reach = 1.1 * max([*ends, abs(limit or 0.0), 1e-9])

    def place(value: float) -> float:
        return _LABEL + _PLOT * (value + reach) / (2 * reach)

    height = len(spans) * _ROW
    body = [line(place(0), 0, place(0), height, 'stroke="#888"')]
    if limit is not None:
        dashes = 'stroke="#b3261e" stroke-dasharray="4 3"'
        body.append(line(place(limit), 0, place(limit), height, dashes))
    for row, span in enumerate(spans):
        y = row * _ROW + _ROW / 2
        body.append(text(_LABEL - 8, y + 4, span.label, "end"))
        if span.low is not None and span.high is not None:
            style = f'stroke="{_COLOURS[0]}" stroke-width="2"'
            body.append(line(place(span.low), y, place(span.high), y, style))
        body.append(
            f'<circle cx="{place(span.value):.1f}" cy="{y:.1f}" r="4" fill="{_COLOURS[0]}"/>'
        )
        body.append(text(_LABEL + _PLOT + 8, y + 4, span.text))
    return svg(_LABEL + _PLOT + _VALUE, height + 4, body, title)


def _shade(value: float, low: float, high: float) -> str:
    """White to blue on a logarithmic scale between `low` and `high`."""
    if value <= 0:
        return "#ffffff"
    share = (math.log(value) - low) / (high - low) if high > low else 1.0
    share = min(max(share, 0.0), 1.0)
    start, end = (255, 255, 255), (31, 95, 139)
    mixed = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], title: str
) -> str:
    """Cells from white (little) to blue (much), on a logarithmic scale.

    Args:
        rows: Labels from top to bottom.
        columns: Labels from left to right.
        values: One row of numbers of at least 0 for each row; the exact one is the cell's tooltip.
        title: Of the picture.
    """
    positive = [value for row in values for value in row if value > 0 and math.isfinite(value)]
    low, high = (math.log(min(positive)), math.log(max(positive))) if positive else (0.0, 0.0)
    left, top = 12 + math.ceil(_LETTER * max(map(len, rows), default=0)), 110
    body = []
    for index, column in enumerate(columns):
        x = left + index * _CELL + _CELL / 2
        body.append(
            f'<text transform="translate({x:.1f} {top - 6}) rotate(-55)">{escape(column)}</text>'
        )
    for row, (label, numbers) in enumerate(zip(rows, values, strict=True)):
        y = top + row * 16
        body.append(text(left - 6, y + 12, label, "end"))
        for index, value in enumerate(numbers):
            cell = f"{label}, {columns[index]}: {value:.3g}"
            x = left + index * _CELL
            body.append(rect(x, y, _CELL - 1, 15, _shade(value, low, high), cell))
    return svg(left + len(columns) * _CELL + 90, top + len(rows) * 16 + 4, body, title)
