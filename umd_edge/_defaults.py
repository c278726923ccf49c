"""Defaults that stand in signatures and options: known without loading what they belong to."""

from __future__ import annotations

__all__ = ["CANDIDATES", "FRAMES", "WORKERS"]

CANDIDATES = 16
"""How many of a list's best the fusion puts in order."""
FRAMES = 8
"""How many frames of a clip are looked at."""
WORKERS = 2
"""How many images `map` works on at the same time."""
