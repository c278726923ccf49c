"""Make signing keys, and sign bundles with them (Ed25519; docs/bundle-format.md, manifest.sig)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umd_edge._bundle import Bundle, write_bundle
from umd_edge._files import write_whole
from umd_edge._signature import MAX_SIGNATURES, SIGNATURE_BYTES, PublicKey
from umd_edge.errors import BundleSignatureError, MissingDependencyError, UsageError

from .places import check_place, full_disk_told

__all__ = ["make_key", "sign_bundle"]

_SIGNATURE = "manifest.sig"
_MAX_KEY_BYTES = 64 << 10


def make_key(out: str | os.PathLike[str], *, passphrase: bytes | None = None) -> PublicKey:
    """Write a new private key to `out`, and its public key beside it as `<stem>.pub.pem`.

    Args:
        out: PEM (PKCS #8); only its owner may read it. An existing file is never replaced.
        passphrase: Encrypts the private key; None writes it as it is.

    Raises:
        UsageError: One of the files is there, or the folder cannot be written.
        MissingDependencyError: `cryptography` is not installed.
    """
    private = Path(out)
    if not private.name:
        raise UsageError(f"{os.fspath(out)!r} names no file for the key; give one, such as key.pem")
    public = private.with_name(private.name.removesuffix(".pem") + ".pub.pem")
    for path in (private, public):
        if path.exists():
            raise UsageError(f"{str(path)!r} is there, and a key is never replaced: name another")
    check_place(private)
    ed25519, serialization = _library()
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )
    made = _public_half(key)
    with full_disk_told(private):
        write_whole(private, pem, private=True)
        write_whole(public, made.to_pem())
    return made


def sign_bundle(
    source: str | os.PathLike[str],
    keys: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    passphrase: bytes | None = None,
    keep: bool = False,
) -> tuple[Bundle, tuple[PublicKey, ...]]:
    """Sign a bundle whose every hash is right, and check the signatures in what was written.

    Args:
        source: A `.umd` file or a bundle's directory.
        keys: Files of private keys (PEM, PKCS #8); one signature for each.
        out: The `.umd` file to write; None signs `source` where it is.
        passphrase: Of the keys that are encrypted.
        keep: Keep the signatures that are there, and add to them.

    Returns:
        The signed bundle, and the public halves of the keys.

    Raises:
        UsageError: A key cannot be read, or `out` cannot be written.
        BundleError: The bundle is damaged.
        BundleSignatureError: More than eight signatures.
        MissingDependencyError: `cryptography` is not installed.
    """
    bundle = Bundle.open(source)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    private = [_read_private(Path(path), passphrase) for path in keys]
    if not private:
        raise UsageError("no key to sign with; name the file of a private key (--key)")
    made = [key.sign(bundle.manifest_bytes) for key in private]
    old = bundle.signatures if keep else b""
    kept = [old[i : i + SIGNATURE_BYTES] for i in range(0, len(old), SIGNATURE_BYTES)]
    signatures = list(dict.fromkeys([*kept, *made]))
    if len(signatures) > MAX_SIGNATURES:
        raise BundleSignatureError(
            f"{len(signatures)} signatures; at most {MAX_SIGNATURES} are allowed. Leave some out"
        )
    content = b"".join(signatures)
    target = Path(source if out is None else out)
    if target.is_dir() and out is None:
        with full_disk_told(target):
            # A file that nobody listed would make the bundle unusable.
            write_whole(target / _SIGNATURE, content, via=target.resolve().parent)
    else:
        check_place(target)
        manifest = {"manifest.json": bundle.manifest_bytes, _SIGNATURE: content}
        with full_disk_told(target):
            write_bundle({**files, **manifest}, target)
    public = tuple(_public_half(key) for key in private)
    for key in public:
        signed = Bundle.open(target, public_key=key.raw)
    return signed, public


def _public_half(key: Any) -> PublicKey:
    return PublicKey(key.public_key().public_bytes_raw())


def _read_private(path: Path, passphrase: bytes | None) -> Any:
    ed25519, serialization = _library()
    try:
        if not path.is_file():
            raise UsageError(f"no key file at {str(path)!r}; umd-edge-export keygen makes one")
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise UsageError(f"the key {str(path)!r} cannot be read: {error.strerror}") from error
    encrypted = b"ENCRYPTED" in data
    if encrypted and passphrase is None:
        raise UsageError(f"the key {str(path)!r} is encrypted; give --passphrase-file")
    try:
        key = serialization.load_pem_private_key(data, passphrase if encrypted else None)
    except Exception as error:  # cryptography raises ValueError, TypeError and classes of its own
        reason = "the passphrase is wrong, or it is damaged" if encrypted else "no private PEM key"
        raise UsageError(f"the key {str(path)!r} cannot be used: {reason}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(f"the key {str(path)!r} is of another kind; an Ed25519 key is needed")
    return key


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingDependencyError(
            'signing needs the package cryptography: pip install "umd-edge[sign]"'
        ) from error
    return ed25519, serialization
