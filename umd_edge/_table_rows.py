"""Rows of a results file: what a line of `classify` becomes in CSV, JSON Lines and Parquet."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

__all__ = ["CsvRows", "JsonRows", "Row", "RowFormat", "columns_of", "flatten", "run_of"]

_LEADING = {
    "image": str,
    "index": int,
    "task": str,
    "status": str,
    "reason": str,
    "error_type": str,
    "error_message": str,
}
_TRAILING = {
    "bundle_name": str,
    "bundle_version": str,
    "bundle_sha256": str,
    "variant": str,
    "provider": str,
    "int8_path": str,
    "run": str,
    "decode_ms": float,
    "preprocess_ms": float,
    "vision_ms": float,
    "text_ms": float,
    "fusion_ms": float,
    "total_ms": float,
    "more": str,
}
_FINDING = {"label", "probability", "positive"}


class Row(NamedTuple):
    """What resuming needs to know of a row that is there."""

    image: str
    run: str
    failed: bool


def run_of(facts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that differ whenever bundle, task or an option differs.

    Args:
        facts: Everything that a result depends on beside the image, as JSON values.
    """
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def columns_of(labels: Sequence[str]) -> dict[str, type]:
    """Column -> str, int, float or bool, for a task with these labels."""
    probabilities = {f"probability_{label}": float for label in labels}
    positives = {f"positive_{label}": bool for label in labels}
    return {**_LEADING, **probabilities, **positives, **_TRAILING}


def flatten(line: Mapping[str, Any]) -> dict[str, Any]:
    """Column -> value of a line of `classify`; what has no column of its own is JSON in `more`."""
    rest = dict(line)
    flat: dict[str, Any] = {}
    for key in ("image", "index", "task", "status", "reason", "variant", "provider", "int8_path"):
        if key in rest:
            flat[key] = rest.pop(key)
    for prefix, key in (("error_", "error"), ("bundle_", "bundle")):
        flat.update({prefix + name: value for name, value in rest.pop(key, {}).items()})
    flat.update({f"{name}_ms": value for name, value in rest.pop("timing_ms", {}).items()})
    flat["run"] = rest.pop("run")
    extras = []
    for finding in rest.pop("findings", []):
        label = finding["label"]
        flat[f"probability_{label}"] = finding["probability"]
        flat[f"positive_{label}"] = finding["positive"]
        more = {key: value for key, value in finding.items() if key not in _FINDING}
        if more:
            extras.append({"label": label, **more})
    if extras:
        rest["findings"] = extras
    if rest:
        flat["more"] = json.dumps(rest, ensure_ascii=False, sort_keys=True, allow_nan=False)
    return flat


class RowFormat(ABC):
    """How rows become bytes and bytes rows; a row always ends with a newline.

    Attributes:
        header: The first row, where there is one.
        start: What the file starts with.
    """

    header = b""
    start = b'{"image": "'

    @abstractmethod
    def encode(self, line: Mapping[str, Any]) -> bytes:
        """The bytes of one row."""

    @abstractmethod
    def decode(self, data: bytes) -> Row:
        """What resuming needs of one row's bytes.

        Raises:
            ValueError: These are no bytes of a row.
        """

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """The bytes of each whole row, from where the file stands; a last part is left out."""
        for data in file:
            if data.endswith(b"\n"):
                yield data


class JsonRows(RowFormat):
    """JSON Lines; `flat` for the rows that a Parquet file is made of."""

    def __init__(self, *, flat: bool = False) -> None:
        self._flat = flat

    def encode(self, line: Mapping[str, Any]) -> bytes:
        """As `RowFormat`."""
        row = flatten(line) if self._flat else line
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    def decode(self, data: bytes) -> Row:
        """As `RowFormat`."""
        row = json.loads(data)
        if not isinstance(row, dict):
            raise ValueError("no object")
        return _row(row.get("image"), row.get("run"), "error" in row or "error_type" in row)


class CsvRows(RowFormat):
    """CSV as RFC 4180 has it, in UTF-8 with a header."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self.header = self.start = self._join(self._columns)

    @staticmethod
    def _join(values: Sequence[Any]) -> bytes:
        out = io.StringIO()
        csv.writer(out, lineterminator="\r\n").writerow(values)
        return out.getvalue().encode()

    def encode(self, line: Mapping[str, Any]) -> bytes:
        """As `RowFormat`; true and false are written as 1 and 0, a missing value as nothing."""
        flat = flatten(line)
        values = [flat.get(column) for column in self._columns]
        return self._join([int(v) if isinstance(v, bool) else v for v in values])

    def decode(self, data: bytes) -> Row:
        """As `RowFormat`."""
        try:
            (values,) = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        except csv.Error as error:
            raise ValueError("no row of CSV") from error
        if len(values) != len(self._columns):
            raise ValueError("another number of columns")
        row = dict(zip(self._columns, values, strict=True))
        return _row(row["image"], row["run"], bool(row["error_type"]))

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """As `RowFormat`; a newline between quotes does not end a row."""
        parts: list[bytes] = []
        quotes = 0
        for part in file:
            parts.append(part)
            quotes += part.count(b'"')
            if quotes % 2 == 0 and part.endswith(b"\n"):
                yield b"".join(parts)
                parts, quotes = [], 0


def _row(image: object, run: object, failed: bool) -> Row:
    if not isinstance(image, str) or not isinstance(run, str):
        raise ValueError("no image or no run")
    return Row(image, run, failed)
