"""From a checkpoint to a bundle: ONNX graphs, INT8 variants, gates, comparison.

The import is light; torch and onnx are loaded by the functions that need them.
"""

from __future__ import annotations

__all__: list[str] = []
