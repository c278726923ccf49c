"""From a checkpoint to a bundle: ONNX graphs, INT8 variants, gates, comparison.

The import is light; torch and onnx are loaded by the functions that need them.
"""

from __future__ import annotations

from umd_edge._onnxruntime import refuse_telemetry

__all__: list[str] = []

refuse_telemetry()  # onnxruntime is imported by several of the libraries behind the export
