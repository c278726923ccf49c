"""Whether a checkpoint's weights are those that were trained, as far as that can be seen.

Loading compares the files with the checkpoint's list of hashes, so that every changed bit is seen.
Where there is no list, only a change that no training makes can be: a value that is not finite, or
far beyond all the others of its tensor, as a flipped bit of an exponent makes it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from umd_edge_train.checkpoint import Checkpoint

from .errors import ExportError

__all__ = ["check_weights"]

# Trained tensors reach about 45 times their median; one flipped exponent bit of a float16 weight
# makes it 65,536 times as large.
_LARGEST = 1e6
_RATIO = 1e4
_SMALL = 100.0
# The largest value of a trained tensor is at most 2.7 times the next one (7,854 tensors of 60
# checkpoints); published encoders have features that stand out by some ten times.
_ALONE = 16.0
_FEWEST = 16


def _outlier(tensor: Tensor) -> float | None:
    """The largest magnitude where it is far beyond the others, else None."""
    size = tensor.detach().abs().flatten().float()
    largest = float(size.max())
    beside = float(size.median())
    if largest > _LARGEST or largest > max(_SMALL, _RATIO * beside):
        return largest
    if size.numel() >= _FEWEST and largest > max(1.0, _ALONE * float(size.topk(2).values[1])):
        return largest
    return None


def check_weights(checkpoint: Checkpoint) -> None:
    """Refuse values that no training makes.

    Raises:
        ExportError: A weight is not finite, or far beyond the others of its tensor.
    """
    for name, tensor in checkpoint.model.state_dict().items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise ExportError(
                f"the checkpoint's weight {name!r} holds values that are not finite; the file is "
                "damaged or the training diverged: use another checkpoint"
            )
        largest = _outlier(tensor)
        if largest is not None:
            raise ExportError(
                f"the checkpoint's weight {name!r} holds a value of magnitude {largest:.3g}, far "
                "beyond the others; the file is damaged or the training diverged: copy it again, "
                "or use another checkpoint"
            )
