"""The page of results: Markdown with tables and pictures, made from what was measured alone."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from ..source import commit
from .grid import Experiment, GridDataset
from .paired import Summary
from .plots import Bar, Curve, draw_bars, draw_curves
from .results import ArmRuns, Results
from .tables import (
    arm_cells,
    arm_table,
    baseline_rows,
    baselines_ahead,
    dataset_of,
    difference_cells,
    difference_table,
    in_words,
    markdown_table,
    records_counted,
    trials_told,
)

__all__ = ["append_log", "write_page"]

# --- pictures ---------------------------------------------------------------------------------


def _bars(results: Results, experiment: Experiment, dataset: GridDataset) -> list[Bar]:
    metric = dataset.metrics[0]
    bars = []
    for name in experiment.compared:
        arm = results.arms.get((experiment.name, dataset.name, name, 1.0))
        if arm is not None:
            is_baseline = name in experiment.beside
            bars.append(_bar(name, arm.summary(metric), is_baseline))
    for (home, kind), predictions in results.baselines.items():
        if home == dataset.name:
            summary = ArmRuns((0,), (kind,), (predictions,)).summary(metric)
            bars.append(_bar(kind, summary, is_baseline=True))
    return bars


def _bar(name: str, summary: Summary, is_baseline: bool) -> Bar:
    return Bar(
        name=name,
        value=summary.value,
        low=summary.low,
        high=summary.high,
        by_seed=summary.by_seed,
        is_baseline=is_baseline,
    )


def _validations(path: Path, task: str, metric: str) -> dict[int, float]:
    """Step -> validation metric, from a run's history."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # the line that a kill cut short
            break
        value = record.get("tasks", {}).get(task, {}).get(metric, {}).get("value")
        if record.get("kind") == "validation" and value is not None:
            found[int(record["step"])] = float(value)
    return found


def _learning_curve(
    results: Results, name: str, arm: ArmRuns, dataset: GridDataset
) -> Curve | None:
    """Validation metric over steps: mean over the seeds, band from lowest to highest."""
    histories = [
        _validations(
            results.folder / "runs" / run / "history.jsonl", dataset.task, dataset.metrics[0]
        )
        for run in arm.runs
    ]
    steps = sorted(set.intersection(*map(set, histories)))
    if not steps:
        return None
    values = np.asarray([[history[step] for step in steps] for history in histories])
    return Curve(
        name=name,
        x=tuple(float(step) for step in steps),
        y=tuple(values.mean(axis=0).tolist()),
        low=tuple(values.min(axis=0).tolist()),
        high=tuple(values.max(axis=0).tolist()),
    )


class _Page:
    """Collects lines; pictures go into a folder beside the page, named like it."""

    def __init__(self, results: Results, out: Path) -> None:
        self.results, self.out = results, out
        self.pictures = out.with_suffix("")
        self.lines: list[str] = []
        # What the folder's grid was when it last ran may say less than the file.
        self._whole = (results.asked or results.plan).grid

    def _picture(self, name: str, title: str) -> tuple[Path, str]:
        path = self.pictures / f"{name}.png"
        return path, f"![{title}]({self.pictures.name}/{path.name})"

    def header(self) -> None:
        results = self.results
        commits = Counter(
            _commit_of(results, run) for arm in results.arms.values() for run in arm.runs
        )
        listed = ", ".join(f"`{name}`" for name in sorted(commits))
        self.lines += [
            "# Results",
            "",
            f"Made by `umd-edge-train results` from the grid `{results.plan.grid.name}`, "
            f"{results.split} split. Runs of commit {listed}. "
            "[training.md](training.md) says how to repeat it.",
            "",
            "* A value is the mean over the seeds. Its 95 % interval speaks of other patients: "
            "1,000 resamples of whole patients (seed 0), the seeds averaged inside each. "
            "`over seeds` is the lowest and the highest run.",
            "* A difference is taken on the same records, resample by resample and seed by seed. "
            "An arm is better or worse where the interval leaves out 0 and all seeds agree. The "
            "intervals are not corrected for the number of comparisons.",
            "* Baselines see the same records. `majority`: the most frequent training answer; "
            "`question-only`: softmax regression on the question's words; `pixels`: the same with "
            "16 x 16 greys beside them.",
        ]

    def experiment(self, experiment: Experiment) -> None:
        self.lines += ["", f"## {experiment.title}"]
        about = {arm.name: arm.about for arm in self._whole.arms}
        told = [f"* {name}: {about[name]}" for name in experiment.compared if about[name]]
        self.lines += ["", *told] if told else []
        for name in experiment.datasets:
            dataset = dataset_of(self.results, name)
            self.lines += ["", f"### {experiment.name}: {name}", ""]
            self.lines += [records_counted(self.results, experiment, dataset), ""]
            if experiment.kind == "few-label":
                self._few_labels(experiment, dataset)
            else:
                self._compare(experiment, dataset)

    def _compare(self, experiment: Experiment, dataset: GridDataset) -> None:
        self.lines += arm_table(self.results, experiment, dataset)
        self.lines += trials_told(self.results, experiment, dataset)
        self.lines += ["", *difference_table(self.results, experiment, dataset)]
        self.lines += baselines_ahead(self.results, experiment, dataset)
        title = f"{dataset.name}, {self.results.split} split"
        bars = _bars(self.results, experiment, dataset)
        if bars:
            path, link = self._picture(f"{experiment.name}-{dataset.name}-bars", title)
            draw_bars(path, bars, label=in_words(dataset.metrics[0]), title=title)
            self.lines += ["", link]
        curves = [
            curve
            for name in experiment.compared
            if (arm := self.results.arms.get((experiment.name, dataset.name, name, 1.0)))
            and (curve := _learning_curve(self.results, name, arm, dataset))
            and len(curve.x) > 1
        ]
        if curves:
            title = f"{dataset.name}, validation split while training"
            path, link = self._picture(f"{experiment.name}-{dataset.name}-learning", title)
            label = in_words(dataset.metrics[0])
            draw_curves(path, curves, x_label="optimiser step", y_label=label, title=title)
            self.lines += ["", link]

    def _few_labels(self, experiment: Experiment, dataset: GridDataset) -> None:
        metric = dataset.metrics[0]
        rows, curves = [], []
        for name in experiment.arms:
            points: list[tuple[float, Summary]] = []
            for fraction in experiment.fractions:
                arm = self.results.arms.get((experiment.name, dataset.name, name, fraction))
                rows.append([f"{fraction:.0%}", name, *arm_cells(arm, [metric])])
                if arm is not None:
                    points.append((fraction, arm.summary(metric)))
            if len(points) > 1:  # one point is no curve
                curves.append(_fraction_curve(name, points))
        fitted = baseline_rows(self.results, dataset, [metric])
        rows += [[f"{1:.0%}", *cells] for cells in fitted]
        head = [
            "labelled patients",
            "arm",
            "seeds",
            in_words(metric),
            "95 % interval",
            "over seeds",
        ]
        self.lines += [*markdown_table(head, rows), ""]
        differences = []
        for fraction in experiment.fractions:
            for arm_name in experiment.arms[1:]:
                summary = self.results.difference(
                    experiment, dataset, arm_name, experiment.arms[0], metric, fraction
                )
                pair = f"{arm_name} - {experiment.arms[0]}"
                differences.append([f"{fraction:.0%}", pair, *difference_cells(summary)])
        head = ["labelled patients", "difference", "value", "95 % interval", "each seed"]
        self.lines += markdown_table([*head, "first arm is"], differences)
        self.lines += baselines_ahead(self.results, experiment, dataset)
        if curves:
            title = f"{dataset.name}, {self.results.split} split, band: 95 % interval"
            path, link = self._picture(f"{experiment.name}-{dataset.name}", title)
            draw_curves(
                path,
                curves,
                x_label="labelled training patients",
                y_label=in_words(metric),
                title=title,
                x_ticks=experiment.fractions,
            )
            self.lines += ["", link]

    def missing(self) -> None:
        missing = self.results.missing()
        self.lines += ["", "## Not run", ""]
        self.lines += [f"* {one.what}: {one.why}" for one in self._whole.left_out]
        if not missing:
            self.lines.append("Everything that the grid asks for was run.")
        for dataset, arm, fraction, seeds in missing:
            share = "" if fraction == 1.0 else f", {fraction:.0%} of the labelled patients"
            listed = ", ".join(map(str, seeds))
            self.lines.append(f"* {dataset}: {arm}{share}, seeds {listed}")


def _fraction_curve(name: str, points: Sequence[tuple[float, Summary]]) -> Curve:
    return Curve(
        name=name,
        x=tuple(fraction for fraction, _ in points),
        y=tuple(s.value for _, s in points),
        low=tuple(s.value if s.low is None else s.low for _, s in points),
        high=tuple(s.value if s.high is None else s.high for _, s in points),
    )


def _commit_of(results: Results, run: str) -> str:
    path = results.folder / "done" / f"{run}.json"
    return str(json.loads(path.read_text(encoding="utf-8")).get("commit", "unknown"))


def write_page(results: Results, out: Path) -> None:
    """Write the page and its pictures; the page comes last, so that its links always work.

    Args:
        results: What was measured.
        out: Markdown file; pictures go into the folder of the same name without its suffix.
    """
    page = _Page(results, out)
    page.header()
    for experiment in results.plan.grid.experiments:
        page.experiment(experiment)
    page.missing()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text("\n".join(page.lines) + "\n", encoding="utf-8")
    os.replace(temporary, out)


def _log_lines(results: Results) -> Iterator[str]:
    for experiment in results.plan.grid.experiments:
        for name in experiment.datasets:
            dataset = dataset_of(results, name)
            yield f"\n{experiment.name}/{name}: {records_counted(results, experiment, dataset)}\n"
            metric = dataset.metrics[0]
            rows = [
                [arm, f"{fraction:g}", *arm_cells(found, [metric])]
                for arm in experiment.compared
                for fraction in experiment.fractions
                if (found := results.arms.get((experiment.name, name, arm, fraction)))
            ]
            head = ["arm", "fraction", "seeds", in_words(metric), "95 % interval", "over seeds"]
            yield from markdown_table(head, rows)


def append_log(log: Path, results: Results) -> None:
    """Append date, commit and primary figures to a Markdown log."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    lines = [
        f"\n## {now} UTC: {results.split} split, grid `{results.plan.grid.name}`",
        f"\nCommit `{commit()}`.",
        *_log_lines(results),
    ]
    with log.open("a", encoding="utf-8") as handle:
        handle.write("\n".join(lines) + "\n")
