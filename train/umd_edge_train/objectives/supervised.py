"""Supervised losses of classification and VQA tasks.

* single-label: cross-entropy, optionally with class weights and label smoothing;
* multi-label: binary cross-entropy, mean over the known labels (NaN = unknown is left out);
* VQA: cross-entropy over the answers, or the paper's binary cross-entropy summed over the answers.

Every example counts the same whatever its task; `loss_weight` scales a task. Answers outside the
vocabulary teach nothing under cross-entropy and count as all-negative under `bce`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from umd_edge._answers import normalise_answer
from umd_edge._records import Example, ExampleSet
from umd_edge._task import TaskSpec
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError

from ..batches import answer_index
from ..corpus import Corpus
from ..drawn_texts import DrawnTexts
from ..recipe import Recipe
from ..task_training import TaskTraining

__all__ = [
    "SupervisedObjective",
    "classification_loss",
    "label_lean",
    "multi_label_loss",
    "vqa_loss",
]

_IGNORED = -100


def classification_loss(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float
) -> Tensor:
    """Cross-entropy of each example.

    Args:
        logits: (E, K) float32.
        targets: (E,) int64; -100 is ignored and gives 0.
        weights: (K,) float32 weight of each class, or None.
        label_smoothing: Part of the target spread over all classes.

    Returns:
        (E,) float32.
    """
    return functional.cross_entropy(
        logits,
        targets,
        weight=weights,
        ignore_index=_IGNORED,
        reduction="none",
        label_smoothing=label_smoothing,
    )


def multi_label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each example, mean over its known labels.

    Args:
        logits: (E, K) float32.
        targets: (E, K) float32 with NaN = unknown.

    Returns:
        (E,) float32; 0 where nothing is known.
    """
    known = ~torch.isnan(targets)
    terms = functional.binary_cross_entropy_with_logits(
        logits, torch.nan_to_num(targets), reduction="none"
    )
    return (terms * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def vqa_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The paper's VQA loss: binary cross-entropy summed over the answers, of each example.

    Args:
        logits: (E, K) float32.
        targets: (E,) int64; -100 = no answer of the vocabulary is right.
    """
    hot = torch.zeros_like(logits)
    inside = targets != _IGNORED
    hot[inside, targets[inside]] = 1.0
    terms = functional.binary_cross_entropy_with_logits(logits, hot, reduction="none")
    return terms.sum(dim=1)


class SupervisedObjective:
    """The weighted losses of all supervised tasks of a run."""

    def __init__(self, recipe: Recipe, corpus: Corpus, tokenizer: TextTokenizer) -> None:
        self.tasks = corpus.tasks
        self.training = [recipe.training_of(i) for i in range(len(corpus.tasks))]
        self._answers = [answer_index(t.outputs) if t.kind == "vqa" else {} for t in corpus.tasks]
        self._weights = [
            self._class_weights(task, training, sets)
            for task, training, sets in zip(corpus.tasks, self.training, corpus.train, strict=True)
        ]
        self.drawn = [
            self._drawn(task, training, sets, tokenizer)
            for task, training, sets in zip(corpus.tasks, self.training, corpus.train, strict=True)
        ]
        """Where the wrong texts of each task come from; None: from the batch."""
        self._leans = [
            label_lean(task, training.label_cost) if training.label_cost else None
            for task, training in zip(corpus.tasks, self.training, strict=True)
        ]

    @staticmethod
    def _drawn(
        task: TaskSpec,
        training: TaskTraining,
        sets: Sequence[ExampleSet],
        tokenizer: TextTokenizer,
    ) -> DrawnTexts | None:
        if not training.drawn_texts:
            return None
        if task.kind != "retrieval":
            raise UsageError(
                f"tasks.drawn_texts: {training.drawn_texts} given for {task.name!r}, a task of "
                f"kind {task.kind!r}; only retrieval has wrong texts, so leave it out"
            )
        texts = (e.text for s in sets for e in s.examples)
        return DrawnTexts(texts, training.drawn_texts, tokenizer, task.name)

    @staticmethod
    def _class_weights(
        task: TaskSpec, training: TaskTraining, sets: Sequence[ExampleSet]
    ) -> Tensor | None:
        if training.class_weight == "none" or task.kind != "classification" or task.multi_label:
            return None
        targets = [e.target for s in sets for e in s.examples if e.target is not None]
        counts = np.maximum(np.sum(targets, axis=0), 1.0)
        power = {"sqrt": -0.5, "balanced": -1.0}[training.class_weight]
        weights = counts**power
        # an average example keeps the weight 1
        weights /= (weights * counts).sum() / counts.sum()
        return torch.tensor(weights, dtype=torch.float32)

    def targets(self, index: int, examples: Sequence[Example]) -> Tensor:
        """What task `index` should give for each example.

        Returns:
            (E,) int64 row of the right output, -100 where none is right; of a multi-label task
            (E, K) float32 with NaN = unknown.
        """
        if self.tasks[index].kind == "vqa":
            rows = []
            for example in examples:
                answers = example.reference.answers if example.reference else ()
                known = (self._answers[index].get(normalise_answer(a)) for a in answers)
                rows.append(next((row for row in known if row is not None), _IGNORED))
            return torch.tensor(rows)
        stacked = torch.from_numpy(np.stack([e.target for e in examples if e.target is not None]))
        return stacked if self.tasks[index].multi_label else stacked.argmax(dim=1)

    def believed(self, index: int, logits: Tensor) -> Tensor:
        """Logits (E, K) of task `index` without what missing a label costs (`label_cost`).

        What the model believes, which is compared with labels and teachers; the logits themselves
        say what it decides for.
        """
        lean = self._leans[index]
        return logits if lean is None else logits - lean.to(logits)

    def losses(self, index: int, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example of task `index`, without the task's weight.

        Args:
            index: Which task.
            logits: (E, K) float32, as the head gives them.
            targets: As `targets` gives them, on the logits' device.

        Returns:
            (E,) float32.
        """
        task, training = self.tasks[index], self.training[index]
        logits = self.believed(index, logits)
        if task.kind == "vqa" and training.loss == "bce":
            return vqa_loss(logits, targets)
        if task.multi_label:
            return multi_label_loss(logits, targets)
        weights = self._weights[index]
        if weights is not None:
            weights = weights.to(logits.device)
        return classification_loss(logits, targets, weights, training.label_smoothing)


def label_lean(task: TaskSpec, costs: Mapping[str, float]) -> Tensor:
    """(K,) float32 logarithm of what missing each label costs (`TaskTraining.label_cost`).

    Raises:
        UsageError: A label that the task has not, or a task that is no classification.
    """
    where = f"tasks.label_cost of {task.name!r}"
    if task.kind != "classification":
        raise UsageError(f"{where}: only a classification has one, not {task.kind!r}; leave it out")
    strangers = sorted(set(costs) - set(task.outputs))
    if strangers:
        raise UsageError(f"{where}: labels {strangers} given; the task has {list(task.outputs)}")
    return torch.tensor([math.log(costs.get(label, 1.0)) for label in task.outputs])
