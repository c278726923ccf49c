"""`AuditLog`: what was judged by what and with which outcome, one durable line each.

A record holds hashes, never data of a patient: the SHA-256 of the image, and keyed hashes
(HMAC-SHA256) of a question, a text or values. Texts are short and easily guessed, so that a plain
hash of them would tell them to whoever tries a list; the key lies in a file of its own beside the
log and need not leave the device.

The rule to remember: a result is handed over only after its record is on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._audit_chain import AUDIT_VERSION, FIRST, Link, encode_line, last_link, log_files
from ._audit_secret import keyed_hash, make_secret, read_secret
from ._files import sync_folder, write_whole
from ._lock import FileLock
from ._results import Alternative, Answer, Classification
from .errors import AuditError, AuditWriteError, UsageError

if TYPE_CHECKING:
    from ._results import Result

__all__ = ["AuditLog"]

MIN_BYTES = 4096
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
_OPERATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class AuditLog:
    """An append-only log for `Predictor.load(audit=...)`; one writer at a time.

    It may be used from many threads at once, but not from a forked process. What a killed writer
    left half-written is moved into `<name>.torn-<hash>` when the log is opened, and noted.

    Example:
        >>> log = umd_edge.AuditLog("audit.jsonl", operator="ward-3")  # doctest: +SKIP
        >>> predictor = umd_edge.Predictor.load("model.umd", audit=log)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        operator: str | None = None,
        max_bytes: int = 64 << 20,
        secret: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open or begin a log.

        Args:
            path: The log's file, in an existing folder.
            operator: Who runs the program, for every record: a role or a number, no name of a
                patient; ASCII letters, digits, `.`, `_`, `@`, `-`, at most 64.
            max_bytes: A file that would become larger is renamed and a new one begun.
            secret: File of the key of the keyed hashes; `<path>.secret` where None. It is made
                where it is missing.

        Raises:
            UsageError: The operator or `max_bytes` is not allowed.
            AuditWriteError: Another process writes the log, or it cannot be written.
            AuditError: The end of the log is damaged; nothing is appended to it.
        """
        if operator is not None and not _OPERATOR.fullmatch(operator):
            raise UsageError("operator: up to 64 of A-Z a-z 0-9 . _ @ - are allowed")
        if type(max_bytes) is not int or max_bytes < MIN_BYTES:
            raise UsageError(f"max_bytes {max_bytes!r} given; at least {MIN_BYTES} is needed")
        self.path = Path(path)
        if not self.path.name:
            raise UsageError(f"{os.fspath(path)!r} names no file for the audit log; give one")
        self._operator = operator
        self._max_bytes = max_bytes
        self._guard = threading.RLock()
        self._process = os.getpid()
        self._file = -1
        self._size = 0
        self._seq = -1
        self._head = FIRST
        if self.path.exists() and not self.path.is_file():
            raise AuditWriteError(
                f"the audit log {str(self.path)!r} cannot be written: it is no plain file"
            )
        self._lock = FileLock(self.path.with_name(self.path.name + ".lock"))
        with _telling(self.path):
            self._lock.acquire()
        try:
            with _telling(self.path):
                place = Path(secret) if secret else self.path.with_name(self.path.name + ".secret")
                if not place.exists():
                    make_secret(place)
                self._secret = read_secret(place)
                self._attach()
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> str:
        """SHA-256 of the last record: the value to keep elsewhere as an anchor."""
        return self._head

    def close(self) -> None:
        """Close the file and let other processes write the log."""
        with self._guard:
            self._detach()
            self._lock.release()

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"AuditLog({str(self.path)!r})"

    def record_result(
        self,
        result: Result,
        task: str,
        image: Mapping[str, str],
        image_ms: float,
        **given: Any,
    ) -> None:
        """Append what `classify` or `ask` gave.

        Args:
            result: A `Classification` or an `Answer`.
            task: Name of the task.
            image: `file_sha256` or `pixels_sha256` -> hash of what was given as image.
            image_ms: Milliseconds spent on decoding and encoding the image.
            given: `question`, `text` and `structured` as the user gave them; only their keyed
                hashes are written.

        Raises:
            AuditWriteError: The record is not on the disk; the result must not be used.
        """
        latency = {"image": round(image_ms, 3), "call": round(result.timing.total_ms, 3)}
        fields = {
            "bundle": result.bundle.to_dict(),
            "variant": result.variant,
            "provider": result.provider,
            "int8_path": result.int8_path,
            "task": task,
            "status": result.status,
            "latency_ms": latency,
            **_outcome(result),
        }
        self.record_found(fields, image, **given)

    def record_found(
        self, fields: Mapping[str, Any], image: Mapping[str, str], **given: Any
    ) -> None:
        """Append what came out for one image or text, in the words of the format.

        Args:
            fields: Members of the record, without those of its input.
            image: As in `record_result`; empty where the record is about a text.
            given: As in `record_result`.

        Raises:
            AuditWriteError: The record is not on the disk.
        """
        self._append("result", {**fields, **self._inputs(image, given)})

    def record_error(
        self, error: Exception, common: Mapping[str, Any], image: Mapping[str, str], **given: Any
    ) -> None:
        """Append that a call ended in an error: its class alone, as its message may quote.

        Args:
            error: What was raised.
            common: Bundle, variant, provider and task of the call.
            image: As in `record_result`; empty where the image could not be read.
            given: As in `record_result`.

        Raises:
            AuditWriteError: The record is not on the disk.
        """
        fields = {**common, "status": "error", "error": type(error).__name__}
        self._append("error", {**fields, **self._inputs(image, given)})

    def keyed_hash(self, kind: str, value: Any) -> str:
        """HMAC-SHA256 under the log's secret: equal inputs have equal hashes in this log alone.

        Args:
            kind: `question`, `text` or `structured`.
            value: Text, or an object of JSON values.
        """
        return keyed_hash(self._secret, kind, value)

    def _inputs(self, image: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
        keyed = {
            kind: self.keyed_hash(kind, value) for kind, value in given.items() if value is not None
        }
        return {"input": {**image, **keyed}, "operator": self._operator}

    def _append(self, event: str, fields: Mapping[str, Any]) -> None:
        with self._guard, _telling(self.path):
            if os.getpid() != self._process:
                raise AuditWriteError(
                    "the audit log was opened by the parent process; open another one in each "
                    "process"
                )
            if not self._lock.held:
                raise AuditWriteError("the audit log is closed")
            if self._file < 0:
                self._attach()
            self._check_untouched()
            self._write(event, fields)

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        line, digest = self._line(event, fields)
        if self._size and self._size + len(line) > self._max_bytes:
            self._begin_next_file()
            line, digest = self._line(event, fields)
        try:
            _write_all(self._file, line)
            os.fsync(self._file)
        except OSError:
            # Nobody was told of this record: take back what is there of it, now or when the log is
            # opened the next time.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            self._detach()
            raise
        self._size += len(line)
        self._seq += 1
        self._head = digest

    def _line(self, event: str, fields: Mapping[str, Any]) -> tuple[bytes, str]:
        record = {
            "audit": AUDIT_VERSION,
            "seq": self._seq + 1,
            "previous": self._head,
            "time": _now(),
            "code": _version(),
            "event": event,
            **fields,
        }
        line, digest = encode_line(record)
        return line + b"\n", digest

    def _begin_next_file(self) -> None:
        full = [path for path in log_files(self.path) if path != self.path]
        number = int(full[-1].name.rpartition(".")[2]) + 1 if full else 1
        part = self.path.with_name(f"{self.path.name}.{number:06d}")
        self._detach()
        os.rename(self.path, part)
        sync_folder(self.path.parent)
        self._open_file()

    def _attach(self) -> None:
        """Open the log to go on with it, and note what a killed writer left behind."""
        self._open_file()
        self._note_torn()

    def _open_file(self) -> None:
        """Open the file behind its last whole record; move aside what follows that."""
        before = self._last_of_all()
        self._file = os.open(self.path, _FLAGS, 0o600)
        sync_folder(self.path.parent)
        link, self._size = last_link(self.path)
        link = link or before
        self._seq = link.record["seq"] if link else -1
        self._head = link.sha256 if link else FIRST
        torn = os.fstat(self._file).st_size - self._size
        if torn:
            self._set_aside(torn)
        if self._size == 0:
            event = "continued" if before else "created"
            self._write(event, {"secret": self._secret_name()})

    def _last_of_all(self) -> Link | None:
        """The last record of the newest full part."""
        with contextlib.suppress(AuditError):
            parts = [path for path in log_files(self.path) if path != self.path]
            if parts:
                return last_link(parts[-1])[0]
        return None

    def _set_aside(self, length: int) -> None:
        os.lseek(self._file, self._size, os.SEEK_SET)
        data = b""
        while len(data) < length and (more := os.read(self._file, length - len(data))):
            data += more
        digest = hashlib.sha256(data).hexdigest()
        write_whole(
            self.path.with_name(f"{self.path.name}.torn-{digest[:16]}.new"), data, private=True
        )
        os.ftruncate(self._file, self._size)
        os.fsync(self._file)

    def _note_torn(self) -> None:
        """Note what was set aside; the suffix `.new` goes when the note is on the disk."""
        prefix = f"{self.path.name}.torn-"
        for path in sorted(self.path.parent.glob("*.new")):
            if not path.name.startswith(prefix):
                continue
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            last = last_link(self.path)[0]
            # A writer that was killed between the note and the renaming has noted it already.
            if last is None or last.record.get("torn_sha256") != digest:
                self._write("recovered", {"torn_bytes": len(data), "torn_sha256": digest})
            os.replace(path, path.with_suffix(""))

    def _check_untouched(self) -> None:
        ours = os.fstat(self._file)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            there = None
        same = there is not None and (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)
        if not same or ours.st_size != self._size:
            raise AuditWriteError(
                f"{str(self.path)!r} was moved, replaced or changed by something else while it was "
                "open; run `umd-edge audit verify`, and close and open the log again"
            )

    def _detach(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _secret_name(self) -> str:
        """Tells which secret a log was written with, and nothing of it."""
        return keyed_hash(self._secret, "name", "")[:16]


def _outcome(result: Result) -> dict[str, Any]:
    """Scores and decision."""
    if isinstance(result, Classification):
        return {
            "scores": {item.label: item.probability for item in result.findings},
            "decision": [item.label for item in result.findings if item.positive],
        }
    if isinstance(result, Answer):
        ranked = (Alternative(result.answer, result.probability), *result.alternatives)
        return {
            "scores": {item.answer: item.probability for item in ranked if item.answer},
            "decision": [result.answer] if result.answer else [],
        }
    raise UsageError(f"{type(result).__name__} given; a Classification or an Answer is recorded")


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _version() -> str:
    from . import __version__

    return __version__


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turn errors of the file system into ours."""
    try:
        yield
    except OSError as error:
        raise AuditWriteError(
            f"the audit log {str(path)!r} cannot be written ({error.strerror}); nothing was handed "
            "out unrecorded. Free some space or fix the permissions, and go on"
        ) from error
