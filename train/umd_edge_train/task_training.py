"""How one task of a recipe is trained, beside what its `TaskSpec` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from umd_edge.errors import UsageError

from .ranges import ABOVE_ZERO, AT_LEAST_ZERO, BELOW_ONE, check_ranges

__all__ = ["HiddenWeight", "TaskTraining"]

_TASK_RANGES = {
    "loss_weight": AT_LEAST_ZERO,
    "contrast_weight": AT_LEAST_ZERO,
    "drawn_texts": AT_LEAST_ZERO,
    "label_smoothing": BELOW_ONE,
    "teacher_weight": AT_LEAST_ZERO,
    "temperature": AT_LEAST_ZERO,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenWeight:
    """What a mistake costs where a value is not known.

    A value that speaks for a disease is missed most by those who have it: without the age, a
    carcinoma of the old looks like any spot. Where the value is hidden (or missing), examples of
    `labels` weigh `factor` times as much, so that not knowing leans towards them. The loss
    with the value shown stays as it is, but where training hides the value nearly always, the model
    leans as a whole.
    """

    field: str
    """Name of a structured field that the task reads."""
    labels: tuple[str, ...]
    factor: float = 2.0

    def __post_init__(self) -> None:
        check_ranges("tasks.hidden_weight", self, {"factor": ABOVE_ZERO})
        if not self.labels:
            raise UsageError("tasks.hidden_weight.labels: none given; name one label or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTraining:
    """How one task is trained, beside its `TaskSpec`."""

    datasets: tuple[str, ...]
    loss_weight: float = 1.0
    class_weight: Literal["none", "sqrt", "balanced"] = "none"
    """Weight of a class in the loss: 1, count^-1/2 or count^-1, scaled to mean 1."""
    loss: Literal["softmax", "bce"] = "softmax"
    """`bce` is the paper's VQA loss: sigmoid cross-entropy summed over the answers."""
    label_smoothing: float = 0.0
    answer_min_count: int = 1
    """VQA: answers rarer than this in the training split are left out of the vocabulary."""
    teacher_weight: float = 1.0
    """`distil`: what the loss of a teacher's soft answers to this task is multiplied by."""
    temperature: float = 0.0
    """`distil`: of this task's soft answers; 0: the run's, `distillation.temperature`."""
    contrast_weight: float = 1.0
    """Retrieval: weight of the contrast of embeddings beside the loss of the match head."""
    drawn_texts: int = 0
    """Retrieval: wrong texts of the training split that are drawn for each picture; the match head
    tells the right one from them by a softmax (the paper: 15). 0: one wrong text of the batch, by
    binary cross-entropy, which costs one fusion instead of so many."""
    hidden_weight: tuple[HiddenWeight, ...] = ()
    """Single-label classification: what weighs more where a structured value is not shown."""

    def __post_init__(self) -> None:
        check_ranges("tasks", self, _TASK_RANGES)
