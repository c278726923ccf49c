"""Take the committed tiny bundle apart and put it together again, without onnx."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from umd_edge._bundle import Bundle, file_entries
from umd_edge._container import write_zip
from umd_edge._json import dump_canonical

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.umd"


def tiny_files() -> dict[str, bytes]:
    """Path -> bytes, `manifest.json` included."""
    bundle = Bundle.open(TINY)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    return {"manifest.json": bundle.manifest_bytes, **files}


def zip_bytes(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    write_zip(files, out)
    return out.getvalue()


def tiny_manifest() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(tiny_files()["manifest.json"])
    return document


def repack(
    out: Path,
    files: dict[str, bytes] | None = None,
    edit: Callable[[dict[str, Any]], object] = lambda manifest: None,
) -> Path:
    """Write a zip whose manifest lists `files` rightly, after `edit` has changed the manifest."""
    files = dict(files or tiny_files())
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {name: entry.to_dict() for name, entry in file_entries(files).items()}
    edit(manifest)
    files["manifest.json"] = dump_canonical(manifest)
    out.write_bytes(zip_bytes(files))
    return out


def unpack(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write the files of a bundle into a directory."""
    for name, data in (files or tiny_files()).items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return folder
