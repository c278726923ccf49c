"""From logits to probabilities and decisions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ._task import TaskSpec

__all__ = ["most_probable", "positives", "probabilities"]


def probabilities(logits: npt.NDArray[np.float32], task: TaskSpec) -> npt.NDArray[np.float64]:
    """Probabilities after temperature scaling.

    Args:
        logits: (..., K) float32.
        task: Says softmax over the K outputs, or a sigmoid for each.

    Returns:
        (..., K) float64; softmax rows sum to 1.
    """
    scaled = logits.astype(np.float64)
    if task.temperature != 1.0:
        scaled /= task.temperature
    if task.probability_kind == "sigmoid":
        # Two-sided form: exp never overflows.
        decay = np.exp(-np.abs(scaled))
        result: npt.NDArray[np.float64] = np.where(scaled >= 0, 1.0, decay) / (1.0 + decay)
        return result
    scaled -= scaled.max(axis=-1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=-1, keepdims=True)
    return scaled


def most_probable(probability: npt.NDArray[np.float64], count: int) -> list[int]:
    """Rows of the `count` highest values of (K,), the highest first; of equal ones the first.

    Sorting all of a long vocabulary would cost more than the rest of an answer's arithmetic.
    """
    count = min(count, len(probability))
    lowest = np.partition(probability, -count)[-count]
    candidates: list[int] = np.flatnonzero(probability >= lowest).tolist()
    return sorted(candidates, key=lambda row: (-probability[row], row))[:count]


def positives(probability: npt.NDArray[np.float64], task: TaskSpec) -> npt.NDArray[np.bool_]:
    """Which outputs are positive: the arg-max, or each at its operating point (multi-label).

    Args:
        probability: (K,) float64.
        task: Holds `multi_label` and the operating points (0.5 where none is given).
    """
    if task.multi_label:
        limits = [task.operating_points.get(name, 0.5) for name in task.outputs]
        return np.asarray(probability >= np.asarray(limits))
    chosen = np.zeros(probability.shape, dtype=np.bool_)
    chosen[int(np.argmax(probability))] = True
    return chosen
