"""Work on TensorRT in a child process.

A TensorRT that meets no driver, or one it does not fit, can end the whole interpreter with a
segmentation fault; a build that finds no memory is killed; and the end of a build can wait for ever
on Python's own lock. A child takes all of that on itself, and tells in JSON lines how far it came.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .errors import ProviderUnavailableError

__all__ = ["Ending", "leave", "run_child", "say"]

# The child finds what this process would import, and nothing in the working directory.
_CODE = (
    "import sys, json, importlib; sys.path[:] = json.loads(sys.argv[1]); "
    "getattr(importlib.import_module(sys.argv[2]), sys.argv[3])(*sys.argv[4:])"
)


class Ending:
    """How a child ended."""

    def __init__(self, code: int | None) -> None:
        self.code = code
        """Exit code, negative for a signal; None where it was stopped for taking too long."""

    @property
    def ok(self) -> bool:
        """Whether it came to its end by itself."""
        return self.code == 0

    def __str__(self) -> str:
        if self.code is None:
            return "no answer"
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return f"signal {-self.code}"


def say(**facts: Any) -> None:
    """Tell the parent; for the child alone."""
    print(json.dumps(facts), flush=True)  # noqa: T201


def leave() -> None:
    """End the child at once, without the destructors of libraries that may not return."""
    sys.stdout.flush()
    os._exit(0)


def run_child(
    module: str,
    function: str,
    *arguments: str,
    on_line: Callable[[dict[str, Any]], None],
    on_beat: Callable[[], None] = lambda: None,
    beat_s: float = 5.0,
    timeout_s: float | None = None,
) -> Ending:
    """Call a function in a child process, and hear what it says.

    Args:
        module: Import name.
        function: Of that module.
        *arguments: Handed to it.
        on_line: Told each JSON object that the child prints.
        on_beat: Called about every `beat_s` seconds while the child says nothing.
        beat_s: See `on_beat`.
        timeout_s: The child is stopped after so many seconds; None means never.

    Raises:
        ProviderUnavailableError: No child can be started.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise ProviderUnavailableError(
            "there is no Python interpreter to run TensorRT with; run umd-edge from an ordinary "
            "Python"
        )
    paths = json.dumps([str(path) for path in sys.path])
    command = [sys.executable, "-I", "-c", _CODE, paths, module, function, *arguments]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise ProviderUnavailableError(
            f"no child process to run TensorRT in can be started ({error.strerror}); free memory"
        ) from error
    with child:
        try:
            return _listen(child, on_line, on_beat, beat_s, timeout_s)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def _listen(
    child: subprocess.Popen[bytes],
    on_line: Callable[[dict[str, Any]], None],
    on_beat: Callable[[], None],
    beat_s: float,
    timeout_s: float | None,
) -> Ending:
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, name="umd-edge-listen", daemon=True).start()
    start = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=beat_s)
        except queue.Empty:
            on_beat()
            line = b""
        if timeout_s is not None and time.monotonic() - start > timeout_s:
            return Ending(None)
        if line is None:
            return Ending(child.wait())
        told = _object(line)
        if told:
            on_line(told)


def _object(line: bytes) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except ValueError:
        return {}  # TensorRT prints to standard output too
    return told if isinstance(told, dict) else {}
