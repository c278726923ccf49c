"""Progress of work that is only sometimes long."""

from __future__ import annotations

from typing import NoReturn, TypeAlias

from tqdm import tqdm

__all__ = ["Bar", "late_bar"]

Bar: TypeAlias = "tqdm[NoReturn]"

_SILENT_SECONDS = 3.0


def late_bar(total: int, name: str, unit: str) -> Bar:
    """A bar on standard error that shows after three seconds and leaves nothing behind."""
    return tqdm(total=total, desc=name, unit=unit, delay=_SILENT_SECONDS, leave=False)
