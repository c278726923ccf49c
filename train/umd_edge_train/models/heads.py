"""Poolers and task heads. Source: UMD's released code by way of its description (see the docs)."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

__all__ = ["Pooler", "TaskHead"]


class Pooler(nn.Module):
    """One vector of a stream: first token, mean, or mean over real tokens; then Linear and tanh."""

    def __init__(self, width: int, pooling: Literal["first", "mean", "masked_mean"]) -> None:
        super().__init__()
        self.pooling = pooling
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None, first: int) -> Tensor:
        """(B, N, D), mask (B, N) or None for no padding, index of the class token -> (B, D)."""
        if self.pooling == "first":
            pooled = tokens[:, first]
        elif self.pooling == "mean" or mask is None:
            pooled = tokens.mean(dim=1)
        else:
            weight = mask[..., None]
            # at least one: a text of padding alone gives zero, not NaN
            pooled = (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        return torch.tanh(self.dense(pooled))


class TaskHead(nn.Module):
    """Classification and VQA head: Linear, LayerNorm, GELU, dropout, Linear."""

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, outputs),
        )

    def forward(self, joint: Tensor) -> Tensor:
        """(B, W) float32 -> logits (B, K) float32."""
        return cast(Tensor, self.layers(joint))
