"""Where runs of a recipe stop: validation figures over the epochs, beside what is aimed at.

`python -m benchmarks.limits NAME=RUN... --out PICTURE`

Each RUN is a run folder of `finetune` or `distil` with its `history.jsonl`. The thin line is the
training loss, on a scale of its own: where it still falls and the figure does not rise, more
training is not what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["main"]


@dataclass(frozen=True)
class Panel:
    """One figure of one task, and its aim."""

    task: str
    metric: str
    title: str
    aim: float


PANELS = (
    Panel("vqa/vqamed19", "accuracy", "VQA-Med 2019, accuracy", 0.57),
    Panel(
        "vqa/vqamed19", "accuracy_excluding_abnormality", "VQA-Med 2019, without abnormality", 0.75
    ),
    Panel("vqa/vqarad", "closed_accuracy", "VQA-RAD, closed questions", 0.62),
    Panel("chest-xray", "auroc_Pneumonia", "chest film, AUROC of pneumonia", 0.92),
    Panel("breast-ultrasound", "balanced_accuracy", "breast ultrasound, balanced accuracy", 0.75),
    Panel("skin-lesion", "balanced_accuracy", "skin lesion, balanced accuracy", 0.55),
)
_COLOURS = ("#4269d0", "#efb118", "#3ca951", "#ff725c", "#9c6b4e")


def _history(run: Path) -> list[dict[str, Any]]:
    lines = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _epochs(run: Path, last: int) -> float:
    """Steps of one epoch."""
    epochs = json.loads((run / "recipe.json").read_text(encoding="utf-8"))["optim"]["epochs"]
    return last / float(epochs)


def _smooth(values: Sequence[float], width: int) -> list[float]:
    starts = range(0, len(values) - width + 1, width)
    return [sum(values[start : start + width]) / width for start in starts]


def _draw(runs: dict[str, Path], out: Path) -> None:
    histories = {name: _history(run) for name, run in runs.items()}
    figure, grid = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
    for panel, axes in zip(PANELS, grid.flat, strict=True):
        beside = axes.twinx()
        beside.set_yticks([])
        for (name, run), colour in zip(runs.items(), _COLOURS, strict=False):
            rows = histories[name]
            per_epoch = _epochs(run, max(row["step"] for row in rows))
            losses = [row["losses"]["loss"] for row in rows if row["kind"] == "train"]
            smooth = _smooth(losses, round(per_epoch))
            beside.plot(range(1, len(smooth) + 1), smooth, color=colour, lw=0.7, alpha=0.5)
            found = [row for row in rows if row["kind"] == "validation"]
            axes.plot(
                [row["step"] / per_epoch for row in found],
                [row["tasks"][panel.task][panel.metric]["value"] for row in found],
                color=colour,
                marker="o",
                ms=3,
                label=name,
            )
        axes.axhline(panel.aim, color="black", ls="--", lw=1)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("epochs")
        axes.grid(alpha=0.25)
    grid.flat[0].legend(fontsize=8, loc="lower right")
    figure.savefig(out, dpi=110)


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="PNG file.")
def main(runs: tuple[str, ...], out: Path) -> None:
    """Draw the curves of RUNS, each NAME=FOLDER."""
    named: dict[str, Path] = {}
    for text in runs:
        name, separator, folder = text.partition("=")
        if not separator or not (Path(folder) / "history.jsonl").is_file():
            raise click.UsageError(f"{text!r} given; NAME=FOLDER with a history.jsonl is allowed")
        named[name] = Path(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    _draw(named, out)
    click.echo(f"{out}: {len(named)} runs")


if __name__ == "__main__":
    main()
