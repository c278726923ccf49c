"""Small pieces of HTML that the sections of a site report are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ._evaluation import MetricValue
from ._site_report_figures import wilson

__all__ = ["STYLE", "figure", "interval", "note", "number", "share", "table", "with_interval"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em;
  color: #1b1b1b; background: #fff; }
h1 { margin-bottom: .2em; } h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: .8em 0; } .wide { overflow-x: auto; }
th, td { border: 1px solid #d5d5d5; padding: .25em .6em; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { background: #f3f5f7; } code { background: #f3f5f7; overflow-wrap: anywhere; }
svg text { font: 12px system-ui, sans-serif; fill: #1b1b1b; } svg { max-width: 100%; height: auto; }
div.wide svg { max-width: none; } .row { display: flex; flex-wrap: wrap; gap: .5em 1.5em; }
.row > * { min-width: 0; max-width: 100%; }
figure { margin: 0; } figcaption { font-size: 13px; max-width: 26em; }
.verdict { font-size: 1.3em; font-weight: bold; padding: .4em .8em; display: inline-block; }
.passed { color: #14691e; } .failed { color: #b3261e; font-weight: bold; } .note { color: #555; }
.verdict.passed { background: #e5f2e6; } .verdict.failed { background: #fbe9e7; }
.few td { color: #6a6a6a; } .worse { color: #b3261e; }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; } }
"""


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Sequence[int] = (),
    classes: Iterable[str] = (),
) -> str:
    """A table; cells are HTML already. `numbers` are columns set flush right."""
    lines = ['<div class="wide"><table><tr>', *(f"<th>{escape(cell)}</th>" for cell in head)]
    lines.append("</tr>")
    named = iter(classes)
    for row in rows:
        name = next(named, "")
        lines.append(f'<tr class="{name}">' if name else "<tr>")
        for column, cell in enumerate(row):
            style = ' class="number"' if column in numbers else ""
            lines.append(f"<td{style}>{cell}</td>")
        lines.append("</tr>")
    return "".join([*lines, "</table></div>"])


def note(content: str) -> str:
    """A paragraph of explanation."""
    return f'<p class="note">{escape(content)}</p>'


def figure(picture: str, caption: str) -> str:
    """A picture with what it shows."""
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def interval(value: MetricValue) -> str:
    """The 95 % interval, or a dash."""
    if value.low is None or value.high is None:
        return "-"
    return f"{value.low:.3f} to {value.high:.3f}"


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def with_interval(value: MetricValue | None) -> str:
    """Value and interval, or a dash."""
    if value is None or value.value is None:
        return "-"
    span = interval(value)
    return f"{value.value:.3f}" + (f" ({span})" if span != "-" else "")


def share(hits: int, n: int) -> str:
    """A share with Wilson's interval, or a dash."""
    if n == 0:
        return "-"
    low, high = wilson(hits, n)
    return f"{hits / n:.3f} ({low:.3f} to {high:.3f})"
