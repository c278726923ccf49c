"""The plots of a site report."""

from __future__ import annotations

from collections.abc import Sequence

from ._charts import BLUE, GREY, ORANGE, Plot
from ._site_report import Roc, SiteReport
from ._site_report_figures import CalibrationBin, RiskCoverage, SetCoverage

__all__ = ["reliability_plot", "risk_plot", "roc_plot", "set_plot"]


def reliability_plot(bins: Sequence[CalibrationBin]) -> str:
    """Promised against observed, with the band of a perfect promise."""
    plot = Plot(
        title="reliability diagram", x_label="mean confidence", y_label="share that is right"
    )
    plot.band([(item.confidence, *item.band) for item in bins])
    for item in bins:  # a bin alone has no width in the band
        plot.span(item.confidence, *item.band, "#b9cfdf", 7)
    plot.curve([(0, 0), (1, 1)], GREY, "4 3")
    plot.curve([(item.confidence, item.observed) for item in bins], BLUE)
    for item in bins:
        told = f"{item.n}: {item.observed:.3f} right at a mean confidence of {item.confidence:.3f}"
        plot.dot(item.confidence, item.observed, BLUE if item.within else ORANGE, told)
    return plot.render()


def risk_plot(report: SiteReport, risk: RiskCoverage) -> str:
    """Errors among the records kept, and where the bundle's own threshold lies."""
    highest = max(float(risk.risk.max()), risk.random, 1e-3)
    top = min(1.0, 0.05 * (int(highest / 0.05) + 1))
    plot = Plot(title="risk-coverage curve", x_label="share kept", y_label="errors", y=(0, top))
    plot.curve([(0, risk.random), (1, risk.random)], GREY, "4 3")
    plot.curve(zip(risk.coverage.tolist(), risk.risk.tolist(), strict=True), BLUE)
    kept = 1 - report.statuses["abstain"] / report.evaluation.n
    if "abstain" in report.task.thresholds and kept > 0:
        row = max(round(kept * len(risk.risk)) - 1, 0)
        told = f"the threshold of the bundle keeps {kept:.1%}"
        plot.dot(kept, float(risk.risk[row]), ORANGE, told, 5)
    return plot.render()


def set_plot(pooled: Sequence[SetCoverage]) -> str:
    """Promised against observed coverage, with intervals; of labels, present and absent apart."""
    several = any(item.what == "present" for item in pooled)
    lines = {"present": BLUE, "absent": ORANGE} if several else {"all": BLUE}
    shown = [item for item in pooled if item.what in lines and item.n]
    start = 0.5 if all(item.interval[0] >= 0.5 for item in shown) else 0.0
    span = (start, 1.0)
    plot = Plot(title="coverage of sets", x_label="promised", y_label="covered", x=span, y=span)
    plot.curve([(start, start), (1, 1)], GREY, "4 3")
    for row, (name, colour) in enumerate(lines.items()):
        points = [item for item in shown if item.what == name]
        for item in points:
            plot.span(item.nominal, *item.interval, colour)
        plot.curve([(item.nominal, item.share) for item in points], colour)
        for item in points:
            told = f"{name}: {item.covered} of {item.n} at {item.nominal:g}"
            plot.dot(item.nominal, item.share, colour, told, 2.5)
        if several:
            height = 1 - (0.05 + 0.07 * row) * (1 - start)
            plot.dot(start + 0.03 * (1 - start), height, colour, name)
            plot.label(start + 0.06 * (1 - start), height - 0.015 * (1 - start), name)
    return plot.render()


def roc_plot(item: Roc) -> str:
    """Sensitivity against false alarms, and where the bundle decides."""
    plot = Plot(
        title=f"ROC curve of {item.decisions.label}",
        x_label="1 - specificity",
        y_label="sensitivity",
        width=290,
        height=260,
    )
    plot.curve([(0, 0), (1, 1)], GREY, "4 3")
    alarms, hits = item.curve
    plot.curve(zip(alarms.tolist(), hits.tolist(), strict=True), BLUE)
    (hit, have), (refused, have_not) = item.decisions.sensitivity, item.decisions.specificity
    told = f"sensitivity {hit}/{have}, specificity {refused}/{have_not}"
    plot.dot(1 - refused / have_not, hit / have, ORANGE, told, 5)
    if item.area is not None and item.area.value is not None:
        plot.label(0.97, 0.06, f"area {item.area.value:.3f}", "end")
    return plot.render()
