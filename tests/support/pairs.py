"""Random pairs of picture and text for `support.training`'s minute models."""

from __future__ import annotations

from typing import Any

import torch

from support.training import minute_config, minute_model
from umd_edge_train.masking import Vocabulary
from umd_edge_train.objectives import (
    MultiLevelReconstruction,
    PairBatch,
    ReconstructionConfig,
)

VOCABULARY = Vocabulary(160, 4, tuple(range(5, 160)))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pairs(count: int, length: int = 10, seed: int = 0, side: int = 64) -> PairBatch:
    """Texts of 4 words or fewer, two tokens each, between special tokens; the later are shorter."""
    mask = (torch.arange(length)[None] < length - torch.arange(count)[:, None] % 5).long()
    place = torch.arange(length).expand(count, length)
    last = mask.sum(dim=1, keepdim=True) - 1
    words = torch.where((place > 0) & (place < last), (place - 1) // 2, -1)
    ids = torch.randint(5, 160, (count, length), generator=rng(seed))
    ids = torch.where(words >= 0, ids, torch.where(place == 0, 2, 3)) * mask
    pixel_values = torch.randn(count, 3, side, side, generator=rng(seed + 1))
    return PairBatch(pixel_values, ids, mask, words)


def minute_reconstruction(
    *, itm: bool = True, model: dict[str, Any] | None = None, **config: Any
) -> MultiLevelReconstruction:
    """A minute model on pictures of 64 pixels, two fusion layers, and what reconstruction adds."""
    sizes = {"image_size": 64, "fusion__num_layers": 2, **(model or {})}
    student = minute_model(minute_config(**sizes))
    settings = {"decoder_layers": 1, **config}
    return MultiLevelReconstruction(student, ReconstructionConfig(**settings), VOCABULARY, itm=itm)
