"""What a teacher is worth: teacher, student, and the same student without a teacher.

Every arm is trained with every seed, evaluated on the same records, and compared pair by pair, with
intervals over patients and over the mean of the seeds (see `umd_edge_train.experiments.paired`).
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import load_checkpoint, write_json
from umd_edge_train.experiments.paired import Outcomes, paired_difference, summarise
from umd_edge_train.experiments.plots import Bar, draw_bars
from umd_edge_train.experiments.predictions import (
    Predictions,
    outcomes,
    predict_checkpoint,
    predict_run,
)
from umd_edge_train.recipe import Recipe

from .distil import TeacherPaths, distil

__all__ = ["report_distillation", "without_teacher"]

_STUDENT, _ALONE, _TEACHER = "student", "student without teacher", "teacher"
_FOLDERS = {_STUDENT: "student", _ALONE: "alone"}


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

    def run(self, arm: str, seed: int) -> Path:
        """The final checkpoint of a run, trained where it is not there yet."""
        out = self.out / f"{_FOLDERS[arm]}-seed-{seed}"
        if not (out / "final").is_dir():
            recipe = self.recipe if arm == _STUDENT else without_teacher(self.recipe)
            distil(
                replace(recipe, seed=seed),
                self.data,
                out,
                teachers=self.teachers.checkpoints,
                targets=self.teachers.targets,
                published=self.teachers.published,
                resume=(out / "checkpoints").exists(),
            )
        return out / "final"

    def predictions(self, arm: str, task: str) -> list[Predictions]:
        if arm == _TEACHER:
            return [self._of_teacher(path, task) for path in self.teachers.checkpoints]
        return [
            predict_run(
                self.out / f"{_FOLDERS[arm]}-seed-{seed}" / "final",
                task,
                self.data,
                self.split,
                self.out / "predictions" / f"{_FOLDERS[arm]}-{seed}-{task}-{self.split}.json",
            )
            for seed in self.seeds
        ]

    def _of_teacher(self, path: Path, task: str) -> Predictions:
        checkpoint = load_checkpoint(path)
        # on the student's records, whatever its own were
        asked = replace(checkpoint, provenance={"recipe": self.recipe.to_dict()})
        return predict_checkpoint(asked, task, self.data, self.split)

    def tasks(self) -> dict[str, str]:
        """Task -> the metric that compares the arms; record by record, so no multi-label task."""
        found = {}
        for table in self.recipe.tasks:
            if table.get("kind") == "vqa":
                found[str(table["name"])] = "accuracy"
            elif table.get("kind") == "classification" and not table.get("multi_label"):
                found[str(table["name"])] = "balanced_accuracy"
        return found


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
        teachers: As for `distil`. Of several checkpoints each is reported alone.
        seeds: One or more.
        split: Records to compare on.

    Returns:
        `{"seeds", "split", "teachers", "tasks": {task: {"metric", "arms", "differences"}}}` with a
        summary (value, low, high, by_seed, n, patients) for each arm and difference.

    Raises:
        UsageError: No seed is given, one is given twice, or no task can be compared by records.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds {list(seeds)} given; one or more different ones are needed")
    study = _Study(recipe, data, out, teachers, tuple(seeds), split)
    if not study.tasks():
        raise UsageError(
            "the recipe has no VQA task and no single-label classification; others are not right "
            "or wrong record by record and cannot be compared so"
        )
    for seed in seeds:
        for arm in _FOLDERS:
            study.run(arm, seed)
    report: dict[str, Any] = {
        "seeds": list(seeds),
        "split": split,
        "teachers": [path.parent.name + "/" + path.name for path in teachers.checkpoints],
        "tasks": {task: _compare(study, task, metric) for task, metric in study.tasks().items()},
    }
    write_json(out / "report.json", report)
    for task, found in report["tasks"].items():
        _draw(out / f"{task}.png", task, found)
    _write_page(out / "report.html", report)
    return report


def _compare(study: _Study, task: str, metric: str) -> dict[str, Any]:
    arms: dict[str, Outcomes] = {}
    for arm in (_STUDENT, _ALONE, *([_TEACHER] if study.teachers.checkpoints else [])):
        arms[arm] = outcomes(study.predictions(arm, task), metric)
    differences = {f"{_STUDENT} - {_ALONE}": paired_difference(arms[_STUDENT], arms[_ALONE])}
    if _TEACHER in arms:
        mean = _each_seed(arms[_TEACHER], len(study.seeds))
        for number, outcome in enumerate(mean, start=1):
            name = f"{_STUDENT} - {_TEACHER} {number}"
            differences[name] = paired_difference(arms[_STUDENT], outcome)
    return {
        "metric": metric,
        "arms": {name: asdict(summarise(arm)) for name, arm in arms.items()},
        "differences": {name: asdict(value) for name, value in differences.items()},
    }


def _each_seed(teachers: Outcomes, seeds: int) -> list[Outcomes]:
    """Each teacher as often as the student has seeds, so that they make pairs."""
    return [replace(teachers, right=np.tile(row, (seeds, 1))) for row in teachers.right]


def _draw(path: Path, task: str, found: Mapping[str, Any]) -> None:
    bars = [
        Bar(
            name=name,
            value=arm["value"],
            low=arm["low"],
            high=arm["high"],
            by_seed=tuple(arm["by_seed"]),
            is_baseline=name == _ALONE,
        )
        for name, arm in found["arms"].items()
    ]
    draw_bars(path, bars, label=found["metric"].replace("_", " "), title=task)


def _row(name: str, summary: Mapping[str, Any], sign: str) -> str:
    interval = "undefined"
    if summary["low"] is not None:
        interval = f"{summary['low']:{sign}.3f} to {summary['high']:{sign}.3f}"
    seeds = ", ".join(f"{value:{sign}.3f}" for value in summary["by_seed"])
    cells = (name, f"{summary['value']:{sign}.3f}", interval, seeds, str(summary["n"]))
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _write_page(path: Path, report: Mapping[str, Any]) -> None:
    head = "<tr><th></th><th>value</th><th>95 % interval</th><th>runs</th><th>records</th></tr>"
    lines = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Distillation</title>',
        "<h1>Distillation</h1>",
        f"<p>Split {html.escape(report['split'])}, seeds {report['seeds']}. Intervals: 1,000 "
        "resamples of patients.</p>",
    ]
    for task, found in report["tasks"].items():
        name = html.escape(task)
        lines += [f"<h2>{name}: {found['metric'].replace('_', ' ')}</h2>", f"<table>{head}"]
        lines += [_row(arm, summary, "") for arm, summary in found["arms"].items()]
        lines += [_row(pair, summary, "+") for pair, summary in found["differences"].items()]
        lines += ["</table>", f'<p><img src="{name}.png" alt="{name}"></p>']
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(path)
