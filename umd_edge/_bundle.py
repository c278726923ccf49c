"""Open, check, describe and write bundles.

The rule to remember: bytes are hashed and the same bytes are used. Nothing is read a second time
between the check and the use, and no byte of a listed file is used unchecked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ._container import Container, open_container, write_zip
from ._files import whole_file
from ._manifest import MAX_FILE_BYTES, MAX_MANIFEST_BYTES, FileEntry, Manifest, is_safe_path
from .errors import (
    BundleError,
    BundleIntegrityError,
    BundleNotFoundError,
    BundleSignatureError,
    UsageError,
)

if TYPE_CHECKING:
    from ._signature import KeyInput, PublicKey

__all__ = ["Bundle", "file_entries", "write_bundle"]

_MANIFEST, _SIGNATURE = "manifest.json", "manifest.sig"
_MAX_TOTAL_BYTES = 4 << 30  # offsets of the zip are 32 bits


class Bundle:
    """A bundle whose manifest has been read and whose files are checked when they are read.

    Attributes:
        path: Where it was opened.
        manifest: What `manifest.json` says.
        sha256: Identity of the bundle: SHA-256 of the bytes of `manifest.json`, which holds the
            hash of every other file.
        signed_by: The key whose signature was checked; None where no key was given.
    """

    def __init__(
        self,
        path: Path,
        container: Container,
        manifest_bytes: bytes,
        signed_by: PublicKey | None = None,
    ) -> None:
        self.path = path
        self.signed_by = signed_by
        self.manifest = Manifest.from_bytes(manifest_bytes)
        self.sha256 = hashlib.sha256(manifest_bytes).hexdigest()
        self.manifest_bytes = manifest_bytes
        self._container = container
        self._check_listing()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        public_key: KeyInput | Sequence[KeyInput] | None = None,
        require_signature: bool = False,
    ) -> Bundle:
        """Open a directory or a `.umd` file; names, sizes and the manifest are checked.

        Args:
            path: Where the bundle is.
            public_key: One or several Ed25519 public keys (path of a PEM file, or bytes). The
                bundle must then be signed with one of them, and its manifest is not even parsed
                before that is known. None leaves a signature unchecked.
            require_signature: Refuse to open anything unchecked: an error where no key is given.

        Raises:
            BundleNotFoundError: Nothing there, or a directory without `manifest.json`.
            BundleSignatureError: Not signed, or with none of the keys.
            BundleIntegrityError: Truncated, altered, unlisted, missing or unsafe files.
            ManifestError: The manifest breaks the format.
            BundleVersionError: The bundle needs another runtime.
            UsageError: A key cannot be read, or a signature is required and no key given.
        """
        keys = () if public_key is None else _read_keys(public_key)
        if require_signature and not keys:
            raise UsageError(
                "a signature is required, and no public key is given to check it with; name the "
                "key of the bundle's maker (public_key, --key)"
            )
        if not os.fspath(path):  # an empty variable of a script must not mean the folder at hand
            raise BundleNotFoundError("the path of the bundle is empty; give that of a .umd file")
        place = Path(path)
        container = open_container(place)
        size = container.sizes.get(_MANIFEST)
        if size is None:
            raise BundleNotFoundError(
                f"{str(place)!r} holds no manifest.json; give a bundle made by umd-edge-export"
            )
        if size > MAX_MANIFEST_BYTES:
            raise BundleIntegrityError(
                f"manifest.json has {size} bytes; at most {MAX_MANIFEST_BYTES} are allowed"
            )
        manifest_bytes = container.read(_MANIFEST)
        signed_by = _check_signature(place, container, manifest_bytes, keys) if keys else None
        return cls(place, container, manifest_bytes, signed_by)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(self._container.sizes.values())

    @property
    def is_signed(self) -> bool:
        """Whether a `manifest.sig` is there; `signed_by` says whether it was checked."""
        return _SIGNATURE in self._container.sizes

    @property
    def signatures(self) -> bytes:
        """The bytes of `manifest.sig`, 64 for each signature; none where there is no such file.

        Raises:
            BundleSignatureError: It has another size than 64 bytes times 1 to 8.
        """
        return _read_signatures(self._container) if self.is_signed else b""

    def read(self, name: str) -> bytes:
        """Bytes of one listed file, after its size and SHA-256 were compared.

        Raises:
            BundleIntegrityError: Not listed, truncated or altered.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleIntegrityError(f"{name!r} is not listed in the bundle's manifest")
        data = self._container.read(name)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleIntegrityError(
                f"{name!r} of the bundle is not the file that its manifest describes (SHA-256 "
                "differs); do not use it, fetch the bundle again"
            )
        return data

    def check_files(self) -> None:
        """Read and hash every listed file.

        Raises:
            BundleIntegrityError: For the first file that differs.
        """
        for name in sorted(self.manifest.files):
            self.read(name)

    def _check_listing(self) -> None:
        sizes = dict(self._container.sizes)
        sizes.pop(_MANIFEST)
        sizes.pop(_SIGNATURE, None)
        listed = self.manifest.files
        missing, extra = sorted(set(listed) - set(sizes)), sorted(set(sizes) - set(listed))
        if missing:
            raise BundleIntegrityError(f"files are missing from the bundle: {missing[:5]}")
        if extra:
            raise BundleIntegrityError(
                f"files in the bundle that its manifest does not list: {extra[:5]}; remove them"
            )
        for name, entry in listed.items():
            if sizes[name] != entry.size:
                raise BundleIntegrityError(
                    f"{name!r} has {sizes[name]} bytes, its manifest says {entry.size}: the bundle "
                    "is truncated or altered; fetch it again"
                )


def _read_keys(given: KeyInput | Sequence[KeyInput]) -> Sequence[PublicKey]:
    from ._signature import read_public_keys

    return read_public_keys(given)


def _check_signature(
    path: Path, container: Container, manifest_bytes: bytes, keys: Sequence[PublicKey]
) -> PublicKey:
    if _SIGNATURE not in container.sizes:
        raise BundleSignatureError(
            f"{str(path)!r} is not signed, and a signature is asked for; get the signed bundle, or "
            "sign it: umd-edge-export sign"
        )
    from ._signature import verify_signatures

    return verify_signatures(manifest_bytes, _read_signatures(container), keys)


def _read_signatures(container: Container) -> bytes:
    from ._signature import MAX_SIGNATURES, SIGNATURE_BYTES

    size = container.sizes[_SIGNATURE]
    if size % SIGNATURE_BYTES or not 0 < size <= MAX_SIGNATURES * SIGNATURE_BYTES:
        raise BundleSignatureError(
            f"manifest.sig has {size} bytes; {SIGNATURE_BYTES} for each of 1 to {MAX_SIGNATURES} "
            "signatures are allowed. Sign the bundle again"
        )
    return container.read(_SIGNATURE)


def file_entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Size and hash of each file, for a manifest; the manifest and its signature left out."""
    return {
        name: FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
        if name not in (_MANIFEST, _SIGNATURE)
    }


def write_bundle(
    source: Mapping[str, bytes] | str | os.PathLike[str], out: str | os.PathLike[str]
) -> Bundle:
    """Write a `.umd` file: the same files give the same bytes, and `out` appears whole or not.

    Args:
        source: Path inside the bundle -> bytes, with `manifest.json` among them; or a bundle's
            directory.
        out: The file to write; it is replaced in one step.

    Returns:
        The bundle, opened from `out`, every hash checked.

    Raises:
        BundleError: `manifest.json` is missing, a name is unsafe, or the files are too large.
        BundleIntegrityError: The files are not those that the manifest lists.
        OSError: `out` is no plain file, or cannot be written.
    """
    files = dict(source) if isinstance(source, Mapping) else _read_directory(Path(source))
    if _MANIFEST not in files:
        raise BundleError("manifest.json is missing from the files of the bundle")
    unsafe = sorted(name for name in files if not is_safe_path(name))
    if unsafe:
        raise BundleError(f"unsafe names {unsafe[:5]}; letters, digits, '_', '-', '.' are allowed")
    total = sum(len(data) for data in files.values())
    if total > _MAX_TOTAL_BYTES - (1 << 20) or any(len(d) > MAX_FILE_BYTES for d in files.values()):
        raise BundleError(f"the files have {total} bytes together; 4 GiB, and 2 each, are allowed")
    with whole_file(out) as file:
        write_zip(files, file)
        file.flush()
        Bundle.open(file.name).check_files()
    return Bundle.open(out)


def _read_directory(root: Path) -> dict[str, bytes]:
    if not root.is_dir():
        raise BundleNotFoundError(f"{str(root)!r} is no directory with the files of a bundle")
    container = open_container(root)
    return {name: container.read(name) for name in container.sizes}
