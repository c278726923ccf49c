"""What teachers say to a batch: soft answers, and where they see pictures and texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from umd_edge._answers import normalise_answer
from umd_edge._records import Example
from umd_edge._task import TaskSpec
from umd_edge_train.objectives import similarity

__all__ = ["PairEmbeddings", "Questions", "SoftAnswers", "mean_answers", "output_keys"]


class SoftAnswers(NamedTuple):
    """What teachers say to E examples of one task."""

    logits: Tensor
    """(E, K) float32, K the outputs that teacher and student share."""
    rows: Tensor
    """(K,) int64: where these outputs stand among the student's."""
    known: Tensor
    """(E,) bool: whether the teachers can read the example at all."""
    joints: tuple[Tensor, ...] = ()
    """Of each teacher the joint vectors (E, W) float32, zeros where not `known`."""


class PairEmbeddings(NamedTuple):
    """Where teachers see E pairs of one retrieval task; K of them are `known`."""

    images: tuple[Tensor, ...]
    """Of each teacher (K, D) float32 of unit length; D may differ between teachers."""
    texts: tuple[Tensor, ...]
    """Likewise, of the text of each pair."""
    known: Tensor
    """(E,) bool: whether all teachers can read the pair."""

    def similarities(self) -> tuple[Tensor, Tensor]:
        """Logits (K, K) of each picture over the texts, and (K, K) of each text over the pictures.

        Of several teachers those of the mean of their probabilities.
        """
        logits = [similarity(i, t) for i, t in zip(self.images, self.texts, strict=True)]
        return (
            mean_answers(logits, sigmoid=False),
            mean_answers([one.T for one in logits], sigmoid=False),
        )


Questions = Mapping[str, tuple[Tensor, Sequence[Example]]]
"""Task -> owners (E,) int64 among the pictures of a batch, and the examples."""


def output_keys(task: TaskSpec) -> list[str]:
    """What the outputs of a task are matched by: answers normalised, labels as they are."""
    return [normalise_answer(o) if task.kind == "vqa" else o for o in task.outputs]


def mean_answers(logits: Sequence[Tensor], *, sigmoid: bool) -> Tensor:
    """Logits of the mean probability of several teachers.

    Args:
        logits: (E, K) float32 of each teacher.
        sigmoid: One probability for each output, not one distribution over all.

    Returns:
        (E, K) float32. Of one teacher: its own logits, up to a constant of each row (softmax).
    """
    stacked = torch.stack(list(logits))
    count = math.log(len(stacked))
    if not sigmoid:
        return torch.logsumexp(functional.log_softmax(stacked, dim=2), dim=0) - count
    yes = torch.logsumexp(functional.logsigmoid(stacked), dim=0)
    no = torch.logsumexp(functional.logsigmoid(-stacked), dim=0)
    return yes - no
