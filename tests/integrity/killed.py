"""The program that `test_kill.py` kills while it writes bundles, and what must then be true."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

from support.bundles import repack, tiny_files
from umd_edge import Bundle
from umd_edge._bundle import write_bundle

_PADDING = 1 << 20  # so that writing takes a while


def write(out: str, step: Callable[[], object] = lambda: None) -> int:
    """Write two bundles over each other for ever."""
    place = Path(out)
    given = []
    for name in ("one", "two"):
        files = {**tiny_files(), "MODEL_CARD.md": os.urandom(_PADDING)}
        packed = Bundle.open(
            repack(
                place.with_suffix(f".{os.getpid()}"),
                files,
                edit=lambda manifest, name=name: manifest.update(name=name),
            )
        )
        packed.path.unlink()
        given.append({**files, "manifest.json": packed.manifest_bytes})
    for turn in itertools.count():
        step()
        write_bundle(given[turn % 2], place)
    return 1


def whole(out: str) -> None:
    """The place holds one of the bundles, and beside it lies at most one that was begun."""
    place = Path(out)
    bundle = Bundle.open(place)
    bundle.check_files()
    assert json.loads(bundle.manifest_bytes)["name"] in ("one", "two", "before")
    beside = [path.name for path in place.parent.iterdir() if path != place]
    assert [name for name in beside if name.endswith(".tmp")] in ([], [f".{place.name}.0.tmp"])
