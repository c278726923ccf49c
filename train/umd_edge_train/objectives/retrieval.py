"""Supervised retrieval losses on pairs of picture and text.

* `contrastive_loss`: symmetric cross-entropy over the batch between unit embeddings (no fusion);
* `match_loss`: binary cross-entropy of the match logit on true pairs and on wrong ones.

Pairs with the same text are true pairs of each other: neither loss pushes them apart.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["contrastive_loss", "match_loss", "similarity", "wrong_texts"]

_TEMPERATURE = 0.07


def similarity(image_embedding: Tensor, text_embedding: Tensor) -> Tensor:
    """Logits (E, E) of each picture (row) for each text: unit embeddings (E, D), over 0.07."""
    return image_embedding @ text_embedding.T / _TEMPERATURE


def contrastive_loss(image_embedding: Tensor, text_embedding: Tensor, same_text: Tensor) -> Tensor:
    """Symmetric InfoNCE of each pair, temperature 0.07.

    Args:
        image_embedding: (E, D) float32, unit length.
        text_embedding: (E, D) float32, unit length.
        same_text: (E, E) bool, True where two pairs have the same text (the diagonal included).

    Returns:
        (E,) float32: the mean of the picture-to-text and the text-to-picture term, each the
        negative logarithm of the probability of all texts (pictures) that are right.
    """
    logits = similarity(image_embedding, text_embedding)
    hidden = logits.masked_fill(~same_text, float("-inf"))
    rows = torch.logsumexp(logits, dim=1) - torch.logsumexp(hidden, dim=1)
    columns = torch.logsumexp(logits, dim=0) - torch.logsumexp(hidden, dim=0)
    return 0.5 * (rows + columns)


def wrong_texts(same_text: Tensor, rng: torch.Generator) -> Tensor:
    """A random row with another text for each pair; -1 where the batch has none.

    Args:
        same_text: (E, E) bool.
        rng: Source of randomness.

    Returns:
        (E,) int64.
    """
    weights = torch.rand(same_text.shape, generator=rng).masked_fill(same_text, -1.0)
    best = weights.max(dim=1)
    return torch.where(best.values < 0.0, torch.full_like(best.indices, -1), best.indices)


def match_loss(true_logits: Tensor, wrong_logits: Tensor) -> Tensor:
    """Binary cross-entropy of true and wrong pairs.

    Args:
        true_logits: (E,) float32 match logits of true pairs.
        wrong_logits: (N,) float32 match logits of pairs with a wrong text; N may be 0.

    Returns:
        Scalar: the mean over both kinds, each kind weighing the same.
    """
    true = functional.softplus(-true_logits).mean()
    if not len(wrong_logits):
        return true
    return 0.5 * (true + functional.softplus(wrong_logits).mean())
