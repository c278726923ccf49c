"""Converters of public data layouts, as their authors publish them, into JSONL manifests.

`convert` reads one set and writes a folder that `data check`, training and evaluation read. One
file here is one set: its docstring says which layout is read, the licence of the source, and what
was not tried on the real files. Pictures are never opened, decoded or changed.
"""

from __future__ import annotations

from .convert import ConvertReport, convert
from .registry import CONVERTERS
from .sample import ConvertOptions

__all__ = ["CONVERTERS", "ConvertOptions", "ConvertReport", "convert"]
