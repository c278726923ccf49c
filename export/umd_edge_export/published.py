"""Models of `transformers` as teachers of features.

What such a model takes and gives is found by showing it one picture and asking it one text, since
architectures name their parts and sizes differently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from umd_edge._preprocess import PreprocessSpec
from umd_edge.errors import MissingDependencyError, UsageError
from umd_edge_train.models.pretrained import load_published

from .distil_features import Encoded, patch_grid, recorded_relations

__all__ = ["PublishedTeacher"]

_SETTING = "--feature-teacher"
_TOWERS = ("vision_model", "vision_tower", "vision_encoder", "image_model", "visual")
"""What vision-language models call the part that sees."""
_SETTINGS_FILES = ("processor_config.json", "preprocessor_config.json")
"""Where picture size and normalisation stand: since transformers 5 in the first, under
`image_processor`, before in the second."""

T = TypeVar("T")


class PublishedTeacher(nn.Module):
    """A vision or vision-language model of `transformers`, frozen: features, no answers.

    Args:
        name: Local directory or hub id.

    Raises:
        UsageError: It cannot be loaded, or gives no tokens for RGB pictures alone.
        MissingDependencyError: It needs a package that is not installed.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        config = _load(name, lambda: AutoConfig.from_pretrained(name))
        model: Any = _load(name, lambda: AutoModel.from_pretrained(name))
        found = [getattr(model, key) for key in _TOWERS if hasattr(model, key)]
        self.tower: Any = found[0] if found else model
        self.text_tower: Any = getattr(model, "text_model", None) if found else None
        self.requires_grad_(False).eval()
        self.spec = _published_spec(name, getattr(config, "vision_config", config))
        self._tokenizer: Any = None
        shown = self._try_picture(name)
        self.grid_width = shown.grid.shape[-1]
        self.pooled_widths: dict[str, int] = {"image": shown.pooled["image"].shape[-1]}
        if self.text_tower is not None:
            self._try_text(name)

    def _try_picture(self, name: str) -> Encoded:
        pixels = torch.zeros(1, 3, self.spec.height, self.spec.width)
        try:
            with torch.no_grad():
                shown = self._see(pixels, relations=False)
        # An architecture that wants something else fails in a way of its own.
        except Exception as error:
            raise UsageError(
                f"{_SETTING}: {name!r} gives no tokens for RGB pictures of {self.spec.height} x "
                f"{self.spec.width} alone ({type(error).__name__}); give a vision model, or a "
                "vision-language model with such a part"
            ) from error
        return shown

    def _try_text(self, name: str) -> None:
        """Learn the width of its pooled texts; a model without such vectors teaches none."""
        from transformers import AutoTokenizer

        self._tokenizer = _load(name, lambda: AutoTokenizer.from_pretrained(name))
        try:
            with torch.no_grad():
                vector = self._read(["a"], torch.device("cpu"))
        except Exception as error:
            raise UsageError(
                f"{_SETTING}: {name!r} cannot read a text by itself ({type(error).__name__}); "
                "give another model"
            ) from error
        if vector is None:
            self.text_tower = None
        else:
            self.pooled_widths["text"] = vector.shape[-1]

    def train(self, mode: bool = True) -> PublishedTeacher:
        """Stay in evaluation mode."""
        return super().train(False)

    def encode(self, pixel_values: Tensor, texts: Sequence[str], *, relations: bool) -> Encoded:
        """Features of B pictures (B, 3, H, W) and of E texts, where it has a text tower."""
        shown = self._see(pixel_values, relations=relations)
        if self.text_tower is None:
            return shown
        text = self._read(texts, pixel_values.device)
        assert text is not None  # as it was when it was tried
        return shown._replace(pooled={**shown.pooled, "text": text})

    def _see(self, pixel_values: Tensor, *, relations: bool) -> Encoded:
        with recorded_relations(self.tower, wanted=relations) as record:
            output = self.tower(pixel_values=pixel_values)
        tokens = output.last_hidden_state
        if tokens.ndim == 4:  # of a convolutional model: (B, D, H, W)
            tokens = tokens.flatten(2).transpose(1, 2)
        grid = patch_grid(tokens)
        vector = getattr(output, "pooler_output", None)
        image = grid.mean(dim=1) if vector is None else vector.flatten(1)
        return Encoded(tokens, grid, {"image": image}, tuple(record))

    def _read(self, texts: Sequence[str], device: torch.device) -> Tensor | None:
        """Pooled vectors (E, W), where it has such."""
        words = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        inputs = {key: words[key] for key in ("input_ids", "attention_mask") if key in words}
        output = self.text_tower(**{key: value.to(device) for key, value in inputs.items()})
        vector: Tensor | None = getattr(output, "pooler_output", None)
        return vector


def _load(name: str, loader: Callable[[], T]) -> T:
    try:
        return load_published(_SETTING, name, loader)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise MissingDependencyError(
            f"{_SETTING}: {name!r} needs a package that is not installed ({reason}); install it, "
            "or give another model"
        ) from error


def _published_spec(name: str, vision: Any) -> PreprocessSpec:
    """Size and normalisation of a published model's pictures."""
    for file in _SETTINGS_FILES:
        found = _load(name, partial(_read_settings, name, file))
        if found is not None:
            break
    else:
        raise UsageError(
            f"{_SETTING}: {name!r} has neither {' nor '.join(_SETTINGS_FILES)}, so the size and "
            "normalisation of its pictures are unknown; give a vision or vision-language model, "
            "with that file of those that were published with it"
        )
    height, width = _size(name, getattr(vision, "image_size", None), found)
    mean, std = (
        tuple(float(v) for v in found.get(key) or (0.5,) * 3) for key in ("image_mean", "image_std")
    )
    return PreprocessSpec(height=height, width=width, mean=mean, std=std)


def _read_settings(name: str, file: str) -> Mapping[str, Any] | None:
    """The image processor's settings; None where this file does not have them."""
    from transformers.utils import cached_file

    path = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    own: Mapping[str, Any] | None = (
        found.get("image_processor") if file == _SETTINGS_FILES[0] else found
    )
    return own


def _size(name: str, own: Any, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width: those of the architecture, or else those of its image processor."""
    for given in (own, settings.get("crop_size"), settings.get("size")):
        if isinstance(given, int):
            return given, given
        if isinstance(given, (list, tuple)) and len(given) == 2:
            return int(given[0]), int(given[1])
        if isinstance(given, Mapping):
            if "shortest_edge" in given:
                return int(given["shortest_edge"]), int(given["shortest_edge"])
            if {"height", "width"} <= given.keys():
                return int(given["height"]), int(given["width"])
    raise UsageError(
        f"{_SETTING}: {name!r} does not say how large its pictures are; give a vision or "
        "vision-language model with image_size in its config.json, or with size in its image "
        "processor's settings"
    )
