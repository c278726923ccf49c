"""The JSONL data manifest: records, and how a task turns them into examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._record import dataclass
from ._structured import StructuredField, encode_structured
from ._task import OnUnmapped, TaskSpec, compose_text
from .errors import DataError

__all__ = ["Example", "ExampleSet", "Record", "VQAReference", "build_examples", "read_records"]


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a JSONL manifest. Its repr shows where it stands, never what it says."""

    raw: Mapping[str, Any] = field(repr=False)
    line: int
    source: Path

    def get(self, path: str) -> Any:
        """Value at a dotted path, or None."""
        value: Any = self.raw
        for part in path.split("."):
            if not isinstance(value, Mapping):
                return None
            value = value.get(part)
        return value

    @property
    def where(self) -> str:
        """`file.jsonl:12`, for messages."""
        return f"{self.source.name}:{self.line}"

    @property
    def image_path(self) -> Path:
        """The image, relative to the manifest's folder.

        Raises:
            DataError: The record names no image, or one outside the manifest's folder.
        """
        name = self.raw.get("image")
        if not isinstance(name, str) or not name:
            raise DataError(f"{self.where}: no `image`; a path relative to the file is needed")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{self.where}: `image` must be relative to the file and stay below it")
        return self.source.parent / name


def read_records(path: str | Path) -> list[Record]:
    """Read a JSONL file; blank lines are skipped.

    Raises:
        DataError: The file is missing or empty, or a line is no JSON object.
    """
    source = Path(path)
    try:
        if source.exists() and not source.is_file() and not source.is_dir():
            # opening a pipe would wait for its other end
            raise DataError(f"{str(path)!r} is no plain file; name a JSONL file")
        text = source.read_text(encoding="utf-8")
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as a UTF-8 JSONL file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise DataError(f"{str(path)!r} cannot be read as JSONL: {reason}") from error
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source.name}:{number}: not valid JSON") from error
        if not isinstance(raw, dict):
            raise DataError(f"{source.name}:{number}: a JSON object is needed on each line")
        records.append(Record(raw, number, source))
    if not records:
        raise DataError(f"{path}: holds no records")
    return records


@dataclass(frozen=True, slots=True)
class VQAReference:
    """What a VQA answer is compared with; the two types are for reporting only."""

    answers: tuple[str, ...] = field(repr=False)
    answer_type: str | None = None
    question_type: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One record as a task sees it."""

    id: str
    group: str
    image_path: Path
    text: str = field(repr=False)
    """Question, or the task's prompt with the texts that it reads."""
    structured_values: npt.NDArray[np.float32] = field(repr=False)
    structured_mask: npt.NDArray[np.float32] = field(repr=False)
    target: npt.NDArray[np.float32] | None = field(repr=False, default=None)
    """(K,) float32 of a classification: 1, 0 or NaN for unknown."""
    reference: VQAReference | None = None
    where: str = ""
    """File and line, for messages: they name no record by its `id`, which may be a patient's."""


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """The examples of one task, and why other records are not among them."""

    task: TaskSpec
    examples: tuple[Example, ...] = field(repr=False)
    dropped: Mapping[str, int]
    """Reason -> number of records."""
    unknown_categories: int = 0
    """Structured values fed as missing because the model does not know their category."""


class _DropError(Exception):
    """A record that does not take part, with the reason."""


def _selected(record: Record, task: TaskSpec) -> bool:
    for path, allowed in task.select.items():
        value = record.get(path)
        values = value if isinstance(value, list) else [value]
        if not any(item in allowed for item in values):
            return False
    return True


def _text(record: Record, task: TaskSpec) -> str:
    texts = []
    for path in task.text_paths:
        value = record.get(path)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{record.where}: `{path}` must be a string")
        texts.append(value or "")
    text = compose_text(task.prompt, texts)
    if not text:
        raise _DropError(f"no {' or '.join(task.text_paths) or 'text'}")
    return text


def _reference(record: Record, task: TaskSpec) -> VQAReference:
    answer = record.get(task.target.field)
    if not isinstance(answer, str):
        raise _DropError(f"no {task.target.field}")
    listed = record.get("answers") or []
    answers = tuple(dict.fromkeys([answer, *(item for item in listed if isinstance(item, str))]))
    return VQAReference(answers, record.get("answer_type"), record.get("question_type"))


def _target(record: Record, task: TaskSpec, on_unmapped: OnUnmapped) -> npt.NDArray[np.float32]:
    value = record.get(task.target.field)
    labels = value if isinstance(value, list) else [] if value is None else [value]
    if not labels:
        raise _DropError(f"no {task.target.field}")
    fill = np.nan if task.target.absent == "unknown" else 0.0
    target = np.full(len(task.outputs), fill, dtype=np.float32)
    hits = 0
    for label in labels:
        if not isinstance(label, str):
            raise DataError(f"{record.where}: `{task.target.field}` must hold strings")
        name = task.target.map.get(label, label)
        if name is None:
            continue
        if name not in task.outputs:
            if on_unmapped == "drop":
                raise _DropError("unmapped label")
            raise DataError(
                f"{record.where}: label {label!r} is not among {list(task.outputs)}; map it in the "
                "task's target, or drop such records on purpose (--drop-unmapped, or on_unmapped = "
                "drop)"
            )
        target[task.outputs.index(name)] = 1.0
        hits += 1
    if not task.multi_label and hits != 1:
        raise _DropError(f"{hits} labels where one is needed")
    if task.multi_label and task.target.absent == "error" and hits < len(task.outputs):
        raise DataError(f"{record.where}: a label is absent and the task says that is an error")
    return target


def build_examples(
    records: Sequence[Record],
    task: TaskSpec,
    fields: Sequence[StructuredField],
    *,
    on_unmapped: OnUnmapped | None = None,
) -> ExampleSet:
    """Examples of `task` among `records`.

    Args:
        records: Of one or several manifests.
        task: Says which records take part, what is read, and what the answer is.
        fields: All structured fields of the model, in order.
        on_unmapped: Overrides the task's own rule for labels that it does not know.

    Raises:
        DataError: A record does not fit, with its file and line.
    """
    rule = on_unmapped or task.target.on_unmapped
    readable = set(task.structured_paths)
    used = [item for item in fields if item.name in readable]
    examples: list[Example] = []
    dropped: Counter[str] = Counter()
    unknown = 0
    for record in records:
        if not _selected(record, task):
            dropped["not selected"] += 1
            continue
        try:
            text = _text(record, task)
            reference = _reference(record, task) if task.kind == "vqa" else None
            target = _target(record, task, rule) if task.kind == "classification" else None
        except _DropError as reason:
            dropped[str(reason)] += 1
            continue
        present = {item.name: record.get(item.name) for item in used}
        values, mask = encode_structured(present, fields, on_unknown="missing")
        unknown += sum(v is not None for v in present.values()) - int(mask.sum())
        examples.append(
            Example(
                id=str(record.get("id") or record.where),
                group=str(record.get(task.group) or record.get("id") or record.where),
                image_path=record.image_path,
                text=text,
                structured_values=values,
                structured_mask=mask,
                target=target,
                reference=reference,
                where=record.where,
            )
        )
    return ExampleSet(task, tuple(examples), dict(dropped), unknown)
