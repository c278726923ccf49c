"""The loss of one batch of a distillation: labels, soft answers, similarities and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from umd_edge._preprocess import PreprocessSpec
from umd_edge._task import output_name
from umd_edge_train.batches import Batch
from umd_edge_train.losses import (
    Features,
    Precision,
    SupervisedStep,
    autocast,
    batch_features,
    batch_loss,
)
from umd_edge_train.models import UMDModel
from umd_edge_train.objectives import similarity
from umd_edge_train.pictures import PictureSource, augment
from umd_edge_train.recipe import Recipe
from umd_edge_train.task_training import TaskTraining

from .distil_data import DistillationObjective, sigmoid_tasks
from .distil_features import (
    Encoded,
    FeatureHeads,
    FeatureTeacher,
    recorded_relations,
    student_features,
)
from .distil_losses import similarity_loss, soft_answer_loss
from .published import PublishedTeacher
from .soft_answers import PairEmbeddings, Questions, SoftAnswers
from .soft_targets import SoftTargets
from .teachers import Ensemble

__all__ = ["DistillationStep", "Faculty"]


class Faculty(NamedTuple):
    """Who teaches."""

    ensemble: Ensemble | None = None
    """Checkpoints of ours: answers and features."""
    targets: SoftTargets | None = None
    """Stored answers, in place of an ensemble."""
    published: tuple[PublishedTeacher, ...] = ()
    """Models of `transformers`: features alone."""

    def feature_teachers(self) -> list[FeatureTeacher]:
        """Those that have features, ours first."""
        return [*(self.ensemble.each() if self.ensemble else ()), *self.published]


class DistillationStep(SupervisedStep):
    """Student, objective and teachers as one module whose forward is the loss.

    Args:
        model: The student.
        objective: Losses against the labels.
        recipe: Holds `[distillation]`, `[augment]` and the precision.
        spec: The student's preprocessing.
        faculty: The teachers.
    """

    def __init__(
        self,
        model: UMDModel,
        objective: DistillationObjective,
        recipe: Recipe,
        spec: PreprocessSpec,
        faculty: Faculty,
    ) -> None:
        precision: Precision = recipe.optim.precision
        super().__init__(model, objective, precision)
        self.config, self.augment, self.spec = recipe.distillation, recipe.augment, spec
        self.ensemble, self.targets = faculty.ensemble, faculty.targets
        self.published = nn.ModuleList(faculty.published)
        self.heads: FeatureHeads | None = None
        if self.config.has_features:
            self.heads = FeatureHeads(model, faculty.feature_teachers(), self.config)
        self.sources: dict[PreprocessSpec, PictureSource] = {}
        """Pictures of each preprocessing that is not the student's."""
        self._sigmoid = sigmoid_tasks(recipe, objective.tasks)
        self._numbers = {task.name: number for number, task in enumerate(objective.tasks)}
        self._training: Mapping[str, TaskTraining] = {
            task.name: training
            for task, training in zip(objective.tasks, objective.training, strict=True)
        }

    def specs(self) -> list[PreprocessSpec]:
        """Preprocessings of the teachers that look at pictures."""
        ours = self.ensemble.each() if self.ensemble is not None else []
        return [*(teacher.spec for teacher in ours), *(t.spec for t in self._published())]

    def _published(self) -> list[PublishedTeacher]:
        return cast("list[PublishedTeacher]", list(self.published))

    def forward(
        self, batch: Batch, pixel_values: Tensor, rng: torch.Generator, pictures: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of all losses, divided by the `pictures` of a step, and each by name."""
        device = pixel_values.device
        views = self._views(batch, pixel_values, rng.initial_seed())
        with torch.no_grad(), autocast(device, self.precision):
            encoded = self._encode(views, [example.text for example in batch.examples])
        own = self.model.vision_encoder.backbone
        with recorded_relations(own, wanted=self.config.relation_weight > 0.0) as relations:
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
        with torch.autocast(device.type, enabled=False):
            answers = self._ask(batch, encoded)
            total = total + self._soft_loss(batch, features, answers, named) / pictures
            if self.config.soft_weight:
                pairs = self._pairs(batch, encoded)
                total = total + self._pair_loss(batch, features, pairs, named) / pictures
            if self.heads is not None:
                taught = self._feature_loss(batch, features, relations, encoded, answers, named)
                total = total + taught / pictures
        named["loss"] = float(total.detach())
        return total, named

    def _views(self, batch: Batch, pixel_values: Tensor, seed: int) -> dict[PreprocessSpec, Tensor]:
        """The student's view of the pictures, at the size and normalisation of each teacher."""
        views = {self.spec: pixel_values}
        for spec, source in self.sources.items():
            # The same seed gives the draws of the student's view: none depends on the size.
            rng = torch.Generator().manual_seed(seed)
            pixels = source.fetch(batch.rows)
            views[spec] = augment(pixels, batch.flips, spec, self.augment, rng).to(
                pixel_values.device
            )
        return views

    def _encode(
        self, views: Mapping[PreprocessSpec, Tensor], texts: Sequence[str]
    ) -> list[Encoded]:
        """The pictures as each teacher sees them, ours first."""
        relations = self.config.relation_weight > 0.0
        ours = self.ensemble.each() if self.ensemble is not None else []
        return [
            *(t.encode(views[t.spec], relations=relations) for t in ours),
            *(t.encode(views[t.spec], texts, relations=relations) for t in self._published()),
        ]

    def _rows(self, batch: Batch) -> dict[str, Tensor]:
        """Task -> its rows among the E examples; tasks without examples are left out."""
        rows = {
            task.name: torch.nonzero(batch.task == index).flatten()
            for index, task in enumerate(self.objective.tasks)
        }
        return {name: chosen for name, chosen in rows.items() if len(chosen)}

    def _questions(self, batch: Batch) -> Questions:
        return {
            name: (batch.owner[chosen], [batch.examples[i] for i in chosen.tolist()])
            for name, chosen in self._rows(batch).items()
        }

    def _ask(self, batch: Batch, encoded: Sequence[Encoded]) -> dict[str, SoftAnswers]:
        questions = self._questions(batch)
        if self.targets is not None:
            return self.targets.answers(questions, batch.owner.device)
        if self.ensemble is None:
            return {}
        answers: dict[str, SoftAnswers] = self.ensemble(
            encoded[: len(self.ensemble.teachers)], questions, self.precision
        )
        return answers

    def _pairs(self, batch: Batch, encoded: Sequence[Encoded]) -> dict[str, PairEmbeddings]:
        questions = self._questions(batch)
        if self.targets is not None:
            return self.targets.embeddings(questions, batch.owner.device)
        if self.ensemble is None:
            return {}
        ours = encoded[: len(self.ensemble.teachers)]
        return self.ensemble.embeddings(ours, questions, self.precision)

    def _soft_loss(
        self,
        batch: Batch,
        features: Features,
        answers: Mapping[str, SoftAnswers],
        named: dict[str, float],
    ) -> Tensor:
        """Sum over the examples of the weighted losses against the teachers' answers."""
        total = features.joint.new_zeros(())
        if not self.config.soft_weight:
            return total
        rows = self._rows(batch)
        for name, told in answers.items():
            if not bool(told.known.any()):
                continue
            logits = self.model.task_heads[output_name(name)](features.joint[rows[name]])
            losses = told.known * soft_answer_loss(
                self.objective.believed(self._numbers[name], logits)[:, told.rows],
                told.logits,
                self._training[name].temperature or self.config.temperature,
                sigmoid=name in self._sigmoid,
            )
            named[f"{name}_soft_loss"] = float(losses.detach().sum() / told.known.sum())
            total = total + self._factor(name) * losses.sum()
        return total

    def _pair_loss(
        self,
        batch: Batch,
        features: Features,
        pairs: Mapping[str, PairEmbeddings],
        named: dict[str, float],
    ) -> Tensor:
        """Sum over the pairs of the weighted losses against the teachers' similarities."""
        total = features.joint.new_zeros(())
        rows = self._rows(batch)
        for name, told in pairs.items():
            if int(told.known.sum()) < 2:  # nothing to tell apart
                continue
            chosen = rows[name][told.known]
            own = similarity(
                features.image_embedding[batch.owner[chosen]].float(),
                features.text_embedding[chosen].float(),
            )
            temperature = self._training[name].temperature or self.config.temperature
            losses = similarity_loss(own, *told.similarities(), temperature)
            named[f"{name}_soft_loss"] = float(losses.detach().mean())
            total = total + self._factor(name) * losses.sum()
        return total

    def _factor(self, name: str) -> float:
        """Weight of a task's soft loss: as its labels weigh, times its own factor."""
        training = self._training[name]
        return self.config.soft_weight * training.loss_weight * training.teacher_weight

    def _feature_loss(
        self,
        batch: Batch,
        features: Features,
        relations: Sequence[Tensor],
        encoded: Sequence[Encoded],
        answers: Mapping[str, SoftAnswers],
        named: dict[str, float],
    ) -> Tensor:
        """Sum over pictures (and examples, where vectors are theirs), mean over the teachers."""
        heads = cast(FeatureHeads, self.heads)
        own = student_features(self.model, features)
        terms: dict[str, list[Tensor]] = {}
        for number, theirs in enumerate(encoded):
            if self.config.token_weight:
                terms.setdefault("token_loss", []).append(
                    heads.tokens(number, own["grid"], theirs.grid)
                )
            if self.config.relation_weight:
                terms.setdefault("relation_loss", []).append(
                    heads.relations(relations, theirs.relations)
                )
            if self.config.pooled_weight:
                found = [
                    heads.pooled(number, name, own[name], vectors)
                    for name, vectors in theirs.pooled.items()
                ]
                found += self._joint_losses(batch, heads, own["joint"], number, answers)
                terms.setdefault("pooled_loss", []).extend(found)
        total = features.joint.new_zeros(())
        for name, losses in terms.items():
            if not losses:
                continue
            named[name] = float(torch.cat(losses).detach().mean())
            weight: float = getattr(self.config, name.replace("_loss", "_weight"))
            total = total + weight * torch.stack([x.sum() for x in losses]).sum() / len(encoded)
        return total

    def _joint_losses(
        self,
        batch: Batch,
        heads: FeatureHeads,
        joint: Tensor,
        number: int,
        answers: Mapping[str, SoftAnswers],
    ) -> list[Tensor]:
        """Losses of the joint vectors of teacher `number`, for the examples that it can read."""
        rows = self._rows(batch)
        return [
            heads.pooled(
                number, "joint", joint[rows[name]][told.known], told.joints[number][told.known]
            )
            for name, told in answers.items()
            if number < len(told.joints) and bool(told.known.any())
        ]
