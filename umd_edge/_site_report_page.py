"""The page of a site report: whole in itself, nothing of it comes from or goes to a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ._charts import count_matrix
from ._files import write_whole
from ._site_report import SiteReport
from ._site_report_groups import FEW_PATIENTS, TOLD_PATIENTS, Subgroup
from ._site_report_html import (
    STYLE,
    figure,
    interval,
    note,
    number,
    share,
    table,
)
from ._site_report_plots import roc_plot
from ._site_report_trust import calibration, prediction_sets, risk_coverage

__all__ = ["render_page", "write_page"]

_MOST_CURVES = 24


def write_page(path: str | Path, report: SiteReport) -> None:
    """Write the page, whole or not at all.

    Raises:
        OSError: It cannot be written; an older page is untouched.
    """
    # A file name that is no valid UTF-8 must not cost the page.
    write_whole(path, render_page(report).encode("utf-8", "backslashreplace"))


def render_page(report: SiteReport) -> str:
    """The page."""
    bundle = report.evaluation.bundle
    title = f"{bundle.name} {bundle.version} on {report.data_name}: {report.task.name}"
    sections = (
        _verdict,
        _identity,
        _rules,
        _statuses,
        _metrics,
        calibration,
        risk_coverage,
        prediction_sets,
        _confusion,
        _decisions,
        _rocs,
        _groups,
        _wrong,
        _method,
    )
    body = [line for section in sections for line in section(report)]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            "<p><strong>Not a medical device.</strong> A measurement on one site's records.</p>",
            *body,
            "</body></html>\n",
        ]
    )


def _verdict(report: SiteReport) -> list[str]:
    if report.accepted is None:
        return [note("No acceptance rules were given, so that nothing is passed or failed.")]
    met, all_rules = sum(verdict.passed for verdict in report.verdicts), len(report.verdicts)
    word, style = ("PASS", "passed") if report.accepted else ("FAIL", "failed")
    return [f'<p class="verdict {style}">{word}: {met} of {all_rules} rules met</p>']


def _identity(report: SiteReport) -> list[str]:
    from . import __version__

    found = report.evaluation
    left = ", ".join(f"{count} ({reason})" for reason, count in found.dropped.items()) or "none"
    rows = [
        ("bundle", f"{escape(found.bundle.name)} {escape(found.bundle.version)}"),
        ("SHA-256 of its manifest", f"<code>{escape(found.bundle.sha256)}</code>"),
        ("variant and provider", f"{escape(found.variant)} on {escape(found.provider)}"),
        ("umd-edge", __version__),
        ("task", escape(f"{report.task.name} ({report.task.kind})")),
        ("records", f"{found.n} of {report.patients} patients"),
        ("left out", escape(left)),
        ("data file", escape(report.data_name)),
        ("SHA-256 of the data file", f"<code>{report.data_sha256}</code>"),
        ("made", report.made),
    ]
    return [table(("what", "this run"), rows)]


def _rules(report: SiteReport) -> list[str]:
    if not report.verdicts:
        return []
    rows = [
        (
            f"<code>{escape(str(verdict.rule))}</code>",
            number(verdict.measured.value),
            interval(verdict.measured),
            str(verdict.measured.n),
            '<span class="passed">passed</span>'
            if verdict.passed
            else '<span class="failed">FAILED</span>',
        )
        for verdict in report.verdicts
    ]
    return [
        "<h2>Acceptance rules</h2>",
        table(("rule", "value", "95 % interval", "n", "result"), rows, (1, 2, 3)),
        note(
            "A rule without .low or .high is about the value itself; with it, about that end of "
            "the interval. A figure that these records do not define fails its rule."
        ),
    ]


def _statuses(report: SiteReport) -> list[str]:
    n = report.evaluation.n
    rows = [
        (
            f"<code>{escape(name)}</code>",
            str(count),
            f"{100 * count / n:.1f} %",
            number(report.right[name]),
        )
        for name, count in report.statuses.items()
    ]
    right = "share of labels right" if report.task.multi_label else "share right"
    return [
        "<h2>Statuses</h2>",
        table(("status", "records", "share", right), rows, (1, 2, 3)),
        note("All metrics below count every record, whatever its status."),
    ]


def _metrics(report: SiteReport) -> list[str]:
    rows = [
        (f"<code>{escape(name)}</code>", number(item.value), interval(item), str(item.n))
        for name, item in report.metrics.items()
        if not name.startswith("set_")
    ]
    return [
        "<h2>Metrics</h2>",
        table(("metric", "value", "95 % interval", "n"), rows, (1, 2, 3)),
        note(
            "Intervals from 1,000 resamples of whole patients, of the last three Wilson's. A rule "
            "may name any of these, and set_coverage_90, set_size_90 ... where there are sets."
        ),
    ]


def _confusion(report: SiteReport) -> list[str]:
    found = report.confusion
    if found is None:
        return []
    heads = ("truth", "said")
    chart = count_matrix(found.rows, found.columns, found.counts, "confusion matrix", heads=heads)
    caption = f"Counts of {found.what}; shaded by their share of the row."
    return ["<h2>Confusion matrix</h2>", f'<div class="wide">{figure(chart, caption)}</div>']


def _decisions(report: SiteReport) -> list[str]:
    if not report.decisions:
        return []
    points = report.task.operating_points
    rows = [
        (
            escape(item.label),
            f"{points.get(item.label, 0.5):.3g}" if report.task.multi_label else "most probable",
            str(item.true_positive),
            str(item.false_negative),
            str(item.true_negative),
            str(item.false_positive),
            share(*item.sensitivity),
            share(*item.specificity),
        )
        for item in report.decisions
    ]
    head = ("label", "positive from", "hits", "misses", "rightly refused", "false alarms")
    return [
        "<h2>Decisions for each label</h2>",
        table((*head, "sensitivity", "specificity"), rows, range(2, 8)),
        note("95 % binomial intervals (Wilson)."),
    ]


def _rocs(report: SiteReport) -> list[str]:
    if not report.rocs:
        return []
    figures = [figure(roc_plot(item), item.decisions.label) for item in report.rocs]
    lines = ["<h2>ROC curves</h2>", '<div class="row">', *figures[:_MOST_CURVES], "</div>"]
    lines.append(
        note(
            "Each label against the rest; the dot is where the bundle decides. A label that these "
            "records have always or never has no curve."
        )
    )
    return lines


def _groups(report: SiteReport) -> list[str]:
    lines = ["<h2>Subgroups</h2>"]
    if not report.groups:
        return [
            *lines,
            note("The records hold none of age, sex, view, modality and region; use --by."),
        ]
    names = _group_metrics(report.groups)
    rows, classes = [], []
    for item in report.groups:
        cells = [_group_cell(report, item, name) for name in names]
        mark = " (few)" if item.is_small else ""
        count = f"{item.n} of {item.patients}{mark}"
        rows.append((escape(item.field), escape(item.value), count, *cells))
        classes.append("few" if item.is_small else "")
    return [
        *lines,
        table(
            ("field", "value", "records of patients", *names),
            rows,
            range(2, 3 + len(names)),
            classes,
        ),
        note(
            f"95 % intervals from resampling patients. Few: under {FEW_PATIENTS} patients, where "
            f"an interval says little; of fewer than {TOLD_PATIENTS} no figure is given. Red: the "
            "whole interval lies below the value of all records; of "
            f"{len(report.groups)} groups looked at, one in twenty does so by chance. The ece of "
            "fewer records is higher by itself."
        ),
    ]


def _group_metrics(groups: Sequence[Subgroup]) -> list[str]:
    wanted = ("accuracy", "balanced_accuracy", "macro_auroc", "ece")
    return [name for name in wanted if any(name in item.metrics for item in groups)]


def _group_cell(report: SiteReport, item: Subgroup, name: str) -> str:
    value = item.metrics.get(name)
    if value is None or value.value is None or item.patients < TOLD_PATIENTS:
        return "-"
    told = f"{value.value:.3f}<br><small>{interval(value)}</small>"
    overall = report.metrics[name].value
    # The binned error of fewer records is higher by itself, so it is not compared.
    if name == "ece" or value.high is None or overall is None:
        return told
    return f'<span class="worse">{told}</span>' if value.high < overall else told


def _wrong(report: SiteReport) -> list[str]:
    if report.wrong is None:
        return []
    rows = [
        (
            escape(item.id),
            escape(item.truth),
            escape(item.said),
            f"{item.confidence:.3f}",
            escape(item.status),
        )
        for item in report.wrong
    ]
    return [
        "<h2>Records that were not right</h2>",
        table(("record", "truth", "said", "confidence", "status"), rows, (3,)),
        note(
            "The most confident first, at most 200. This table names records: keep the page where "
            "records may be named."
        ),
    ]


def _method(report: SiteReport) -> list[str]:
    right = (
        "A label of a record is right when it is decided as the record says."
        if report.task.multi_label
        else "A record is right when the most probable output is its label or one of its answers."
    )
    return [
        "<h2>How to read this</h2>",
        note(
            f"{right} Patients are resampled whole, so that several images of one person do not "
            "count as several people. Small records make wide intervals: a figure inside an "
            "interval is not shown to differ. The figures hold for the patients, devices and "
            "labels of this file and for this build of the bundle alone."
        ),
    ]
