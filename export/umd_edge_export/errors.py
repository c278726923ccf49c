"""Refusals of the export: a bundle that fails a gate is not written."""

from __future__ import annotations

from typing import ClassVar

from umd_edge.errors import UmdEdgeError

__all__ = ["ExportError", "InvarianceError", "ParityError"]


class ExportError(UmdEdgeError):
    """The checkpoint cannot be exported, or the export failed a gate."""

    exit_code: ClassVar[int] = 3


class ParityError(ExportError):
    """An exported graph does not compute what the torch model computes."""


class InvarianceError(ExportError):
    """A sample's outputs depend on the other samples of its batch or on padding."""
