"""A lock that one process holds, and that the system drops when that process ends."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from .errors import AuditWriteError

__all__ = ["FileLock"]


class FileLock:
    """An exclusive lock on a file of its own, which stays there, empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor >= 0

    def acquire(self) -> None:
        """Take the lock, without waiting.

        Raises:
            AuditWriteError: Another process, or another object of this one, holds it.
            OSError: The file cannot be made.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise
            raise AuditWriteError(
                f"{str(self._path)!r} is locked: somebody else writes this audit log. Wait for the "
                "other program to end, or give each program a log of its own"
            ) from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; nothing where it is not held."""
        if self._descriptor >= 0:
            os.close(self._descriptor)  # which unlocks
            self._descriptor = -1


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:

    def _lock(descriptor: int) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
