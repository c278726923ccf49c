"""Refusals of the export: a bundle that fails a gate is not written."""

from __future__ import annotations

from typing import Any, ClassVar

from umd_edge.errors import UmdEdgeError

__all__ = [
    "AccuracyError",
    "ExportError",
    "GateError",
    "InvarianceError",
    "LinterError",
    "ParityError",
    "SpeedError",
]


class ExportError(UmdEdgeError):
    """The checkpoint cannot be exported, or the export failed a gate."""

    exit_code: ClassVar[int] = 3


class GateError(ExportError):
    """One or several gates failed; nothing was written.

    Attributes:
        results: Every `GateResult` up to then, passed ones too.
    """

    def __init__(self, message: str, results: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.results = results


class ParityError(GateError):
    """An exported graph does not compute what the torch model computes."""


class InvarianceError(GateError):
    """A sample's outputs depend on the other samples of its batch or on padding."""


class AccuracyError(GateError):
    """A variant loses more accuracy against float32 than its budget."""


class SpeedError(GateError):
    """A variant is slower than float32 on its own target."""


class LinterError(GateError):
    """A graph holds something that TensorRT refuses."""
