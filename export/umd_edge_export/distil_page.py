"""The page and the pictures of a distillation's report."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from umd_edge._files import write_whole
from umd_edge_train.experiments.plots import Bar, Curve, draw_bars, draw_differences, draw_panels

__all__ = ["draw_report"]

_POOLED = "all tasks"
_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_auroc": "macro AUROC",
    "recall_at_10": "recall at 10",
}
_NOTE = (
    "Differences are paired: the same records, seed by seed. Intervals: 95 %, over 1,000 resamples "
    "of patients, of the mean over the seeds. All tasks together: every record of every task but "
    "retrieval counts the same; a film with several labels counts by the share decided rightly at "
    "0.5. Retrieval: by embeddings alone, mean of both directions."
)


def draw_report(out: Path, report: Mapping[str, Any], runs: Mapping[str, Sequence[Path]]) -> None:
    """Write `report.html` and its pictures.

    `differences.png` has the student against the others on every task, `<task>.png` the arms of one
    task, `losses.png` the training curves by name of loss, over the seeds.

    Args:
        out: Folder.
        report: As `report_distillation` gives it.
        runs: Arm -> the run folders of its seeds.
    """
    tables = dict(report["tasks"])
    if "pooled" in report:
        tables = {_POOLED: report["pooled"], **tables}
    for name, found in tables.items():
        _draw_arms(out / f"{_file(name)}.png", name, found)
    _draw_differences(out / "differences.png", tables)
    draw_panels(out / "losses.png", _losses(runs), x_label="optimiser step")
    _write_page(out / "report.html", report, tables)


def _file(name: str) -> str:
    return name.replace("/", "-").replace(" ", "-")


def _draw_arms(path: Path, name: str, found: Mapping[str, Any]) -> None:
    bars = [
        Bar(
            name=arm,
            value=summary["value"],
            low=summary["low"],
            high=summary["high"],
            by_seed=tuple(summary["by_seed"]),
            is_baseline=arm == "student without teacher",
        )
        for arm, summary in found["arms"].items()
    ]
    draw_bars(path, bars, label=_METRICS[found["metric"]], title=name)


def _draw_differences(path: Path, tables: Mapping[str, Any]) -> None:
    """In points, all tasks together on top."""
    rows = {f"{name}\n{_METRICS[found['metric']]}": found for name, found in tables.items()}
    names = list(next(iter(rows.values()))["differences"])
    groups = {
        pair: [_point(row, found["differences"][pair]) for row, found in rows.items()]
        for pair in names
    }
    draw_differences(path, groups, label="points")


def _point(name: str, summary: Mapping[str, Any]) -> Bar:
    low, high = summary["low"], summary["high"]
    return Bar(
        name=name,
        value=100.0 * summary["value"],
        low=None if low is None else 100.0 * low,
        high=None if high is None else 100.0 * high,
        by_seed=tuple(100.0 * value for value in summary["by_seed"]),
    )


# --- curves -----------------------------------------------------------------------------------


def _history(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Name of a loss -> its steps and values."""
    losses: dict[str, list[tuple[float, float]]] = {}
    for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for name, value in record.get("losses", {}).items():
            losses.setdefault(name, []).append((float(record["step"]), float(value)))
    return losses


def _losses(runs: Mapping[str, Sequence[Path]]) -> dict[str, list[Curve]]:
    """Name of a loss -> a curve for each arm that has it: mean over the seeds, and their range."""
    panels: dict[str, list[Curve]] = {}
    for arm, folders in runs.items():
        histories = [_history(folder) for folder in folders]
        for name in sorted({name for history in histories for name in history}):
            seeds = [dict(_binned(history, name)) for history in histories if name in history]
            steps = sorted(set.intersection(*(set(seed) for seed in seeds)))
            if steps:
                panels.setdefault(name, []).append(_curve(arm, steps, seeds))
    return dict(sorted(panels.items(), key=lambda item: (item[0] != "loss", item[0])))


def _curve(arm: str, steps: Sequence[float], seeds: Sequence[Mapping[float, float]]) -> Curve:
    values = [[seed[step] for seed in seeds] for step in steps]
    return Curve(
        name=arm,
        x=tuple(steps),
        y=tuple(sum(v) / len(v) for v in values),
        low=tuple(map(min, values)),
        high=tuple(map(max, values)),
    )


def _binned(
    history: Mapping[str, Sequence[tuple[float, float]]], name: str, bins: int = 60
) -> Iterator[tuple[float, float]]:
    """Means over equal stretches of a run's steps: single steps are too noisy to look at."""
    # of the run, not of this loss: not every step has one
    width = max(1.0, history["loss"][-1][0] / bins)
    stretches: dict[int, list[float]] = {}
    for step, value in history[name]:
        stretches.setdefault(int((step - 1) // width), []).append(value)
    for number, values in stretches.items():
        yield (number + 0.5) * width, sum(values) / len(values)


# --- page -------------------------------------------------------------------------------------


def _row(name: str, summary: Mapping[str, Any], sign: str) -> str:
    interval = "undefined"
    if summary["low"] is not None:
        interval = f"{summary['low']:{sign}.3f} to {summary['high']:{sign}.3f}"
    seeds = ", ".join(f"{value:{sign}.3f}" for value in summary["by_seed"])
    changed = summary.get("changed_decisions")
    share = "" if changed is None else f"{changed:.1%}"
    cells = (name, f"{summary['value']:{sign}.3f}", interval, seeds, share, str(summary["n"]))
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _sizes(sizes: Mapping[str, Mapping[str, int]]) -> str:
    """Without the arm that is the same student."""
    listed = [
        f"{arm}: {size['parameters'] / 1e6:.2f} million weights"
        for arm, size in sizes.items()
        if arm != "student without teacher"
    ]
    return html.escape("; ".join(listed))


def _write_page(path: Path, report: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
    columns = ("", "value", "95 % interval", "runs", "changed decisions", "records")
    head = "<tr>" + "".join(f"<th>{column}</th>" for column in columns) + "</tr>"
    lines = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Distillation</title>',
        "<style>body{font:16px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
        "padding:0 1rem}td,th{text-align:left;padding:.15rem .8rem .15rem 0}img{max-width:100%}"
        "</style>",
        "<h1>Distillation</h1>",
        f"<p>Split {html.escape(report['split'])}, seeds "
        f"{html.escape(', '.join(map(str, report['seeds'])))}. {_sizes(report['sizes'])}.</p>",
        '<p><img src="differences.png" alt="Differences in points"></p>',
        f"<p>{_NOTE}</p>",
    ]
    for task, found in tables.items():
        name = html.escape(task)
        lines += [f"<h2>{name}: {_METRICS[found['metric']]}</h2>", f"<table>{head}"]
        lines += [_row(arm, summary, "") for arm, summary in found["arms"].items()]
        lines += [_row(pair, summary, "+") for pair, summary in found["differences"].items()]
        lines += ["</table>", f'<p><img src="{html.escape(_file(task))}.png" alt="{name}"></p>']
    lines += [
        "<h2>Losses</h2>",
        "<p>Mean over the seeds, and their range.</p>",
        '<p><img src="losses.png" alt="Losses by name"></p>',
    ]
    write_whole(path, ("\n".join(lines) + "\n").encode())
