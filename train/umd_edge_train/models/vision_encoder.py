"""The vision encoder: pixels to image tokens.

A `transformers` ViT or CLIP tower, built from a config or loaded from a checkpoint. With
`stem="conv"` convolutions and pooling stand in front of the ViT and end on the same grid ("early
convolutions help transformers see better", arXiv 2106.14881), which learns faster from few
pictures. Batch normalisation there is folded into the convolutions at export.

A masked view holds some patches only: the others never enter the transformer, and their pixels
reach no convolution either. A stem sees each visible patch as a picture of its own, or the whole
picture with the others blank, as in SparK (arXiv 2301.03580) and ConvMAE (arXiv 2205.03892).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    ViTConfig,
    ViTModel,
)

from umd_edge.errors import UsageError

from ..config import ModelConfig
from .pretrained import check_sizes, copy_weights, load_published

__all__ = ["ConvStem", "VisionEncoder", "resize_positions"]

_SIZES = {
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "patch_size": "patch_size",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}


_SMALLEST_SCALE = 1e-3


class _StemLayer(nn.Module):
    """3x3 convolution, batch normalisation, ReLU and, where it `pools`, a halving by maximum.

    In training the maximum is taken first: normalisation then works on a quarter of the values.
    With positive scales both orders are one function; the other one serves evaluation and export,
    where normalisation becomes part of the convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, pools: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.pools = pools

    def _normalise_masked(self, x: Tensor) -> Tensor:
        """By the view's own statistics, which are none of a whole picture's: not recorded."""
        norm = self.norm
        if x.numel() == x.shape[1]:  # a single value a channel has no spread
            running = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
            # copies: a whole picture may change them before the backward pass
            mean, variance = (statistic.clone() for statistic in running)
            return functional.batch_norm(x, mean, variance, norm.weight, norm.bias, eps=norm.eps)
        return functional.batch_norm(
            x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps
        )

    def forward(self, x: Tensor, masked: bool = False) -> Tensor:
        if self.training:
            # Keeps the two orders one function. Through `data`, as only the first of several
            # forwards in a step changes anything: the graphs of the others stay valid.
            self.norm.weight.data.clamp_(min=_SMALLEST_SCALE)
            x = self.convolution(x)
            x = functional.max_pool2d(x, 2) if self.pools else x
            normed = self._normalise_masked(x) if masked else self.norm(x)
            return functional.relu(normed, inplace=True)
        x = functional.relu(self.norm(self.convolution(x)))
        return functional.max_pool2d(x, 2) if self.pools else x


class ConvStem(nn.Module):
    """Convolutions and max-pooling: (B, 3, H, W) -> (B, C, H / 2**n, W / 2**n) for n scales."""

    def __init__(self, channels: tuple[int, ...], convolutions: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for wide, count in zip(channels, convolutions, strict=True):
            for index in range(count):
                layers.append(_StemLayer(width, wide, pools=index == count - 1))
                width = wide
        self.layers = nn.Sequential(*layers)

    def forward(self, pixel_values: Tensor, masked: bool = False) -> Tensor:
        """(B, 3, H, W) float32 -> (B, C, H / 2**n, W / 2**n) float32.

        `masked` says that the pictures are patches of others, or blank in parts: in training
        their statistics normalise them and are then forgotten.
        """
        if self.training:  # on a CPU the convolutions are half as fast again in this layout
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        x = pixel_values
        for layer in self.layers:
            x = layer(x, masked)
        return x


def _vit(config: ModelConfig) -> nn.Module:
    vision = config.vision
    has_stem = vision.stem == "conv"
    # Behind a stem, a patch is one cell of its feature map.
    side = config.image_size // vision.patch_size if has_stem else config.image_size
    return cast(
        nn.Module,
        ViTModel(
            ViTConfig(
                hidden_size=vision.hidden_size,
                num_hidden_layers=vision.num_layers,
                num_attention_heads=vision.num_heads,
                intermediate_size=vision.intermediate_size,
                image_size=side,
                patch_size=1 if has_stem else vision.patch_size,
                num_channels=vision.stem_channels[-1] if has_stem else 3,
                hidden_act=vision.activation,
                layer_norm_eps=vision.layer_norm_eps,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                initializer_range=config.initializer_range,
            ),
            add_pooling_layer=False,
        ),
    )


def _clip(config: ModelConfig) -> nn.Module:
    vision = config.vision
    return cast(
        nn.Module,
        CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=vision.hidden_size,
                num_hidden_layers=vision.num_layers,
                num_attention_heads=vision.num_heads,
                intermediate_size=vision.intermediate_size,
                image_size=config.image_size,
                patch_size=vision.patch_size,
                hidden_act=vision.activation,
                layer_norm_eps=vision.layer_norm_eps,
            )
        ),
    )


def resize_positions(name: str, published: Tensor, own: Tensor) -> Tensor:
    """Fit a position table to another picture size (bicubic); the class token's row stays.

    Args:
        name: Name of the tensor; only `...position_embedding...` is resized.
        published: The weights at hand, (..., 1 + n * n, D).
        own: The tensor that they are for, (..., 1 + m * m, D).
    """
    if "position_embedding" not in name or published.shape == own.shape:
        return published
    table, width = published.reshape(-1, published.shape[-1]), own.shape[-1]
    old, new = math.isqrt(len(table) - 1), math.isqrt(own.numel() // width - 1)
    grid = table[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    rows = torch.cat([table[:1], resized.permute(0, 2, 3, 1).reshape(new * new, -1)])
    return rows.reshape(*own.shape[:-1], rows.shape[-1])


def _blank(pixel_values: Tensor, keep: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) with 0, the mean grey, everywhere but in the patches `keep` (B, K)."""
    batch, _, height, width = pixel_values.shape
    shown = pixel_values.new_zeros(batch, height // side * (width // side)).scatter(1, keep, 1.0)
    grid = shown.view(batch, 1, height // side, width // side)
    return pixel_values * functional.interpolate(grid, scale_factor=side, mode="nearest")


def _patches(pixel_values: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) -> (B, N, 3, side, side), row by row."""
    batch, channels, height, width = pixel_values.shape
    grid = pixel_values.view(batch, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels, side, side)


class VisionEncoder(nn.Module):
    """Pixels to tokens: the class token first, then the patches row by row."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = {"vit": _vit, "clip": _clip}[config.vision.architecture](config)
        self.stem: ConvStem | None = None
        if config.vision.stem == "conv":
            self.stem = ConvStem(config.vision.stem_channels, config.vision.stem_convolutions)
        self.hidden_size = config.vision.hidden_size
        self.patch_size = config.vision.patch_size
        self.is_clip = config.vision.architecture == "clip"
        self.masked_stem: Literal["patchwise", "blanked"] = "patchwise"
        """What the stem makes of a masked view; see `ReconstructionConfig.stem`."""
        if config.vision.pretrained:
            self._fill(config)

    def _fill(self, config: ModelConfig) -> None:
        vision, setting = config.vision, "model.vision.pretrained"
        name = vision.pretrained
        if vision.stem != "patch":
            raise UsageError(
                f"{setting}: published towers have no {vision.stem} stem; set "
                "model.vision.stem = 'patch'"
            )
        found = load_published(setting, name, lambda: AutoConfig.from_pretrained(name))
        settings = getattr(found, "vision_config", found)
        architecture = {"clip": "clip", "clip_vision_model": "clip"}.get(
            found.model_type, found.model_type
        )
        check_sizes(
            "vision",
            {own: getattr(vision, own) for own in _SIZES} | {"architecture": vision.architecture},
            {own: getattr(settings, theirs, None) for own, theirs in _SIZES.items()}
            | {"architecture": architecture},
        )
        cls: Any = CLIPVisionModel if self.is_clip else ViTModel
        published = load_published(setting, name, lambda: cls.from_pretrained(name))
        copy_weights("vision", self.backbone, published, resize_positions)

    def refresh_statistics(self, pixel_values: Tensor) -> None:
        """Let batch normalisation see whole pictures (B, 3, H, W); only in training mode.

        For steps that encode masked views alone: the weights move, and the running statistics that
        evaluation uses have to follow.
        """
        if self.stem is not None and self.training:
            with torch.no_grad():
                self.stem(pixel_values)

    @contextlib.contextmanager
    def _keeping(self, keep: Tensor | None) -> Iterator[None]:
        """Let only the class token and the patches `keep` (B, K) past the embeddings."""
        if keep is None:
            yield
            return
        rows = torch.cat([keep.new_zeros(len(keep), 1), keep + 1], dim=1)[..., None]

        # After the position embedding and before the first block, whatever these are called in a
        # version of `transformers`.
        def drop(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
            return tokens.gather(1, rows.expand(-1, -1, tokens.shape[-1]))

        handle = cast(nn.Module, self.backbone.embeddings).register_forward_hook(drop)
        try:
            yield
        finally:
            handle.remove()

    def _stem_cells(self, stem: ConvStem, pixel_values: Tensor, keep: Tensor) -> Tensor:
        """The stem's cells (B, K, C) of the patches `keep` (B, K)."""
        side = self.patch_size
        if self.masked_stem == "blanked":
            grid: Tensor = stem(_blank(pixel_values, keep, side), masked=True)
            cells = grid.flatten(2).transpose(1, 2)
            return cells.gather(1, keep[..., None].expand(-1, -1, cells.shape[2]))
        index = keep[..., None, None, None].expand(-1, -1, 3, side, side)
        patches = _patches(pixel_values, side).gather(1, index)
        alone: Tensor = stem(patches.flatten(0, 1), masked=True)
        return alone.view(*keep.shape, -1)

    def _behind_stem(self, stem: ConvStem, pixel_values: Tensor, keep: Tensor | None) -> Tensor:
        if keep is None:
            features = stem(pixel_values)
            summary = functional.adaptive_avg_pool2d(features, 1).flatten(1)
        else:
            cells = self._stem_cells(stem, pixel_values, keep)
            summary = cells.mean(dim=1)
            height, width = (length // self.patch_size for length in pixel_values.shape[2:])
            # what stands in the other cells is dropped with them
            grid = cells.new_zeros(len(keep), height * width, cells.shape[2])
            grid = grid.scatter(1, keep[..., None].expand_as(cells), cells)
            features = grid.transpose(1, 2).reshape(len(keep), -1, height, width)
        with self._keeping(keep):
            tokens = self.backbone(pixel_values=features).last_hidden_state
        return torch.cat([tokens, summary[:, None]], dim=1)

    def forward(self, pixel_values: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) float32, normalised -> (B, 1 + N, D) float32.

        Behind a stem one more token comes last: the mean of the stem's feature map, as it is.

        Args:
            pixel_values: (B, 3, H, W) float32, normalised.
            keep: (B, K) int64, the patches of a masked view (row by row, from 0), or None for all.
                Tokens are then (B, 1 + K, D) in this order, and the last one behind a stem is the
                mean over these patches; no other pixel has any influence.
        """
        if self.stem is not None:
            return self._behind_stem(self.stem, pixel_values, keep)
        with self._keeping(keep):
            tokens = self.backbone(pixel_values=pixel_values).last_hidden_state
        if self.is_clip:  # `transformers` normalises its pooled token alone
            tokens = cast(nn.Module, self.backbone.post_layernorm)(tokens)
        return cast(Tensor, tokens)
