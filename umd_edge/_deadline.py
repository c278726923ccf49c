"""Deadlines and cancelling: how a call ends before it is done.

`limited` bounds everything that the calling thread does inside it, whatever is called there::

    stop = umd_edge.CancelToken()  # stop.cancel() from any thread
    with umd_edge.limited(timeout_s=0.5, cancel=stop):
        encoded = predictor.encode("chest.dcm")
        answer = encoded.ask("Is there a pleural effusion?")

A running graph is stopped between two operators, through onnxruntime's `RunOptions.terminate`;
decoding a file is not interrupted, the call ends behind it. A call that is done in time keeps its
result.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar, Token
from math import isfinite
from time import monotonic
from types import TracebackType
from typing import Any

from ._onnxruntime import load_onnxruntime
from .errors import CancelledError, DeadlineExceededError, UsageError

__all__ = ["CancelToken", "Limits", "active_limits", "check_limits", "check_timeout", "limited"]


class CancelToken:
    """Ends calls from another thread; one token may serve any number of calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._running: set[Limits] = set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called, and `reset` not since."""
        return self._cancelled

    def cancel(self) -> None:
        """End the calls that run under this token, and those that start later."""
        with self._lock:
            self._cancelled = True
            running = tuple(self._running)
        for limits in running:
            limits.stop()

    def reset(self) -> None:
        """Let later calls run; those that were cancelled stay so."""
        with self._lock:
            self._cancelled = False

    def _add(self, limits: Limits) -> bool:
        """Take part in `cancel`; gives back whether it was called already."""
        with self._lock:
            self._running.add(limits)
            return self._cancelled

    def _remove(self, limits: Limits) -> None:
        with self._lock:
            self._running.discard(limits)


class Limits:
    """What bounds the calls of one `limited` block, those around it included."""

    def __init__(
        self, deadline: float | None, timeout_s: float | None, tokens: tuple[CancelToken, ...]
    ) -> None:
        self.deadline = deadline
        self.timeout_s = timeout_s
        self.tokens = tokens
        self._options: Any = None
        self._stopped = False

    def within(self, outer: Limits | None) -> Limits:
        """These limits and those of the block around: the earlier deadline, and all tokens."""
        if outer is None:
            return self
        tokens = tuple(dict.fromkeys((*outer.tokens, *self.tokens)))
        if outer.deadline is None or (self.deadline or outer.deadline) < outer.deadline:
            return Limits(self.deadline, self.timeout_s, tokens)
        return Limits(outer.deadline, outer.timeout_s, tokens)

    def check(self) -> None:
        """Raise when the call must end.

        Raises:
            CancelledError: A token was cancelled.
            DeadlineExceededError: The time is over.
        """
        if any(token.cancelled for token in self.tokens):
            raise CancelledError("the call was cancelled through its CancelToken")
        if self.deadline is not None and monotonic() >= self.deadline:
            raise DeadlineExceededError(
                f"the call took longer than its limit of {self.timeout_s:g} s; allow more time, or "
                "use a faster variant or more threads"
            )
        if self._stopped:  # the token was cancelled and has been reset since
            raise CancelledError("the call was cancelled through its CancelToken")

    def run_options(self) -> Any:
        """The `onnxruntime.RunOptions` of all graphs in the block; watched from now on."""
        if self._options is None:
            self._options = load_onnxruntime().RunOptions()
            cancelled = [token._add(self) for token in self.tokens]
            if any(cancelled):
                self.stop()
            if self.deadline is not None:
                _watch.add(self)
        return self._options

    def stop(self) -> None:
        """End a running graph at its next operator; callable from any thread."""
        self._stopped = True
        if self._options is not None:
            self._options.terminate = True

    def close(self) -> None:
        """Nothing runs under these limits any more."""
        if self._options is None:
            return
        for token in self.tokens:
            token._remove(self)
        if self.deadline is not None:
            _watch.remove(self)


active_limits: ContextVar[Limits | None] = ContextVar("umd_edge_limits", default=None)
"""The limits of the innermost `limited` block of this thread or task; None where there is none."""


def check_limits() -> None:
    """Raise when the block around has been cancelled or is out of time; see `Limits.check`."""
    limits = active_limits.get()
    if limits is not None:
        limits.check()


class limited:  # noqa: N801 - read as a statement: `with limited(timeout_s=1):`
    """Bound all calls inside a `with` block in time, or by a token.

    Blocks may be nested: the earliest deadline counts, and any of the tokens. A block belongs to
    its thread; threads that are started inside it are not bounded by it.

    Args:
        timeout_s: Seconds from the start of the block, above 0; None for no limit.
        cancel: Ends the calls when it is cancelled.
        outer: Limits to take over from another thread.

    Raises:
        UsageError: `timeout_s` is not a positive number.
        DeadlineExceededError: From a call inside, when the time is over.
        CancelledError: From a call inside, when the token is cancelled.
    """

    def __init__(
        self,
        *,
        timeout_s: float | None = None,
        cancel: CancelToken | None = None,
        outer: Limits | None = None,
    ) -> None:
        check_timeout(timeout_s)
        self._timeout_s, self._cancel, self._outer = timeout_s, cancel, outer

    def __enter__(self) -> None:
        deadline = None if self._timeout_s is None else monotonic() + self._timeout_s
        tokens = () if self._cancel is None else (self._cancel,)
        own = Limits(deadline, self._timeout_s, tokens)
        self._limits = own.within(self._outer).within(active_limits.get())
        self._token: Token[Limits | None] = active_limits.set(self._limits)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        active_limits.reset(self._token)
        self._limits.close()


def check_timeout(timeout_s: object) -> None:
    """Refuse what is no time limit.

    Raises:
        UsageError: Not None, and no finite number above 0.
    """
    number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
    if timeout_s is not None and not (number and isfinite(timeout_s) and timeout_s > 0):  # type: ignore[arg-type, operator]
        raise UsageError(f"timeout_s {timeout_s!r} given; seconds above 0 are allowed, or None")


class _Watch:
    """One thread for all deadlines; started by the first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limits: set[Limits] = set()
        self._next = float("inf")
        self._thread: threading.Thread | None = None

    def add(self, limits: Limits) -> None:
        """Stop `limits` at its deadline."""
        with self._changed:
            self._limits.add(limits)
            if self._thread is None or not self._thread.is_alive():  # the latter behind a fork
                self._thread = threading.Thread(
                    target=self._work, name="umd-edge-deadlines", daemon=True
                )
                self._thread.start()
            elif (limits.deadline or 0.0) < self._next:
                self._changed.notify()

    def remove(self, limits: Limits) -> None:
        """Forget `limits`."""
        with self._changed:
            self._limits.discard(limits)

    def _work(self) -> None:
        with self._changed:
            while True:
                now = monotonic()
                over = {item for item in self._limits if (item.deadline or 0.0) <= now}
                self._limits -= over
                for limits in over:
                    limits.stop()
                self._next = min(
                    (item.deadline or 0.0 for item in self._limits), default=float("inf")
                )
                self._changed.wait(None if self._next == float("inf") else self._next - now)


_watch = _Watch()
