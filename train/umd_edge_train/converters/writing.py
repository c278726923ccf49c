"""The folder of a converted set, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from umd_edge.errors import UsageError

from .records import Records
from .sample import Images

__all__ = ["write_folder"]


def _relative_to(folder: Path, out: Path) -> str:
    try:
        return os.path.relpath(folder, out.parent.resolve() / out.name)
    except ValueError:  # another drive
        return str(folder)


def _place_images(
    images: Images,
    names: Mapping[Path, str],
    temporary: Path,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    for done, (path, name) in enumerate(names.items(), start=1):
        place = temporary / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if images == "link":
            os.link(path, place)
        else:
            shutil.copyfile(path, place)
        if on_progress is not None:
            on_progress(done, len(names))


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def write_folder(
    out: Path,
    records: Records,
    report: Mapping[str, Any],
    images: Images,
    image_names: Mapping[Path, str],
    source: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the manifests, the report and the pictures under a temporary name, then rename.

    Args:
        out: The folder, which does not exist yet.
        records: Of each split that has any.
        report: Content of `convert.json`.
        images: How pictures are placed.
        image_names: Picture -> its path below `out`.
        source: The source's folder.
        on_progress: Called with the number of pictures placed and of all.

    Raises:
        UsageError: The folder, or a link in it, cannot be made; nothing is left of it.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for split, part in records.items():
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in part)
            _text(temporary / f"{split}.jsonl", "".join(lines))
        _text(temporary / "convert.json", json.dumps(report, indent=1) + "\n")
        if images == "reference":
            # One link to the whole source: readers demand that pictures are below the manifest.
            link = temporary / "source"
            link.symlink_to(_relative_to(source, out), target_is_directory=True)
        else:
            _place_images(images, image_names, temporary, on_progress)
        temporary.rename(out)
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written ({error.strerror or error}); name another folder, or copy "
            "the pictures if links are the reason (--images copy)"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
