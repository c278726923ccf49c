"""What a student is told by its teachers: one small function for each loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["soft_answer_loss"]


def soft_answer_loss(
    student: Tensor, teacher: Tensor, temperature: float, *, sigmoid: bool
) -> Tensor:
    """Kullback-Leibler divergence of softened answers, times the square of the temperature.

    The square keeps the gradient's size about the same at every temperature. Source: "Distilling
    the knowledge in a neural network" (arXiv 1503.02531), section 2.

    Args:
        student: Logits (E, K) float32.
        teacher: Logits (E, K) float32; no gradient flows there.
        temperature: Divides both, above 0.
        sigmoid: One probability for each output, mean over the outputs; else one distribution.

    Returns:
        (E,) float32, 0 where both agree.
    """
    told, said = teacher.detach() / temperature, student / temperature
    if sigmoid:
        probability = torch.sigmoid(told)
        crossed = functional.binary_cross_entropy_with_logits(said, probability, reduction="none")
        entropy = functional.binary_cross_entropy_with_logits(told, probability, reduction="none")
        divergence = (crossed - entropy).mean(dim=1)
    else:
        log_told = functional.log_softmax(told, dim=1)
        log_said = functional.log_softmax(said, dim=1)
        divergence = (log_told.exp() * (log_told - log_said)).sum(dim=1)
    return temperature**2 * divergence
