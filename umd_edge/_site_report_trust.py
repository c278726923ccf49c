"""Sections of a site report on what its probabilities are worth: calibration, risk, sets."""

from __future__ import annotations

from html import escape

from ._site_report import SiteReport
from ._site_report_figures import RiskCoverage
from ._site_report_html import figure, note, share, table, with_interval
from ._site_report_plots import reliability_plot, risk_plot, set_plot

__all__ = ["calibration", "prediction_sets", "risk_coverage"]

_SHOWN_COVERAGES = (0.8, 0.9, 0.95)
_SHOWN_IN_PARTS = 0.9


def calibration(report: SiteReport) -> list[str]:
    """Whether a probability is the share of records that are right."""
    bins = report.calibration
    if not bins:
        return []
    cells = "labels of records" if report.task.multi_label else "records"
    outside = sum(not item.within for item in bins)
    caption = (
        f"Each dot is one tenth of the confidence scale. In the shaded band the share of right "
        f"ones would lie 95 times in 100 if the confidence were exact at this n; {outside} of "
        f"{len(bins)} dots lie outside."
    )
    rows = [
        (
            f"{item.low:.1f} to {item.high:.1f}",
            str(item.n),
            f"{item.confidence:.3f}",
            f"{item.observed:.3f}",
            f"{item.band[0]:.3f} to {item.band[1]:.3f}",
            "" if item.within else "outside",
        )
        for item in bins
    ]
    head = ("confidence", cells, "mean confidence", "came true", "band of perfect calibration", "")
    return [
        "<h2>Reliability</h2>",
        '<div class="row">',
        figure(reliability_plot(bins), caption),
        table(head, rows, (1, 2, 3, 4)),
        "</div>",
    ]


def risk_coverage(report: SiteReport) -> list[str]:
    """What abstaining would spare, and cost."""
    risk = report.risk
    if risk is None:
        return []
    caption = (
        "Share of errors among the records that are kept when the least confident ones are turned "
        "away. Dashed: if they were turned away at random."
    )
    if "abstain" in report.task.thresholds:
        caption += " The dot is the threshold of the bundle."
    area = with_interval(risk.area)
    return [
        "<h2>Risk and coverage</h2>",
        '<div class="row">',
        figure(risk_plot(report, risk), caption),
        table(
            ("area under the curve", "value"),
            [
                ("this bundle (95 % interval)", area),
                ("turning away at random", f"{risk.random:.3f}"),
                ("turning away the wrong ones first", f"{risk.best:.3f}"),
                *_risk_rows(risk),
            ],
            (1,),
        ),
        "</div>",
    ]


def _risk_rows(risk: RiskCoverage) -> list[tuple[str, str]]:
    rows = []
    for kept in (1.0, 0.9, 0.8, 0.5):
        row = max(round(kept * len(risk.risk)) - 1, 0)
        rows.append((f"errors among the {kept:.0%} most confident", f"{risk.risk[row]:.3f}"))
    return rows


def prediction_sets(report: SiteReport) -> list[str]:
    """How often the right output is in its prediction set."""
    head = "<h2>Coverage of the prediction sets</h2>"
    if report.task.conformal is None:
        return [head, note("The bundle has no conformal thresholds for this task.")]
    pooled = [item for item in report.sets if ":" not in item.what]
    shown = [item for item in pooled if item.nominal in _SHOWN_COVERAGES and item.n]
    parts = [item for item in report.sets if item not in pooled and item.n]
    shown += [item for item in parts if item.nominal == _SHOWN_IN_PARTS]
    rows = [
        (
            escape(item.what),
            f"{item.nominal:g}",
            share(item.covered, item.n),
            f"{item.size:.2f}",
            str(item.n),
        )
        for item in shown
    ]
    classes = ["worse" if item.interval[1] < item.nominal else "" for item in shown]
    size = "states left open" if report.task.multi_label else "outputs in the set"
    caption = (
        "How often the truth was in the set, with 95 % binomial intervals; on the dashed line what "
        "was promised. The promise holds for patients like those that set the thresholds."
    )
    return [
        head,
        '<div class="row">',
        figure(set_plot(pooled), caption),
        table(
            ("which", "promised", "covered (95 % interval)", f"mean {size}", "n"),
            rows,
            (1, 2, 3, 4),
            classes,
        ),
        "</div>",
        note("Red: the whole interval lies below what was promised."),
    ]
