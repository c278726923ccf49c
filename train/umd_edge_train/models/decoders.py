"""What reconstruction puts behind the fusion: the MIM decoder and the MLM head.

Source: UMD (arXiv 2404.06057) after M3AE: a decoder half as wide as the fusion, and BERT's MLM
head. They serve pre-training only and never leave it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from umd_edge.errors import UsageError

__all__ = ["MIMDecoder", "MLMHead"]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _sine_positions(side: int, width: int) -> Tensor:
    """(1 + side**2, width): sines and cosines of row and column; the class token's are zero."""
    frequencies = 10_000.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves[:, None].expand(-1, side, -1)
    columns = waves[None].expand(side, -1, -1)
    grid = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return torch.cat([torch.zeros(1, width), grid])


def _initialise(module: nn.Module, std: float) -> None:
    """N(0, std) matrices and zero biases, as the paper's new modules."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class MIMDecoder(nn.Module):
    """Fused tokens of the visible patches to pixels of all patches.

    Linear, the mask token in place of what was removed, fixed sine positions, pre-LN transformer
    blocks as in CLIP, LayerNorm, Linear.

    Args:
        input_width: D, the fusion's.
        width: W, a multiple of 4 and of `heads`.
        layers: Number of blocks.
        heads: Of each block.
        side: Patches along a side of the picture.
        patch_size: Pixels along a side of a patch.
        std: Of the new matrices.

    Raises:
        UsageError: The width fits neither positions nor heads.
    """

    positions: Tensor

    def __init__(
        self,
        input_width: int,
        width: int,
        layers: int,
        heads: int,
        side: int,
        patch_size: int,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        if width % 4 or width % heads:
            raise UsageError(
                f"reconstruction.decoder_width: {width} given; a multiple of 4 and of "
                f"decoder_heads {heads} is allowed"
            )
        self.width, self.num_patches = width, side * side
        self.embedding = nn.Linear(input_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", _sine_positions(side, width), persistent=False)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                4 * width,
                dropout=0.0,
                activation=_quick_gelu,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * patch_size**2)
        _initialise(self, std)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, image_tokens: Tensor, keep: Tensor) -> Tensor:
        """Decode all patches.

        Args:
            image_tokens: (B, 1 + K, D), the class token first.
            keep: (B, K) int64, which patches they are.

        Returns:
            (B, N, W) after the last LayerNorm; `pixels` makes (B, N, 3 p**2) of it.
        """
        x = self.embedding(image_tokens)
        slots = self.mask_token.to(x.dtype).expand(len(x), self.num_patches, -1)
        slots = slots.scatter(1, keep[..., None].expand(-1, -1, self.width), x[:, 1:])
        x = torch.cat([x[:, :1], slots], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x)[:, 1:])


class MLMHead(nn.Module):
    """Fused text tokens to logits over the vocabulary: Linear, GELU, LayerNorm, Linear."""

    def __init__(self, width: int, vocabulary_size: int, std: float = 0.02) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary_size)
        _initialise(self, std)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return cast(Tensor, self.output(self.norm(functional.gelu(self.dense(tokens)))))
