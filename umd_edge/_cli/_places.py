"""Where a command writes: checked before the work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .._files import can_be_folder
from ..errors import UsageError

__all__ = ["check_folder", "check_place"]


def check_folder(option: str, given: str) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        UsageError: Nothing was named, or something else is there or above it.
    """
    if not given or not can_be_folder(Path(given)):
        raise UsageError(
            f"{option} {given!r}: no folder that can be written to; name one that is there and may "
            "be written, or can be made"
        )


def check_place(option: str, given: str, *, sources: Sequence[str] = ()) -> None:
    """Refuse a place where no file can be written, or that of a file which is read.

    Args:
        option: Its name, for the message.
        given: The file to write.
        sources: Files that must not be replaced.

    Raises:
        UsageError: Nothing was named, its folder is missing or may not be written, it is no plain
            file, or one of `sources`.
    """
    target = Path(given)
    special = not given or (target.exists() and not target.is_file())
    if special or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise UsageError(
            f"{option} {given!r}: no file can be written there; name a file in a folder that is "
            "there and may be written"
        )
    for source in sources:
        if target.exists() and source and os.path.exists(source) and target.samefile(source):
            raise UsageError(f"{option} {given!r} would replace what is read; name another file")
