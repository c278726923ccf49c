"""A results file in Parquet, which cannot grow row by row.

Until the run is finished its rows stand in `<name>.part` beside it, as JSON Lines that are gone on
with like any other results file; then the Parquet file is written whole and the rows are removed.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ._files import sync_folder
from ._table import ResultTable
from ._table_rows import JsonRows
from .errors import MissingDependencyError, UsageError

__all__ = ["ParquetTable"]

_ROWS_AT_ONCE = 4096


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            "results in Parquet need pyarrow, which is not installed; run `pip install "
            "'umd-edge[parquet]'`, or write .csv or .jsonl"
        ) from error
    return pyarrow, pyarrow.parquet


class ParquetTable(ResultTable):
    """See `ResultTable` and the module."""

    def __init__(self, path: Path, columns: Mapping[str, type], run: str) -> None:
        """As `ResultTable`.

        Raises:
            MissingDependencyError: pyarrow is not installed.
        """
        self._arrow, self._parquet = _pyarrow()
        types = {
            str: self._arrow.string(),
            int: self._arrow.int64(),
            float: self._arrow.float64(),
            bool: self._arrow.bool_(),
        }
        self._schema = self._arrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._target = path
        part = path.with_name(path.name + ".part")
        if path.exists() and not part.exists():
            self._unpack(part)
        super().__init__(part, JsonRows(flat=True), run)

    def finish(self) -> None:
        """Write the Parquet file and remove the rows that it was made of."""
        super().finish()
        temporary = self._target.with_name(f".{self._target.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                writer = self._parquet.ParquetWriter(file, self._schema, compression="zstd")
                with writer, open(self._path, "rb") as rows:
                    lines = map(json.loads, rows)
                    while chunk := list(itertools.islice(lines, _ROWS_AT_ONCE)):
                        writer.write_table(self._arrow.Table.from_pylist(chunk, self._schema))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._target)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(self._target.parent)
        self._path.unlink()

    def _unpack(self, part: Path) -> None:
        """Turn a finished file back into rows, to go on with."""
        temporary = part.with_name(f".{part.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                for row in self._rows_of(self._target):
                    known = {key: value for key, value in row.items() if value is not None}
                    file.write(json.dumps(known, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, part)
        finally:
            temporary.unlink(missing_ok=True)

    def _rows_of(self, path: Path) -> Iterator[dict[str, Any]]:
        try:
            with self._parquet.ParquetFile(path) as file:
                if not file.schema_arrow.equals(self._schema):
                    raise UsageError(
                        f"{str(path)!r} cannot be gone on with: its columns are not those of this "
                        "task. Name another file, or remove this one"
                    )
                for batch in file.iter_batches(_ROWS_AT_ONCE):
                    yield from batch.to_pylist()
        except self._arrow.ArrowInvalid as error:
            raise UsageError(
                f"{str(path)!r} cannot be gone on with: it is no readable Parquet file. Name "
                "another file, or remove this one"
            ) from error
