"""What the models behind a model learnt from: the checkpoint before it, and its teachers.

A model owes what it knows to their records as well. In a provenance, `data` names a run's own data
sets, and one entry for each model behind it: digest of its weights, its own `data`, and totals.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["BEFORE", "ancestor", "distinct_sources", "weights_of"]

BEFORE = "before"
"""Name of the entry of the checkpoint that a run started from."""

_COUNTS = ("train_pictures", "train_records", "non_commercial_records")
_LEAST_MARKS = ("manifests", "licences", *_COUNTS)


def weights_of(folder: Path) -> str:
    """SHA-256 over the weight files of a checkpoint, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("model*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def ancestor(data: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """The entry of a model behind another one.

    Args:
        data: That of its own provenance.
        weights: Digest of its weights.

    Returns:
        `weights`, `data`, and `licences` and counts over its distinct sources.
    """
    sources = distinct_sources(data).values()
    licences: Counter[str] = Counter()
    for entry in sources:
        licences.update(entry.get("licences", {}))
    totals = {name: sum(entry.get(name, 0) for entry in sources) for name in _COUNTS}
    return {"weights": weights, "licences": dict(licences), **totals, "data": dict(data)}


def distinct_sources(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every source of a model and of those behind it, each once.

    Args:
        data: That of a provenance.

    Returns:
        Name -> entry; a source that only a model behind it has is named `<entry>: <source>`.
    """
    known = {str(entry["weights"]) for _, entry in _entries(data) if "data" in entry}
    found: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    for name, entry in _entries(data):
        if "data" in entry or str(entry.get("weights")) in known:  # its sources speak for it
            continue
        mark = json.dumps({key: entry.get(key) for key in _LEAST_MARKS}, sort_keys=True)
        if mark not in seen:
            seen.add(mark)
            found[name] = entry
    return found


def _entries(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All entries, a run's own before those behind them."""
    for name, entry in data.items():
        yield above + name, entry
    for name, entry in data.items():
        if "data" in entry:
            yield from _entries(entry["data"], f"{above}{name}: ")
