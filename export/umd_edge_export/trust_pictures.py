"""Pictures and table of a proof: one row of three panels a task."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from .trust_proof import NOMINAL, Proof

__all__ = ["draw_proofs", "proof_table"]

_BEFORE, _AFTER, _GREY = "#d9a441", "#1f5f8b", "0.6"


def draw_proofs(proofs: Mapping[str, Proof], title: str) -> bytes:
    """PNG with reliability, coverage and risk of each task.

    Args:
        proofs: Task -> what was found.
        title: Above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.6 + 3.1 * len(proofs)), layout="constrained")
    panels = figure.subplots(len(proofs), 3, squeeze=False)
    for row, (name, proof) in zip(panels, proofs.items(), strict=True):
        row[0].set_ylabel(f"{name}\nshare that came true")
        _draw_reliability(row[0], proof)
        _draw_coverage(row[1], proof)
        _draw_risk(row[2], proof)
    panels[0][0].set_title("reliability", fontsize=10)
    panels[0][1].set_title("coverage of prediction sets, 200 splits", fontsize=10)
    panels[0][2].set_title("risk among the answers given", fontsize=10)
    figure.suptitle(title, fontsize=11)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": "umd-edge-export"})
    return out.getvalue()


def _draw_reliability(axes: Any, proof: Proof) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--")
    for name, colour, marker in (("before", _BEFORE, "s"), ("after", _AFTER, "o")):
        bins = proof.reliability[name]
        error = proof.figures[name]["calibration_error"]
        label = f"{name}: error {error:.3f}"
        if name == "after":
            label += f" (chance {proof.figures[name]['perfect_95']:.3f})"
        axes.plot(
            [b[0] for b in bins],
            [b[1] for b in bins],
            marker=marker,
            color=colour,
            markersize=4,
            linewidth=1.2,
            label=label,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("probability, bins of equal count")
    axes.legend(fontsize=7, loc="upper left")


def _draw_coverage(axes: Any, proof: Proof) -> None:
    values = [proof.coverages[nominal] for nominal in NOMINAL]
    places = list(range(len(NOMINAL)))
    axes.boxplot(values, positions=places, widths=0.5, whis=(2.5, 97.5), showfliers=False)
    for place, nominal in zip(places, NOMINAL, strict=True):
        found = proof.figures["coverage"][f"{nominal:g}"]
        axes.plot([place - 0.4, place + 0.4], [nominal, nominal], color=_BEFORE, linewidth=2)
        axes.plot(place, found["mean"], "o", color=_AFTER, markersize=4)
        axes.text(place, found["high"] + 0.01, f"{found['mean']:.3f}", ha="center", fontsize=7)
    axes.set_xticks(places, [f"{nominal:g}" for nominal in NOMINAL])
    axes.set_ylim(top=1.06)
    axes.set_xlabel("nominal (bar); mean (dot); box and 95 % of the splits")
    axes.set_ylabel("coverage")


def _draw_risk(axes: Any, proof: Proof) -> None:
    found = proof.figures["risk_coverage"]
    axes.plot([p[0] for p in proof.risk], [p[1] for p in proof.risk], color=_AFTER)
    axes.axhline(found["random"], color=_GREY, linewidth=1, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("share answered, the most certain first")
    axes.set_ylabel("risk")
    axes.text(
        0.98,
        0.04,
        f"area {found['area']:.3f}, random {found['random']:.3f}\n"
        f"difference {found['low']:.3f} to {found['high']:.3f}",
        ha="right",
        fontsize=7,
        transform=axes.transAxes,
    )


def proof_table(proofs: Mapping[str, Proof]) -> str:
    """Markdown tables of the figures."""
    lines = [
        "| task | records (patients) | scaling | NLL | Brier | calibration error | chance, 95 % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, proof in proofs.items():
        f = proof.figures
        before, after = f["before"], f["after"]
        shown = " | ".join(
            f"{before[key]:.4f} to {after[key]:.4f}"
            for key in ("nll", "brier", "calibration_error")
        )
        lines.append(
            f"| `{name}` | {f['records']} ({f['groups']}) | {f['scaling']} | {shown} "
            f"| {after['perfect_95']:.4f} |"
        )
    lines += [
        "",
        "| task | coverage at 0.8 | at 0.9 | at 0.95 | binomial, 0.9 | outputs in a set, 0.9 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, proof in proofs.items():
        found = proof.figures["coverage"]
        shown = " | ".join(
            "{mean:.3f} ({low:.3f} to {high:.3f})".format(**found[f"{nominal:g}"])
            for nominal in NOMINAL
        )
        low, high = found["0.9"]["binomial"]
        size = found["0.9"]["set_size"]
        lines.append(f"| `{name}` | {shown} | {low:.3f} to {high:.3f} | {size:.1f} |")
    lines += [
        "",
        "| task | area under risk-coverage | random | difference | abstains | risk then | before |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, proof in proofs.items():
        area, given = proof.figures["risk_coverage"], proof.figures["abstention"]
        lines.append(
            f"| `{name}` | {area['area']:.3f} | {area['random']:.3f} | {area['difference']:.3f} "
            f"({area['low']:.3f} to {area['high']:.3f}) | {100 * given['share']:.0f} % "
            f"| {given['risk_answered']:.3f} | {given['risk_all']:.3f} |"
        )
    return "\n".join([*lines, ""])
