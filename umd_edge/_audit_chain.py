"""The chain of an audit log: its lines, its files, and verifying them.

A log is JSON Lines. Each line ends with the SHA-256 of itself without that last member, and holds
that of the line before it as `previous` (64 zeros in the first one), so that no line can be
changed, taken out or put in without changing every later one. When a file is full it is renamed to
`<name>.000001`, `<name>.000002` ... and the chain goes on in a new one. The last hash, kept
somewhere else, is what shows a log that was cut or written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ._json import load_strict
from .errors import AuditError, UsageError

__all__ = [
    "AUDIT_VERSION",
    "FIRST",
    "AuditReport",
    "Link",
    "encode_line",
    "last_link",
    "log_files",
    "read_log",
    "verify_log",
]

AUDIT_VERSION = 1
FIRST = "0" * 64
"""`previous` of the first record of a log."""
MAX_LINE_BYTES = 1 << 20
_PART = re.compile(r"\.(\d{6,9})")
_HASH = re.compile(r"[0-9a-f]{64}")
_OWN_HASH = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\Z')
_CHUNK = 64 << 10


@dataclass(frozen=True, slots=True)
class Link:
    """One record and its place in the chain."""

    record: Mapping[str, Any]
    sha256: str
    """The record's own hash, which the next one has as `previous`."""
    file: Path
    line: int
    """Counted from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What `verify_log` found; the chain holds."""

    files: tuple[Path, ...]
    records: int
    first: int
    """`seq` of the first record."""
    head: str
    """SHA-256 of the last record: the value to keep elsewhere."""
    time: str
    """Of the last record."""
    torn_bytes: int = 0
    """Bytes of a half-written line at the end, which the next writer moves aside and notes."""
    recovered: int = 0
    """Records that note such a line."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "files": [str(path) for path in self.files],
            "records": self.records,
            "first": self.first,
            "head": self.head,
            "time": self.time,
            "torn_bytes": self.torn_bytes,
            "recovered": self.recovered,
        }


def encode_line(record: Mapping[str, Any]) -> tuple[bytes, str]:
    """A record as its line, without the line feed, and its hash.

    Args:
        record: Everything but `sha256`, which becomes the last member.
    """
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    body = text.encode("ascii")
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + b',"sha256":"%s"}' % digest.encode("ascii"), digest


def log_files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The files of a log from the oldest to the newest: its full parts, then `path` itself.

    Raises:
        AuditError: There is none.
    """
    place = Path(path)
    parts = []
    if place.parent.is_dir():
        for other in place.parent.iterdir():
            suffix = other.name.removeprefix(place.name)
            if other.name.startswith(place.name) and _PART.fullmatch(suffix):
                parts.append((int(suffix[1:]), other))
    files = [other for _, other in sorted(parts)]
    if place.is_file():
        files.append(place)
    if not files:
        raise AuditError(f"no audit log at {str(place)!r}")
    return tuple(files)


def last_link(path: Path) -> tuple[Link | None, int]:
    """The last whole record of a file, and the number of bytes up to its end.

    Only the end of the file is read. None and 0 where the file holds no whole line.

    Raises:
        AuditError: The last whole line is no record.
    """
    with path.open("rb") as file:
        end = _last_newline(file) + 1
        if end == 0:
            return None, 0
        start = max(0, end - 1 - MAX_LINE_BYTES)
        file.seek(start)
        tail = file.read(end - 1 - start)
    line = tail[tail.rfind(b"\n") + 1 :]
    return _parse(line, path, 0), end


def _last_newline(file: BinaryIO) -> int:
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - _CHUNK)
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + found
        position = start
    return -1


def read_log(path: str | os.PathLike[str]) -> Iterator[Link]:
    """The records of a log, oldest first, each one checked against the one before.

    A half-written line at the very end is left out.

    Raises:
        AuditError: A record is missing, altered, out of place or none at all; or there is no log.
    """
    yield from _links(log_files(path), [0])


def verify_log(
    path: str | os.PathLike[str], *, after: str = FIRST, anchors: Sequence[str] = ()
) -> AuditReport:
    """Follow the chain of a log through all its files.

    Args:
        path: The log's file; its full parts beside it are found.
        after: Hash of the record before the first one, where older parts were put away.
        anchors: Hashes of records, kept elsewhere, that the log must hold.

    Raises:
        UsageError: An anchor, or `after`, is no hash.
        AuditError: The chain is broken, does not begin behind `after`, or lacks an anchor.
    """
    for given in (after, *anchors):
        if not _HASH.fullmatch(given):
            raise UsageError(
                f"{given!r} is no hash of a record: 64 lower-case hexadecimal digits are needed, "
                "as `umd-edge audit head` prints them"
            )
    files = log_files(path)
    torn = [0]
    missing = set(anchors) - {FIRST}
    records = recovered = 0
    first = last = None
    for link in _links(files, torn):
        first, last = first or link, link
        records += 1
        recovered += link.record["event"] == "recovered"
        missing.discard(link.sha256)
    if first is None or last is None:
        raise AuditError(f"the audit log {str(path)!r} holds no whole record")
    if first.record["previous"] != after:
        raise AuditError(
            f"the audit log begins with record {first.record['seq']}, which follows "
            f"{first.record['previous']}, not {after}: its beginning is missing. Put the older "
            "parts beside it, or name the hash of the record before it (--after)"
        )
    if missing:
        raise AuditError(
            f"the audit log lacks the record {sorted(missing)[0]}: it was cut or written anew"
        )
    return AuditReport(
        files=files,
        records=records,
        first=first.record["seq"],
        head=last.sha256,
        time=last.record["time"],
        torn_bytes=torn[0],
        recovered=recovered,
    )


def _links(files: Sequence[Path], torn: list[int]) -> Iterator[Link]:
    """Records of all files, each checked against the one before; `torn[0]` gets the loose end."""
    before: Link | None = None
    for number, path in enumerate(files, 1):
        try:
            file = path.open("rb")
        except OSError as error:
            raise AuditError(f"{str(path)!r} cannot be read: {error.strerror}") from error
        with file:
            line_number = 0
            while line := file.readline(MAX_LINE_BYTES + 2):
                line_number += 1
                if not line.endswith(b"\n"):
                    if number < len(files) or len(line) > MAX_LINE_BYTES:
                        raise _broken(path, line_number, "is cut short")
                    torn[0] = len(line)
                    return
                link = _parse(line[:-1], path, line_number)
                _check_order(link, before)
                before = link
                yield link


def _check_order(link: Link, before: Link | None) -> None:
    if before is None:
        return
    if link.record["previous"] != before.sha256:
        raise _broken(
            link.file, link.line, "does not follow the one before: one was changed or taken out"
        )
    if link.record["seq"] != before.record["seq"] + 1:
        raise _broken(link.file, link.line, "has another number than the next one")


def _parse(line: bytes, path: Path, number: int) -> Link:
    own = _OWN_HASH.search(line)
    if own is None:
        raise _broken(path, number, "is no record: it does not end with its hash")
    digest = hashlib.sha256(line[: own.start()] + b"}").hexdigest()
    if digest != own[1].decode("ascii"):
        raise _broken(path, number, "was changed: its hash is another one")
    try:
        record = load_strict(line)
    except (ValueError, RecursionError) as error:
        raise _broken(path, number, "is no record") from error
    if not isinstance(record, dict) or record.get("audit") != AUDIT_VERSION:
        raise _broken(path, number, f"is no record of version {AUDIT_VERSION}")
    types = {"seq": int, "previous": str, "event": str, "time": str}
    if any(type(record.get(key)) is not kind for key, kind in types.items()):
        raise _broken(path, number, f"lacks one of {sorted(types)}")
    return Link(record, digest, path, number)


def _broken(path: Path, line: int, problem: str) -> AuditError:
    place = f"line {line}" if line else "the last line"
    return AuditError(
        f"{str(path)!r}: {place} {problem}; from here on the audit log proves nothing. Keep it as "
        "it is and start another one"
    )
