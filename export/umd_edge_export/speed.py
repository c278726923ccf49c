"""Two variants of a bundle timed in turn in one process: their ratio, with an interval.

Each round times both, one right after the other in alternating order, and gives one ratio, so that
both see the same machine. The ratio is that of the processor time of this thread, which another
program on the same core does not add to; what the user waits for is reported beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import thread_time
from typing import Any

import numpy as np
import numpy.typing as npt

from umd_edge._predictor import Predictor
from umd_edge._task import TaskSpec

__all__ = ["SpeedReport", "measure_speed", "ratio_interval"]

ROUNDS = (16, 64)
"""At least, and at most: more where the interval of the ratio still holds 1."""
_WARM_UP = 3
_STEP = 8
_RESAMPLES = 1000
_TEXT = "which organ is shown in this image?"


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """One answer to one picture: vision, text and fusion graph, on one thread."""

    reference_ms: float
    """Median processor time of float32, to which other programs do not add."""
    variant_ms: float
    ratio: float
    """Variant over float32: the median over the rounds."""
    low: float
    """2.5th percentile over 1,000 resamples of the rounds."""
    high: float
    rounds: int

    @property
    def verdict(self) -> str:
        """`faster` or `slower` where the interval lies on one side of 1, else `not told apart`."""
        if self.high < 1:
            return "faster"
        return "slower" if self.low > 1 else "not told apart"

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, rounded."""
        return {
            "reference_ms": round(self.reference_ms, 3),
            "variant_ms": round(self.variant_ms, 3),
            "ratio": round(self.ratio, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "rounds": self.rounds,
        }


def ratio_interval(ratios: npt.ArrayLike) -> tuple[float, float, float]:
    """Median of the rounds' ratios (N,) and its 95 % interval (1,000 resamples, seed 0)."""
    values = np.asarray(ratios, dtype=np.float64)
    draws = np.random.default_rng(0).integers(0, len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def _answering(predictor: Predictor, task: TaskSpec) -> Callable[[], object]:
    """Encode a generated picture of the model's own size and run one question on it."""
    spec = predictor.manifest.preprocessing
    shape = (spec.height, spec.width, 3)[: 3 if spec.channels == 3 else 2]
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    empty = np.zeros(len(predictor.manifest.structured_fields), np.float32)

    def answer() -> object:
        # Not the task's own prompt, whose encoding the predictor keeps.
        return predictor.probabilities(predictor.encode(pixels), task, _TEXT, (empty, empty))

    return answer


def _time(call: Callable[[], object]) -> float:
    """Seconds of this thread's processor time."""
    start = thread_time()
    call()
    return thread_time() - start


def measure_speed(
    reference: Predictor, variant: Predictor, *, rounds: tuple[int, int] = ROUNDS
) -> SpeedReport:
    """Time a variant against float32.

    Args:
        reference: The variant `fp32`, on one thread.
        variant: Another variant of the same bundle, on one thread.
        rounds: At least and at most so many.
    """
    task = next(task for task in reference.tasks if task.kind != "retrieval")
    calls = _answering(reference, task), _answering(variant, task)
    for call in calls * _WARM_UP:
        call()
    times: list[tuple[float, float]] = []
    while True:
        for _ in range(_STEP if times else rounds[0]):
            if len(times) % 2:
                second = _time(calls[1])
                times.append((_time(calls[0]), second))
            else:
                times.append((_time(calls[0]), _time(calls[1])))
        measured = np.asarray(times)  # (rounds, side)
        ratio, low, high = ratio_interval(measured[:, 1] / measured[:, 0])
        if not low <= 1 <= high or len(times) >= rounds[1]:
            break
    middle = np.median(measured, axis=0) * 1e3
    return SpeedReport(float(middle[0]), float(middle[1]), ratio, low, high, len(times))
