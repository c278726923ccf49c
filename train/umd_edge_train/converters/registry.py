"""The sets that can be converted, by name."""

from __future__ import annotations

from collections.abc import Mapping

from . import medicat, melinda, pad_ufes, roco, slake, vqa_med, vqa_rad
from .sample import Converter

__all__ = ["CONVERTERS"]

CONVERTERS: Mapping[str, Converter] = {
    module.CONVERTER.name: module.CONVERTER
    for module in (vqa_rad, slake, vqa_med, roco, medicat, melinda, pad_ufes)
}
"""Name on the command line -> converter."""
