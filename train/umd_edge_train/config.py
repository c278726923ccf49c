"""Settings of a model: sizes of its parts, and presets from `nano` to `base`.

Settings are frozen records read strictly from JSON or TOML: an unknown key is an error that names
its path, so a misspelt setting never passes unnoticed.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from umd_edge.errors import UsageError

__all__ = [
    "PRESETS",
    "FusionConfig",
    "ModelConfig",
    "TextConfig",
    "VisionConfig",
    "from_dict",
    "model_config",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The vision encoder: a `transformers` ViT or CLIP tower."""

    architecture: Literal["vit", "clip"] = "vit"
    hidden_size: int = 192
    num_layers: int = 3
    """Blocks that are used. For CLIP the paper uses 11 of the 12 (`umd` habit, see the docs)."""
    num_heads: int = 3
    intermediate_size: int = 768
    patch_size: int = 16
    stem: Literal["patch", "conv"] = "patch"
    """`conv`: convolutions and pooling down to the patch grid instead of one strided projection."""
    stem_channels: tuple[int, ...] = (32, 64, 128, 192)
    """Channels at each scale, from full resolution on; each scale ends in a halving."""
    stem_convolutions: tuple[int, ...] = (1, 1, 1, 2)
    """3x3 convolutions at each of those scales."""
    pretrained: str = ""
    """Local directory or hub id of the weights to start from; empty starts from random ones."""
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    layer_norm_eps: float = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text encoder: a `transformers` BERT or RoBERTa."""

    architecture: Literal["bert", "roberta"] = "bert"
    hidden_size: int = 192
    num_layers: int = 2
    num_heads: int = 3
    intermediate_size: int = 768
    pretrained: str = ""
    """As for the vision encoder; its tokenizer is then used too."""
    positions: int = 0
    """Rows of the position table: the longest text that a later run may read; 0: `max_length`."""
    activation: Literal["gelu"] = "gelu"
    layer_norm_eps: float = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """The co-attention fusion and what is read off it."""

    hidden_size: int = 192
    num_layers: int = 2
    num_heads: int = 3
    intermediate_size: int = 768
    pooling: Literal["first", "mean", "masked_mean"] = "masked_mean"
    """`first` is MR-Pretrain's, `mean` (padding included) the released fine-tuning's."""
    embedding_size: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that decides the shapes of a `UMDModel`'s weights, apart from its tasks."""

    preset: str = "tiny"
    image_size: int = 128
    vocabulary_size: int = 2048
    max_length: int = 32
    dropout: float = 0.1
    initializer_range: float = 0.02
    """Standard deviation of new matrices: 0.02 at the paper's width of 768, more when narrower."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)

    def __post_init__(self) -> None:
        for name, part in (("vision", self.vision), ("text", self.text), ("fusion", self.fusion)):
            if part.hidden_size % part.num_heads:
                raise UsageError(
                    f"model.{name}: hidden_size {part.hidden_size} is no multiple of num_heads "
                    f"{part.num_heads}"
                )
        if self.text.positions and self.text.positions < self.max_length:
            raise UsageError(
                f"model.text.positions: {self.text.positions} given; max_length {self.max_length} "
                "or more is allowed, or 0 for just that"
            )
        if self.image_size % self.vision.patch_size:
            raise UsageError(
                f"model.image_size {self.image_size} is no multiple of patch_size "
                f"{self.vision.patch_size}"
            )
        if self.vision.stem == "conv":
            halvings = len(self.vision.stem_channels)
            if (
                2**halvings != self.vision.patch_size
                or len(self.vision.stem_convolutions) != halvings
            ):
                raise UsageError(
                    f"model.vision: a conv stem with patch_size {self.vision.patch_size} needs "
                    f"{self.vision.patch_size.bit_length() - 1} stem_channels and stem_convolutions"
                )
            if self.vision.stem_channels[-1:] != (self.vision.hidden_size,):
                raise UsageError(
                    f"model.vision: the last of stem_channels must be hidden_size "
                    f"{self.vision.hidden_size}, {self.vision.stem_channels} given"
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON object; `from_dict(ModelConfig, ...)` gives an equal config back."""
        return dataclasses.asdict(self)


PRESETS: dict[str, dict[str, Any]] = {
    # A student of `tiny` with half of its weights and two fifths of its multiply-adds. Channels are
    # halved where the picture is largest, which costs most of the time, and cut to three quarters
    # behind it; of the scales the last alone keeps two convolutions. Words and fusion are 128 wide.
    "nano": {
        "initializer_range": 0.05,
        "vision": {
            "hidden_size": 192,
            "num_layers": 1,
            "num_heads": 3,
            "intermediate_size": 576,
            "stem": "conv",
            "stem_channels": [16, 48, 96, 192],
            "stem_convolutions": [1, 1, 1, 2],
        },
        "text": {"hidden_size": 128, "num_layers": 1, "num_heads": 2, "intermediate_size": 512},
        "fusion": {"hidden_size": 128, "num_layers": 1, "num_heads": 2, "intermediate_size": 512},
    },
    "tiny": {
        "initializer_range": 0.05,
        "vision": {
            "hidden_size": 256,
            "num_layers": 1,
            "num_heads": 4,
            "intermediate_size": 1024,
            "stem": "conv",
            "stem_channels": [32, 64, 128, 256],
            "stem_convolutions": [1, 1, 2, 2],
        },
        "text": {"num_layers": 1},
        "fusion": {"num_layers": 1},
    },
    "small": {
        "image_size": 224,
        "initializer_range": 0.03,
        "vocabulary_size": 8192,
        "max_length": 64,
        "vision": {
            "hidden_size": 384,
            "num_layers": 8,
            "num_heads": 6,
            "intermediate_size": 1536,
            "stem": "conv",
            "stem_channels": [48, 96, 192, 384],
        },
        "text": {"hidden_size": 384, "num_layers": 4, "num_heads": 6, "intermediate_size": 1536},
        "fusion": {
            "hidden_size": 384,
            "num_layers": 4,
            "num_heads": 6,
            "intermediate_size": 1536,
            "embedding_size": 256,
        },
    },
    # The paper's sizes: CLIP ViT-B/16 with 11 of its 12 blocks, RoBERTa-base, 6 + 6 fusion layers.
    "base": {
        "image_size": 384,
        "vocabulary_size": 50265,
        "max_length": 64,
        "vision": {
            "architecture": "clip",
            "hidden_size": 768,
            "num_layers": 11,
            "num_heads": 12,
            "intermediate_size": 3072,
            "activation": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "text": {
            "architecture": "roberta",
            "hidden_size": 768,
            "num_layers": 12,
            "num_heads": 12,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-5,
        },
        "fusion": {
            "hidden_size": 768,
            "num_layers": 6,
            "num_heads": 12,
            "intermediate_size": 3072,
            "pooling": "first",
            "embedding_size": 512,
        },
    },
}


def _convert(value: Any, annotation: Any, path: str) -> Any:
    """Check one JSON or TOML value against a field's type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return from_dict(annotation, value, path)
    if origin is typing.Literal:
        if value not in arguments:
            allowed = ", ".join(map(repr, arguments))
            raise UsageError(f"{path}: {value!r} given; one of {allowed} is allowed")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{path}: a list is needed")
        return tuple(_convert(v, arguments[0], f"{path}[{i}]") for i, v in enumerate(value))
    if annotation is float and type(value) is int:
        return float(value)
    if type(value) is not (origin or annotation):
        raise UsageError(f"{path}: {annotation.__name__} is needed, {value!r} given")
    return value


def from_dict(cls: type[T], data: Any, path: str) -> T:
    """Build a settings record from a JSON or TOML table.

    Raises:
        UsageError: Unknown key or wrong type; the message holds its path.
    """
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a table is needed, {type(data).__name__} given")
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(typing.cast(Any, cls))}
    unknown = sorted(set(data) - names)
    if unknown:
        raise UsageError(f"{path}: unknown settings {unknown}; allowed are {sorted(names)}")
    missing = [
        f.name
        for f in dataclasses.fields(typing.cast(Any, cls))
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in data
    ]
    if missing:
        raise UsageError(f"{path}: missing settings {missing}")
    return cls(**{key: _convert(value, hints[key], f"{path}.{key}") for key, value in data.items()})


def model_config(data: dict[str, Any]) -> ModelConfig:
    """A model's config from a recipe's `[model]` table: a preset and what differs from it."""
    preset = data.get("preset", "tiny")
    if preset not in PRESETS:
        raise UsageError(f"model.preset: {preset!r} given; one of {sorted(PRESETS)} is allowed")
    merged: dict[str, Any] = {**PRESETS[preset], **data, "preset": preset}
    for part in ("vision", "text", "fusion"):
        if isinstance(data.get(part, {}), dict):
            merged[part] = {**PRESETS[preset].get(part, {}), **data.get(part, {})}
    return from_dict(ModelConfig, merged, "model")
