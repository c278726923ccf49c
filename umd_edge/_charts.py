"""Charts as SVG: no script, no font and no address outside the page that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["BLUE", "GREY", "ORANGE", "Plot", "count_matrix", "line", "rect", "svg", "text"]

BLUE, ORANGE, GREY = "#1f5f8b", "#b25d00", "#888"
_BAND = "#d9e6ef"
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 12.0, 44.0
_CELL, _CELL_HEIGHT = 62.0, 26.0

Point = tuple[float, float]


def svg(width: float, height: float, body: Sequence[str], title: str) -> str:
    """A picture of these elements; the title is what a screen reader says."""
    return (
        f'<svg role="img" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}"><title>{escape(title)}</title>' + "".join(body) + "</svg>"
    )


def text(x: float, y: float, content: str, anchor: str = "start", style: str = "") -> str:
    """One line of text; `anchor` is start, middle or end."""
    style = f" {style}" if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(content)}</text>'


def rect(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:
    """A filled rectangle with a tooltip."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" '
        f'fill="{colour}"><title>{escape(title)}</title></rect>'
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line; `style` holds its SVG attributes."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


@dataclass(slots=True, kw_only=True)
class Plot:
    """Axes with lines, bands and dots drawn one after the other, in the units of the data."""

    title: str
    x_label: str
    y_label: str
    x: Point = (0.0, 1.0)
    """From and to."""
    y: Point = (0.0, 1.0)
    width: float = 380.0
    """Pixels, as is the height."""
    height: float = 310.0
    _body: list[str] = field(default_factory=list)

    def band(self, points: Iterable[tuple[float, float, float]], colour: str = _BAND) -> None:
        """An area between (x, low, high) points, from left to right."""
        listed = list(points)
        ends = [(x, high) for x, _, high in listed] + [(x, low) for x, low, _ in listed[::-1]]
        if ends:
            self._body.append(f'<polygon points="{self._places(ends)}" fill="{colour}"/>')

    def curve(self, points: Iterable[Point], colour: str, dashes: str = "") -> None:
        """A line through (x, y) points."""
        style = f' stroke-dasharray="{dashes}"' if dashes else ""
        self._body.append(
            f'<polyline points="{self._places(points)}" fill="none" stroke="{colour}" '
            f'stroke-width="1.8"{style}/>'
        )

    def span(self, x: float, low: float, high: float, colour: str, width: float = 1.4) -> None:
        """A vertical bar, such as an interval."""
        left, top = self._place(x, high)
        bottom = self._place(x, low)[1]
        self._body.append(
            line(left, top, left, bottom, f'stroke="{colour}" stroke-width="{width:g}"')
        )

    def dot(self, x: float, y: float, colour: str, title: str, radius: float = 4.0) -> None:
        """A dot with a tooltip."""
        left, top = self._place(x, y)
        self._body.append(
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="{radius:g}" fill="{colour}">'
            f"<title>{escape(title)}</title></circle>"
        )

    def label(self, x: float, y: float, content: str, anchor: str = "start") -> None:
        """Text at a point of the data."""
        left, top = self._place(x, y)
        self._body.append(text(left, top, content, anchor))

    def render(self) -> str:
        """The picture."""
        return svg(self.width, self.height, [*self._axes(), *self._body], self.title)

    def _place(self, x: float, y: float) -> Point:
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        across, up = (min(max(share, 0.0), 1.0) for share in (across, up))
        return (
            _LEFT + across * (self.width - _LEFT - _RIGHT),
            self.height - _BOTTOM - up * (self.height - _TOP - _BOTTOM),
        )

    def _places(self, points: Iterable[Point]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*self._place(x, y)) for x, y in points)

    def _axes(self) -> list[str]:
        parts = []
        for step in range(6):
            x = self.x[0] + step / 5 * (self.x[1] - self.x[0])
            y = self.y[0] + step / 5 * (self.y[1] - self.y[0])
            left, bottom = self._place(x, self.y[0])
            top = self._place(x, self.y[1])[1]
            parts.append(line(left, top, left, bottom, 'stroke="#eee"'))
            parts.append(text(left, bottom + 15, f"{x:.2g}", "middle"))
            right = self._place(self.x[1], y)[0]
            height = self._place(self.x[0], y)[1]
            parts.append(line(_LEFT, height, right, height, 'stroke="#eee"'))
            parts.append(text(_LEFT - 6, height + 4, f"{y:.2g}", "end"))
        middle = _LEFT + (self.width - _LEFT - _RIGHT) / 2
        parts.append(text(middle, self.height - 8, self.x_label, "middle"))
        centre = _TOP + (self.height - _TOP - _BOTTOM) / 2
        parts.append(
            f'<text transform="translate(14 {centre:.1f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text>"
        )
        return parts


def count_matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    counts: Sequence[Sequence[int]],
    title: str,
    *,
    heads: tuple[str, str],
) -> str:
    """Counts as a table of cells, shaded by their share of the row.

    Args:
        rows: Names from top to bottom.
        columns: Names from left to right.
        counts: One row of numbers for each name.
        title: Of the picture.
        heads: What rows and what columns are.
    """
    left = 16.0 + 7.0 * max(len(name) for name in (*rows, heads[0]))
    top = 34.0 + 5.2 * max(len(name) for name in columns)
    body = [text(0, top - 8, heads[0], style='font-weight="bold"')]
    body.append(text(left, 12, heads[1], style='font-weight="bold"'))
    for column, name in enumerate(columns):
        x = left + column * _CELL + _CELL / 2
        body.append(
            f'<text transform="translate({x:.1f} {top - 6:.1f}) rotate(-38)">{escape(name)}</text>'
        )
    for row, (name, numbers) in enumerate(zip(rows, counts, strict=True)):
        y, total = top + row * _CELL_HEIGHT, sum(numbers)
        body.append(text(left - 8, y + 17, name, "end"))
        for column, number in enumerate(numbers):
            share = number / total if total else 0.0
            x = left + column * _CELL
            told = f"{name}, {columns[column]}: {number} of {total}"
            body.append(rect(x, y, _CELL - 2, _CELL_HEIGHT - 2, _shade(share), told))
            colour = 'style="fill:#fff"' if share > 0.55 else ""
            body.append(text(x + _CELL / 2 - 1, y + 17, str(number), "middle", colour))
    width = left + len(columns) * _CELL + 5.2 * max(len(name) for name in columns)
    return svg(width, top + len(rows) * _CELL_HEIGHT + 4, body, title)


def _shade(share: float) -> str:
    start, end = (243, 245, 247), (31, 95, 139)
    mixed = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)
