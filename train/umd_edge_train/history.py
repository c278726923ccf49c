"""What a run has done so far: one JSON line a report, and pictures of its curves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["History"]

# Validation metrics that are drawn, those that a task has.
_DRAWN = (
    "accuracy",
    "closed_accuracy",
    "balanced_accuracy",
    "macro_auroc",
    "image_to_text_r10",
    "text_to_image_r10",
    "mlm_accuracy",
    "itm_accuracy",
    "contrast_accuracy",
)
# After ten curves the colours come again, with other dashes.
_DASHES = ("-", "--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)))


class History:
    """Append-only records of a run, kept in `history.jsonl`.

    Args:
        folder: The run's folder.
        step: Records after this optimiser step are dropped (a resumed run repeats them).
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "history.jsonl"
        self.records: list[dict[str, Any]] = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # the line that a kill cut short
                    break
                if record["step"] <= step:
                    self.records.append(record)
        text = "".join(json.dumps(record, sort_keys=True) + "\n" for record in self.records)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path)

    def add(self, **record: Any) -> None:
        """Append one record; it needs `step` and `kind`."""
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record, sort_keys=True) + "\n")

    def draw(self, path: Path) -> None:
        """Write the learning curves as a PNG: losses above, validation metrics below.

        Losses of the validation, which a pre-training has, stand beside those of the training.
        A run that coordinates its modalities also gets `coordination.png` in the same folder: ratio
        of the modalities' scores above, their coefficients below.
        """
        _write_figure(path, self._draw_losses, self._draw_metrics)
        if any("coordination" in record for record in self.records):
            _write_figure(
                path.with_name("coordination.png"), self._draw_ratio, self._draw_coefficients
            )

    def _draw_losses(self, axes: Any) -> None:
        train = [record for record in self.records if record["kind"] == "train"]
        names = sorted({name for record in train for name in record["losses"]})
        for index, name in enumerate(names):
            points = [(r["step"], r["losses"][name]) for r in train if name in r["losses"]]
            width = 2.2 if name == "loss" else 1.2
            axes.plot(*_smoothed(points), label=name, linewidth=width, **_style(index))
        validated = self._validated(lambda metric: metric in names)
        for (_, name), points in validated.items():
            style = {**_style(names.index(name)), "linestyle": ":", "marker": "o", "markersize": 3}
            axes.plot(*zip(*points, strict=True), label=f"{name}, validation", **style)
        positive = any(loss > 0.0 for record in train for loss in record["losses"].values())
        scale = "log" if positive else "linear"
        axes.set(ylabel="loss (training: smoothed)", yscale=scale, title="Learning curves")
        _finish(axes)

    def _draw_metrics(self, axes: Any) -> None:
        lines = self._validated(lambda metric: metric in _DRAWN)
        for index, ((task, name), points) in enumerate(lines.items()):
            label = f"{task} {name}"
            axes.plot(
                *zip(*points, strict=True), marker="o", markersize=3, label=label, **_style(index)
            )
        # what has reached 1 stays in sight
        axes.set(xlabel="optimiser step", ylabel="validation metric", ylim=(-0.02, 1.02))
        _finish(axes)

    def _validated(
        self, wanted: Callable[[str], bool]
    ) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """(task, metric) -> steps and values of the validation metrics of these names."""
        found: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for record in self.records:
            if record["kind"] != "validation":
                continue
            for task, metrics in record["tasks"].items():
                for name, metric in metrics.items():
                    if wanted(name) and metric.get("value") is not None:
                        points = found.setdefault((task, name), [])
                        points.append((record["step"], metric["value"]))
        return found

    def _draw_ratio(self, axes: Any) -> None:
        self._draw_coordinated(axes, ("ratio_text",))
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set(ylabel="score of text / score of image", yscale="log", title="Coordination")
        for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            ticks("{x:.3g}")

    def _draw_coefficients(self, axes: Any) -> None:
        self._draw_coordinated(axes, ("coefficient_text", "coefficient_image"))
        axes.set(xlabel="optimiser step", ylabel="coefficient", ylim=(0.0, 1.05))

    def _draw_coordinated(self, axes: Any, names: tuple[str, ...]) -> None:
        reports = [(r["step"], r["coordination"]) for r in self.records if "coordination" in r]
        for index, name in enumerate(names):
            points = [(step, report[name]) for step, report in reports if name in report]
            if points:
                style = _style(index)
                axes.plot(*zip(*points, strict=True), linewidth=0.6, alpha=0.3, **style)
                axes.plot(*_smoothed(points), label=f"{name} (smoothed)", **style)
        _finish(axes)


def _style(index: int) -> dict[str, Any]:
    """Colour and dashes of a curve; the first 50 differ."""
    return {"color": f"C{index % 10}", "linestyle": _DASHES[index // 10 % len(_DASHES)]}


def _smoothed(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Steps, and the values' exponential average, in which the first value weighs no more."""
    total = weight = 0.0
    values = []
    for _, value in points:
        total = 0.95 * total + 0.05 * value
        weight = 0.95 * weight + 0.05
        values.append(total / weight)
    return [step for step, _ in points], values


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _write_figure(path: Path, *parts: Callable[[Any], None]) -> None:
    """Let each part draw one of the figure's rows, which share the horizontal axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(parts), 1, figsize=(12, 8), sharex=True)
    try:
        for part, axes in zip(parts, rows, strict=True):
            part(axes)
        figure.tight_layout()
        temporary = path.with_suffix(".tmp.png")
        figure.savefig(temporary, dpi=110)
        os.replace(temporary, path)
    finally:
        pyplot.close(figure)
