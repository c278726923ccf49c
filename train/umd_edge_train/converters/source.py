"""Files of a source: found, hashed and read, with errors that name file and line, never a value."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from umd_edge.errors import DataError

from .texts import collapse

__all__ = ["Missing", "Row", "Source"]

Missing = Literal["error", "drop"]


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a source. Its repr shows where it stands, never what it says."""

    where: str
    """`file:line`, or `file: record 12` in a JSON list; for messages."""
    values: Mapping[str, Any] = field(repr=False)

    def text(self, key: str) -> str:
        """A value as text without needless whitespace.

        Raises:
            DataError: It is absent or empty.
        """
        value = self.optional(key)
        if value is None:
            raise DataError(f"{self.where}: no `{key}`; repair the file or take it from its source")
        return value

    def optional(self, key: str) -> str | None:
        """A value as text, or None where it is absent or empty.

        Raises:
            DataError: It is a list or an object.
        """
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, list | dict):
            raise DataError(f"{self.where}: `{key}` must be a text or a number")
        return collapse(str(value)) or None


class Source:
    """The folder that a user downloaded.

    Args:
        folder: An existing folder.
        missing: What to do about a record without its picture.

    Raises:
        DataError: There is no such folder.
    """

    def __init__(self, folder: Path, missing: Missing = "error") -> None:
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; give the folder that the set was unpacked to"
            )
        self.folder = folder.resolve()
        self.missing: Missing = missing
        self.dropped: Counter[str] = Counter()
        """Reason -> number of records left out."""
        self.hashes: dict[str, str] = {}
        """File that was read -> SHA-256."""

    def find(self, *names: str) -> Path | None:
        """The first of these paths, relative to the folder, that exists."""
        return next((self.folder / name for name in names if (self.folder / name).exists()), None)

    def need(self, what: str, *names: str) -> Path:
        """The first of these paths that exists.

        Raises:
            DataError: None does.
        """
        found = self.find(*names)
        if found is None:
            listed = ", ".join(repr(name) for name in names)
            raise DataError(f"{self.folder.name}: no {what} here; one of {listed} is needed")
        return found

    def text(self, path: Path) -> str:
        """The whole text of a file, without a byte order mark.

        Raises:
            DataError: It cannot be read as UTF-8.
        """
        data = self._bytes(path)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise DataError(f"{path.name}:{line}: not UTF-8; save the file as UTF-8") from error

    def lines(self, path: Path) -> list[tuple[str, str]]:
        """Lines that are not blank, each with its `file:line`."""
        numbered = enumerate(self.text(path).split("\n"), start=1)
        return [(f"{path.name}:{n}", line.rstrip("\r")) for n, line in numbered if line.strip()]

    def json_list(self, path: Path) -> list[Row]:
        """A file that is one JSON list of objects.

        Raises:
            DataError: It is not; the line is named where the JSON itself is broken.
        """
        try:
            items = json.loads(self.text(path))
        except json.JSONDecodeError as error:
            raise DataError(f"{path.name}:{error.lineno}: not valid JSON") from error
        except RecursionError as error:
            raise DataError(f"{path.name}: not valid JSON (nested too deep)") from error
        if not isinstance(items, list):
            raise DataError(f"{path.name}: a JSON list of records is needed")
        rows = [Row(f"{path.name}: record {n}", item) for n, item in enumerate(items, start=1)]
        for row in rows:
            if not isinstance(row.values, dict):
                raise DataError(f"{row.where}: a JSON object is needed")
        return rows

    def json_lines(self, path: Path) -> Iterator[Row]:
        """A file with one JSON object a line, which may be larger than memory.

        Raises:
            DataError: A line is none.
        """
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    digest.update(line)
                    if line.strip():
                        yield _json_row(f"{path.name}:{number}", line)
        except OSError as error:
            raise DataError(f"{path.name}: cannot be read ({error.strerror})") from error
        self._remember(path, digest.hexdigest())

    def csv(self, path: Path, columns: Sequence[str]) -> list[Row]:
        """A comma-separated file with a header.

        Raises:
            DataError: A column is missing, or a line has more or fewer fields than the header.
        """
        reader = csv.reader(io.StringIO(self.text(path), newline=""), strict=True)
        rows: list[Row] = []
        try:
            header = [name.strip() for name in next(reader, [])]
            lacking = [name for name in columns if name not in header]
            if lacking:
                raise DataError(f"{path.name}:1: no column {', '.join(map(repr, lacking))}")
            for record in reader:
                if not record:
                    continue
                where = f"{path.name}:{reader.line_num}"
                if len(record) != len(header):
                    raise DataError(
                        f"{where}: {len(record)} fields where the header has {len(header)}"
                    )
                rows.append(Row(where, dict(zip(header, record, strict=True))))
        except csv.Error as error:
            raise DataError(f"{path.name}:{reader.line_num}: not valid CSV ({error})") from error
        return rows

    def image(self, where: str, folders: Sequence[Path], *names: str) -> Path | None:
        """The picture of a record: the first of these names in the first folder that has one.

        Returns:
            Its path, or None where it is missing and such records are to be left out.

        Raises:
            DataError: It is missing, or a name leads out of the folder.
        """
        for name in names:
            parts = PurePosixPath(name.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts or ":" in name:
                raise DataError(f"{where}: its picture's name leads out of the folder")
            for folder in folders:
                if (folder / parts).is_file():
                    return folder / parts
        if self.missing == "drop":
            self.drop("missing picture")
            return None
        listed = ", ".join(sorted({repr(folder.name) for folder in folders})) or "the source"
        raise DataError(
            f"{where}: its picture is not in {listed}; unpack all pictures, or have such records "
            "left out (--missing drop)"
        )

    def drop(self, reason: str, count: int = 1) -> None:
        """Count records that are left out."""
        if count:
            self.dropped[reason] += count

    def _bytes(self, path: Path) -> bytes:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path.name}: cannot be read ({error.strerror})") from error
        self._remember(path, hashlib.sha256(data).hexdigest())
        return data

    def _remember(self, path: Path, digest: str) -> None:
        inside = path.is_relative_to(self.folder)
        self.hashes[path.relative_to(self.folder).as_posix() if inside else path.name] = digest


def _json_row(where: str, line: bytes) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON") from error
    if not isinstance(values, dict):
        raise DataError(f"{where}: a JSON object is needed on each line")
    return Row(where, values)
