"""Published encoder weights, brought to the sizes of a model's config.

An encoder is always built from the config, so that its shapes depend on nothing else and a finished
checkpoint needs no other files. Published weights are then copied in: transformer blocks beyond
those used are left out, and position tables are cut or resized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from umd_edge.errors import UsageError

__all__ = ["Adapter", "check_sizes", "copy_weights", "load_published"]

T = TypeVar("T")
Adapter = Callable[[str, Tensor, Tensor], Tensor]
"""(name, published tensor, own tensor) -> published tensor in the own shape, where it can be."""


def load_published(setting: str, name: str, loader: Callable[[], T]) -> T:
    """Call a `from_pretrained`.

    Args:
        setting: Path of the setting, for the message.
        name: Local directory or hub id.
        loader: Does the loading.

    Raises:
        UsageError: There is no such directory or hub id, it cannot be reached, or it is damaged.
    """
    try:
        return loader()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UsageError(
            f"{setting}: {name!r} cannot be loaded ({type(error).__name__}); give a local "
            "directory with config.json and weights, or the id of a model on the Hugging Face hub "
            "and a network connection"
        ) from error


def check_sizes(part: str, own: Mapping[str, Any], published: Mapping[str, Any]) -> None:
    """Compare settings that weights do not show, or show badly.

    Raises:
        UsageError: Names every setting that differs, with the published value.
    """
    differing = {key: published[key] for key in own if own[key] != published[key]}
    if differing:
        wanted = ", ".join(f"model.{part}.{key} = {value!r}" for key, value in differing.items())
        raise UsageError(
            f"model.{part}.pretrained: its sizes are not the recipe's; set {wanted} in the recipe"
        )


@torch.no_grad()
def copy_weights(part: str, own: nn.Module, published: nn.Module, adapt: Adapter) -> None:
    """Fill all parameters of `own` from those of the same name in `published`.

    Raises:
        UsageError: A parameter is missing, or its shape cannot be brought to the own one.
    """
    given = dict(published.named_parameters())
    for name, parameter in own.named_parameters():
        if name not in given:
            raise UsageError(
                f"model.{part}.pretrained: it has no {name!r}; lower model.{part}.num_layers to "
                "the blocks that it has, or give an encoder of the same architecture"
            )
        tensor = adapt(name, given[name], parameter)
        if tensor.shape != parameter.shape:
            raise UsageError(
                f"model.{part}.pretrained: {name!r} has shape {tuple(tensor.shape)}, and the "
                f"recipe's model needs {tuple(parameter.shape)}"
            )
        parameter.copy_(tensor)
