"""Distillation: a student learns the answers and features of teachers beside the labels.

The loop, the recipe and the run folder are those of `finetune`; teachers add named losses. All see
the same augmented view of a picture, each at its own size and normalisation. Structured values are
hidden from the student alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from umd_edge._preprocess import PreprocessSpec
from umd_edge.errors import UsageError
from umd_edge_train.finetuning import FineTuning
from umd_edge_train.recipe import Recipe

from .distil_data import (
    DistillationObjective,
    add_unlabelled,
    sigmoid_tasks,
    training_records,
)
from .distil_features import weights_digest
from .distil_step import DistillationStep, Faculty
from .published import PublishedTeacher
from .soft_targets import SoftTargets
from .teachers import Ensemble, load_teachers, teacher_sources

__all__ = ["Distillation", "TeacherPaths", "distil"]

_HEADS = "distillation."


@dataclass(frozen=True, slots=True)
class TeacherPaths:
    """Where the teachers of a run are."""

    checkpoints: tuple[Path, ...] = ()
    """Of ours; several are one teacher, the mean of their probabilities."""
    targets: Path | None = None
    """Soft targets in their place."""
    published: tuple[str, ...] = ()
    """Directories or hub ids of `transformers` models, for features."""


class Distillation(FineTuning):
    """A supervised run with teachers.

    Args:
        recipe: All settings; `[distillation]` holds the weights of the losses.
        data: Folder of the data sets.
        out: Run folder.
        init: Checkpoint that the student starts from.
        teachers: Those that the recipe gives a weight are loaded, no others.
    """

    def __init__(
        self, recipe: Recipe, data: Path, out: Path, init: Path | None, teachers: TeacherPaths
    ) -> None:
        _check(recipe, teachers)
        self._data, self._teachers = data, teachers
        super().__init__(recipe, data, out, init)

    def build(self) -> nn.Module:
        """Student, losses and teachers."""
        objective = DistillationObjective(self.recipe, self.corpus, self.tokenizer)
        self.objective = objective
        if self.recipe.distillation.has_teacher:
            self.corpus = add_unlabelled(self.recipe, self.corpus, self._data)
        faculty = self._faculty(sigmoid_tasks(self.recipe, self.corpus.tasks))
        self._step: DistillationStep = DistillationStep(
            self.model, objective, self.recipe, self.spec, faculty
        )
        return self._step

    def _faculty(self, sigmoid: frozenset[str]) -> Faculty:
        config, paths, tasks = self.recipe.distillation, self._teachers, self.corpus.tasks
        ensemble: Ensemble | None = None
        targets: SoftTargets | None = None
        published: tuple[PublishedTeacher, ...] = ()
        sources: dict[str, dict[str, object]] = {}
        if config.has_teacher and paths.checkpoints:
            records = training_records(self.recipe, self._data)
            ensemble = Ensemble(load_teachers(paths.checkpoints, records), tasks, sigmoid)
            sources = teacher_sources(paths.checkpoints)
        elif config.soft_weight and paths.targets:
            targets = SoftTargets(paths.targets, self.recipe, self._data, tasks, sigmoid)
            sources = targets.sources
        if config.has_features:
            published = tuple(PublishedTeacher(name) for name in paths.published)
        for number, (name, teacher) in enumerate(zip(paths.published, published, strict=False), 1):
            sources[f"feature teacher {number}"] = {
                "model": Path(name).name,
                "weights": weights_digest(teacher),
            }
        self.corpus = replace(self.corpus, sources={**self.corpus.sources, **sources})
        return Faculty(ensemble, targets, published)

    def load_pictures(self) -> None:
        """Read the pictures, once for each size that student and teachers need."""
        super().load_pictures()
        read = {_size(self.spec): self.store}
        for spec in self._step.specs():
            if _size(spec) not in read:
                read[_size(spec)] = self.picture_source(spec)
            if spec != self.spec:
                self._step.sources[spec] = read[_size(spec)]

    def extra_tensors(self) -> dict[str, Tensor]:
        """The projections to the teachers, beside what the coordination has."""
        heads = self._step.heads.state_dict() if self._step.heads is not None else {}
        return super().extra_tensors() | {_HEADS + name: value for name, value in heads.items()}

    def load_extra(self, tensors: dict[str, Tensor]) -> None:
        """Continue with those of a checkpoint."""
        heads = {
            name.removeprefix(_HEADS): value
            for name, value in tensors.items()
            if name.startswith(_HEADS)
        }
        if self._step.heads is not None:
            self._step.heads.load_state_dict(heads, strict=True)
        super().load_extra(
            {name: value for name, value in tensors.items() if not name.startswith(_HEADS)}
        )


def _size(spec: PreprocessSpec) -> tuple[int, int, int]:
    return spec.height, spec.width, spec.coefficient_bits


def _check(recipe: Recipe, teachers: TeacherPaths) -> None:
    """Whether every weight has its teacher, and no more than one kind of answers is given."""
    config = recipe.distillation
    if teachers.checkpoints and teachers.targets:
        raise UsageError("--teacher and --targets given; soft targets take the teachers' place")
    if config.soft_weight and not (teachers.checkpoints or teachers.targets):
        raise UsageError(
            "no teacher given; give --teacher CHECKPOINT or --targets FILE, or "
            "--set distillation.soft_weight=0"
        )
    if config.has_features and not (teachers.checkpoints or teachers.published):
        raise UsageError(
            "[distillation] gives features a weight and no teacher has any; give --teacher "
            "CHECKPOINT or --feature-teacher MODEL, or set these weights to 0"
        )


def distil(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    teachers: Sequence[Path] = (),
    targets: Path | None = None,
    published: Sequence[str] = (),
    init: Path | None = None,
    resume: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train a student with teachers, evaluate and save.

    Args:
        recipe: All settings; `[distillation]` holds the weights of the losses.
        data: Folder of the data sets.
        out: Run folder; created.
        teachers: Checkpoint directories; several are one teacher, the mean of their probabilities.
        targets: File of soft targets, in place of `teachers`.
        published: Directories or hub ids of `transformers` models, for features.
        init: Checkpoint whose weights the student starts from.
        resume: Continue the run in `out`, with the losses of a run that was never stopped.
        on_step: Called after each optimiser step with its number.

    Returns:
        Validation metrics at the end, by task.

    Raises:
        UsageError: A loss has a weight and no teacher, teachers and student have no task in
            common, or the folder holds another run.
        CheckpointError: A teacher is missing or damaged.
        SoftTargetsError: The soft targets are, or belong to other records.
        DataError: The data do not fit the recipe.
        TrainingDivergedError: The loss is not finite.
    """
    given = TeacherPaths(tuple(teachers), targets, tuple(published))
    run = Distillation(recipe, data, out, init, given)
    return run.execute(resume=resume, on_step=on_step)
