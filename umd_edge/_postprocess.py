"""From logits to probabilities and decisions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ._task import TaskSpec

__all__ = ["best_outputs", "positives", "probabilities"]


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
    # The ufuncs themselves: the methods reach the same ones through two more Python functions.
    scaled -= np.maximum.reduce(scaled, axis=-1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= np.add.reduce(scaled, axis=-1, keepdims=True)
    return scaled


def best_outputs(
    logits: npt.NDArray[np.float32], task: TaskSpec, count: int
) -> list[tuple[int, float]]:
    """Rows of the `count` most probable outputs with their probabilities, the best first.

    Of equal ones the first row comes first. Looking for the highest value a few times costs less
    than sorting a long vocabulary.

    Args:
        logits: (K,) float32.
        task: As in `probabilities`.
        count: At least 1; all K where it exceeds them.
    """
    left = probabilities(logits, task)
    best: list[tuple[int, float]] = []
    for _ in range(min(count, len(left))):
        row = int(left.argmax())
        best.append((row, float(left[row])))
        left[row] = -1.0
    return best


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
