"""Temporary names beside a file: one writer holds each, and a killed one gives it back.

A name is `.<name>.<number>.tmp`. Its holder locks what stands there, and the system drops that lock
with the process. The next writer takes away what nobody holds, so killed writers leave no more
behind than ever wrote at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["CLOSE_FIRST", "claim_file", "claim_folder", "remove_unheld", "sync_folder"]

CLOSE_FIRST = sys.platform == "win32"
"""Whether a file must be closed before it can be renamed or removed."""
_NAMES = 32
_IN_USE = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def claim_file(name: str, folder: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A new, empty file, open for writing; removed at the end unless it was renamed.

    Args:
        name: Of the file that it will become.
        folder: Where it is made.
        private: Only the owner may read the file (on systems that know of that).

    Yields:
        The file; its `name` is its path.

    Raises:
        OSError: The folder is missing or may not be written.
    """
    mode = 0o600 if private else 0o666
    for path in _names(name, folder):
        try:
            file = open(path, "xb", opener=lambda place, flags: os.open(place, flags, mode))
        except FileExistsError:
            continue
        made = os.fstat(file.fileno())
        if _lock(file.fileno()) is not False and _stands_at(path, made):
            break
        file.close()  # another writer took it for left behind
    try:
        yield file
    finally:
        if CLOSE_FIRST:
            file.close()
        if _stands_at(path, made):
            with contextlib.suppress(OSError):
                path.unlink()
        with contextlib.suppress(OSError):  # what could not be written was told before
            file.close()


@contextlib.contextmanager
def claim_folder(name: str, folder: Path) -> Iterator[Path]:
    """A new, empty folder; removed with all that is in it at the end, unless it was renamed.

    Args:
        name: Of the file or folder that its content is for.
        folder: Where it is made.

    Raises:
        OSError: `folder` is missing or may not be written.
    """
    for path in _names(name, folder):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        try:
            descriptor = _open_folder(path)
            made = path.stat() if descriptor is None else os.fstat(descriptor)
        except FileNotFoundError:  # another writer took it for left behind
            continue
        if descriptor is None:
            break
        if _lock(descriptor) is not False and _stands_at(path, os.fstat(descriptor)):
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        if _stands_at(path, made):
            _remove_folder(path)
        if descriptor is not None:
            os.close(descriptor)


def remove_unheld(path: Path) -> bool:
    """Remove a temporary file or folder that a killed writer left.

    Returns:
        Whether nothing is there now; False where a living writer holds it.
    """
    if not os.path.lexists(path):
        return True
    try:
        descriptor = _open_any(path)
    except OSError as error:
        if error.errno != errno.ELOOP:  # gone meanwhile, or not ours to look at or to remove
            return not os.path.lexists(path)
        descriptor = None  # a link
    # Held until it is gone: a writer that has just made it must not take it meanwhile.
    try:
        if descriptor is None:
            _remove(path)
        elif _lock(descriptor) is True and _stands_at(path, os.fstat(descriptor)):
            _remove(path)
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return not os.path.lexists(path)


def sync_folder(folder: Path) -> None:
    """Make a renaming in a folder durable, where the system can."""
    with contextlib.suppress(OSError):  # some network file systems refuse; the rename has happened
        descriptor = _open_folder(folder)
        if descriptor is not None:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _names(name: str, folder: Path) -> Iterator[Path]:
    """Free names, those first that killed writers left."""
    for number in range(_NAMES):
        path = folder / f".{name}.{number}.tmp"
        if remove_unheld(path):
            yield path
    # Locks that this file system does not know look held; random names are free.
    for _ in itertools.count():
        yield folder / f".{name}.{os.urandom(4).hex()}.tmp"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            _remove_folder(path)
        else:
            path.unlink()


def _remove_folder(path: Path) -> None:
    import shutil  # the runtime writes files alone, and starts sooner without it

    shutil.rmtree(path, ignore_errors=True)


def _stands_at(path: Path, made: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.lstat(), made)
    except OSError:
        return False


if sys.platform == "win32":
    # An open file cannot be removed there, and folders have no lock: one writer is assumed.

    def _lock(descriptor: int) -> bool | None:
        return True

    def _open_folder(path: Path) -> int | None:
        return None

    def _open_any(path: Path) -> int | None:
        return None

else:
    import fcntl

    def _lock(descriptor: int) -> bool | None:
        """Whether the lock is ours now; None where the file system knows none."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return False if error.errno in _IN_USE else None
        return True

    def _open_folder(path: Path) -> int | None:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def _open_any(path: Path) -> int | None:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
