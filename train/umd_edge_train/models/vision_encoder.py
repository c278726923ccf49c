"""The vision encoder: pixels to image tokens.

A `transformers` ViT or CLIP tower, built from a config or loaded from a checkpoint. With
`stem="conv"` the ViT's single strided projection is replaced by residual convolutions that end on
the same grid ("early convolutions help transformers see better", arXiv 2106.14881), which learns
faster from few pictures. Batch normalisation there is folded into the convolutions at export.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ViTConfig,
    ViTModel,
)

from umd_edge.errors import UsageError

from ..config import ModelConfig

__all__ = ["ConvStem", "VisionEncoder"]


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation around a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm2.weight)  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(inner)))


class ConvStem(nn.Module):
    """Residual convolutions: (B, 3, H, W) -> (B, D, H / 2**n, W / 2**n) for n channel entries."""

    def __init__(self, channels: tuple[int, ...], blocks: tuple[int, ...], out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for scale, (wide, count) in enumerate(zip(channels, blocks, strict=True)):
            kernel = 5 if scale == 0 else 3
            layers += [
                nn.Conv2d(width, wide, kernel, stride=2, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
            ]
            layers += [_ResidualBlock(wide) for _ in range(count)]
            width = wide
        self.layers = nn.Sequential(*layers)
        self.projection = nn.Conv2d(width, out, 1)

    @property
    def weight(self) -> Tensor:
        """Of the last projection: `transformers` reads the dtype of its patch projection here."""
        return self.projection.weight

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) float32 -> (B, D, H / 2**n, W / 2**n) float32."""
        return cast(Tensor, self.projection(self.layers(pixel_values)))


def _vit(config: ModelConfig) -> nn.Module:
    vision = config.vision
    model = ViTModel(
        ViTConfig(
            hidden_size=vision.hidden_size,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_heads,
            intermediate_size=vision.intermediate_size,
            image_size=config.image_size,
            patch_size=vision.patch_size,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )
    if vision.stem == "conv":
        stem = ConvStem(vision.stem_channels, vision.stem_blocks, vision.hidden_size)
        model.embeddings.patch_embeddings.projection = cast(Any, stem)
    return cast(nn.Module, model)


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
            )
        ),
    )


def _drop_last_blocks(model: nn.Module, keep: int) -> None:
    """Keep the first `keep` transformer blocks of a loaded tower."""
    for module in model.modules():
        layers = getattr(module, "layers", None) or getattr(module, "layer", None)
        if isinstance(layers, nn.ModuleList) and len(layers) > keep:
            del layers[keep:]
            return


class VisionEncoder(nn.Module):
    """Pixels to tokens: the class token first, then the patches row by row."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vision.pretrained:
            loaded = AutoConfig.from_pretrained(config.vision.pretrained)
            cls: Any = CLIPVisionModel if loaded.model_type.startswith("clip") else AutoModel
            self.backbone = cls.from_pretrained(config.vision.pretrained)
            _drop_last_blocks(self.backbone, config.vision.num_layers)
        else:
            self.backbone = {"vit": _vit, "clip": _clip}[config.vision.architecture](config)
        self.hidden_size = int(self.backbone.config.hidden_size)
        if self.hidden_size != config.vision.hidden_size:
            raise UsageError(
                f"model.vision.hidden_size is {config.vision.hidden_size}, and the checkpoint's is "
                f"{self.hidden_size}; set it to the checkpoint's"
            )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) float32, normalised -> (B, 1 + N, D) float32."""
        return cast(Tensor, self.backbone(pixel_values=pixel_values).last_hidden_state)
