"""What a teacher is worth: teacher, student, and the same student without a teacher.

Every arm is trained with every seed, evaluated on the same records, and compared pair by pair, with
intervals over patients and over the mean of the seeds (see `umd_edge_train.experiments.paired`).
Over all tasks together the arms are compared as INT8 is with float32: see `compare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import load_checkpoint, write_json
from umd_edge_train.experiments.paired import (
    Outcomes,
    Summary,
    paired_difference,
    summarise,
)
from umd_edge_train.recipe import Recipe

from . import compare
from .distil import TeacherPaths, distil
from .distil_page import draw_report
from .distil_scores import Part, PartScores, changed_decisions, results, score_part, task_parts
from .soft_targets import require_teachers

__all__ = ["report_distillation", "without_teacher"]

_STUDENT, _ALONE, _TEACHER = "student", "student without teacher", "teacher"
_FOLDERS = {_STUDENT: "student", _ALONE: "alone"}

Runs = list[PartScores]
"""One for each seed, or for each teacher."""


def without_teacher(recipe: Recipe) -> Recipe:
    """The same recipe with the weight of every teacher at 0, and labels at full weight."""
    alone = replace(
        recipe.distillation,
        soft_weight=0.0,
        token_weight=0.0,
        pooled_weight=0.0,
        relation_weight=0.0,
        label_weight=recipe.distillation.label_weight or 1.0,
    )
    return replace(recipe, distillation=alone)


@dataclass(frozen=True, slots=True)
class _Study:
    recipe: Recipe
    data: Path
    out: Path
    teachers: TeacherPaths
    seeds: tuple[int, ...]
    split: str

    def folder(self, arm: str, seed: int) -> Path:
        return self.out / f"{_FOLDERS[arm]}-seed-{seed}"

    def run(self, arm: str, seed: int) -> None:
        """Train a run, or go on with it, where it is not finished yet."""
        out = self.folder(arm, seed)
        if (out / "final").is_dir():
            return
        recipe = self.recipe if arm == _STUDENT else without_teacher(self.recipe)
        stored = self.teachers.targets is not None
        distil(
            replace(recipe, seed=seed),
            self.data,
            out,
            teachers=() if stored else self.teachers.checkpoints,
            targets=self.teachers.targets,
            published=self.teachers.published,
            resume=(out / "checkpoints").exists(),
        )

    def checkpoints(self) -> dict[str, list[Path]]:
        """Arm -> its checkpoints, one for each seed; of the teachers one for each."""
        arms = {arm: [self.folder(arm, s) / "final" for s in self.seeds] for arm in _FOLDERS}
        if self.teachers.checkpoints:
            arms[_TEACHER] = list(self.teachers.checkpoints)
        return arms

    def scores(self, parts: Sequence[Part]) -> dict[str, dict[str, Runs]]:
        """Arm -> name of part -> its runs."""
        scored: dict[str, dict[str, Runs]] = {}
        total = len(parts) * sum(map(len, self.checkpoints().values()))
        with tqdm(total=total, desc="comparing", unit="task") as bar:
            for arm, paths in self.checkpoints().items():
                scored[arm] = {part.name: [] for part in parts}
                for path in paths:
                    checkpoint = load_checkpoint(path)
                    for part in parts:
                        bar.set_postfix_str(f"{arm}: {part.name}")
                        found = score_part(checkpoint, part, self.recipe, self.data, self.split)
                        scored[arm][part.name].append(found)
                        bar.update()
        return scored


def report_distillation(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    teachers: TeacherPaths,
    seeds: Sequence[int] = (0, 1, 2),
    split: str = "val",
) -> dict[str, Any]:
    """Train both arms with every seed, and compare them with each other and with the teachers.

    Runs that are finished are not trained again, and unfinished ones go on.

    Args:
        recipe: Of the student; its seed is replaced.
        data: Folder of the data sets.
        out: Folder of the runs; `report.json`, `report.html` and pictures are written there.
        teachers: As for `distil`, but checkpoints may stand beside soft targets: the student then
            learns from the targets, and the checkpoints that made them are compared with it. Of
            several checkpoints each is reported alone.
        seeds: One or more.
        split: Records to compare on.

    Returns:
        `{"seeds", "split", "teachers", "sizes", "tasks": {name: {"metric", "arms", "differences"}},
        "pooled": {the same}}` with a summary (value, low, high, by_seed, n, patients) for each arm
        and difference. A task with several data sets stands there once for each. The metric is
        `accuracy` (VQA), `balanced_accuracy`, `macro_auroc` (several labels) or `recall_at_10`
        (retrieval, by embeddings alone, mean of both directions). `pooled` is over every record of
        every task but retrieval, of several labels the share decided rightly at 0.5; its
        differences also have `changed_decisions`.

    Raises:
        UsageError: No seed is given, one is given twice, or the soft targets are of other teachers.
        UnknownTaskError: A teacher lacks a task of the recipe.
        DataError: The split holds no record of a task.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds {list(seeds)} given; one or more different ones are needed")
    if teachers.targets is not None and teachers.checkpoints:
        require_teachers(teachers.targets, teachers.checkpoints)
    study = _Study(recipe, data, out, teachers, tuple(seeds), split)
    for seed in seeds:
        for arm in _FOLDERS:
            study.run(arm, seed)
    parts = task_parts(recipe)
    scored = study.scores(parts)
    tasks = {
        part.name: _compare({arm: runs[part.name] for arm, runs in scored.items()}, part.metric)
        for part in parts
    }
    report: dict[str, Any] = {
        "seeds": list(seeds),
        "split": split,
        "teachers": [path.parent.name + "/" + path.name for path in teachers.checkpoints],
        "sizes": {arm: _size(paths[0]) for arm, paths in study.checkpoints().items()},
        "tasks": tasks,
    }
    pooled = [part.name for part in parts if part.is_pooled]
    if pooled:
        report["pooled"] = _pool(scored, pooled)
    write_json(out / "report.json", report)
    runs = {arm: [study.folder(arm, seed) for seed in seeds] for arm in _FOLDERS}
    draw_report(out, report, runs)
    return report


def _size(path: Path) -> dict[str, int]:
    model = load_checkpoint(path).model
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def _pairs(arms: Mapping[str, Runs]) -> dict[str, tuple[Runs, Runs]]:
    """Name of a difference -> the runs of both sides, seed by seed; a teacher has one for all."""
    student = arms[_STUDENT]
    pairs = {f"{_STUDENT} - {_ALONE}": (student, arms[_ALONE])}
    for number, teacher in enumerate(arms.get(_TEACHER, ()), start=1):
        pairs[f"{_STUDENT} - {_TEACHER} {number}"] = (student, [teacher] * len(student))
    return pairs


def _compare(arms: Mapping[str, Runs], metric: str) -> dict[str, Any]:
    return {
        "metric": metric,
        "arms": {arm: asdict(summarise(results(runs, metric))) for arm, runs in arms.items()},
        "differences": {
            name: asdict(paired_difference(results(one, metric), results(other, metric)))
            for name, (one, other) in _pairs(arms).items()
        },
    }


# --- all tasks together -----------------------------------------------------------------------


def _joined(parts: Sequence[PartScores]) -> PartScores:
    """Every record of several parts; what it takes to say which decisions changed is left out."""
    return PartScores(
        ids=tuple(f"{number}/{i}" for number, part in enumerate(parts) for i in part.ids),
        groups=tuple(group for part in parts for group in part.groups),
        scores=np.concatenate([part.scores for part in parts]),
    )


def _together(parts: Mapping[str, Runs], names: Sequence[str]) -> Runs:
    """One for each run of an arm."""
    count = len(parts[names[0]])
    return [_joined([parts[name][run] for name in names]) for run in range(count)]


def _pool(scored: Mapping[str, Mapping[str, Runs]], names: Sequence[str]) -> dict[str, Any]:
    arms = {arm: _together(parts, names) for arm, parts in scored.items()}
    by_part = [_pairs({arm: parts[name] for arm, parts in scored.items()}) for name in names]
    differences = {}
    for pair, (one, other) in _pairs(arms).items():
        changed = np.concatenate([_changed(*found[pair]) for found in by_part])
        differences[pair] = _pooled_difference(one, other, changed)
    return {
        "metric": "accuracy",
        "arms": {arm: asdict(_pooled_summary(runs)) for arm, runs in arms.items()},
        "differences": differences,
    }


def _changed(one: Runs, other: Runs) -> compare.Float64Array:
    """(N,) mean over the seeds of the share of decisions that differ."""
    rates = [changed_decisions(a, b) for a, b in zip(one, other, strict=True)]
    return np.asarray(np.mean(rates, axis=0), dtype=np.float64)


def _pooled_summary(runs: Runs) -> Summary:
    first = runs[0]
    scores = np.stack([run.scores for run in runs])
    strata = np.zeros(len(first.ids), dtype=np.int64)
    return summarise(Outcomes(first.ids, first.groups, strata, scores))


def _pooled_difference(one: Runs, other: Runs, changed: compare.Float64Array) -> dict[str, Any]:
    """The student's `one` less the `other`, of the mean over the seeds."""
    mine, theirs = ([run.scores for run in runs] for runs in (one, other))
    found = compare.paired_difference(
        np.mean(theirs, axis=0), np.mean(mine, axis=0), changed, one[0].groups
    )
    seeds = tuple(float((a - b).mean()) for a, b in zip(mine, theirs, strict=True))
    return {
        "value": found.difference,
        "low": found.low,
        "high": found.high,
        "by_seed": seeds,
        "n": found.n,
        "patients": found.groups,
        "changed_decisions": found.changed_decisions,
    }
