"""The model and its parts."""

from .model import UMDModel

__all__ = ["UMDModel"]
