"""Where the parts lie that a program in C needs; nothing is imported or loaded for it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sysconfig
from pathlib import Path

__all__ = ["describe_c"]

_HEADER = "umd_edge.h"
_LIBRARIES = ("libumd_edge.so", "libumd_edge.dylib", "umd_edge.dll")
_RUNTIMES = ("libonnxruntime.so*", "libonnxruntime*.dylib", "onnxruntime.dll")
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")


def describe_c() -> dict[str, str | None]:
    """Paths as text, None where something is not there.

    Returns:
        `include`: folder of the header, in a source checkout or where the wheel has put it.
        `library`: what `script/build-c` has built into `build/c` of a checkout. `onnxruntime` and
        `onnxruntime_version` of this Python installation.
    """
    checkout = Path(__file__).resolve().parent.parent
    folders = (
        checkout / "bindings" / "c" / "include",
        Path(sysconfig.get_path("data")) / "include",
    )
    include = next((folder for folder in folders if (folder / _HEADER).is_file()), None)
    built = checkout / "build" / "c" / "lib"
    return {
        "include": str(include) if include else None,
        "library": _first(built, _LIBRARIES),
        "onnxruntime": _first(_runtime_folder(), _RUNTIMES),
        "onnxruntime_version": _runtime_version(),
    }


def _first(folder: Path | None, patterns: tuple[str, ...]) -> str | None:
    if folder is None:
        return None
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return str(found[0]) if found else None


def _runtime_folder() -> Path | None:
    """Folder of onnxruntime's shared libraries, found without importing it."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "capi"


def _runtime_version() -> str | None:
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
