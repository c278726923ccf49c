"""How one task of a recipe is trained, beside what its `TaskSpec` says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from umd_edge.errors import UsageError

from .ranges import ABOVE_ZERO, AT_LEAST_ZERO, BELOW_ONE, check_ranges

__all__ = ["TaskTraining"]

_TASK_RANGES = {
    "loss_weight": AT_LEAST_ZERO,
    "contrast_weight": AT_LEAST_ZERO,
    "drawn_texts": AT_LEAST_ZERO,
    "label_smoothing": BELOW_ONE,
    "teacher_weight": AT_LEAST_ZERO,
    "temperature": AT_LEAST_ZERO,
}


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
    label_cost: dict[str, float] = field(default_factory=dict)
    """Classification: what missing a label costs, where every other one costs 1.

    The logit of a label that costs c ends log(c) above what its probability gives, so that the
    label wins from 1 in c + 1 on, against one that costs 1. The loss sees the logits without it.
    A weight in the loss would not do: once every training record is right, it moves nothing. The
    lean of a `distil` teacher comes on top. Source: "Long-tail learning via logit adjustment"
    (arXiv 2007.07314), section 4.2.
    """

    def __post_init__(self) -> None:
        check_ranges("tasks", self, _TASK_RANGES)
        for label, cost in self.label_cost.items():
            if type(cost) not in (int, float) or not ABOVE_ZERO.holds(cost):
                raise UsageError(
                    f"tasks.label_cost.{label}: {cost!r} given; {ABOVE_ZERO.words} is allowed"
                )
