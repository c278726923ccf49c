"""Where the export writes: checked before the work, and a full disk told in words."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from umd_edge._files import can_be_folder
from umd_edge.errors import UsageError

from .errors import ExportError

__all__ = ["check_folder", "check_place", "full_disk_told"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def check_place(out: Path) -> None:
    """Refuse a place that cannot be written, at once and not after minutes of work.

    Raises:
        UsageError: Its folder is missing or may not be written, or it is no plain file.
    """
    folder = out.resolve().parent
    special = out.exists() and not out.is_file()
    if not folder.is_dir() or not os.access(folder, os.W_OK) or special:
        raise UsageError(
            f"{str(out)!r} cannot be written; name a file in an existing folder that may be written"
        )


def check_folder(out: Path) -> None:
    """Refuse a folder that cannot be made or written to, at once and not after minutes of work.

    Raises:
        UsageError: Something else is there or above it, or it may not be written.
    """
    if not out.name or not can_be_folder(out):
        raise UsageError(
            f"{str(out)!r} cannot be written to; name a folder that is there and may be written, "
            "or can be made"
        )


@contextlib.contextmanager
def full_disk_told(out: Path) -> Iterator[None]:
    """Turn the system's error about a full disk into ours.

    Raises:
        ExportError: The disk is full, a quota or limit is reached, or it may only be read.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ExportError(
            f"{str(out)!r} was not written ({error.strerror}); free some space there and in "
            f"{tempfile.gettempdir()!r}, or name another folder. What was there is kept"
        ) from error
