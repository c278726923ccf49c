"""Replace a bundle while others use it, and come back to the one before.

::

    slot = umd_edge.PredictorSlot.open("model.umd", state="slot.json")
    slot.predictor.ask(image, question)  # from any thread, now and behind a swap
    slot.swap("model-2.umd")  # tested beside the old one; an error leaves the old one in use
    slot.rollback()

The state file names the bundle in use and the one before. It is replaced in one step, before the
new predictor is handed out: a process that is killed at any moment starts with the old or the new.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ._files import write_whole
from ._options import SessionOptions
from ._predictor import Predictor
from ._results import BundleInfo
from .errors import BundleError, BundleIntegrityError, UmdEdgeError, UsageError

__all__ = ["PredictorSlot"]

_FORMAT = 1
_MAX_STATE_BYTES = 1 << 16
_logger = logging.getLogger("umd_edge")


@dataclass(frozen=True, slots=True)
class _Place:
    """A bundle that a slot has tested."""

    path: str
    sha256: str


class PredictorSlot:
    """Holds the predictor in use; a context manager that ends the self-tests.

    A call in flight ends on the predictor that it began with. Only one process may write a state
    file at a time.
    """

    def __init__(
        self,
        predictor: Predictor,
        place: _Place,
        previous: _Place | None,
        state: Path | None,
        options: SessionOptions | None,
        checks: dict[str, Any],
    ) -> None:
        self._active, self._place, self._previous = predictor, place, previous
        self._state, self._options, self._checks = state, options, checks
        self._failure: UmdEdgeError | None = None
        self._changing = threading.Lock()
        self._stop = threading.Event()  # of the tests that run
        self._tester: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        options: SessionOptions | None = None,
        *,
        state: str | os.PathLike[str] | None = None,
        **checks: Any,
    ) -> PredictorSlot:
        """Load and test the bundle that was in use last.

        Args:
            path: The bundle to start with, where `state` does not exist yet.
            options: How to run this bundle and those that follow.
            state: File that keeps which bundle is in use; None keeps it in memory alone.
            checks: `public_key`, `require_signature` and `audit`, as in `Predictor.load`, for this
                bundle and those that follow.

        Raises:
            BundleError: The bundle cannot be used, fails the self-test, or is another one than was
                in use at that path.
            UsageError: The state file is none.
            OSError: The state file cannot be read or written.
        """
        file = None if state is None else Path(state)
        stored = None if file is None else _read(file)
        active, previous = stored or (None, None)
        predictor = _load(active.path if active else os.fspath(path), options, checks)
        place = _place_of(predictor)
        if active is not None and active.sha256 != place.sha256:
            raise BundleIntegrityError(
                f"{active.path!r} is another bundle than the one that was in use there; put that "
                f"one back, or remove {str(file)!r} and open the slot with the new one"
            )
        slot = cls(predictor, place, previous, file, options, checks)
        if active is None:
            slot._write(place, None)
        return slot

    def __enter__(self) -> PredictorSlot:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def predictor(self) -> Predictor:
        """The predictor in use; fetch it for every call, as it may be another one.

        Raises:
            UmdEdgeError: The error of the last self-test, if it failed: nothing must be answered
                until `self_test`, `swap` or `rollback` succeeds.
        """
        failure = self._failure
        if failure is not None:
            raise failure.with_traceback(None)  # it would grow with every call
        return self._active

    @property
    def info(self) -> BundleInfo:
        """Name, version and hash of the bundle in use."""
        return self._active.info

    @property
    def previous(self) -> str | None:
        """Path of the bundle to which `rollback` goes; None where there is none."""
        return None if self._previous is None else self._previous.path

    def swap(self, path: str | os.PathLike[str]) -> BundleInfo:
        """Load a bundle beside the one in use, test it, and put it in its place.

        Whatever fails, the bundle in use stays and the state file too.

        Args:
            path: The new bundle. It must stay at this place, as the state file names it.

        Returns:
            What is in use now.

        Raises:
            BundleError: The new bundle cannot be used, or fails the self-test.
            OSError: The state file cannot be written.
        """
        with self._changing:
            return self._replace(os.fspath(path), None)

    def rollback(self) -> BundleInfo:
        """Go back to the bundle before the last `swap` or `rollback`, tested again.

        Raises:
            UsageError: There is none.
            BundleError: It cannot be used any more, or is another one than it was.
            OSError: The state file cannot be written.
        """
        with self._changing:
            if self._previous is None:
                raise UsageError("no bundle was in use before this one; swap to one by its path")
            return self._replace(self._previous.path, self._previous.sha256)

    def self_test(self) -> None:
        """Hash the files of the bundle in use and run its golden vectors, now.

        Raises:
            BundleError: It failed; `predictor` raises the same until a test passes.
        """
        with self._changing:
            self._failure = _failure_of(self._active)
            if self._failure is not None:
                raise self._failure

    def start_self_tests(
        self, every_s: float, on_failure: Callable[[UmdEdgeError], None] = lambda error: None
    ) -> None:
        """Test the bundle in use again and again in a thread, until `close`.

        Behind a failure `predictor` raises the error of the test.

        Args:
            every_s: Seconds between two tests, above 0.
            on_failure: Called in that thread with the error of each failed test.

        Raises:
            UsageError: Not a positive number, or the tests run already.
        """
        if not isinstance(every_s, (int, float)) or not 0 < every_s <= threading.TIMEOUT_MAX:
            raise UsageError(f"every_s {every_s!r} given; a number of seconds above 0 is allowed")
        if self._tester is not None:
            raise UsageError("the self-tests run already; close the slot to end them")
        self._stop = threading.Event()
        self._tester = threading.Thread(
            target=self._test,
            args=(self._stop, every_s, on_failure),
            name="umd-edge-self-test",
            daemon=True,
        )
        self._tester.start()

    def close(self) -> None:
        """End the self-tests; the predictor can still be used."""
        self._stop.set()
        tester, self._tester = self._tester, None
        if tester is not None and tester is not threading.current_thread():
            tester.join()

    def _test(
        self, stop: threading.Event, every_s: float, on_failure: Callable[[UmdEdgeError], None]
    ) -> None:
        while not stop.wait(every_s):
            tested = self._active
            failure = _failure_of(tested)
            if failure is None:
                continue
            with self._changing:
                if tested is not self._active:  # replaced meanwhile
                    continue
                self._failure = failure
            try:
                on_failure(failure)
            except Exception:
                _logger.exception("on_failure of the self-tests raised")

    def _replace(self, path: str, sha256: str | None) -> BundleInfo:
        predictor = _load(path, self._options, self._checks)
        place = _place_of(predictor)
        if sha256 not in (None, place.sha256):
            raise BundleIntegrityError(
                f"{path!r} is another bundle than the one that was in use there; swap to it if it "
                "is wanted"
            )
        predictor.warm_up()
        self._write(place, self._place)
        self._previous, self._place = self._place, place
        self._active = predictor
        self._failure = None
        return predictor.info

    def _write(self, active: _Place, previous: _Place | None) -> None:
        if self._state is None:
            return
        before = None if previous is None else asdict(previous)
        text = json.dumps({"format": _FORMAT, "active": asdict(active), "previous": before})
        write_whole(self._state, text.encode() + b"\n")


def _load(path: str, options: SessionOptions | None, checks: dict[str, Any]) -> Predictor:
    predictor = Predictor.load(path, options, **checks)
    predictor.verify()
    return predictor


def _place_of(predictor: Predictor) -> _Place:
    return _Place(os.path.abspath(predictor.bundle.path), predictor.info.sha256)


def _failure_of(predictor: Predictor) -> UmdEdgeError | None:
    try:
        predictor.verify()
    except UmdEdgeError as error:
        return error
    except OSError as error:
        place = str(predictor.bundle.path)
        failure = BundleError(f"{place!r} cannot be read for its self-test: {error.strerror}")
        failure.__cause__ = error
        return failure
    return None


def _read(path: Path) -> tuple[_Place, _Place | None] | None:
    """What a state file says; None where there is none.

    Raises:
        UsageError: The file is no state file.
        OSError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_STATE_BYTES + 1)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(data)
        if value["format"] != _FORMAT:
            raise ValueError("format")
        before = value["previous"]
        return _place(value["active"]), None if before is None else _place(before)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(
            f"{str(path)!r} is no state file of a predictor slot; name another one, or remove it "
            "to start with the bundle given"
        ) from error


def _place(value: Any) -> _Place:
    place = _Place(**value)
    if not isinstance(place.path, str) or not isinstance(place.sha256, str):
        raise TypeError("no strings")
    return place
