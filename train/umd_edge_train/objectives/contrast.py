"""Contrast of a batch's pairs by their embeddings, before the fusion."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import PairBatch, PairFeatures
from .itm import same_rows
from .retrieval import contrastive_loss

__all__ = ["batch_contrast"]


def batch_contrast(batch: PairBatch, features: PairFeatures) -> tuple[Tensor, Tensor] | None:
    """Which of the batch's texts belongs to this picture, and which picture to this text?

    Source: UMD (arXiv 2404.06057), whose authors tried it and switched it off; here with
    `contrastive_loss`, which takes equal texts for one.

    Returns:
        The loss and the accuracy of finding the text, scalars float32, means over the pairs whose
        text has words; None where fewer than two have.
    """
    rows = torch.nonzero(batch.is_worded).flatten()
    if len(rows) < 2:
        return None
    same = same_rows((batch.input_ids * batch.attention_mask)[rows])
    clean = features.clean
    image, text = (unit[rows].float() for unit in (clean.image_embedding, clean.text_embedding))
    with torch.autocast(image.device.type, enabled=False):
        nearest = (image.detach() @ text.detach().T).argmax(dim=1, keepdim=True)
        loss = contrastive_loss(image, text, same).mean()
    return loss, same.gather(1, nearest).float().mean()
