"""One build in a child process: the request and the engine pass through files, news in lines."""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import errors
from ._tensorrt_builder import BuiltEngine, Profile, build_engine
from ._tensorrt_child import leave, run_child, say
from ._tensorrt_progress import BuildStatus
from .errors import ProviderUnavailableError, UmdEdgeError

__all__ = ["build_in_child"]

_GRAPH, _REQUEST, _PLAN, _TIMING = "graph.onnx", "request.json", "engine", "timing"
_EVERY_S = 0.5


def build_in_child(
    library: str,
    onnx: bytes,
    profile: Profile,
    *,
    name: str,
    compute_capability: tuple[int, int] | None = None,
    timing_cache: bytes = b"",
    workspace_bytes: int | None = None,
    expected_s: float | None = None,
    on_status: Callable[[BuildStatus], None] = lambda status: None,
) -> BuiltEngine:
    """As `build_engine`, in a child process that can be interrupted or killed without harm.

    Args:
        library: `tensorrt` or `tensorrt_rtx`.
        onnx: As in `build_engine`, and so are the arguments not named here.
        profile: As in `build_engine`.
        name: As in `build_engine`.
        compute_capability: As in `build_engine`.
        timing_cache: As in `build_engine`.
        workspace_bytes: As in `build_engine`.
        expected_s: Seconds that an earlier build took, for the estimate.
        on_status: Told how the build goes, at the latest every five seconds.

    Raises:
        BundleIntegrityError: TensorRT refuses the graph.
        ProviderUnavailableError: TensorRT is too old, cannot build for that GPU, or the child was
            killed.
    """
    start = time.monotonic()
    news: dict[str, Any] = {"phase": "", "done": 0, "steps": 0}

    def tell() -> None:
        elapsed = time.monotonic() - start
        left = news.get("left")
        if expected_s is not None and elapsed < expected_s:
            left = expected_s - elapsed
        on_status(BuildStatus(news["phase"], news["done"], news["steps"], elapsed, left))

    def hear(line: dict[str, Any]) -> None:
        news.update(line)
        tell()

    with tempfile.TemporaryDirectory(prefix="umd-edge-build-") as folder:
        place = Path(folder)
        request = {
            "library": library,
            "name": name,
            "profile": [profile.max_batch, profile.max_length],
            "compute_capability": compute_capability,
            "workspace_bytes": workspace_bytes,
        }
        (place / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        (place / _GRAPH).write_bytes(onnx)
        (place / _TIMING).write_bytes(timing_cache)
        tell()
        ending = run_child(__name__, "work", folder, on_line=hear, on_beat=tell)
        if "error" in news:
            raise _error(*news["error"])
        if not ending.ok or not news.get("built"):
            raise ProviderUnavailableError(
                f"{library} ended the build of {name!r} with {ending}; where the device ran out of "
                "memory, close other programs, add swap, or build with --max-batch 1 --workspace "
                "256"
            )
        return BuiltEngine((place / _PLAN).read_bytes(), (place / _TIMING).read_bytes())


def _error(kind: str, message: str) -> UmdEdgeError:
    known = getattr(errors, kind, UmdEdgeError)
    error: UmdEdgeError = known(message)
    return error


def work(folder: str) -> None:
    """Build what the request asks for. Runs in the child."""
    place = Path(folder)
    request = json.loads((place / _REQUEST).read_text(encoding="utf-8"))
    last = -_EVERY_S

    def tell(phase: str, done: int, steps: int, left: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY_S:
            last = now
            say(phase=phase, done=done, steps=steps, left=left)

    capability = request["compute_capability"]
    try:
        built = build_engine(
            importlib.import_module(request["library"]),
            (place / _GRAPH).read_bytes(),
            Profile(*request["profile"]),
            name=request["name"],
            compute_capability=None if capability is None else (capability[0], capability[1]),
            timing_cache=(place / _TIMING).read_bytes(),
            workspace_bytes=request["workspace_bytes"],
            on_change=tell,
        )
        (place / _PLAN).write_bytes(built.plan)
        (place / _TIMING).write_bytes(built.timing_cache)
        say(built=True)
    except UmdEdgeError as error:
        say(error=[type(error).__name__, str(error)])
    except Exception as error:  # a release with other calls; its text tells which
        told = f"{request['library']} cannot build ({type(error).__name__}: {error}); please report"
        say(error=["ProviderUnavailableError", f"{told} it with the output of `umd-edge doctor`"])
    leave()
