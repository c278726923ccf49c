"""Optimiser groups, learning-rate schedule and the running average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .recipe import OptimConfig

__all__ = ["WeightAverage", "build_optimizer", "learning_rate"]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with betas 0.9, 0.98; vectors (biases, norms, single embeddings) are not decayed."""
    groups = []
    for in_stem, rate in ((False, 1.0), (True, config.stem_rate)):
        chosen = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and ("vision_encoder.stem." in name) == in_stem
        ]
        for matrices, decay in ((True, config.weight_decay), (False, 0.0)):
            members = [p for p in chosen if (p.ndim > 1) == matrices]
            groups.append({"params": members, "weight_decay": decay, "rate": rate})
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-8)


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Linear warm-up, then half a cosine to zero; `step` counts from 0."""
    warmup = max(1, round(config.warmup_fraction * total))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


class WeightAverage:
    """Exponential moving average of all floating-point tensors of a model.

    Early on the decay is (1 + step) / (10 + step), so that the random start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's tensors; integers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1.0 - decay)
            else:
                self.tensors[name].copy_(tensor)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a saved average."""
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
