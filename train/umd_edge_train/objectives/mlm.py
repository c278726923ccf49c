"""Masked language modelling: the words that were masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..masking import IGNORED

__all__ = ["mlm_loss"]


def mlm_loss(head: nn.Module, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the tokens to be predicted, mean over them.

    Only these go through the head, whose last product is by far the largest of the objectives.

    Args:
        head: (M, D) -> (M, V) logits.
        tokens: (B, L, D) fused text.
        targets: (B, L) int64, -100 = not to be predicted.

    Returns:
        The loss and the accuracy, scalars float32. Both are 0 where nothing is to be predicted, and
        the loss then has a zero gradient.
    """
    chosen = targets != IGNORED
    logits = head(tokens[chosen]).float()
    wanted = targets[chosen]
    if not len(wanted):
        return logits.sum(), logits.new_zeros(())
    with torch.no_grad():
        accuracy = (logits.argmax(dim=1) == wanted).float().mean()
    return functional.cross_entropy(logits, wanted), accuracy
