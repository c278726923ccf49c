"""Pictures of the page of results: bars with intervals, learning curves, few-label curves.

The same figures give the same file: PNG without dates or versions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Bar", "Curve", "draw_bars", "draw_curves"]

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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(width, height))
    try:
        yield axes
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
