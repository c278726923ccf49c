"""Distillation: a student learns the answers of its teachers beside the labels.

The loop, the recipe and the run folder are those of `finetune`; teachers add named losses. All see
the same augmented view of a picture, each at its own size and normalisation. Structured values are
hidden from the student alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from umd_edge._preprocess import PreprocessSpec
from umd_edge._records import Example, Record, read_records
from umd_edge._task import output_name
from umd_edge.errors import UsageError
from umd_edge_train.batches import Batch
from umd_edge_train.finetuning import FineTuning
from umd_edge_train.losses import Features, Precision, SupervisedStep, batch_features, batch_loss
from umd_edge_train.models import UMDModel
from umd_edge_train.objectives import SupervisedObjective
from umd_edge_train.pictures import PictureSource, augment
from umd_edge_train.recipe import Recipe

from .distil_losses import soft_answer_loss
from .teachers import Ensemble, load_teachers

__all__ = ["distil"]


def sigmoid_tasks(objective: SupervisedObjective) -> frozenset[str]:
    """Tasks whose outputs have a probability each: several labels, or the paper's VQA loss."""
    return frozenset(
        task.name
        for task, training in zip(objective.tasks, objective.training, strict=True)
        if task.multi_label or (task.kind == "vqa" and training.loss == "bce")
    )


class _DistillationStep(SupervisedStep):
    """Student, objective and teachers as one module whose forward is the loss."""

    def __init__(
        self,
        model: UMDModel,
        objective: SupervisedObjective,
        precision: Precision,
        recipe: Recipe,
        spec: PreprocessSpec,
        ensemble: Ensemble | None,
    ) -> None:
        super().__init__(model, objective, precision)
        self.spec = spec
        self.config = recipe.distillation
        self.augment = recipe.augment
        self.ensemble = ensemble
        self.sources: dict[PreprocessSpec, PictureSource] = {}

    def forward(
        self, batch: Batch, pixel_values: Tensor, rng: torch.Generator, pictures: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the losses against labels and teachers, and each by name."""
        views = self._views(batch, pixel_values, rng.initial_seed())
        features = batch_features(self.model, batch, pixel_values, self.precision)
        total, named = batch_loss(
            self.model,
            self.objective,
            batch,
            pixel_values,
            self.precision,
            rng,
            pictures=pictures,
            observe=self.observe,
            features=features,
        )
        total = self.config.label_weight * total
        if self.ensemble is not None:
            with torch.autocast(pixel_values.device.type, enabled=False):
                soft = self._soft_loss(batch, features, views, named) / pictures
            total = total + self.config.soft_weight * soft
        named["loss"] = float(total.detach())
        return total, named

    def _views(self, batch: Batch, pixel_values: Tensor, seed: int) -> dict[PreprocessSpec, Tensor]:
        """The student's view of the pictures, at the size and normalisation of each teacher."""
        device = pixel_values.device
        return {self.spec: pixel_values} | {
            spec: augment(
                source.fetch(batch.rows),
                batch.flips,
                spec,
                self.augment,
                # the draws of the student's own view, which do not depend on its size
                torch.Generator().manual_seed(seed),
            ).to(device)
            for spec, source in self.sources.items()
        }

    def _soft_loss(
        self,
        batch: Batch,
        features: Features,
        views: dict[PreprocessSpec, Tensor],
        named: dict[str, float],
    ) -> Tensor:
        """Sum over the examples of the weighted losses against the teachers' answers."""
        assert self.ensemble is not None
        rows = {
            task.name: torch.nonzero(batch.task == index).flatten()
            for index, task in enumerate(self.objective.tasks)
        }
        questions: dict[str, tuple[Tensor, Sequence[Example]]] = {
            name: (batch.owner[chosen], [batch.examples[i] for i in chosen.tolist()])
            for name, chosen in rows.items()
            if len(chosen)
        }
        total = features.joint.new_zeros(())
        for name, answers in self.ensemble(views, questions, self.precision).items():
            if not bool(answers.known.any()):
                continue
            head = self.model.task_heads[output_name(name)]
            logits = head(features.joint[rows[name]])[:, answers.rows]
            losses = answers.known * soft_answer_loss(
                logits,
                answers.logits,
                self._temperature(name),
                sigmoid=name in self.ensemble.sigmoid,
            )
            named[f"{name}_soft_loss"] = float(losses.detach().sum() / answers.known.sum())
            total = total + self._weight(name) * losses.sum()
        return total

    def _settings(self, name: str) -> Any:
        names = [task.name for task in self.objective.tasks]
        return self.objective.training[names.index(name)]

    def _weight(self, name: str) -> float:
        """Of a task's soft answers: as its labels weigh, times its own factor."""
        training = self._settings(name)
        return float(training.loss_weight * training.teacher_weight)

    def _temperature(self, name: str) -> float:
        return float(self._settings(name).temperature or self.config.temperature)


def read_provenance(path: Path) -> dict[str, Any]:
    """What a checkpoint directory says about its origin."""
    found: dict[str, Any] = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
    return found


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.glob("model*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


class Distillation(FineTuning):
    """A supervised run with teachers."""

    def __init__(
        self,
        recipe: Recipe,
        data: Path,
        out: Path,
        init: Path | None,
        teachers: Sequence[Path],
    ) -> None:
        self._data, self._teacher_paths = data, tuple(teachers)
        if recipe.distillation.soft_weight > 0.0 and not teachers:
            raise UsageError(
                "no teacher given; give --teacher CHECKPOINT, or "
                "--set distillation.soft_weight=0 for a student without one"
            )
        super().__init__(recipe, data, out, init)

    def _records(self) -> list[Record]:
        """Every record that the student may be asked about in training."""
        recipe = self.recipe
        splits = dict.fromkeys(recipe.train_splits)
        if recipe.folds:
            splits |= dict.fromkeys(recipe.validation_splits)
        return [
            record
            for dataset in recipe.datasets
            for split in splits
            for record in read_records(self._data / dataset.path / f"{dataset.prefix}{split}.jsonl")
        ]

    def build(self) -> nn.Module:
        """Model, supervised objective and teachers."""
        self.objective = SupervisedObjective(self.recipe, self.corpus)
        ensemble: Ensemble | None = None
        if self.recipe.distillation.soft_weight > 0.0:
            teachers = load_teachers(self._teacher_paths, self._records())
            ensemble = Ensemble(teachers, self.corpus.tasks, sigmoid_tasks(self.objective))
            self.corpus = replace(
                self.corpus, sources={**self.corpus.sources, **self._teacher_sources()}
            )
        self._step: _DistillationStep = _DistillationStep(
            self.model, self.objective, self.optim.precision, self.recipe, self.spec, ensemble
        )
        return self._step

    def _teacher_sources(self) -> dict[str, dict[str, object]]:
        """What the teachers learnt from: the student owes it to the same records."""
        sources: dict[str, dict[str, object]] = {}
        for number, path in enumerate(self._teacher_paths, start=1):
            data = read_provenance(path).get("data", {})
            licences: Counter[str] = Counter()
            for entry in data.values():
                licences.update(entry.get("licences", {}))
            sources[f"teacher {number}"] = {
                "weights": _fingerprint(path),
                "licences": dict(licences),
                **{
                    name: sum(entry.get(name, 0) for entry in data.values())
                    for name in ("train_pictures", "train_records", "non_commercial_records")
                },
            }
        return sources

    def load_pictures(self) -> None:
        """Read the pictures, once for each size that student and teachers need."""
        super().load_pictures()
        step = self._step
        if step.ensemble is None:
            return
        read = {_size(self.spec): self.store}
        for teacher in step.ensemble.each():
            size = _size(teacher.spec)
            if size not in read:
                read[size] = self.picture_source(teacher.spec)
            if teacher.spec != self.spec:
                step.sources[teacher.spec] = read[size]


def _size(spec: PreprocessSpec) -> tuple[int, int, int]:
    return spec.height, spec.width, spec.coefficient_bits


def distil(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    teachers: Sequence[Path] = (),
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
        init: Checkpoint whose weights the student starts from.
        resume: Continue the run in `out`, with the losses of a run that was never stopped.
        on_step: Called after each optimiser step with its number.

    Returns:
        Validation metrics at the end, by task.

    Raises:
        UsageError: No teacher is given though its weight is positive, teachers and student have no
            task in common, or the folder holds another run.
        CheckpointError: A teacher is missing or damaged.
        DataError: The data do not fit the recipe.
        TrainingDivergedError: The loss is not finite.
    """
    run = Distillation(recipe, data, out, init, teachers)
    return run.execute(resume=resume, on_step=on_step)
