"""A results file that grows by whole rows and can be gone on with after any interruption.

Rows are only ever appended, each by one write. When the file is opened again, a half-written last
row is cut off, rows with an error are taken out to be tried again, and all others stay. A row that
was made by another bundle, task or option is refused. A killed process loses no row; a power cut
loses those of the last second, which are then made again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

from ._files import sync_folder
from ._table_rows import CsvRows, JsonRows, RowFormat, columns_of
from .errors import UsageError

__all__ = ["ResultTable", "open_table"]

_SYNC_S = 1.0
_LONGEST_ROW = 1 << 20
_MOST_NEWLINES = 16


class ResultTable:
    """Rows of one run in one file; a context manager.

    Attributes:
        done: Images that have a row.
        resumed: How many rows were there when the file was opened.
        retried: How many rows with an error were taken out.
    """

    def __init__(self, path: Path, rows: RowFormat, run: str) -> None:
        """Open the file, or make it.

        Raises:
            UsageError: The file holds something else, or another process writes it.
            OSError: The folder is missing, or the file may not be written.
        """
        self._path, self._rows, self._run = path, rows, run
        self.done: set[str] = set()
        self.retried = 0
        self._file = _open_locked(path)
        try:
            failed = self._scan()
            if failed:
                self._take_out(failed)
        except BaseException:
            self._file.close()
            raise
        self.resumed = len(self.done)
        self._synced = monotonic()

    def __enter__(self) -> ResultTable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._sync()
        finally:
            self._file.close()

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one row.

        Raises:
            OSError: It could not be written whole, and is not there in part.
        """
        image = str(line["image"])
        if image in self.done:
            raise ValueError("the image has a row already")
        self._append(self._rows.encode({**line, "run": self._run}))
        self.done.add(image)
        if monotonic() - self._synced > _SYNC_S:
            self._sync()

    def finish(self) -> None:
        """Make the file what its name says, where it is not yet: all rows are there."""
        self._sync()

    def _append(self, data: bytes) -> None:
        start = self._file.tell()
        try:
            _write(self._file, data)
        except OSError as error:
            with contextlib.suppress(OSError):  # opening the file again cuts it off too
                self._file.truncate(start)
                self._file.seek(start)
            error.filename = error.filename or str(self._path)
            raise

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = monotonic()

    def _scan(self) -> int:
        """Learn what is there, cut off a half-written end; gives back how many rows failed."""
        header = self._rows.header
        end, failed = 0, 0
        with open(self._path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            start = file.read(len(self._rows.start))
            # Looked at first: somebody's picture must neither be read whole nor be cut off.
            if start != self._rows.start[: len(start)]:
                raise self._foreign("it does not start as rows of this task do")
            file.seek(0)
            for number, data in enumerate(self._rows.records(file)):
                end += len(data)
                if number or not header:
                    failed += self._learn(number, data)
            file.seek(end)
            rest = file.read(_LONGEST_ROW + 1)
        # One row that was cut off is short; where a lost quote hides many of them, all must stay.
        if len(rest) > _LONGEST_ROW or rest.count(b"\n") > _MOST_NEWLINES:
            raise self._foreign(f"it is damaged {end} bytes from its start")
        if end < size:
            self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._append(header)
            sync_folder(self._path.parent)
        return failed

    def _learn(self, number: int, data: bytes) -> bool:
        try:
            row = self._rows.decode(data)
        except ValueError as error:
            raise self._foreign(f"its row {number} is no row of umd-edge classify") from error
        if row.run != self._run:
            raise self._foreign(
                f"its row {number} was made by another bundle, variant, provider, task or option"
            )
        if not row.failed:
            self.done.add(row.image)
        return row.failed

    def _take_out(self, failed: int) -> None:
        """Write the rows without an error to a file of their own, and let it take the place."""
        # One name for all times, as the lock is held: what a killed process left is used again.
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            kept = _open_locked(temporary)
            try:
                kept.truncate(0)
                with open(self._path, "rb") as file:
                    for number, data in enumerate(self._rows.records(file)):
                        first = number == 0 and bool(self._rows.header)
                        if first or not self._rows.decode(data).failed:
                            _write(kept, data)
                os.fsync(kept.fileno())
                shutil.copymode(self._path, temporary)
                os.replace(temporary, self._path)
            except BaseException:
                kept.close()
                raise
        finally:
            temporary.unlink(missing_ok=True)
        self._file.close()
        self._file = kept
        self.retried = failed
        sync_folder(self._path.parent)

    def _foreign(self, why: str) -> UsageError:
        return UsageError(
            f"{str(self._path)!r} cannot be gone on with: {why}. Name another file, or remove this "
            "one"
        )


def open_table(path: str | os.PathLike[str], labels: Sequence[str], run: str) -> ResultTable:
    """The results file at `path`, by its suffix; gone on with where it is there.

    Args:
        path: Ends in `.csv`, `.jsonl` or `.parquet`.
        labels: Of the task, for the columns.
        run: What `run_of` gives; rows of another run are refused.

    Raises:
        UsageError: Another suffix, a file that holds something else, or one that another process
            writes.
        MissingDependencyError: Parquet, and the extra `parquet` is not installed.
        OSError: The folder is missing, or the file may not be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix == ".jsonl":
        return ResultTable(target, JsonRows(), run)
    if suffix == ".csv":
        return ResultTable(target, CsvRows(tuple(columns_of(labels))), run)
    if suffix == ".parquet":
        from ._table_parquet import ParquetTable

        return ParquetTable(target, columns_of(labels), run)
    raise UsageError(
        f"{target.name!r} given for the results; a name that ends in .csv, .jsonl or .parquet is "
        "needed"
    )


def _write(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _open_locked(path: Path) -> FileIO:
    """Open for reading and appending, unbuffered, by this process alone."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    file = FileIO(os.open(path, flags, 0o666), "r+")
    try:
        _lock(file)
    except OSError as error:
        file.close()
        raise UsageError(
            f"{str(path)!r} is being written by another process; wait for it, or name another file"
        ) from error
    return file


if sys.platform == "win32":

    def _lock(file: FileIO) -> None:
        import msvcrt

        # Far behind every row: Windows keeps others from reading what is locked.
        file.seek(1 << 40)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:

    def _lock(file: FileIO) -> None:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
