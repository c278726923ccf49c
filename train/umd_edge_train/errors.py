"""Errors that several modules of training raise."""

from __future__ import annotations

from typing import ClassVar

from umd_edge.errors import UmdEdgeError

__all__ = ["CheckpointError"]


class CheckpointError(UmdEdgeError):
    """A checkpoint is missing, incomplete, or does not fit the model it describes."""

    exit_code: ClassVar[int] = 3
