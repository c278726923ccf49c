"""Ed25519 signatures over a bundle's manifest: reading public keys, and verifying.

`manifest.sig` holds one to eight signatures of 64 raw bytes over the exact bytes of
`manifest.json` (docs/bundle-format.md). The rule to remember: the file says nothing about whose
signatures they are; a reader trusts the keys that it was given.

Keys are read without any library; `cryptography` (extra `sign`) is imported to verify.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from .errors import BundleSignatureError, MissingDependencyError, UsageError

__all__ = [
    "MAX_SIGNATURES",
    "SIGNATURE_BYTES",
    "KeyInput",
    "PublicKey",
    "read_public_keys",
    "verify_signatures",
]

KeyInput = Union[str, "os.PathLike[str]", bytes]
"""Path of a key file, or the key itself: 32 raw bytes, or the bytes of a PEM file."""

SIGNATURE_BYTES = 64
MAX_SIGNATURES = 8
_KEY_BYTES = 32
_MAX_FILE_BYTES = 64 << 10
# SubjectPublicKeyInfo of Ed25519 (RFC 8410): everything before the key is the same.
_SPKI = bytes.fromhex("302a300506032b6570032100")
_PEM = re.compile(
    rb"-----BEGIN (?P<kind>[A-Z0-9 ]{1,40})-----\s(?P<body>[A-Za-z0-9+/=\s]+)"
    rb"-----END (?P=kind)-----"
)
_HEX = re.compile(rb"[0-9a-fA-F]{64}")
_ALLOWED = (
    "an Ed25519 public key is needed: PEM (`openssl pkey -in private.pem -pubout`), or 64 "
    "hexadecimal digits"
)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key."""

    raw: bytes
    """32 bytes (RFC 8032)."""

    @property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the raw key: its name for people."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM, as OpenSSL writes it."""
        body = base64.b64encode(_SPKI + self.raw)
        return b"-----BEGIN PUBLIC KEY-----\n" + body + b"\n-----END PUBLIC KEY-----\n"


def read_public_keys(given: KeyInput | Sequence[KeyInput]) -> tuple[PublicKey, ...]:
    """Public keys from files or bytes, each one once.

    Args:
        given: One or several; a PEM file may hold several keys.

    Raises:
        UsageError: A file is missing or holds no Ed25519 public key, or nothing was given.
    """
    sources = [given] if isinstance(given, (str, os.PathLike, bytes)) else list(given)
    keys: dict[bytes, PublicKey] = {}
    for source in sources:
        data, name = _key_bytes(source)
        keys.update((key.raw, key) for key in _parse(data, name))
    if not keys:
        raise UsageError("no public key was given to check the signature with; name a key file")
    return tuple(keys.values())


def _key_bytes(source: KeyInput) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "the public key"
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"a key of type {type(source).__name__} given; {_ALLOWED}")
    path = Path(source)
    try:
        if not path.is_file():  # a pipe would keep us waiting
            raise UsageError(f"no key file at {str(path)!r}; {_ALLOWED}")
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES + 1), repr(str(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise UsageError(f"the key file {str(path)!r} cannot be read: {reason}") from error


def _parse(data: bytes, name: str) -> Iterable[PublicKey]:
    if len(data) == _KEY_BYTES:
        return [PublicKey(data)]
    if len(data) > _MAX_FILE_BYTES:
        raise UsageError(f"{name} is larger than {_MAX_FILE_BYTES} bytes; {_ALLOWED}")
    if _HEX.fullmatch(data.strip()):
        return [PublicKey(bytes.fromhex(data.strip().decode("ascii")))]
    blocks = list(_PEM.finditer(data))
    if not blocks:
        raise UsageError(f"{name} holds no key; {_ALLOWED}")
    return [_from_pem(block["kind"], block["body"], name) for block in blocks]


def _from_pem(kind: bytes, body: bytes, name: str) -> PublicKey:
    if b"PRIVATE" in kind:
        raise UsageError(f"{name} holds a private key, which must not leave its maker; {_ALLOWED}")
    try:
        der = base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        der = b""
    if kind != b"PUBLIC KEY" or len(der) != len(_SPKI) + _KEY_BYTES or not der.startswith(_SPKI):
        raise UsageError(f"{name} holds something else, or a key of another kind; {_ALLOWED}")
    return PublicKey(der[len(_SPKI) :])


def verify_signatures(data: bytes, signatures: bytes, keys: Sequence[PublicKey]) -> PublicKey:
    """The first of `keys` under which one of the signatures of `data` is right.

    Args:
        data: The signed bytes: those of `manifest.json`.
        signatures: One or several of 64 bytes, one behind the other.
        keys: At least one.

    Raises:
        BundleSignatureError: None is right.
        MissingDependencyError: `cryptography` is not installed.
    """
    ed25519, invalid = _library()
    for key in keys:
        public = ed25519.Ed25519PublicKey.from_public_bytes(key.raw)
        for start in range(0, len(signatures), SIGNATURE_BYTES):
            try:
                public.verify(signatures[start : start + SIGNATURE_BYTES], data)
            except invalid:
                continue
            return key
    names = ", ".join(key.fingerprint for key in keys)
    raise BundleSignatureError(
        f"no signature of the bundle is right under the key(s) {names}: its manifest was altered, "
        "or somebody else signed it. Do not use it; ask its maker for the bundle and the key"
    )


def _library() -> tuple[Any, type[Exception]]:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingDependencyError(
            'checking a signature needs the package cryptography: pip install "umd-edge[sign]"'
        ) from error
    return ed25519, InvalidSignature
