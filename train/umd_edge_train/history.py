"""What a run has done so far: one JSON line a report, and the learning curves as a picture."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["History"]

# Validation metrics that are drawn, those that a task has.
_DRAWN = ("accuracy", "closed_accuracy", "balanced_accuracy", "macro_auroc")


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
        """Write the learning curves as a PNG: training losses above, validation metrics below."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(12, 8), sharex=True)
        try:
            self._draw_losses(top)
            self._draw_metrics(bottom)
            figure.tight_layout()
            temporary = path.with_suffix(".tmp.png")
            figure.savefig(temporary, dpi=110)
            os.replace(temporary, path)
        finally:
            pyplot.close(figure)

    def _draw_losses(self, axes: Any) -> None:
        train = [record for record in self.records if record["kind"] == "train"]
        names = sorted({name for record in train for name in record["losses"]})
        for name in names:
            points = [(r["step"], r["losses"][name]) for r in train if name in r["losses"]]
            smooth, drawn = None, []
            for step, value in points:
                smooth = value if smooth is None else 0.95 * smooth + 0.05 * value
                drawn.append((step, smooth))
            width = 2.2 if name == "loss" else 1.2
            axes.plot(*zip(*drawn, strict=True), label=name, linewidth=width)
        axes.set(ylabel="training loss (smoothed)", yscale="log", title="Learning curves")
        axes.grid(alpha=0.3)
        if names:
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))

    def _draw_metrics(self, axes: Any) -> None:
        evaluations = [record for record in self.records if record["kind"] == "validation"]
        lines: dict[str, list[tuple[int, float]]] = {}
        for record in evaluations:
            for task, metrics in record["tasks"].items():
                for name in _DRAWN:
                    value = metrics.get(name, {}).get("value")
                    if value is not None:
                        lines.setdefault(f"{task} {name}", []).append((record["step"], value))
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axes.set(xlabel="optimiser step", ylabel="validation metric", ylim=(0.0, 1.0))
        axes.grid(alpha=0.3)
        if lines:
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
