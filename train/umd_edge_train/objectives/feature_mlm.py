"""Feature-level masked language modelling: the teacher's text tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..masking import IGNORED
from .base import PairBatch, PairFeatures

__all__ = ["FeatureMLM"]


class FeatureMLM(nn.Module):
    """Mean squared error between the student's text tokens Z and the teacher's T of the clean text.

    * `projected`, as released: a linear layer A on both sides, (A Z - A T)^2 over all positions,
      padding included. A gets its gradient from both sides, so making A small is a solution.
    * `predictor`: A on the student's side only, (A Z - T)^2 over the real tokens.
    * `predictor_masked`: the same over the tokens to be predicted.

    Args:
        kind: Which of these.
        width: D, the fusion's.
    """

    def __init__(
        self, kind: Literal["projected", "predictor", "predictor_masked"], width: int
    ) -> None:
        super().__init__()
        self.kind = kind
        self.projection = nn.Linear(width, width)

    def forward(self, batch: PairBatch, features: PairFeatures) -> Tensor:
        """The loss, scalar float32: mean over dimensions and positions; 0 where there is none."""
        if features.teacher_text is None:
            raise ValueError("feature_mlm needs the teacher's text tokens")
        teacher = features.teacher_text.detach()
        student = self.projection(features.text_tokens).float()
        if self.kind == "projected":
            return torch.square(student - self.projection(teacher).float()).mean()
        counted = batch.attention_mask > 0
        if self.kind == "predictor_masked":
            counted = features.targets != IGNORED
        error = torch.square(student - teacher.float()).mean(dim=2)
        return (error * counted).sum() / counted.sum().clamp(min=1)
