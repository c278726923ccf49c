"""Whether a checkpoint's weights are those that were trained, as far as that can be seen.

With a file `SHA256SUMS` beside the weights (as `sha256sum` writes it) every changed bit is seen.
Without one only a change that no training makes: a value that is not finite, or far beyond all the
others of its tensor, as a flipped bit of an exponent makes it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor

from umd_edge_train.checkpoint import Checkpoint, CheckpointError

from .errors import ExportError

__all__ = ["SUMS", "check_hashes", "check_weights"]

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\x00]+)")
# Trained tensors reach about 45 times their median; one flipped exponent bit of a float16 weight
# makes it 65,536 times as large.
_LARGEST = 1e6
_RATIO = 1e4
_SMALL = 100.0
# The largest value of a trained tensor is at most 2.7 times the next one (7,854 tensors of 60
# checkpoints); published encoders have features that stand out by some ten times.
_ALONE = 16.0
_FEWEST = 16


def check_hashes(folder: Path) -> bool:
    """Compare the files that `SHA256SUMS` lists with it.

    Returns:
        Whether there is such a file.

    Raises:
        CheckpointError: A listed file is missing or another one, the list does not hold the
            weights, or it cannot be read.
    """
    path = folder / SUMS
    if not path.exists():
        return False
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: {SUMS} cannot be read") from error
    listed: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise CheckpointError(
                f"checkpoint {str(folder)!r}: line {number} of {SUMS} is not as `sha256sum` writes "
                "it: 64 hexadecimal digits, two spaces, a file name"
            )
        listed[match[2]] = match[1]
    unlisted = [item.name for item in sorted(folder.glob("*.safetensors"))]
    unlisted = [name for name in unlisted if name not in listed]
    if unlisted:
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: {SUMS} does not list {unlisted[0]!r}; write it again "
            "with `sha256sum`"
        )
    for name, wanted in listed.items():
        _check_file(folder / name, wanted)
    return True


def _check_file(path: Path, wanted: str) -> None:
    try:
        given = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"checkpoint file {path.name!r} is missing or unreadable") from error
    if given != wanted:
        raise CheckpointError(
            f"checkpoint file {path.name!r} is not the file that {SUMS} describes (SHA-256 "
            "differs): it is damaged or was changed; copy the checkpoint again"
        )


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
