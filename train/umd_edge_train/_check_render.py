"""A data report as text for a terminal and as one self-contained HTML file without pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from ._check_types import DataReport, Issue, SetReport

__all__ = ["to_html", "to_text"]

_MAX_ROWS = 15
_SPLIT_COLOURS = {"train": "#3b6ea5", "val": "#e0a030", "test": "#5a9e6f"}
_OTHER_COLOUR = "#888888"
_TITLES = {
    "label": "Answers and labels",
    "answer_type": "Answer types",
    "question_type": "Question types",
    "license": "Licences",
    "modality": "Modalities",
}

Rows = list[tuple[str, Mapping[str, int]]]


def _rows(table: Mapping[str, Mapping[str, int]]) -> Rows:
    """The longest rows first; the rest as one row, so that no table grows out of hand."""
    items = list(table.items())
    rows: Rows = list(items[:_MAX_ROWS])
    if len(items) > _MAX_ROWS:
        rest: dict[str, int] = {}
        for _, counts in items[_MAX_ROWS:]:
            for split, count in counts.items():
                rest[split] = rest.get(split, 0) + count
        rows.append((f"({len(items) - _MAX_ROWS} others)", rest))
    return rows


def _grid(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of an aligned table; the first column to the left, the others to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  " + "  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    return [lines[0], "  " + "-" * (len(lines[0]) - 2), *lines[1:]]


def _shorten(text: str, width: int = 48) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def _set_text(report: SetReport) -> list[str]:
    lines = [f"{report.name}", ""]
    names = ("records", "pictures", "patients")
    lines += _grid(
        ["split", *names], ([s, *(c[n] for n in names)] for s, c in report.splits.items())
    )
    splits = list(report.splits)
    for name, table in report.tables.items():
        title = _TITLES[name].lower()
        counts = ([_shorten(key), *(row.get(s, 0) for s in splits)] for key, row in _rows(table))
        lines += ["", *_grid([title, *splits], counts)]
    return [*lines, ""]


def _issue_text(issue: Issue) -> str:
    where = f"\n      first: {', '.join(issue.where)}" if issue.where else ""
    head = f"{issue.severity.upper():7}  {issue.dataset}  {issue.code}  ({issue.count})"
    return f"  {head}\n      {issue.message}{where}"


def _summary(report: DataReport) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(report.pictures.items()))
    warnings = len(report.issues) - len(report.errors)
    return f"pictures: {states or 'none'}; errors: {len(report.errors)}; warnings: {warnings}"


def to_text(report: DataReport) -> str:
    """The report for a terminal: counts of each set, then errors and warnings."""
    lines: list[str] = []
    for item in report.sets:
        lines += _set_text(item)
    lines += [_issue_text(issue) for issue in report.issues]
    return "\n".join([*lines, "", _summary(report)])


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.15rem .7rem;text-align:right}
td:first-child,th:first-child{text-align:left}th{border-bottom:1px solid #999}
.error{border-left:4px solid #b03030}.warning{border-left:4px solid #e0a030}
.error,.warning{padding:.2rem .8rem;margin:.6rem 0;background:#f7f7f5}
code{font-size:.9em}.key{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}
"""


def _bar(counts: Mapping[str, int], splits: Sequence[str], largest: int) -> str:
    x, parts = 0.0, []
    for split in splits:
        width = 240 * counts.get(split, 0) / max(largest, 1)
        colour = _SPLIT_COLOURS.get(split, _OTHER_COLOUR)
        parts.append(f'<rect x="{x:.1f}" width="{width:.1f}" height="12" fill="{colour}"/>')
        x += width
    return f'<svg width="240" height="12" role="img">{"".join(parts)}</svg>'


def _chart(title: str, table: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> str:
    rows = _rows(table)
    largest = max((sum(counts.values()) for _, counts in rows), default=0)
    head = "".join(f"<th>{escape(split)}</th>" for split in splits)
    body = "".join(
        f"<tr><td>{escape(_shorten(name))}</td>"
        + "".join(f"<td>{counts.get(split, 0)}</td>" for split in splits)
        + f"<td>{_bar(counts, splits, largest)}</td></tr>"
        for name, counts in rows
    )
    return f"<h3>{escape(title)}</h3><table><tr><th></th>{head}<th></th></tr>{body}</table>"


def _issue_html(issue: Issue) -> str:
    where = f"<br><code>{escape(', '.join(issue.where))}</code>" if issue.where else ""
    head = f"<b>{escape(issue.dataset)}: {escape(issue.code)}</b> ({issue.count})"
    return f'<div class="{issue.severity}">{head}<br>{escape(issue.message)}{where}</div>'


def to_html(report: DataReport) -> str:
    """The report as one HTML page: no scripts, no links, no pictures of patients."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>Data check</title><style>{_STYLE}</style></head><body><h1>Data check</h1>",
        f"<p>{escape(_summary(report))}</p>",
        *(_issue_html(issue) for issue in report.issues),
    ]
    for item in report.sets:
        splits = list(item.splits)
        keys = "".join(
            f'<span class="key" style="background:{_SPLIT_COLOURS.get(s, _OTHER_COLOUR)}"></span>'
            f"{escape(s)}"
            for s in splits
        )
        units = {
            name: {split: counts[name] for split, counts in item.splits.items()}
            for name in ("records", "pictures", "patients")
        }
        parts.append(f"<h2>{escape(item.name)}</h2><p>{keys}</p>")
        parts.append(_chart("Size", units, splits))
        parts += [_chart(_TITLES[name], table, splits) for name, table in item.tables.items()]
    return "".join([*parts, "</body></html>\n"])
