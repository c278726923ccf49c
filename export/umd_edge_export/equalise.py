"""Cross-layer equalisation: the channels of a convolutional stem get ranges of like size.

An 8-bit tensor has one range for all its channels, so a channel of small values is left with few
levels. ReLU and maximum commute with positive factors, so a channel may be divided by a factor
behind one convolution and multiplied by it in front of the next without changing the function. The
factor, (range of the values / range of the weights)^1/2, shares the difficulty between the two, as
in "Data-free quantization" (arXiv 1906.04721) and SmoothQuant (arXiv 2211.10438).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from umd_edge_train.models.vision_encoder import ConvStem

__all__ = ["equalise_stem"]

_SMALLEST = 1e-6


@torch.no_grad()
def _channel_ranges(stem: ConvStem, pictures: Iterable[npt.NDArray[np.float32]]) -> list[Tensor]:
    """Largest value (C,) of each channel behind each layer, over all pictures."""
    ranges: list[Tensor] = []
    for picture in pictures:
        x = torch.from_numpy(picture)
        for index, layer in enumerate(stem.layers):
            x = layer(x)
            highest = x.amax(dim=(0, 2, 3))
            if index == len(ranges):
                ranges.append(highest)
            else:
                ranges[index] = torch.maximum(ranges[index], highest)
    return ranges


@torch.no_grad()
def equalise_stem(stem: ConvStem, pictures: Iterable[npt.NDArray[np.float32]]) -> None:
    """Rescale the channels between the convolutions of a stem, in place.

    Args:
        stem: In evaluation mode, its batch normalisation folded into biases.
        pictures: `pixel_values` (1, 3, H, W) float32 of real pictures; where there are none the
            stem stays as it is.
    """
    convolutions: list[nn.Conv2d] = [_convolution(layer) for layer in stem.layers]
    ranges = _channel_ranges(stem, pictures)
    for values, before, after in zip(ranges, convolutions, convolutions[1:], strict=False):
        weights = after.weight.abs().amax(dim=(0, 2, 3))
        factor = torch.sqrt(values.clamp(min=_SMALLEST) / weights.clamp(min=_SMALLEST))
        # a channel that is always zero, or never read, stays as it is
        factor = torch.where((values > _SMALLEST) & (weights > _SMALLEST), factor, 1.0)
        before.weight /= factor[:, None, None, None]
        if before.bias is not None:
            before.bias /= factor
        after.weight *= factor[None, :, None, None]


def _convolution(layer: Any) -> nn.Conv2d:
    convolution: nn.Conv2d = layer.convolution
    return convolution
