"""Judges maps: deletion and insertion, and the pointing game where lesions are boxed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from umd_edge._evaluation import Resamples

from .explain_maps import RANDOM, Case, make_map

__all__ = ["BASELINES", "Judged", "Measures", "judge_case"]

FloatArray = npt.NDArray[np.float64]
Boxes = Sequence[tuple[float, float, float, float]]

BASELINES = ("blurred", "mean")
"""What hidden patches are replaced by: the image without detail, or its mean colour."""
STEPS = (0, 2, 5, 9, 14, 20, 27, 36, 49)
"""Patches hidden (deletion) or shown (insertion), of 49."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one map for one example."""

    curves: dict[str, FloatArray]
    """`deletion-<baseline>`, `insertion-<baseline>` -> (len(STEPS),) probability of the target."""
    hit: float | None = None
    """Whether the strongest patch's middle lies in a lesion's box; for a map without order, how
    probable that is."""
    energy: float | None = None
    """Share of the map inside the boxes."""

    def area(self, name: str) -> float:
        """Under a curve, over the share of patches."""
        share = np.asarray(STEPS) / STEPS[-1]
        curve = self.curves[name]
        return float(((curve[1:] + curve[:-1]) / 2 * np.diff(share)).sum())

    @property
    def faithfulness(self) -> float:
        """Insertion area less deletion area, mean over what is put in place of patches."""
        return float(
            np.mean([self.area(f"insertion-{b}") - self.area(f"deletion-{b}") for b in BASELINES])
        )


def _curves(case: Case, values: FloatArray) -> dict[str, FloatArray]:
    rows, columns = values.shape
    height, width, _ = case.small.shape
    rank = np.empty(values.size, int)
    rank[np.argsort(-values, axis=None, kind="stable")] = np.arange(values.size)
    cell = np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)
    place = rank.reshape(rows, columns)[cell][..., None]
    counts = [round(step * values.size / STEPS[-1]) for step in STEPS]
    found = {}
    for name, other in zip(BASELINES, (case.blurred, case.plain), strict=True):
        gone = np.stack([np.where(place < count, other, case.small) for count in counts])
        shown = np.stack([np.where(place < count, case.small, other) for count in counts])
        both = case.probabilities(np.concatenate([gone, shown]))[:, case.row]
        found[f"deletion-{name}"], found[f"insertion-{name}"] = (
            both[: len(counts)],
            both[len(counts) :],
        )
    return found


def _inside(boxes: Boxes, x: FloatArray, y: FloatArray) -> npt.NDArray[np.bool_]:
    hits = [(x >= x0) & (x <= x1) & (y >= y0) & (y <= y1) for x0, y0, x1, y1 in boxes]
    return np.asarray(np.any(hits, axis=0))


def _pointing(case: Case, name: str, values: FloatArray) -> tuple[float, float]:
    """Hit and energy."""
    rows, columns = values.shape
    fine = 16
    y, x = ((np.mgrid[0 : rows * fine, 0 : columns * fine] + 0.5) / fine).astype(float)
    box = _inside(case.lesions, x / columns, y / rows)
    mass = np.kron(np.maximum(values, 0.0), np.ones((fine, fine)))
    energy = float(mass[box].sum() / mass.sum()) if mass.sum() > 0 else 0.0
    row, column = np.mgrid[0:rows, 0:columns] + 0.5
    middles = _inside(case.lesions, column / columns, row / rows)
    if name in RANDOM:
        return float(middles.mean()), energy
    if name == "centre":
        return float(_inside(case.lesions, np.array(0.5), np.array(0.5))), energy
    return float(middles.flat[int(values.argmax())]), energy


def judge_case(case: Case, names: Sequence[str], *, curves: bool = True) -> dict[str, Measures]:
    """Every map of one example, judged."""
    found = {}
    for name in names:
        values = make_map(case, name)
        hit, energy = _pointing(case, name, values) if case.lesions else (None, None)
        found[name] = Measures(_curves(case, values) if curves else {}, hit, energy)
    return found


@dataclass
class Judged:
    """All examples of one task."""

    task: str
    groups: list[str] = field(default_factory=list)
    measures: dict[str, list[Measures]] = field(default_factory=dict)

    def add(self, group: str, measures: dict[str, Measures]) -> None:
        """One more example."""
        self.groups.append(group)
        for name, value in measures.items():
            self.measures.setdefault(name, []).append(value)

    @property
    def names(self) -> list[str]:
        """Of the maps; the random ones are one."""
        return [*(name for name in self.measures if name not in RANDOM), "random"]

    def column(self, name: str, measure: Callable[[Measures], float | None]) -> FloatArray:
        """(N,) of one measure; NaN where it is not defined."""
        sources = [n for n in self.measures if n in RANDOM] if name == "random" else [name]
        rows = [[measure(item) for item in self.measures[source]] for source in sources]
        return np.asarray(np.asarray(rows, np.float64).mean(axis=0))

    def curve(self, name: str, which: str) -> FloatArray:
        """Mean curve over the examples."""
        sources = [n for n in self.measures if n in RANDOM] if name == "random" else [name]
        curves = [m.curves[which] for s in sources for m in self.measures[s]]
        return np.asarray(np.mean(curves, axis=0))

    def mean(self, values: FloatArray) -> dict[str, Any]:
        """Mean with its interval over whole patients."""
        known = ~np.isnan(values)
        found = Resamples(self.groups).mean(np.where(known, values, 0.0), known)
        low, high = np.nanquantile(found[1:], [0.025, 0.975])
        return {
            "value": float(found[0]),
            "low": float(low),
            "high": float(high),
            "n": int(known.sum()),
        }

    def summary(self) -> dict[str, Any]:
        """Map -> measure -> value with interval; and differences from centre and random."""
        measures: dict[str, Callable[[Measures], float | None]] = {}
        if any(item.curves for items in self.measures.values() for item in items):
            for which in ("deletion", "insertion"):
                for base in BASELINES:
                    measures[f"{which}-{base}"] = partial(Measures.area, name=f"{which}-{base}")
            measures["faithfulness"] = lambda m: m.faithfulness
        if any(item.hit is not None for items in self.measures.values() for item in items):
            measures["pointing"], measures["energy"] = (lambda m: m.hit), (lambda m: m.energy)
        columns = {(n, k): self.column(n, f) for n in self.names for k, f in measures.items()}
        found: dict[str, Any] = {}
        for name in self.names:
            found[name] = {k: self.mean(columns[name, k]) for k in measures}
            for other in ("centre", "random"):
                if name not in ("centre", "random"):
                    found[name][f"over-{other}"] = {
                        k: self.mean(columns[name, k] - columns[other, k]) for k in measures
                    }
        return found
