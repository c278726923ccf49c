"""What was said of every record beside what is right: what a site report's figures come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ._answers import normalise_answer
from ._evaluate import EvaluatedRecords
from ._postprocess import confidence, positives
from ._records import VQAReference
from ._task import TaskSpec

__all__ = ["Outcomes", "outcomes"]

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """N records of a task with K outputs, in the order of the evaluation."""

    said: BoolArray
    """(N, K): the output is positive."""
    truth: BoolArray
    """(N, K): the output is right."""
    known: BoolArray
    """(N, K): whether it is right is known."""
    confidence: FloatArray
    """(N,): of what was said, 0..1."""
    risk: FloatArray
    """(N,): 0 or 1; of a multi-label task the share of the known labels decided wrongly."""

    def right_share(self, statuses: Sequence[str], status: str) -> float | None:
        """Mean share that is right among the records of a status; None where there are none."""
        here = np.asarray([item == status for item in statuses], dtype=np.bool_)
        return float(1.0 - self.risk[here].mean()) if here.any() else None


def outcomes(evaluated: EvaluatedRecords) -> Outcomes:
    """Compare what came out for every record with its truth."""
    task = evaluated.task
    truth, known = _truth(evaluated)
    said = np.stack([positives(row, task) for row in evaluated.probabilities])
    certain = confidence(evaluated.probabilities, task)
    return Outcomes(said, truth, known, certain, _risk(task, said, truth, known))


def _truth(evaluated: EvaluatedRecords) -> tuple[BoolArray, BoolArray]:
    """Which outputs are right, and of which that is known; both (N, K) bool."""
    task = evaluated.task
    if task.kind == "vqa":
        rows: dict[str, list[int]] = {}
        for row, output in enumerate(task.outputs):
            rows.setdefault(normalise_answer(output), []).append(row)
        truth = np.zeros(evaluated.probabilities.shape, dtype=np.bool_)
        for index, example in enumerate(evaluated.examples):
            for answer in (example.reference or VQAReference(())).answers:
                truth[index, rows.get(normalise_answer(answer), [])] = True
        return truth, np.ones_like(truth)
    targets = np.stack([e.target for e in evaluated.examples if e.target is not None])
    known = np.isfinite(targets)
    if not task.multi_label:
        known = np.repeat((targets == 1).any(axis=1)[:, None], targets.shape[1], axis=1)
    return known & (targets == 1), known


def _risk(task: TaskSpec, said: BoolArray, truth: BoolArray, known: BoolArray) -> FloatArray:
    if not task.multi_label:
        return np.where((said & truth).any(axis=1), 0.0, 1.0)
    wrong = ((said != truth) & known).sum(axis=1)
    return np.asarray(wrong / np.maximum(known.sum(axis=1), 1), dtype=np.float64)
