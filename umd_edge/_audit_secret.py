"""The secret of an audit log, and the hashes that are keyed with it."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path
from typing import Any

from ._files import write_whole
from ._json import dump_canonical
from .errors import AuditError

__all__ = ["keyed_hash", "make_secret", "read_secret"]

_SECRET_BYTES = 32
_SECRET = re.compile(rb"[0-9a-fA-F]{64}")


def keyed_hash(secret: bytes, kind: str, value: Any) -> str:
    """See `AuditLog.keyed_hash`."""
    # Texts that no model reads, as they are no valid Unicode, have a hash too.
    content = dump_canonical({"kind": kind, "value": value}, errors="surrogatepass")
    return hmac.new(secret, content, hashlib.sha256).hexdigest()


def make_secret(path: Path) -> None:
    """Write a new secret that only its owner may read.

    Raises:
        OSError: The folder is missing or may not be written, or the disk is full.
    """
    made = secrets.token_hex(_SECRET_BYTES).encode("ascii")
    write_whole(path, made + b"\n", private=True)


def read_secret(path: Path) -> bytes:
    """The secret of a log.

    Raises:
        AuditError: The file is missing, cannot be read, or holds something else.
    """
    try:
        if not path.is_file():
            raise AuditError(f"the audit log's secret is not at {str(path)!r}; put it there")
        text = path.read_bytes()[:1024].strip()
    except OSError as error:
        raise AuditError(
            f"the audit log's secret {str(path)!r} cannot be read: {error.strerror}"
        ) from error
    if not _SECRET.fullmatch(text):
        raise AuditError(
            f"{str(path)!r} does not hold the secret of an audit log: 64 hexadecimal digits. Put "
            "the right file there; without it, a new one is made for a new log"
        )
    return bytes.fromhex(text.decode("ascii"))
