"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

__all__ = ["check_replaceable", "sync_folder", "write_whole"]


def check_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of something else, such as `/dev/null`.

    Raises:
        OSError: There is a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no plain file; name another place", str(path))


def write_whole(
    path: str | os.PathLike[str], data: bytes, *, private: bool = False, via: Path | None = None
) -> None:
    """Write `data` beside `path` under another name, make it durable, and rename it onto `path`.

    Args:
        path: What is there is replaced in one step, or kept where writing fails.
        data: All bytes of the file.
        private: Only the owner may read the file (on systems that know of that).
        via: Folder of the same file system for the file under its other name, where that of
            `path` must not hold it even when the process is killed.

    Raises:
        OSError: The folder is missing, may not be written, or the disk is full; or `path` is no
            plain file.
    """
    target = Path(path)
    check_replaceable(target)
    folder = target.parent if via is None else via
    temporary = folder / f".{target.name}.{os.urandom(4).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(temporary, flags, 0o600 if private else 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None  # not the name that nobody gave
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make a renaming in a folder durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):  # some network file systems refuse; the rename has happened
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
