"""Masked image modelling: pixels of the patches that were removed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mim_loss", "patch_pixels"]

_EPS = 1e-6


def patch_pixels(pixel_values: Tensor, patch_size: int) -> Tensor:
    """Pixels of each patch.

    Args:
        pixel_values: (B, 3, H, W).
        patch_size: p, which divides H and W.

    Returns:
        (B, N, 3 p**2): patches row by row; in a patch channel by channel, then row by row.
    """
    batch, channels, height, width = pixel_values.shape
    p = patch_size
    grid = pixel_values.reshape(batch, channels, height // p, p, width // p, p)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def mim_loss(prediction: Tensor, pixels: Tensor, removed: Tensor) -> Tensor:
    """Mean squared error on the removed patches, each normalised by its own mean and deviation.

    Source: UMD (arXiv 2404.06057) after MAE; the variance is the unbiased one, plus 1e-6.

    Args:
        prediction: (B, N, 3 p**2).
        pixels: (B, N, 3 p**2), see `patch_pixels`.
        removed: (B, M) int64, which patches count.

    Returns:
        Scalar float32: the mean over pixels, patches and batch.
    """
    index = removed[..., None].expand(-1, -1, pixels.shape[2])
    wanted = pixels.float().gather(1, index)
    variance, mean = torch.var_mean(wanted, dim=2, keepdim=True)
    wanted = (wanted - mean) / torch.sqrt(variance + _EPS)
    return (prediction.float().gather(1, index) - wanted).square().mean()
