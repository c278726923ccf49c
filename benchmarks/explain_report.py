"""Tables, curves and the proof that a bundle carries, from judged maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .explain_judge import BASELINES, STEPS, Judged

__all__ = ["markdown", "plot", "proof"]

_METHODS = ("attention", "ablation")
_COLOURS = {
    "attention": "#d1495b",
    "ablation": "#0b7f79",
    "centre": "#6b7a90",
    "random": "#b9c3d0",
}


def proof(report: Mapping[str, Any]) -> dict[str, Any]:
    """Task -> method -> whether it beats a centre prior, and by what.

    The measure is the pointing game where lesions are boxed, and faithfulness (insertion less
    deletion area) elsewhere. Proven means: the gain over the centre prior and the gain over a
    random map both have 95 % intervals above 0.
    """
    found: dict[str, Any] = {}
    for task, maps in report["tasks"].items():
        for method in _METHODS:
            over = maps[method]["over-centre"]
            measure = "pointing" if "pointing" in over else "faithfulness"
            gain, other = over[measure], maps[method]["over-random"][measure]
            found.setdefault(task, {})[method] = {
                "proven": gain["low"] > 0 and other["low"] > 0,
                "measure": measure,
                "gain": round(gain["value"], 4),
                "low": round(gain["low"], 4),
                "high": round(gain["high"], 4),
                "n": gain["n"],
                "split": report["split"],
            }
    return found


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def markdown(report: Mapping[str, Any]) -> str:
    """The tables as text."""
    lines: list[str] = []
    for task, maps in report["tasks"].items():
        measures = [key for key in maps["random"] if not key.startswith("over-")]
        count = maps["random"][measures[0]]["n"]
        lines += [f"**{task}**, {count} examples ({report['split']})", ""]
        lines += ["| map | " + " | ".join(measures) + " | gain over centre |"]
        lines += ["| --- " * (len(measures) + 2) + "|"]
        gained = "pointing" if "pointing" in measures else "faithfulness"
        order = sorted(maps, key=lambda name: -maps[name][gained]["value"])
        for name in order:
            cells = [_cell(maps[name][key]) for key in measures]
            over = maps[name].get("over-centre")
            cells.append(_cell(over[gained] if over else None))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    costs = report["cost"]
    lines += [
        "| method | plain inferences | peak memory, MB more than plain |",
        "| --- | --- | --- |",
    ]
    for name in _METHODS:
        more = (report["memory_bytes"][name] - report["memory_bytes"]["plain"]) / 1e6
        lines.append(f"| {name} | {_cell(costs[name])} | {more:.1f} |")
    return "\n".join(lines) + "\n"


def plot(judged: Sequence[Judged], path: Path) -> None:
    """Mean deletion and insertion curves of each task, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(judged), 5.6), layout="constrained", dpi=110)
    grid = figure.subplots(2, len(judged), squeeze=False, sharex=True)
    share = np.asarray(STEPS) / STEPS[-1]
    for column, item in enumerate(judged):
        for row, which in enumerate(("deletion", "insertion")):
            axes = grid[row][column]
            for name, colour in _COLOURS.items():
                mean = np.mean([item.curve(name, f"{which}-{b}") for b in BASELINES], axis=0)
                axes.plot(share, mean, color=colour, label=name, linewidth=1.8)
            axes.set_title(f"{item.task}\n{which}" if row == 0 else which, fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
        grid[1][column].set_xlabel("share of the image", fontsize=8)
    for row, words in enumerate(("hidden: lower is better", "shown: higher is better")):
        grid[row][0].set_ylabel(f"probability\n{words}", fontsize=8)
    grid[0][0].legend(fontsize=8, frameon=False)
    figure.savefig(path, format="png", metadata={"Software": None})
