"""Where a model computes: the device that runs train on, and that of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from umd_edge.errors import UsageError

__all__ = ["check_precision", "device_of", "on_training_device", "training_device"]


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters."""
    return next(model.parameters()).device


def training_device() -> torch.device:
    """The device that a run would train on: a GPU where torch finds one, else the processor."""
    from accelerate import PartialState

    device: torch.device = PartialState(cpu=not torch.cuda.is_available()).device
    return device


def check_precision(place: str, precision: str) -> None:
    """Refuse what the device here would compute wrong, or not at all.

    Args:
        place: Option or setting that says it, for the message.
        precision: `float32`, `bfloat16` or `float16`.

    Raises:
        UsageError: `float16` on a processor: its gradients are not scaled there.
    """
    if precision == "float16" and training_device().type == "cpu":
        raise UsageError(
            f"{place}: 'float16' given, which needs a GPU, and there is none here; 'float32' or "
            "'bfloat16' is allowed"
        )


@contextlib.contextmanager
def on_training_device(model: nn.Module) -> Iterator[None]:
    """Move a model to the training device, and back to its own one at the end."""
    before = device_of(model)
    model.to(training_device())
    try:
        yield
    finally:
        model.to(before)
