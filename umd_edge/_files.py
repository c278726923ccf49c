"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ._claims import CLOSE_FIRST, claim_file, sync_folder

__all__ = ["can_be_folder", "check_replaceable", "sync_folder", "whole_file", "write_whole"]


def can_be_folder(path: Path) -> bool:
    """Whether files can be written into a folder of that name, which may still have to be made."""
    place = path
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def check_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of something else, such as `/dev/null`.

    Raises:
        OSError: There is a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no plain file; name another place", str(path))


@contextlib.contextmanager
def whole_file(
    path: str | os.PathLike[str], *, private: bool = False, via: Path | None = None
) -> Iterator[BinaryIO]:
    """A file beside `path` to write to; made durable and renamed onto `path` behind the block.

    Args:
        path: What is there is replaced in one step, or kept where the block fails.
        private: Only the owner may read the file (on systems that know of that).
        via: Folder of the same file system for the file under its other name, where that of
            `path` must not hold it even when the process is killed.

    Yields:
        The file; its `name` is where it is now.

    Raises:
        OSError: The folder is missing, may not be written, or the disk is full; or `path` is no
            plain file.
    """
    target = Path(path)
    check_replaceable(target)
    try:
        with claim_file(target.name, via or target.parent, private=private) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if CLOSE_FIRST:
                file.close()
            os.replace(file.name, target)
    except OSError as error:
        if os.path.basename(str(error.filename or f".{target.name}.")).startswith(
            f".{target.name}."
        ):  # not the name that nobody gave
            error.filename, error.filename2 = os.fspath(path), None
        raise
    sync_folder(target.parent)


def write_whole(
    path: str | os.PathLike[str], data: bytes, *, private: bool = False, via: Path | None = None
) -> None:
    """Write `data` as the whole of a file; see `whole_file`.

    Raises:
        OSError: As there.
    """
    with whole_file(path, private=private, via=via) as file:
        file.write(data)
