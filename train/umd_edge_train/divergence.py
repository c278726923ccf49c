"""When a run no longer learns, and what to say of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

from umd_edge.errors import UmdEdgeError

__all__ = ["DivergenceWatch", "TrainingDivergedError"]

_KEPT = 0.9  # of the smoothed loss, from one step to the next
# A loss near zero, as of a model that knows its data, may well rise to this and beyond it.
_SMALLEST_START = 1.0
# float16 halves its scale with each step that it leaves out: 30 in a row are a factor of 1e9.
_MOST_SKIPPED = 30


class TrainingDivergedError(UmdEdgeError):
    """The loss is not finite, or far above that of the start; checkpoints are kept."""

    exit_code: ClassVar[int] = 1


class DivergenceWatch:
    """Looks at the losses of a run, step by step.

    Args:
        factor: How many times the first step's loss the smoothed loss may be; 0: any.
        checkpoints: Where the run's checkpoints are, for the message.
    """

    def __init__(self, factor: float, checkpoints: Path) -> None:
        self.factor, self._checkpoints = factor, checkpoints
        self.start = self.recent = math.nan
        """Loss of the first step, not below 1, and smoothed loss; NaN before the first step."""
        self._skipped = 0

    def require_finite(self, what: str, value: float, step: int) -> None:
        """Stop at a loss or gradient that is not finite.

        Raises:
            TrainingDivergedError: It is not.
        """
        if not math.isfinite(value):
            raise self._error(f"the {what} is {value} at step {step}")

    def add(self, loss: float, step: int) -> None:
        """Take a step's loss into account.

        Raises:
            TrainingDivergedError: The smoothed loss is more than `factor` times the start's.
        """
        if math.isnan(self.start):
            self.start, self.recent = max(loss, _SMALLEST_START), loss
        self.recent = _KEPT * self.recent + (1.0 - _KEPT) * loss
        if self.factor and self.recent > self.factor * self.start:
            raise self._error(
                f"the smoothed loss is {self.recent:.4g} at step {step}, more than "
                f"optim.divergence_factor = {self.factor:g} times that of the start "
                f"({self.start:.4g})"
            )

    def add_skipped(self, skipped: bool, step: int) -> None:
        """Say whether float16 left a step out because its gradients were not finite.

        Raises:
            TrainingDivergedError: Too many in a row, so that nothing is learnt any more.
        """
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= _MOST_SKIPPED:
            raise self._error(
                f"the gradient is not finite in float16 in {self._skipped} steps up to step {step}"
            )

    def state(self) -> dict[str, float]:
        """What a resumed run needs; empty before the first step."""
        if math.isnan(self.start):
            return {}
        return {"start_loss": self.start, "recent_loss": self.recent}

    def load(self, state: dict[str, float]) -> None:
        """Continue from a `state`; an older one without losses begins anew."""
        self.start = state.get("start_loss", math.nan)
        self.recent = state.get("recent_loss", math.nan)

    def _error(self, problem: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"{problem}; checkpoints up to here are kept in {str(self._checkpoints)!r}: start a "
            "run in another folder from the last good one (--init) with a lower "
            "optim.learning_rate or with optim.precision = float32"
        )
