"""The map of the layers as a picture: what each would lose, and what became of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

__all__ = ["draw_layers"]

_INT8, _FLOAT = "#1f5f8b", "#d9a441"
_FLOOR = 1e-8
_ROW_INCHES = 0.17


def draw_layers(sensitivity: Mapping[str, Any], title: str) -> bytes:
    """PNG with one row a layer, in the order of the ranking, and one mark a task.

    Args:
        sensitivity: The section that `quantise_variant` gives.
        title: Above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    layers = list(sensitivity["layers"])
    tasks = sorted({name for item in layers for name in item["expected_changes"]})
    figure = Figure(figsize=(9, 1.6 + _ROW_INCHES * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    for row, item in enumerate(layers):
        colour = _FLOAT if item["float"] else _INT8
        worst = max([item["noise"][task] for task in tasks] + [_FLOOR])
        axes.barh(row, worst - _FLOOR, left=_FLOOR, height=0.75, color=colour, alpha=0.35)
    markers = "osD^vP*X<>"
    handles = [
        Line2D([], [], color=_FLOAT, linewidth=7, alpha=0.5, label="stays in float"),
        Line2D([], [], color=_INT8, linewidth=7, alpha=0.5, label="INT8"),
    ]
    for index, task in enumerate(tasks):
        marker = markers[index % len(markers)]
        # nothing to mark where a task does not read the layer
        values = [x if x > _FLOOR else float("nan") for x in (i["noise"][task] for i in layers)]
        shade = str(0.15 + 0.5 * index / max(len(tasks), 1))
        axes.plot(values, range(len(layers)), marker, color=shade, markersize=3.5, linestyle="")
        handles.append(Line2D([], [], color=shade, marker=marker, linestyle="", label=task))
    axes.set_yticks(range(len(layers)), [f"{x['part']}: {x['name']}" for x in layers], fontsize=6)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlim(left=_FLOOR)
    axes.set_xlabel("noise of the layer alone: energy of the change / energy of the logits")
    axes.set_title(title, fontsize=10)
    axes.legend(handles=handles, fontsize=7, loc="lower right")
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": "umd-edge-export"})
    return out.getvalue()
