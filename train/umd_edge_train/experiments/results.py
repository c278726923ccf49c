"""Measures a grid: every finished arm on one split, record by record, beside the baselines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from umd_edge.errors import UsageError

from ..recipe import load_recipe
from ..split_scheme import split_scheme
from .baselines import Baseline, baseline_predictions
from .grid import Cell, Experiment, GridDataset, Plan
from .paired import Outcomes, Rankings, Summary, paired_difference, summarise
from .predictions import Predictions, outcomes
from .run_predictions import fingerprint, kept_predictions, manifests, predict_run
from .runner import is_done, load_plan

__all__ = ["ArmRuns", "Results", "measure_grid"]


@dataclass(frozen=True)
class ArmRuns:
    """The finished runs of one arm on one data set."""

    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    """Names of the runs that were measured."""
    predictions: tuple[Predictions, ...]
    trial: tuple[str, ...] = ()
    """The settings that were best on the validation split."""

    def outcomes(self, metric: str, seeds: Sequence[int] | None = None) -> Outcomes | Rankings:
        """What the runs made of each record, of these seeds alone where they are given."""
        pairs = zip(self.seeds, self.predictions, strict=True)
        return outcomes([p for seed, p in pairs if seeds is None or seed in seeds], metric)

    def summary(self, metric: str) -> Summary:
        """Mean over the seeds with its interval."""
        return summarise(self.outcomes(metric))


@dataclass(frozen=True)
class Results:
    """Everything that the page of results shows."""

    plan: Plan
    folder: Path
    split: str
    arms: dict[tuple[str, str, str, float], ArmRuns]
    """(experiment, data set, arm, fraction) -> finished runs; absent where there is none."""
    baselines: dict[tuple[str, Baseline], Predictions]
    """(data set, kind)."""
    splits: dict[str, str] = field(default_factory=dict)
    """Data set -> where its splits are from, see `split_scheme`."""
    asked: Plan | None = None
    """A larger grid, where `plan` is a part of it alone."""

    def difference(
        self,
        experiment: Experiment,
        dataset: GridDataset,
        first: str,
        second: str,
        metric: str,
        fraction: float = 1.0,
    ) -> Summary | None:
        """`first` - `second` on the seeds that both have; None where there is none."""
        found = [
            self.arms.get((experiment.name, dataset.name, arm, fraction)) for arm in (first, second)
        ]
        one, other = found
        if one is None or other is None:
            return None
        common = sorted(set(one.seeds) & set(other.seeds))
        if not common:
            return None
        return paired_difference(one.outcomes(metric, common), other.outcomes(metric, common))

    def over_baseline(
        self, arm: ArmRuns, dataset: GridDataset, kind: Baseline, metric: str
    ) -> Summary:
        """An arm less a fitted baseline, which is the same for every seed."""
        fitted = outcomes([self.baselines[dataset.name, kind]] * len(arm.seeds), metric)
        return paired_difference(arm.outcomes(metric), fitted)

    def missing(self) -> list[tuple[str, str, float, list[int]]]:
        """(data set, arm, fraction, seeds) that were not run, or not planned in this folder."""
        found: dict[tuple[str, str, float], set[int]] = {}
        for cell in (*self.plan.cells, *self._unplanned()):
            if not is_done(self.folder, cell.jobs[-1]):
                key = (cell.dataset, cell.arm, cell.fraction)
                found.setdefault(key, set()).add(cell.seed)
        return [(*key, sorted(seeds)) for key, seeds in found.items()]

    def _unplanned(self) -> list[Cell]:
        """The cells of the larger grid that are not in the folder's."""
        planned = {_place(cell) for cell in self.plan.cells}
        return [c for c in self.asked.cells if _place(c) not in planned] if self.asked else []


def _place(cell: Cell) -> tuple[str, str, float, int]:
    """What a cell is for, whatever its recipes are like."""
    return cell.dataset, cell.arm, cell.fraction, cell.seed


def _validation(folder: Path, run: str, dataset: GridDataset) -> float:
    """The primary metric at the end of a run, on its validation split."""
    path = folder / "runs" / run / "metrics.json"
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))["validation"]
        return float(tasks[dataset.task][dataset.metrics[0]]["value"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} holds no {dataset.metrics[0]} of task {dataset.task!r}; trials are chosen by "
            "it, so let the run evaluate on its validation split"
        ) from error


def _chosen(
    folder: Path, cells: Sequence[Cell], experiment: Experiment, dataset: GridDataset
) -> list[Cell]:
    """The finished cells of the trial that is best on the validation split."""
    trials: list[list[Cell]] = []
    for trial in experiment.trials:
        done = [c for c in cells if c.trial == trial and is_done(folder, c.jobs[-1])]
        trials.append(sorted(done, key=lambda cell: cell.seed))
    most = max(len(done) for done in trials)
    complete = [done for done in trials if done and len(done) == most]
    if len(complete) < 2:
        return complete[0] if complete else []

    def score(done: list[Cell]) -> float:
        return float(np.mean([_validation(folder, c.jobs[-1], dataset) for c in done]))

    return max(complete, key=score)


def _baselines(
    plan: Plan, dataset: GridDataset, data: Path, split: str, folder: Path
) -> dict[Baseline, Predictions]:
    recipe = load_recipe(Path(plan.folder) / dataset.recipe)
    kind_of = {str(t.get("name")): t.get("kind") for t in recipe.tasks}
    kinds: list[Baseline] = ["majority", "pixels"]
    if kind_of.get(dataset.task) == "vqa":
        kinds.insert(1, "question-only")
    elif kind_of.get(dataset.task) == "retrieval":
        kinds = []
    files = [m for part in (*recipe.train_splits, split) for m in manifests(recipe, data, part)]
    found: dict[Baseline, Predictions] = {}
    for kind in kinds:
        text = json.dumps([kind, dataset.task, split, recipe.to_dict()], sort_keys=True)
        kept = folder / f"baseline-{kind}-{dataset.name}.json"

        def make(kind: Baseline = kind) -> Predictions:
            return baseline_predictions(kind, recipe, dataset.task, data, split)

        found[kind] = kept_predictions(kept, fingerprint(text, files), make)
    return found


def measure_grid(folder: Path, data: Path, split: str, asked: Plan | None = None) -> Results:
    """Measure every finished arm of a grid, and the baselines.

    Args:
        folder: The grid's folder; predictions are kept in its `predictions/<split>`.
        data: Folder of the data sets.
        split: `train`, `val` or `test`.
        asked: A larger grid: what the folder's leaves out of it counts as not run.

    Raises:
        UsageError: The folder holds no grid, or none of its arms is finished.
        DataError: A manifest is missing or does not fit.
    """
    plan = load_plan(folder)
    kept = folder / "predictions" / split
    datasets = {dataset.name: dataset for dataset in plan.grid.datasets}
    chosen: dict[tuple[str, str, str, float], list[Cell]] = {}
    for experiment in plan.grid.experiments:
        for cell in plan.cells:
            key = (experiment.name, cell.dataset, cell.arm, cell.fraction)
            if key in chosen or not _belongs(cell, experiment):
                continue
            same = [c for c in plan.cells if (c.dataset, c.arm, c.fraction) == key[1:]]
            chosen[key] = _chosen(folder, same, experiment, datasets[cell.dataset])
    if not any(chosen.values()):
        raise UsageError(f"no arm in {str(folder)!r} is finished; run `umd-edge-train grid` first")
    measured: dict[str, Predictions] = {}
    wanted = {c.jobs[-1]: datasets[c.dataset].task for cells in chosen.values() for c in cells}
    for run, task in tqdm(wanted.items(), desc="measuring", unit="run"):
        final = folder / "runs" / run / "final"
        measured[run] = predict_run(final, task, data, split, kept / f"{run}.json")
    arms = {
        key: ArmRuns(
            seeds=tuple(cell.seed for cell in cells),
            runs=tuple(cell.jobs[-1] for cell in cells),
            predictions=tuple(measured[cell.jobs[-1]] for cell in cells),
            trial=cells[0].trial,
        )
        for key, cells in chosen.items()
        if cells
    }
    used = dict.fromkeys(key[1] for key in arms)
    baselines = {
        (name, kind): predictions
        for name in used
        for kind, predictions in _baselines(plan, datasets[name], data, split, kept).items()
    }
    splits = {name: _splits(plan, datasets[name], data) for name in used}
    return Results(plan, folder, split, arms, baselines, splits, asked)


def _splits(plan: Plan, dataset: GridDataset, data: Path) -> str:
    recipe = load_recipe(Path(plan.folder) / dataset.recipe)
    schemes = dict.fromkeys(split_scheme(data / d.path) for d in recipe.datasets)
    return "; ".join(schemes)


def _belongs(cell: Cell, experiment: Experiment) -> bool:
    return (
        cell.dataset in experiment.datasets
        and cell.arm in experiment.compared
        and cell.fraction in experiment.fractions
        and cell.trial in experiment.trials
    )
