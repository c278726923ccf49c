"""The records of a set: fields, patients, answers, leaks. No picture is opened here."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from umd_edge._answers import normalise_answer
from umd_edge._records import read_records
from umd_edge._task import TaskSpec
from umd_edge.errors import DataError

from ._check_leaks import Leak, Sample, find_leaks, flatten
from ._check_types import Entry, Issue, SetReport, Severity, make_issues

__all__ = ["check_set", "load_entries"]

SPLITS = ("train", "val", "test")


def _files(path: Path) -> list[Path]:
    """Manifests that a path stands for: itself, a set's, or those of the sets below it."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; give a JSONL file or a set's folder")
    names = [f"{prefix}{split}.jsonl" for prefix in ("", "images_") for split in SPLITS]
    own = [path / name for name in names if (path / name).is_file()]
    if own:
        return own
    below = sorted(child for child in path.iterdir() if child.is_dir())
    found = [c / name for c in below for name in names if (c / name).is_file()]
    if not found:
        raise DataError(
            f"{path}: neither it nor a folder in it holds train.jsonl, val.jsonl or test.jsonl; "
            "give a set's folder or a JSONL file"
        )
    return found


def load_entries(paths: Iterable[str | Path]) -> list[Entry]:
    files = list(dict.fromkeys(f.resolve() for path in paths for f in _files(Path(path))))
    if not files:
        raise DataError("no data given; give one or more JSONL files or folders of sets")
    folders = list(dict.fromkeys(f.parent for f in files))
    names = Counter(folder.name for folder in folders)
    title = {f: f.name if names[f.name] == 1 else f"{f.parent.name}/{f.name}" for f in folders}
    entries = []
    for file in files:
        is_list = file.name.startswith("images_")
        stem = file.stem.removeprefix("images_")
        for record in read_records(file):
            split = stem if stem in SPLITS else str(record.get("split") or "unsplit")
            entries.append(Entry(record, title[file.parent], split, is_list))
    return entries


def _values(value: object) -> list[str]:
    """A label field as a list of strings; anything else in it is left to `_check_fields`."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and item]


def _task_of(entry: Entry, tasks: Sequence[TaskSpec]) -> TaskSpec | None:
    """The first task that selects the record and finds its target there."""
    for task in tasks:
        if entry.record.get(task.target.field) is None:
            continue
        for path, allowed in task.select.items():
            value = entry.record.get(path)
            values = value if isinstance(value, list) else [value]
            if not any(item in allowed for item in values):
                break
        else:
            return task
    return None


def _labels(entry: Entry, task: TaskSpec | None) -> tuple[str, ...]:
    """The answer of a record: its labels, mapped as the task says, or its normalised answer."""
    if task is not None and task.kind != "vqa":
        mapped = [task.target.map.get(v, v) for v in _values(entry.record.get(task.target.field))]
        return tuple(sorted({name for name in mapped if name is not None}))
    path = task.target.field if task is not None else "answer"
    answer = entry.record.get(path)
    if isinstance(answer, str) and (task is not None or entry.record.get("question")):
        return (normalise_answer(answer),)
    return tuple(sorted(set(_values(entry.record.get("labels")))))


def _check_fields(entries: Sequence[Entry]) -> list[Issue]:
    """Fields of the manifest that are absent or of a wrong type."""
    issues: list[Issue] = []

    def report(severity: Severity, code: str, message: str, bad: Callable[[Entry], bool]) -> None:
        issues.extend(make_issues(severity, code, message, [e for e in entries if bad(e)]))

    report("warning", "no-id", "records without `id`", lambda e: not e.record.get("id"))
    report(
        "warning",
        "no-patient",
        "records without `patient_id`: each counts as a patient of its own",
        lambda e: not e.record.get("patient_id"),
    )
    report(
        "warning",
        "split-differs",
        "records whose `split` is not that of their file; the file decides",
        lambda e: e.record.get("split") not in (None, e.split),
    )
    entries = [entry for entry in entries if not entry.is_listed_only]
    report(
        "warning",
        "no-license",
        "records without `license`",
        lambda e: not e.record.get("license"),
    )
    report(
        "error",
        "bad-labels",
        "`labels` must be a list of strings",
        lambda e: (
            (v := e.record.get("labels")) is not None
            and not (isinstance(v, list) and len(_values(v)) == len(v))
        ),
    )
    report(
        "warning",
        "no-answer",
        "questions without an `answer`",
        lambda e: bool(e.record.get("question")) and not e.record.get("answer"),
    )
    report(
        "warning",
        "non-commercial",
        "records for experiments only (`non_commercial` is true): keep them out of shipped weights",
        lambda e: e.record.get("non_commercial") is True,
    )
    report(
        "warning",
        "license-unclear",
        "records whose `non_commercial` is neither true nor false",
        lambda e: not isinstance(e.record.get("non_commercial"), bool),
    )
    return issues


def _check_repeats(entries: Sequence[Entry]) -> list[Issue]:
    """The same id, or the same picture with the same question and answer, twice."""
    own = [entry for entry in entries if not entry.is_listed_only]
    ids: Counter[str] = Counter()
    seen: set[tuple[str, str, str, str]] = set()
    same_id, same_content = [], []
    for entry in own:
        get = entry.record.get
        identity = str(get("id") or "")
        ids[identity] += 1
        if identity and ids[identity] == 2:
            same_id.append(entry)
        asked = normalise_answer(str(get("question") or ""))
        key = (str(get("image")), asked, str(get("answer")), str(get("labels")))
        if key in seen:
            same_content.append(entry)
        seen.add(key)
    return make_issues("error", "same-id", "ids that occur more than once", same_id) + make_issues(
        "warning",
        "same-record",
        "records that repeat another's picture, question and answer",
        same_content,
    )


def _check_patients(entries: Sequence[Entry]) -> list[Issue]:
    splits: dict[str, set[str]] = defaultdict(set)
    first: dict[str, Entry] = {}
    for entry in entries:
        if entry.record.get("patient_id"):
            splits[entry.patient].add(entry.split)
            first.setdefault(entry.patient, entry)
    shared = [first[patient] for patient, names in splits.items() if len(names) > 1]
    return make_issues(
        "error", "shared-patient", "patients that are in more than one split", shared
    )


def _check_unseen(
    own: Sequence[Entry], answers: Mapping[int, tuple[str, ...]]
) -> tuple[dict[str, dict[str, int]], list[Issue]]:
    """Labels and answers of val and test that no training record has."""
    known = {label for e in own if e.split == "train" for label in answers[id(e)]}
    if not known:
        return {}, []
    unseen: dict[str, dict[str, int]] = {}
    strangers: list[Entry] = []
    for split in ("val", "test"):
        held = [e for e in own if e.split == split and answers[id(e)]]
        if not held:
            continue
        out = []
        for entry in held:
            accepted = set(answers[id(entry)])
            is_question = bool(entry.record.get("question"))
            if is_question:
                accepted |= {normalise_answer(v) for v in _values(entry.record.get("answers"))}
            if not (accepted & known if is_question else accepted <= known):
                out.append(entry)
        unseen[split] = {"records": len(held), "out_of_vocabulary": len(out)}
        strangers += out
    parts = [f"{k} {v['out_of_vocabulary']} of {v['records']}" for k, v in unseen.items()]
    message = f"answers that no training record has, so they count as wrong ({', '.join(parts)})"
    return unseen, make_issues("warning", "unseen-answer", message, strangers)


_LEAK_TEXT = {
    "presence": "fields whose mere presence predicts the answer",
    "determines": "fields whose value settles the answer nearly alone",
    "excludes": "fields with a value that rules answers out",
    "mentions": "texts that name their own answer",
}


def _leak_issues(dataset: str, leaks: Sequence[Leak]) -> list[Issue]:
    issues = []
    for kind, text in _LEAK_TEXT.items():
        found = [leak for leak in leaks if leak.kind == kind]
        if not found:
            continue
        names = ", ".join(
            f"{leak.field} {leak.strength:.2f}"
            + (f" (read by {', '.join(leak.read_by)})" if leak.read_by else "")
            for leak in found
        )
        message = f"{text}; feed none of them to a model unasked: {names}"
        issues.append(
            Issue(
                severity="warning",
                code=f"leak-{kind}",
                dataset=dataset,
                message=message,
                count=len(found),
            )
        )
    return issues


def _find_set_leaks(
    own: Sequence[Entry],
    answers: Mapping[int, tuple[str, ...]],
    used: Mapping[int, TaskSpec | None],
) -> tuple[Leak, ...]:
    tasks = list({task.name: task for task in used.values() if task is not None}.values())
    targets = {"labels", "answer", "answers"} | {task.target.field for task in tasks}
    samples = [
        Sample(e.patient, answers[id(e)], dict(flatten(e.record.raw)))
        for e in own
        if answers[id(e)]
    ]
    return tuple(
        dataclasses.replace(
            leak,
            read_by=tuple(
                task.name
                for task in tasks
                if any(r == leak.field or r.startswith(f"{leak.field}.") for r in task.reads)
            ),
        )
        for leak in find_leaks(samples, frozenset(targets))
    )


def _tables(
    own: Sequence[Entry], answers: Mapping[int, tuple[str, ...]]
) -> dict[str, dict[str, dict[str, int]]]:
    tables: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for entry in own:
        for label in answers[id(entry)]:
            tables["label"][label][entry.split] += 1
        for name in ("answer_type", "question_type", "license", "modality"):
            value = entry.record.get(name)
            if isinstance(value, str):
                tables[name][value][entry.split] += 1
    return {
        name: {
            key: dict(counts)
            for key, counts in sorted(rows.items(), key=lambda item: (-item[1].total(), item[0]))
            # An answer given once may be a sentence about one person.
            if name != "label" or counts.total() > 1
        }
        for name, rows in tables.items()
    }


def check_set(
    name: str, entries: Sequence[Entry], tasks: Sequence[TaskSpec]
) -> tuple[SetReport, list[Issue]]:
    own = [entry for entry in entries if not entry.is_listed_only]
    used = {id(entry): _task_of(entry, tasks) for entry in own}
    answers = {id(entry): _labels(entry, used[id(entry)]) for entry in own}
    unseen, issues = _check_unseen(own, answers)
    leaks = _find_set_leaks(own, answers, used)
    counts: dict[str, dict[str, int]] = {}
    for split in dict.fromkeys([*SPLITS, *(entry.split for entry in entries)]):
        part = [entry for entry in entries if entry.split == split]
        if part:
            counts[split] = {
                "records": sum(not entry.is_listed_only for entry in part),
                "pictures": len({entry.record.get("image") for entry in part} - {None}),
                "patients": len({entry.patient for entry in part}),
            }
    report = SetReport(
        name=name, splits=counts, tables=_tables(own, answers), unseen=unseen, leaks=leaks
    )
    checks = _check_fields(entries) + _check_patients(entries) + _check_repeats(entries)
    return report, [*checks, *issues, *_leak_issues(name, leaks)]
