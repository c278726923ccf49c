"""Check data sets before training on them: what is in them, what is broken, what leaks.

`check` reads the JSONL manifests and every picture once and returns a `DataReport`. Its messages
and counts name files, lines, fields and labels, never a patient, a picture's name or a free text.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from umd_edge._task import TaskSpec
from umd_edge.errors import DataError

from ._check_pictures import Picture, look_alikes, read_pictures
from ._check_records import check_set, load_entries
from ._check_types import DataReport, Entry, Issue, LookAlike, SetReport, Severity, make_issues

__all__ = ["DataReport", "Issue", "LookAlike", "SetReport", "check"]


def _by_picture(entries: Sequence[Entry]) -> tuple[dict[Path, list[Entry]], list[Issue]]:
    users: dict[Path, list[Entry]] = defaultdict(list)
    without: dict[str, list[Entry]] = defaultdict(list)
    outside: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if not entry.record.get("image"):
            without[entry.dataset].append(entry)
            continue
        try:
            users[entry.record.image_path].append(entry)
        except DataError:
            outside[entry.dataset].append(entry)
    issues: list[Issue] = []
    for found in without.values():
        issues += make_issues("error", "no-image", "records without `image`", found)
    for found in outside.values():
        text = "records whose `image` is not a path below their own folder"
        issues += make_issues("error", "bad-image-path", text, found)
    return dict(users), issues


_STATES: dict[str, tuple[Severity, str, str]] = {
    "missing": ("error", "missing-image", "pictures that are not there"),
    "broken": ("error", "broken-image", "pictures that cannot be read"),
    "blank": ("warning", "blank-image", "pictures of one grey"),
}


def _picture_states(pictures: Sequence[Picture], users: Mapping[Path, list[Entry]]) -> list[Issue]:
    issues: list[Issue] = []
    for state, (severity, code, message) in _STATES.items():
        found: dict[str, list[Entry]] = defaultdict(list)
        reasons: dict[str, Counter[str]] = defaultdict(Counter)
        for picture in pictures:
            if picture.state == state:
                entry = users[picture.path][0]
                found[entry.dataset].append(entry)
                reasons[entry.dataset][picture.reason] += 1
        for name, entries in found.items():
            why = ", ".join(f"{reason}: {n}" for reason, n in reasons[name].most_common(3))
            issues += make_issues(severity, code, f"{message} ({why})", entries)
    return issues


def _dataset_of(entries: Iterable[Entry]) -> str:
    names = {entry.dataset for entry in entries}
    return names.pop() if len(names) == 1 else "*"


def _identical(pictures: Sequence[Picture], users: Mapping[Path, list[Entry]]) -> list[Issue]:
    """Files with the same bytes, and one file used by several splits."""
    files: dict[bytes, list[Entry]] = defaultdict(list)
    copies: Counter[bytes] = Counter()
    for picture in pictures:
        if picture.digest:
            files[picture.digest] += users[picture.path]
            copies[picture.digest] += 1
    across = [group for group in files.values() if len({entry.split for entry in group}) > 1]
    within = [
        files[d] for d, n in copies.items() if n > 1 and len({e.split for e in files[d]}) == 1
    ]
    issues: list[Issue] = []
    kinds: tuple[tuple[Severity, str, str, list[list[Entry]]], ...] = (
        ("error", "shared-picture", "pictures that are in more than one split", across),
        ("warning", "same-picture", "pictures stored under several names in a split", within),
    )
    for severity, code, text, groups in kinds:
        named: dict[str, list[Entry]] = defaultdict(list)
        for group in groups:
            named[_dataset_of(group)].append(group[0])
        for name, entries in named.items():
            issues += make_issues(severity, code, text, entries, name)
    return issues


def _look_alikes(
    pictures: Sequence[Picture], users: Mapping[Path, list[Entry]]
) -> tuple[tuple[LookAlike, ...], list[Issue]]:
    splits: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        splits[users[picture.path][0].split].append(picture)
    found: list[LookAlike] = []
    named: dict[str, list[Entry]] = defaultdict(list)
    order = list(splits)
    for index, left in enumerate(order):
        for right in order[index + 1 :]:
            for i, j, similarity in look_alikes(splits[left], splits[right]):
                pair = users[splits[left][i].path][0], users[splits[right][j].path][0]
                found.append(
                    LookAlike(
                        first=pair[0].where,
                        second=pair[1].where,
                        similarity=round(similarity, 4),
                    )
                )
                named[_dataset_of(pair)].append(pair[1])
    issues: list[Issue] = []
    for name, entries in named.items():
        text = "pairs of pictures that look alike and are in different splits; look at them"
        issues += make_issues("warning", "look-alike", text, entries, name)
    return tuple(found), issues


def check(
    paths: Sequence[str | Path],
    recipe_tasks: Sequence[TaskSpec] | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Check data sets, each alone and all together.

    Args:
        paths: JSONL files, folders of sets, or folders that hold such folders. Patients are
            compared inside a set; pictures are compared between all sets given.
        recipe_tasks: Tasks of a recipe. Their targets and maps then say what the answer is, and a
            leaking field that one of them reads is marked. Without them the answer is `answer`
            where there is a question, and `labels` otherwise.
        on_progress: Called with the number of pictures read and of all.

    Raises:
        DataError: A path holds no data, or a line is no JSON object.
    """
    entries = load_entries(paths)
    reports: list[SetReport] = []
    issues: list[Issue] = []
    for name in dict.fromkeys(entry.dataset for entry in entries):
        part = [entry for entry in entries if entry.dataset == name]
        report, found = check_set(name, part, tuple(recipe_tasks or ()))
        reports.append(report)
        issues += found
    users, found = _by_picture(entries)
    issues += found
    pictures = read_pictures(list(users), on_progress)
    alike, found = _look_alikes(pictures, users)
    issues += _picture_states(pictures, users) + _identical(pictures, users) + found
    return DataReport(
        sets=tuple(reports),
        pictures=dict(Counter(picture.state for picture in pictures)),
        look_alikes=alike,
        issues=tuple(sorted(issues, key=lambda issue: issue.severity)),
    )
