"""Give memory that the C library keeps back to the system.

Without an arena every run of a graph allocates and frees its buffers. glibc keeps one heap for each
thread, and buffers of changing sizes leave holes in all of them: a process with eight threads grows
for thousands of runs although nothing leaks. Now and then we look at the process's size, and where
it has grown, glibc's `malloc_trim` hands the pages of those holes back.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable

__all__ = ["Heap", "heap"]

_RUNS = 256
_GROWTH = 1.01


class Heap:
    """The heap of this process.

    Args:
        resident: Gives the bytes of this process in memory.
        trim: Gives free memory back.
    """

    def __init__(self, resident: Callable[[], int], trim: Callable[[], object]) -> None:
        self._resident, self._trim = resident, trim
        self._runs = 0
        self._level = 0
        self._lock = threading.Lock()

    def after_run(self) -> None:
        """Count a run of a graph; every 256th looks at the size."""
        self._runs += 1  # threads may lose a count; it is no matter
        if self._runs & (_RUNS - 1) == 0 and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()

    def _look(self) -> None:
        size = self._resident()
        if size > self._level * _GROWTH:
            self._trim()
            size = self._resident()
            self._level = size
        self._level = min(self._level, size)


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _make() -> Heap | None:
    """The heap, where the C library is one whose heaps can be trimmed."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
        _resident()
    except (OSError, AttributeError):  # musl, or no /proc
        return None
    return Heap(_resident, lambda: malloc_trim(0))


heap = _make()
"""None where there is nothing to trim."""
