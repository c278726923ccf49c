"""Where a bundle's bytes lie: a directory, or a zip that only stores.

The zip is a strict subset that a hundred lines of any language can read: one disk, no comment, no
compression, no encryption, no data descriptors, no extra fields, no zip64, no links, no folder
entries, local headers that repeat the central directory, and nothing between or before the entries.
Anything else is refused, so two readers can never see two different bundles in one file.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from ._manifest import MAX_FILE_BYTES, MAX_FILES, is_safe_path
from ._record import dataclass
from .errors import BundleError, BundleIntegrityError, BundleNotFoundError

__all__ = ["Container", "open_container", "write_zip"]

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_MAX_ENTRIES = MAX_FILES + 2
_UTF8_FLAG = 0x800
_FIXED_TIME, _FIXED_DATE = 0, (1 << 5) | 1  # 1980-01-01 00:00
_REPACK = "pack it again with `zip -0 -X -D -r` or umd-edge-export"


class Container(Protocol):
    """Read access to the files of a bundle."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Path inside the bundle -> size in bytes, of every file."""

    def read(self, name: str) -> bytes:
        """All bytes of one file of `sizes`."""


def open_container(path: Path) -> Container:
    """Open a bundle's container; reads names and sizes only.

    Raises:
        BundleNotFoundError: Nothing is at `path`.
        BundleIntegrityError: The container breaks a rule of the format.
        BundleError: It cannot be read.
    """
    try:
        return _opened(path)
    except BundleError:
        raise
    except OSError as error:  # a folder that may not be looked into
        raise BundleError(f"bundle {str(path)!r} cannot be read: {error.strerror}") from error


def _opened(path: Path) -> Container:
    if path.is_dir():
        return _Directory(path)
    if not path.exists():
        raise BundleNotFoundError(
            f"no bundle at {str(path)!r}; give the path of a .umd file or of a bundle's directory"
        )
    if not path.is_file():
        raise BundleIntegrityError(f"{str(path)!r} is neither a file nor a directory")
    return _Zip(path)


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.sizes: dict[str, int] = {}
        self._scan(root, "")

    def _scan(self, folder: Path, prefix: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if not is_safe_path(name):
                    raise BundleIntegrityError(
                        f"the bundle holds a file named {name[:200]!r}: "
                        "names of letters, digits, '_', '-', '.' are allowed"
                    )
                if entry.is_symlink():
                    raise BundleIntegrityError(
                        f"{name!r} is a link; a bundle holds plain files only"
                    )
                if entry.is_dir():
                    self._scan(Path(entry.path), name + "/")
                    continue
                if not entry.is_file():
                    raise BundleIntegrityError(f"{name!r} is not a plain file")
                self.sizes[name] = entry.stat(follow_symlinks=False).st_size
                if len(self.sizes) > _MAX_ENTRIES:
                    raise BundleIntegrityError(f"more than {_MAX_ENTRIES} files in the bundle")

    def read(self, name: str) -> bytes:
        # A link or pipe put there after the scan must not be followed or waited for.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            descriptor = os.open(self._root / name, flags | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise BundleIntegrityError(f"{name!r} of the bundle cannot be opened") from error
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleIntegrityError(f"{name!r} is not a plain file")
            return _read_exactly(file, self.sizes[name], name)


def _read_exactly(file: BinaryIO, size: int, name: str) -> bytes:
    if size > MAX_FILE_BYTES:
        raise BundleIntegrityError(f"{name!r} has {size} bytes; at most {MAX_FILE_BYTES} allowed")
    data = file.read(size)
    if len(data) != size:
        raise BundleIntegrityError(f"{name!r} ends early: the bundle is truncated or has changed")
    return data


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    size: int
    crc: int


class _Zip:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, _Entry] = {}
        try:
            with path.open("rb") as file:
                self._index(file)
        except OSError as error:
            raise BundleError(f"bundle {str(path)!r} cannot be read: {error.strerror}") from error

    @property
    def sizes(self) -> dict[str, int]:
        return {name: entry.size for name, entry in self._entries.items()}

    def read(self, name: str) -> bytes:
        entry = self._entries[name]
        try:
            with self._path.open("rb") as file:
                file.seek(entry.offset)
                data = _read_exactly(file, entry.size, name)
        except OSError as error:
            raise BundleError(f"bundle {str(self._path)!r} cannot be read") from error
        if zlib.crc32(data) != entry.crc:
            raise BundleIntegrityError(f"{name!r} is damaged (CRC-32 differs); copy the file again")
        return data

    def _index(self, file: BinaryIO) -> None:
        length = file.seek(0, os.SEEK_END)
        if length < _END.size:
            raise self._bad(f"it has {length} bytes only")
        file.seek(length - _END.size)
        signature, disk, start_disk, here, count, size, offset, comment = _END.unpack(
            file.read(_END.size)
        )
        if signature != b"PK\x05\x06":
            raise self._bad("it is truncated, has a comment, or is no zip; copy it again")
        if (disk, start_disk, comment) != (0, 0, 0) or here != count or count > _MAX_ENTRIES:
            raise self._bad(f"it says {count} entries; at most {_MAX_ENTRIES} on one disk allowed")
        if offset + size + _END.size != length:
            raise self._bad("its directory is not where its end says")
        file.seek(offset)
        directory = file.read(size)
        position = expected = 0
        for _ in range(count):
            position, expected = self._add(file, directory, position, expected)
        if position != size or expected != offset:
            raise self._bad("bytes lie between or after its entries")

    def _add(
        self, file: BinaryIO, directory: bytes, position: int, expected: int
    ) -> tuple[int, int]:
        """Check one central entry and its local header; return where the next ones must start."""
        fixed = directory[position : position + _CENTRAL.size]
        if len(fixed) != _CENTRAL.size:
            raise self._bad("its directory ends early")
        (
            (signature, _, _, flags, method, _, _, crc, packed, size),
            (name_length, extra, comment, disk, _, attributes, offset),
        ) = (_CENTRAL.unpack(fixed)[:10], _CENTRAL.unpack(fixed)[10:])
        raw = directory[position + _CENTRAL.size : position + _CENTRAL.size + name_length]
        name = raw.decode("ascii", "replace")
        if signature != b"PK\x01\x02" or len(raw) != name_length:
            raise self._bad("its directory is damaged")
        if not is_safe_path(name):
            raise self._bad(f"an entry is named {name[:200]!r}, which may leave the bundle")
        if name.casefold() in {known.casefold() for known in self._entries}:
            raise self._bad(f"{name!r} occurs twice")
        if stat.S_IFMT(attributes >> 16) not in (0, stat.S_IFREG):
            raise self._bad(f"{name!r} is a link or a special file")
        if method != 0 or packed != size or flags & ~_UTF8_FLAG or extra or comment or disk:
            raise self._bad(f"{name!r} is compressed, encrypted or has extra fields; {_REPACK}")
        if offset != expected:
            raise self._bad(f"{name!r} does not follow the entry before it; {_REPACK}")
        self._check_local(file, name, (flags, method, crc, packed, size, name_length), offset)
        start = offset + _LOCAL.size + name_length
        self._entries[name] = _Entry(start, size, crc)
        return position + _CENTRAL.size + name_length, start + size

    def _check_local(
        self, file: BinaryIO, name: str, central: tuple[int, ...], offset: int
    ) -> None:
        file.seek(offset)
        fixed = file.read(_LOCAL.size)
        if len(fixed) != _LOCAL.size:
            raise self._bad(f"{name!r} ends early")
        signature, _, flags, method, _, _, crc, packed, size, name_length, extra = _LOCAL.unpack(
            fixed
        )
        local = (flags, method, crc, packed, size, name_length)
        if signature != b"PK\x03\x04" or extra or local != central:
            raise self._bad(f"{name!r} differs between its header and the directory; {_REPACK}")
        if file.read(name_length) != name.encode("ascii"):
            raise self._bad(f"{name!r} has another name in its header")

    def _bad(self, problem: str) -> BundleIntegrityError:
        return BundleIntegrityError(f"{str(self._path)!r} is no usable bundle: {problem}")


def write_zip(files: Mapping[str, bytes], out: BinaryIO) -> None:
    """Write the strict zip: sorted names, `manifest.json` first, fixed dates, nothing else.

    Args:
        files: Safe path inside the bundle -> bytes.
        out: Opened for writing at position 0.
    """
    directory = bytearray()
    offset = 0
    names = sorted(files, key=lambda name: (name != "manifest.json", name))
    for name in names:
        raw, data = name.encode("ascii"), files[name]
        crc, size = zlib.crc32(data), len(data)
        common = (0, 0, _FIXED_TIME, _FIXED_DATE, crc, size, size, len(raw), 0)
        out.write(_LOCAL.pack(b"PK\x03\x04", 20, *common) + raw)
        out.write(data)
        made_by, mode = (3 << 8) | 20, (stat.S_IFREG | 0o644) << 16
        directory += _CENTRAL.pack(b"PK\x01\x02", made_by, 20, *common, 0, 0, 0, mode, offset) + raw
        offset += _LOCAL.size + len(raw) + size
    out.write(directory)
    end = (b"PK\x05\x06", 0, 0, len(names), len(names), len(directory), offset, 0)
    out.write(_END.pack(*end))
