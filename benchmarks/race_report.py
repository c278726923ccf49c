"""Table and plot of a race."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["OURS", "Races", "ratio", "write_report"]

OURS = "umd-edge"
Case = tuple[str, int, int]
"""Part (first, further, vision), batch, threads."""


@dataclass
class Races:
    """Everything measured; times in seconds."""

    rounds: int
    repeats: int
    times: dict[Case, dict[str, list[float]]] = field(default_factory=dict)
    """Case -> contender -> median of each round."""
    cold: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    """Largest difference of logits from torch."""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    """Contender -> why it did not run."""

    def add(self, part: str, batch: int, threads: int, times: Mapping[str, list[float]]) -> None:
        """Keep the rounds of one case."""
        self.times[part, batch, threads] = dict(times)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "machine": _machine(),
            "rounds": self.rounds,
            "repeats": self.repeats,
            "seconds": [
                {"part": part, "batch": batch, "threads": threads, "rounds": times}
                for (part, batch, threads), times in self.times.items()
            ],
            "cold_start_seconds": self.cold,
            "peak_memory_bytes": self.memory,
            "disk_bytes": self.disk,
            "largest_logit_difference": self.differences,
            "versions": self.versions,
            "skipped": self.skipped,
        }


def ratio(other: Sequence[float], ours: Sequence[float]) -> tuple[float, float, float]:
    """How many times faster ours is: median over the rounds, and their 10 and 90 % quantiles."""
    quotients = np.asarray(other, float) / np.asarray(ours, float)
    low, middle, high = np.quantile(quotients, [0.1, 0.5, 0.9])
    return float(middle), float(low), float(high)


def _machine() -> dict[str, Any]:
    name = ""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        name = next((line.split(":")[1].strip() for line in facts if "model name" in line), "")
    except OSError:
        pass
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": name,
        "cores": os.cpu_count(),
    }


def _milliseconds(values: Sequence[float]) -> str:
    return f"{np.median(values) * 1e3:.2f}"


def _times_table(races: Races, batch: int, threads: int) -> list[str]:
    cases = {part: races.times[part, batch, threads] for part in ("first", "further", "vision")}
    lines = [
        f"Batch {batch}, {threads} thread{'s' if threads > 1 else ''}:",
        "",
        "| contender | first answer ms | slower than umd-edge | further question ms "
        "| slower than umd-edge | further / first | images / s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, first in cases["first"].items():
        cells = [name]
        for part in ("first", "further"):
            times = cases[part]
            cells.append(_milliseconds(times[name]))
            ours = times.get(OURS)
            cells.append(
                "" if ours is None else "{:.2f} ({:.2f}-{:.2f})".format(*ratio(times[name], ours))
            )
        share = ratio(cases["further"][name], first)[0]
        images = batch / float(np.median(cases["vision"][name]))
        lines.append(f"| {' | '.join([*cells, f'{share:.2f}', f'{images:,.0f}'])} |")
    return [*lines, ""]


def _facts_table(races: Races) -> list[str]:
    lines = [
        "| contender | cold start s | peak memory MB | disk MB | largest difference of a logit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, starts in races.cold.items():
        memory = races.memory.get(name)
        difference = races.differences.get(name)
        cells = [
            name,
            f"{np.median(starts):.2f} ({min(starts):.2f}-{max(starts):.2f})",
            "" if memory is None else f"{memory / 1e6:.0f}",
            f"{races.disk[name] / 1e6:.1f}",
            "" if difference is None else f"{difference:.2g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def markdown(races: Races) -> str:
    """The tables."""
    machine = _machine()
    versions = {key: value for item in races.versions.values() for key, value in item.items()}
    lines = [
        f"{machine['processor']}, {machine['cores']} cores; "
        + ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))
        + f". Medians of {races.rounds} interleaved rounds of {races.repeats} calls; in brackets "
        "the 10 and 90 % quantiles of the rounds' ratios.",
        "",
    ]
    for _, batch, threads in (case for case in races.times if case[0] == "first"):
        lines += _times_table(races, batch, threads)
    lines += _facts_table(races)
    lines += [f"Left out: {name} ({reason})." for name, reason in races.skipped.items()]
    return "\n".join(lines).rstrip() + "\n"


def _plot(races: Races, path: Path) -> None:
    from matplotlib.figure import Figure

    case = ("first", 1, 1) if ("first", 1, 1) in races.times else next(iter(races.times))
    times = races.times[case]
    order = sorted(times, key=lambda name: float(np.median(times[name])))
    figure = Figure(figsize=(7, 0.45 * len(order) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(order):
        low, middle, high = np.quantile(np.asarray(times[name]) * 1e3, [0.1, 0.5, 0.9])
        colour = "#0b7f79" if name == OURS else "#9fb0c3"
        axes.barh(row, middle, color=colour, xerr=[[middle - low], [high - middle]], capsize=3)
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.set_xlabel(f"{case[0]} answer, ms (batch {case[1]}, {case[2]} thread)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def write_report(races: Races, folder: Path) -> None:
    """Write race.json, race.md and race.svg into `folder`; older ones are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "race.json": json.dumps(races.to_dict(), indent=1) + "\n",
        "race.md": markdown(races),
    }
    for name, text in texts.items():
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / name)
    temporary = folder / ".race.svg"
    _plot(races, temporary)
    os.replace(temporary, folder / "race.svg")
