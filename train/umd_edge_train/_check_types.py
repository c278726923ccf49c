"""What a data check works on and what it reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from umd_edge._records import Record
from umd_edge.errors import DataError

from ._check_leaks import Leak

__all__ = ["DataReport", "Entry", "Issue", "LookAlike", "SetReport", "Severity", "make_issues"]

_EXAMPLES = 5

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """Something that is wrong, or that a person should look at."""

    severity: Severity
    code: str
    """Stable name, e.g. `missing-image`; `docs/data.md` lists them."""
    dataset: str
    """Folder of the set, or `*` for what is between sets."""
    message: str
    count: int
    where: tuple[str, ...] = ()
    """The first places, as `set/file.jsonl:line`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAlike:
    """Two different files in different splits that show the same thing."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """Counts of one set. Tables are name -> split -> number of records."""

    name: str
    splits: Mapping[str, Mapping[str, int]]
    """Split -> records, pictures, patients."""
    tables: Mapping[str, Mapping[str, Mapping[str, int]]]
    """`label`, `answer_type`, `question_type`, `license`, `modality`, where records have them."""
    unseen: Mapping[str, Mapping[str, int]]
    """Split -> records, out_of_vocabulary: answers that training never shows."""
    leaks: tuple[Leak, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """All that `check` found."""

    sets: tuple[SetReport, ...]
    pictures: Mapping[str, int]
    """State (`ok`, `missing`, `broken`, `blank`) -> number of distinct files."""
    look_alikes: tuple[LookAlike, ...]
    issues: tuple[Issue, ...]
    format_version: int = 1

    @property
    def errors(self) -> tuple[Issue, ...]:
        """Issues that make results wrong."""
        return tuple(issue for issue in self.issues if issue.severity == "error")

    @property
    def exit_code(self) -> int:
        """4 when there are errors, else 0."""
        return DataError.exit_code if self.errors else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Entry:
    """A record with the set and split it belongs to."""

    record: Record = field(repr=False)
    dataset: str
    split: str
    is_listed_only: bool
    """From an `images_<split>.jsonl` picture list: no label or question to count."""

    @property
    def where(self) -> str:
        return f"{self.dataset}/{self.record.where}"

    @property
    def patient(self) -> str:
        return str(self.record.get("patient_id") or self.record.get("id") or self.record.where)


def make_issues(
    severity: Severity, code: str, message: str, entries: Sequence[Entry], dataset: str = ""
) -> list[Issue]:
    """One issue about these records, or none when there are none."""
    if not entries:
        return []
    where = tuple(entry.where for entry in entries[:_EXAMPLES])
    name = dataset or entries[0].dataset
    return [
        Issue(
            severity=severity,
            code=code,
            dataset=name,
            message=message,
            count=len(entries),
            where=where,
        )
    ]
