"""Pictures of the page of results: bars with intervals, learning curves, few-label curves.

The same figures give the same file: PNG without dates or versions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Bar", "Curve", "draw_bars", "draw_curves", "draw_differences", "draw_panels"]

# Okabe and Ito's colours, told apart by colour-blind readers; then the same with other lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
_BASELINE = "#9a9a9a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A mean with its interval, and the seeds behind it as dots."""

    name: str
    value: float
    low: float | None
    high: float | None
    by_seed: tuple[float, ...] = ()
    is_baseline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line with a band."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Any]:
    with _grid(path, width, height, 1, 1) as axes:
        yield axes[0]


@contextmanager
def _grid(path: Path, width: float, height: float, rows: int, columns: int) -> Iterator[list[Any]]:
    """Axes row by row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, grid = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False)
    try:
        listed = list(grid.flat)
        yield listed
        for axes in listed:
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        figure.tight_layout()
        temporary = path.with_name(f".{path.stem}.tmp.png")
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
        os.replace(temporary, path)
    finally:
        pyplot.close(figure)


def draw_bars(path: Path, bars: Sequence[Bar], *, label: str, title: str) -> None:
    """Horizontal bars, the first one on top.

    Args:
        path: PNG file; its folder is made.
        bars: One or more.
        label: Of the axis of values.
        title: Of the picture.
    """
    with _figure(path, 8.0, 1.1 + 0.42 * len(bars)) as axes:
        for row, bar in enumerate(bars):
            colour = _BASELINE if bar.is_baseline else _COLOURS[0]
            axes.barh(row, bar.value, height=0.62, color=colour, alpha=0.75)
            edge = bar.value
            if bar.low is not None and bar.high is not None:
                reach = [[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]]
                axes.errorbar(bar.value, row, xerr=reach, color="black", capsize=3, linewidth=1.2)
                edge = max(edge, bar.high)
            if len(bar.by_seed) > 1:
                axes.plot(bar.by_seed, [row] * len(bar.by_seed), "o", color="white", ms=4, mec="k")
                edge = max(edge, *bar.by_seed)
            axes.annotate(
                f"{bar.value:.3f}",
                (edge, row),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlim(left=0.0)
        axes.set(xlabel=label, title=title)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)


def draw_curves(
    path: Path,
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    title: str,
    x_ticks: Sequence[float] = (),
) -> None:
    """Lines with bands and a legend beside them.

    Args:
        path: PNG file; its folder is made.
        curves: One or more.
        x_label: Of the x axis.
        y_label: Of the y axis.
        title: Of the picture.
        x_ticks: Where given, the x axis is logarithmic with these ticks alone, in per cent.
    """
    with _figure(path, 9.0, 4.4) as axes:
        for index, curve in enumerate(curves):
            colour = _COLOURS[index % len(_COLOURS)]
            style = _STYLES[index // len(_COLOURS) % len(_STYLES)]
            axes.plot(curve.x, curve.y, style, color=colour, marker="o", ms=3.5, label=curve.name)
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        if x_ticks:
            axes.set_xscale("log")
            axes.set_xticks(list(x_ticks), [f"{tick:.0%}" for tick in x_ticks])
            axes.minorticks_off()
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)


def draw_differences(path: Path, groups: Mapping[str, Sequence[Bar]], *, label: str) -> None:
    """Points with intervals on both sides of zero; the first row on top.

    Args:
        path: PNG file; its folder is made.
        groups: Title -> one point for each row; all have the same rows in the same order.
        label: Of the axis of values.
    """
    rows = [bar.name for bar in next(iter(groups.values()))]
    offsets = [(i - (len(groups) - 1) / 2) * 0.24 for i in range(len(groups))]
    with _figure(path, 9.0, 1.6 + 0.62 * len(rows)) as axes:
        for colour, offset, (title, points) in zip(_COLOURS, offsets, groups.items(), strict=False):
            heights = [row + offset for row in range(len(points))]
            for height, point in zip(heights, points, strict=True):
                if point.low is not None and point.high is not None:
                    axes.plot([point.low, point.high], [height] * 2, color=colour, linewidth=2)
                axes.plot(point.by_seed, [height] * len(point.by_seed), "|", color=colour, ms=9)
            values = [point.value for point in points]
            axes.plot(values, heights, "o", color=colour, ms=6, label=title)
        axes.axvline(0.0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.set(xlabel=label)
        axes.grid(axis="x", alpha=0.3)
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, ncols=2)


def draw_panels(path: Path, panels: Mapping[str, Sequence[Curve]], *, x_label: str) -> None:
    """A small picture for each name, all with the same curves and one legend.

    Args:
        path: PNG file; its folder is made.
        panels: Title -> one or more curves; a curve has the same colour in every panel.
        x_label: Of the x axes.
    """
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with _grid(path, 4.0 * columns, 0.5 + 2.5 * rows, rows, columns) as grid:
        for axes, (title, curves) in zip(grid, panels.items(), strict=False):
            for curve in curves:
                colour = _COLOURS[names.index(curve.name) % len(_COLOURS)]
                # a single point is no line
                mark = "o" if len(curve.x) == 1 else ""
                axes.plot(
                    curve.x, curve.y, marker=mark, color=colour, linewidth=1.4, label=curve.name
                )
                axes.fill_between(
                    curve.x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0
                )
            axes.set_title(title, fontsize=10)
            axes.set(xlabel=x_label)
            axes.grid(alpha=0.3)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        grid[0].legend(fontsize=8, frameon=False)
