"""What a variant changes against the float32 graphs, task by task, on real samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from umd_edge._postprocess import positives, probabilities
from umd_edge._task import TaskSpec, output_name

from .runner import GraphTrio
from .samples import Sample

__all__ = ["TaskDrift", "changed_decisions", "decision_margins", "measure_drift"]

Float64Array = npt.NDArray[np.float64]


def changed_decisions(task: TaskSpec, first: Float64Array, second: Float64Array) -> float:
    """Share of a record's decisions that differ between two (K,) probability vectors."""
    changed = positives(first, task) != positives(second, task)
    return float(changed.mean() if task.multi_label else changed.any())


def decision_margins(task: TaskSpec, logits: npt.NDArray[Any]) -> Float64Array:
    """How far a record's decisions are from changing, in standard deviations of noise of size 1.

    Independent noise of standard deviation s on every logit changes a decision of margin m with
    probability Phi(-m / s).

    Args:
        task: Says what is decided.
        logits: (K,) of one record.

    Returns:
        (K,) for a multi-label task; (1,) otherwise, for the two most probable outputs.
    """
    values = logits.astype(np.float64)
    if task.multi_label:
        limits = np.array([task.operating_points.get(name, 0.5) for name in task.outputs])
        with np.errstate(divide="ignore"):  # a limit of 0 or 1 is never crossed
            distance: Float64Array = np.abs(
                values - task.temperature * (np.log(limits) - np.log1p(-limits))
            )
        return distance
    if len(values) < 2:
        return np.array([np.inf])
    second, first = np.partition(values, -2)[-2:]
    # The difference of two logits has twice the variance of one.
    return np.array([(first - second) / np.sqrt(2.0)])


@dataclass(slots=True)
class TaskDrift:
    """Differences of one task's logits and decisions."""

    records: int = 0
    largest: float = 0.0
    total: float = 0.0
    changed: float = 0.0
    spread: list[float] = field(default_factory=list)

    def add(self, task: TaskSpec, reference: npt.NDArray[Any], given: npt.NDArray[Any]) -> None:
        """Take in one record's (K,) logits."""
        difference = np.abs(reference.astype(np.float64) - given.astype(np.float64))
        self.records += 1
        self.largest = max(self.largest, float(difference.max()))
        self.total += float(difference.mean())
        self.spread.append(float(reference.std()))
        before, after = probabilities(reference, task), probabilities(given, task)
        self.changed += changed_decisions(task, before, after)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "records": self.records,
            "max_logit_difference": self.largest,
            "mean_logit_difference": self.total / self.records,
            "mean_logit_spread": float(np.mean(self.spread)),
            "changed_decisions": self.changed / self.records,
        }


def measure_drift(
    reference: GraphTrio, variant: GraphTrio, samples: Iterable[Sample]
) -> dict[str, TaskDrift]:
    """Task -> differences of `variant` from `reference`, each sample run alone."""
    drift: dict[str, TaskDrift] = {}
    for sample in samples:
        inputs = sample.inputs()
        name = output_name(sample.task.name)
        before, after = reference.run(inputs)[name][0], variant.run(inputs)[name][0]
        drift.setdefault(sample.task.name, TaskDrift()).add(sample.task, before, after)
    return drift
