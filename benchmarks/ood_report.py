"""Table and heat map of what the out-of-distribution score tells apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Cell", "Table", "write_report"]

PARTS = ("features", "appearance", "energy")
TITLES = {
    "vqamed19": "VQA-Med",
    "vqarad": "VQA-RAD",
    "nihcxr": "NIH films",
    "busi": "breast ultrasound",
    "padufes": "skin photographs",
    "covidcxr": "COVID films",
    "pocus": "lung ultrasound",
}


@dataclass(frozen=True)
class Cell:
    """One task against one kind of image."""

    auroc: float
    low: float
    high: float
    told: float
    """Share of the images whose status is `out_of_distribution`."""
    n: int
    parts: tuple[float, ...]
    """AUROC of features, appearance and energy alone."""


@dataclass
class Table:
    """Everything measured."""

    folder: Path
    extra: Sequence[str]
    """Kinds that do not count in the mean."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def mean(self, task: str) -> float:
        """Mean AUROC over the kinds that count."""
        cells = self.tasks[task]["cells"]
        return float(np.mean([cell.auroc for kind, cell in cells.items() if self.counts(kind)]))

    def counts(self, kind: str) -> bool:
        """Whether a kind counts in the mean."""
        return kind not in self.extra

    @property
    def kinds(self) -> list[str]:
        """All kinds, in the order measured; those that do not count come last."""
        met = dict.fromkeys(kind for item in self.tasks.values() for kind in item["cells"])
        return sorted(met, key=lambda kind: not self.counts(kind))


def write_report(table: Table) -> list[str]:
    """Write `ood.json`, `ood.md` and `ood.svg`; gives back the lines of the table."""
    table.folder.mkdir(parents=True, exist_ok=True)
    lines = _lines(table)
    (table.folder / "ood.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    document = {
        task: {
            **{key: value for key, value in item.items() if key != "cells"},
            "mean_auroc": table.mean(task),
            "kinds": {kind: asdict(cell) for kind, cell in item["cells"].items()},
        }
        for task, item in table.tasks.items()
    }
    text = json.dumps(document, indent=1)
    (table.folder / "ood.json").write_text(text + "\n", encoding="utf-8")
    _draw(table)
    return lines


def _lines(table: Table) -> list[str]:
    tasks = list(table.tasks)
    lines = [
        "| kind of image | " + " | ".join(f"`{task}`" for task in tasks) + " |",
        "| --- " * (len(tasks) + 1) + "|",
    ]
    for kind in table.kinds:
        cells = [_cell(table.tasks[task]["cells"].get(kind)) for task in tasks]
        name = TITLES.get(kind, kind) + ("" if table.counts(kind) else " (not counted)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means = " | ".join(f"**{table.mean(task):.3f}**" for task in tasks)
    alarms = " | ".join(
        f"{item['false_alarms']} of {item['validation_images']}" for item in table.tasks.values()
    )
    lines += [f"| mean AUROC | {means} |", f"| false alarms, held out | {alarms} |"]
    for row, part in enumerate(PARTS):
        alone = " | ".join(f"{_alone(table, task, row):.3f}" for task in tasks)
        lines.append(f"| mean AUROC of {part} alone | {alone} |")
    return lines


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.auroc:.3f} ({cell.low:.3f} to {cell.high:.3f}), {100 * cell.told:.0f} %"


def _alone(table: Table, task: str, row: int) -> float:
    cells = table.tasks[task]["cells"]
    return float(np.mean([c.parts[row] for kind, c in cells.items() if table.counts(kind)]))


def _draw(table: Table) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    tasks, kinds = list(table.tasks), table.kinds
    values = np.full((len(tasks), len(kinds)), np.nan)
    for row, task in enumerate(tasks):
        for column, kind in enumerate(kinds):
            cell = table.tasks[task]["cells"].get(kind)
            values[row, column] = np.nan if cell is None else cell.auroc
    plt.rcParams["svg.fonttype"] = "none"
    size = (0.68 * len(kinds) + 2.4, 0.55 * len(tasks) + 1.9)
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    drawn = axes.imshow(values, vmin=0.5, vmax=1.0, cmap="cividis", aspect="auto")
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        axes.text(
            *(column, row, f"{value:.2f}"),
            **{"ha": "center", "va": "center", "fontsize": 9},
            color="black" if value > 0.8 else "white",
        )
    names = [TITLES.get(kind, kind) for kind in kinds]
    axes.set_xticks(range(len(kinds)), names, rotation=35, ha="right", fontsize=9)
    axes.set_yticks(range(len(tasks)), tasks, fontsize=9)
    first = min((kinds.index(kind) for kind in table.extra if kind in kinds), default=None)
    if first is not None:
        axes.axvline(first - 0.5, color="white", linewidth=3)
    figure.colorbar(drawn, ax=axes, label="AUROC")
    axes.set_title("A task's own images against others", fontsize=10)
    for suffix in ("svg", "png"):
        figure.savefig(table.folder / f"ood.{suffix}", dpi=110, metadata=_NO_DATE.get(suffix))
    plt.close(figure)


_NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}}
