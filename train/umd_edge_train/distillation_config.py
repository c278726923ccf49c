"""Settings of distillation, read from a recipe's `[distillation]` table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from umd_edge.errors import UsageError

__all__ = ["DistillationConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig:
    """What a student learns from its teachers, beside or instead of labels."""

    temperature: float = 2.0
    """Both sides' logits are divided by it; the loss is multiplied by its square."""
    soft_weight: float = 1.0
    """Weight of the loss against the teachers' soft answers; 0: a student without a teacher."""
    label_weight: float = 1.0
    """Weight of the losses against the labels; 0: the teachers' word alone counts."""

    def __post_init__(self) -> None:
        for name in ("soft_weight", "label_weight"):
            value = float(getattr(self, name))
            if not (math.isfinite(value) and value >= 0.0):
                raise UsageError(
                    f"distillation.{name}: {value} given; a finite number, 0 or more, is allowed"
                )
        if not (math.isfinite(self.temperature) and self.temperature > 0.0):
            raise UsageError(
                f"distillation.temperature: {self.temperature} given; a finite number above 0 is "
                "allowed"
            )
        if self.soft_weight == self.label_weight == 0.0:
            raise UsageError(
                "distillation: soft_weight and label_weight are both 0, so nothing is learnt; "
                "make one of them positive"
            )
