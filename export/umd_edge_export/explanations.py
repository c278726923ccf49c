"""Records in a bundle which of its maps were measured to be worth showing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from umd_edge._bundle import Bundle, write_bundle
from umd_edge._explain import EXTENSION
from umd_edge._explanation import METHODS
from umd_edge._insides import ATTENTION, CELLS
from umd_edge._manifest import Manifest
from umd_edge.errors import DataError, UsageError

from .places import check_place, full_disk_told

__all__ = ["read_proof", "write_explanations"]

_TENSORS = {"attention": ATTENTION, "ablation": CELLS}
_NUMBERS = ("gain", "low", "high")
_NEEDED = {"proven", "measure", "n", "split", *_NUMBERS}


def read_proof(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Read what the benchmark of explanations wrote: task -> method -> figures.

    Args:
        path: A JSON file.
        manifest: Of the bundle that it is for.

    Raises:
        DataError: The file is unreadable, names a task or method that there is not, or calls a
            method proven whose interval reaches 0.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"proof {str(path)!r} cannot be read as JSON") from error
    tasks = {task.name for task in manifest.tasks if task.kind != "retrieval"}
    if not isinstance(given, dict) or not given or not set(given) <= tasks:
        raise DataError(
            f"proof {str(path)!r}: an object of tasks is needed, with names among {sorted(tasks)}"
        )
    for task, methods in given.items():
        if not isinstance(methods, dict) or not set(methods) <= set(METHODS):
            raise DataError(f"proof of {task!r}: methods among {list(METHODS)} are needed")
        for method, entry in methods.items():
            _check(f"proof of {task!r} by {method!r}", entry)
    return given


def _check(where: str, entry: Mapping[str, Any]) -> None:
    if not isinstance(entry, dict) or set(entry) != _NEEDED:
        raise DataError(f"{where}: exactly the keys {sorted(_NEEDED)} are needed")
    if type(entry["proven"]) is not bool or type(entry["n"]) is not int:
        raise DataError(f"{where}: `proven` is true or false, `n` a whole number")
    numbers = [entry[name] for name in _NUMBERS]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
        raise DataError(f"{where}: {', '.join(_NUMBERS)} must be numbers")
    if entry["proven"] and entry["low"] <= 0:
        raise DataError(f"{where}: called proven, but its interval reaches down to {entry['low']}")


def _check_tensors(files: Mapping[str, bytes], proof: Mapping[str, Any]) -> None:
    """Refuse a proof of maps that the bundle's graphs cannot make."""
    for task, methods in proof.items():
        for method, entry in methods.items():
            tensor = _TENSORS[method]
            if entry["proven"] and not any(tensor.encode() in data for data in files.values()):
                raise UsageError(
                    f"proof of {task!r} by {method!r}: the bundle's graphs name no tensor "
                    f"{tensor!r}, so it has no such map; export it again"
                )


def write_explanations(path: Path, proof: Path, out: Path) -> Bundle:
    """Write a bundle with the proof of its maps under `extensions`; all files stay as they are.

    A signature does not: it was made for the manifest as it was.

    Args:
        path: The bundle.
        proof: As the benchmark writes it.
        out: The `.umd` file; replaced in one step.

    Raises:
        BundleError: The bundle is missing or damaged.
        DataError: See `read_proof`.
        UsageError: The place cannot be written, or the bundle cannot make a map that is proven.
        ExportError: The disk is full.
    """
    check_place(out)
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    changed = replace(
        manifest, extensions={**manifest.extensions, EXTENSION: read_proof(proof, manifest)}
    )
    files = {name: bundle.read(name) for name in manifest.files}
    _check_tensors(files, changed.extensions[EXTENSION])
    with full_disk_told(out):
        return write_bundle({**files, "manifest.json": changed.to_bytes()}, out)
