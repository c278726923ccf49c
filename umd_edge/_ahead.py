"""Small work begun on a second thread while the calling one runs a graph.

Reading a question and looking at the grey levels of a picture need nothing of what the vision graph
gives, and onnxruntime runs without Python's lock: on a machine with two cores they cost a first
answer no time. Work that the second thread has not begun when its result is needed is done by the
thread that needs it, so nobody ever waits for a queue.

The thread is a daemon, begun with the first work, one for the whole process; it is stopped at exit,
and a forked child begins its own. The results are the same bits on any thread.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from contextvars import copy_context
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._deadline import active_limits

if TYPE_CHECKING:
    from queue import SimpleQueue

__all__ = ["Ahead", "Calls", "begin", "has_second_core"]

Result = TypeVar("Result")


class Ahead(Generic[Result]):
    """One piece of work; see `begin`."""

    __slots__ = ("_claim", "_done", "_error", "_seconds", "_value", "_work")

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._claim = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()
        self._value: Any = None
        self._error: BaseException | None = None
        self._seconds = 0.0

    def result(self) -> Result:
        """What the work gave; done here and now where it was not begun.

        Raises:
            BaseException: Whatever the work raised.
        """
        if self._claim.acquire(blocking=False):
            self._run()
        else:
            with self._done:
                pass
        if self._error is not None:
            raise self._error
        value: Result = self._value
        return value

    @property
    def seconds(self) -> float:
        """How long the work took, on whichever thread; 0.0 before `result` was called."""
        return self._seconds

    def run(self) -> None:
        """Do the work, unless somebody has begun it."""
        if self._claim.acquire(blocking=False):
            self._run()

    def _run(self) -> None:
        start = perf_counter()
        try:
            self._value = self._work()
        except BaseException as error:  # raised again where the result is needed
            self._error = error
        self._seconds = perf_counter() - start
        self._done.release()


class Calls:
    """How many calls are under way; entered and left by each."""

    def __init__(self) -> None:
        self.running = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.running -= 1


class _Second:
    """The second thread of this process."""

    def __init__(self) -> None:
        from queue import SimpleQueue  # most processes that run once never come here

        self.queue: SimpleQueue[Ahead[Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="umd-edge ahead", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while (work := self.queue.get()) is not None:
            work.run()
            del work  # keep nothing alive while waiting

    def stop(self) -> None:
        """Let the thread end, as one that runs a graph must not outlive the interpreter."""
        self.queue.put(None)
        self._thread.join()


_second: _Second | None = None
_beginning = threading.Lock()


def begin(work: Callable[[], Result]) -> Ahead[Result]:
    """Hand work to the second thread. It runs under the caller's time limit and cancel token.

    Args:
        work: May be done on either thread; it is not done at all where nobody asks for its result
            before it was begun.
    """
    limits = active_limits.get()
    if limits is not None:
        limits.run_options()  # made once, and not by two threads
        context = copy_context()
        inner = work

        def work() -> Result:
            return context.run(inner)

    ahead = Ahead(work)
    second = _second or _start()
    second.queue.put(ahead)
    return ahead


def has_second_core() -> bool:
    """Whether this process may run on more than one core."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1


def _start() -> _Second:
    global _second
    with _beginning:
        if _second is None:
            _second = _Second()
            atexit.register(_second.stop)
        return _second


def _forget() -> None:
    """In a forked child, where the thread is not."""
    global _second, _beginning
    if _second is not None:
        atexit.unregister(_second.stop)
    _second, _beginning = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
