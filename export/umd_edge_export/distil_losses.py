"""What a student is told by its teachers: one small function for each loss.

No gradient flows into the teacher's side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "pooled_loss",
    "relation_loss",
    "resize_grid",
    "similarity_loss",
    "soft_answer_loss",
    "token_loss",
]


def soft_answer_loss(
    student: Tensor, teacher: Tensor, temperature: float, *, sigmoid: bool
) -> Tensor:
    """Kullback-Leibler divergence of softened answers, times the square of the temperature.

    The square keeps the gradient's size about the same at every temperature. Source: "Distilling
    the knowledge in a neural network" (arXiv 1503.02531), section 2.

    Args:
        student: Logits (E, K) float32.
        teacher: Logits (E, K) float32.
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


def similarity_loss(student: Tensor, texts: Tensor, images: Tensor, temperature: float) -> Tensor:
    """Divergence of which texts suit a picture, and of which pictures suit a text, in a batch.

    Each row of a matrix of similarities is one distribution over the texts of the batch, each
    column one over its pictures; both are softened as answers are (`soft_answer_loss`).

    Args:
        student: Logits (E, E) float32: of picture i (row) and text j.
        texts: Logits (E, E) float32 of the teacher: row i over the texts, for picture i.
        images: Likewise, row j over the pictures, for text j.
        temperature: Divides all, above 0.

    Returns:
        (E,) float32: of each pair the mean of its row's and its column's divergence.
    """
    rows = soft_answer_loss(student, texts, temperature, sigmoid=False)
    columns = soft_answer_loss(student.T, images, temperature, sigmoid=False)
    return 0.5 * (rows + columns)


def resize_grid(tokens: Tensor, side: int) -> Tensor:
    """Tokens (B, M * M, D) of a square grid, row by row, as (B, side * side, D): means of areas."""
    own = math.isqrt(tokens.shape[1])
    if own == side:
        return tokens
    grid = tokens.transpose(1, 2).reshape(len(tokens), -1, own, own)
    return functional.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2)


def token_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 distance of tokens to the teacher's, whose every token is normalised first.

    Normalised (mean 0, variance 1 over its channels), since the scale of a teacher's features says
    nothing and differs between teachers. Source: "Contrastive learning rivals masked image
    modeling in fine-tuning via feature distillation" (arXiv 2205.14141).

    Args:
        student: (B, N, D) float32, projected to the teacher's width.
        teacher: (B, N, D) float32.

    Returns:
        (B,) float32.
    """
    target = functional.layer_norm(teacher.detach(), teacher.shape[-1:])
    return functional.smooth_l1_loss(student, target, reduction="none").mean(dim=(1, 2))


def pooled_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of pooled vectors, (E, D) float32 each -> (E,) float32 in 0..2."""
    return 1.0 - functional.cosine_similarity(student, teacher.detach(), dim=1)


def relation_loss(student: Tensor, teacher: Tensor, heads: int) -> Tensor:
    """Divergence of how tokens relate to each other, whatever the widths of both sides.

    The vectors of each token are cut into `heads` parts; a token's relations are the softmax of
    the scaled products of its part with those of all tokens. Source: "MiniLMv2" (arXiv
    2012.15828), section 3.1, for queries, keys or values.

    Args:
        student: (B, N, D) float32, D a multiple of `heads`.
        teacher: (B, N, D') float32, D' a multiple of `heads`.
        heads: Number of parts.

    Returns:
        (B,) float32: mean over parts and tokens.
    """
    told, said = _log_relations(teacher.detach(), heads), _log_relations(student, heads)
    return (told.exp() * (told - said)).sum(dim=3).mean(dim=(1, 2))


def _log_relations(x: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> log-probabilities (B, heads, N, N)."""
    parts = x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
    products = parts @ parts.transpose(2, 3) / math.sqrt(parts.shape[-1])
    return functional.log_softmax(products, dim=3)
