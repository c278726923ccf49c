"""Write a folder whole or not at all.

Where the system can exchange two names in one step, as Linux and macOS can, a folder is replaced in
one step. Elsewhere the older one stands under `.<name>.old` for a moment; `standing` finds it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from umd_edge._claims import claim_folder, remove_unheld, sync_folder

__all__ = ["remove_folder", "remove_left_behind", "standing", "write_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # of Linux
_RENAME_SWAP = 2  # of macOS


def write_folder(path: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer(folder)` fill a temporary folder, make it durable, then give it its name.

    An older folder of that name is replaced only after the new one is whole. What a killed writer
    of that name left beside it is removed.

    Raises:
        OSError: The disk is full or may not be written; the older folder is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with claim_folder(path.name, path.parent) as temporary:
        writer(temporary)
        _sync(temporary)
        retired = _retired(path)
        _bring_back(path)
        if not path.exists():
            os.rename(temporary, path)
        elif _exchange(temporary, path):
            sync_folder(path.parent)
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            os.rename(path, retired)
            try:
                os.rename(temporary, path)
            except BaseException:
                os.rename(retired, path)
                raise
            sync_folder(path.parent)
            shutil.rmtree(retired, ignore_errors=True)
    sync_folder(path.parent)


def standing(path: Path) -> Path:
    """Where the folder of that name is: a writer killed between two renamings leaves the old one.

    Only systems that cannot exchange two names know that moment.
    """
    retired = _retired(path)
    return retired if not path.exists() and retired.is_dir() else path


def remove_folder(path: Path) -> None:
    """Remove a folder; whoever is killed meanwhile leaves none that looks whole."""
    doomed = path.with_name(f".{path.name}.gone")
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        os.rename(path, doomed)
    except OSError:  # may not be: it stays as it is
        return
    shutil.rmtree(doomed, ignore_errors=True)


def remove_left_behind(parent: Path, names: str) -> None:
    """Remove what killed writers left of the folders whose name fits a pattern."""
    for path in parent.glob(f".{names}.*"):
        if path.suffix == ".tmp":
            remove_unheld(path)
        elif path.suffix == ".gone":
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == ".old":
            _bring_back(parent / path.name[1:].removesuffix(".old"))
            shutil.rmtree(path, ignore_errors=True)


def _retired(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _bring_back(path: Path) -> None:
    """Undo the first of two renamings where the second never came; drop what both left."""
    retired = _retired(path)
    if standing(path) == retired:
        os.rename(retired, path)
    elif retired.exists():
        shutil.rmtree(retired, ignore_errors=True)


def _sync(folder: Path) -> None:
    for file in _walk(folder):
        if file.is_dir():
            sync_folder(file)
        else:
            with file.open("rb+") as handle:  # Windows makes only writable files durable
                os.fsync(handle.fileno())
    sync_folder(folder)


def _walk(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_dir() or path.is_file())


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where this system or file system cannot."""
    try:
        system = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            done = system.renamex_np(os.fsencode(one), os.fsencode(other), _RENAME_SWAP)
        else:
            places = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
            done = system.renameat2(*places, _RENAME_EXCHANGE)
    except (AttributeError, OSError, TypeError):  # no such function, no such library
        return False
    return bool(done == 0)
