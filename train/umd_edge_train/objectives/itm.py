"""Image-text matching: does this picture belong to this text?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .base import PairBatch
from .retrieval import wrong_texts

__all__ = ["draw_matches", "itm_loss", "same_rows"]


def same_rows(rows: Tensor) -> Tensor:
    """(B, ...) -> (B, B) bool: which rows are equal."""
    group: Tensor = torch.unique(rows.flatten(1), dim=0, return_inverse=True)[1]
    return torch.eq(group[:, None], group[None])


def draw_matches(batch: PairBatch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keep half of the pairs, rounded down, and give the others a wrong picture of the batch.

    Source: UMD (arXiv 2404.06057) after M3AE, which draws from the whole data set and may hit the
    right picture. Here a wrong one has other pixels and comes from a pair with another text.

    Args:
        batch: B pairs.
        rng: Source of randomness.

    Returns:
        The picture of each text (B,) int64, which is its own row where the pair stays true; and
        which texts count (B,) bool. A text without words, or one that no picture is wrong for, does
        not; nor does any where all would be true.
    """
    count = len(batch.input_ids)
    same = same_rows(batch.pixel_values) | same_rows(batch.input_ids * batch.attention_mask)
    wrong = wrong_texts(same.cpu(), rng)
    picture = torch.arange(count)
    swapped = torch.randperm(count, generator=rng)[count // 2 :]
    counted = torch.ones(count, dtype=torch.bool)
    counted[swapped] = wrong[swapped] >= 0
    counted &= batch.is_worded.cpu()
    if not counted[swapped].any():
        counted[:] = False
    picture[swapped] = torch.where(counted[swapped], wrong[swapped], swapped)
    device = batch.input_ids.device
    return picture.to(device), counted.to(device)


def itm_loss(logits: Tensor, is_true: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of match logits.

    It equals the two-way softmax cross-entropy of the paper, with the difference of its two logits
    as the one.

    Args:
        logits: (M,).
        is_true: (M,) bool.

    Returns:
        The loss and the accuracy, scalars float32, means over the pairs.
    """
    logits = logits.float()
    accuracy = ((logits.detach() > 0.0) == is_true).float().mean()
    loss = functional.binary_cross_entropy_with_logits(logits, is_true.to(logits.dtype))
    return loss, accuracy
