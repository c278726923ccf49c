"""Settings of distillation, read from a recipe's `[distillation]` table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from umd_edge.errors import UsageError

__all__ = ["DistillationConfig", "UnlabelledConfig"]

_WEIGHTS = ("soft_weight", "label_weight", "token_weight", "pooled_weight", "relation_weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlabelledConfig:
    """Records whose answers are not used: the teachers' take their place."""

    dataset: str
    """Name of one of the recipe's data sets; its folder, `flip` and `repeat` hold here too."""
    file: str = "train.jsonl"
    """JSONL in that folder. Records that take part with their labels are left out, so that with a
    `fraction` below 1 this is the rest of the training split; so are patients of the validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig:
    """What a student learns from its teachers, beside or instead of labels."""

    temperature: float = 2.0
    """Both sides' logits are divided by it; the loss is multiplied by its square."""
    label_weight: float = 1.0
    """Weight of the losses against the labels; 0: the teachers' word alone counts."""
    soft_weight: float = 1.0
    """Weight of the loss against the teachers' soft answers."""
    token_weight: float = 0.0
    """Weight of the loss against the teachers' image tokens, through a projection."""
    pooled_weight: float = 0.0
    """Likewise their pooled vectors: of image and text together, or as far as they have them."""
    relation_weight: float = 0.0
    """Weight of the loss against the relations of queries, keys and values in the last block of
    the teachers' vision encoders."""
    relation_heads: int = 4
    """Parts that queries, keys and values are cut into, whatever the heads of either side."""
    unlabelled: tuple[UnlabelledConfig, ...] = ()

    def __post_init__(self) -> None:
        for name in _WEIGHTS:
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
        if self.relation_heads < 1:
            raise UsageError(
                f"distillation.relation_heads: {self.relation_heads} given; 1 or more is allowed"
            )
        if not self.label_weight and not self.has_teacher:
            raise UsageError(
                "distillation: all weights are 0, so nothing is learnt; make one of them positive"
            )

    @property
    def has_features(self) -> bool:
        """Whether a loss compares more than answers."""
        return any((self.token_weight, self.pooled_weight, self.relation_weight))

    @property
    def has_teacher(self) -> bool:
        """Whether any loss needs a teacher; without one this is a student without a teacher."""
        return self.soft_weight > 0.0 or self.has_features
