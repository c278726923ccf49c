"""Hashes of a checkpoint's files, in a list as `sha256sum` writes it: every changed bit is seen."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from .errors import CheckpointError

__all__ = ["SUMS", "check_hashes", "write_hashes"]

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\x00]+)")
_CHUNK = 2**20


def write_hashes(folder: Path) -> None:
    """List the hashes of the weights, and of the tokenizer where the folder holds one.

    JSON files of settings and figures are not listed: they may be edited or added later.

    Args:
        folder: Of a checkpoint that is being written, or of its state.

    Raises:
        OSError: A file cannot be read, or the list not written.
    """
    files = [*sorted(folder.glob("*.safetensors")), *folder.glob("tokenizer.json")]
    lines = [f"{_digest(path)}  {path.name}\n" for path in files]
    # not write_text: Windows would end the lines in a way that sha256sum does not read
    (folder / SUMS).write_bytes("".join(lines).encode("utf-8"))


def check_hashes(folder: Path, names: Iterable[str] | None = None) -> bool:
    """Compare the files that `SHA256SUMS` lists with it.

    Args:
        folder: Of a checkpoint, or of its state.
        names: The files to compare; all that are listed where this is None.

    Returns:
        Whether there is such a list.

    Raises:
        CheckpointError: A listed file is missing or another one, the list does not hold the
            weights, or it cannot be read.
    """
    if not (folder / SUMS).exists():
        return False
    listed = _listed(folder)
    unlisted = [item.name for item in sorted(folder.glob("*.safetensors"))]
    unlisted = [name for name in unlisted if name not in listed]
    if unlisted:
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: {SUMS} does not list {unlisted[0]!r}; write it again "
            "with `sha256sum`"
        )
    for name in listed if names is None else names:
        _check_file(folder / name, listed[name])
    return True


def _listed(folder: Path) -> dict[str, str]:
    """File name -> SHA-256."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: {SUMS} cannot be read") from error
    listed: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise CheckpointError(
                f"checkpoint {str(folder)!r}: line {number} of {SUMS} is not as `sha256sum` writes "
                "it: 64 hexadecimal digits, two spaces, a file name"
            )
        listed[match[2]] = match[1]
    return listed


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()


def _check_file(path: Path, wanted: str) -> None:
    try:
        given = _digest(path)
    except OSError as error:
        raise CheckpointError(f"checkpoint file {path.name!r} is missing or unreadable") from error
    if given != wanted:
        raise CheckpointError(
            f"checkpoint file {path.name!r} is not the file that {SUMS} describes (SHA-256 "
            "differs): it is damaged or was changed; copy the checkpoint again"
        )
