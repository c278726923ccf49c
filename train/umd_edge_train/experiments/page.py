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
from ..split_scheme import AS_GIVEN
from .grid import Experiment, GridDataset
from .paired import Summary
from .plots import Bar, Curve, draw_bars, draw_curves
from .results import ArmRuns, Results

__all__ = ["append_log", "write_page"]

_NOT_RUN = "not run"


def _dataset(results: Results, name: str) -> GridDataset:
    return next(d for d in results.plan.grid.datasets if d.name == name)


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _interval(summary: Summary, sign: str = "") -> str:
    if summary.low is None or summary.high is None:
        return "undefined"
    return f"{summary.low:{sign}.3f} to {summary.high:{sign}.3f}"


def _spread(summary: Summary) -> str:
    if len(summary.by_seed) < 2:
        return "one run"
    return f"{min(summary.by_seed):.3f} to {max(summary.by_seed):.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


# --- arms -------------------------------------------------------------------------------------


def _arm_cells(arm: ArmRuns | None, metrics: Sequence[str]) -> list[str]:
    if arm is None:
        return [_NOT_RUN] + [""] * (3 * len(metrics))
    cells = [str(len(arm.seeds))]
    for metric in metrics:
        summary = arm.summary(metric)
        cells += [f"{summary.value:.3f}", _interval(summary), _spread(summary)]
    return cells


def _arm_table(results: Results, experiment: Experiment, dataset: GridDataset) -> list[str]:
    head = ["arm", "seeds"]
    for metric in dataset.metrics:
        head += [_words(metric), "95 % interval", "over seeds"]
    rows = []
    for name in (*experiment.arms, *experiment.beside):
        arm = results.arms.get((experiment.name, dataset.name, name, 1.0))
        rows.append([name, *_arm_cells(arm, dataset.metrics)])
    for (home, kind), predictions in results.baselines.items():
        if home == dataset.name:
            fitted = ArmRuns((0,), (kind,), (predictions,))
            rows.append([f"baseline: {kind}", *_arm_cells(fitted, dataset.metrics)])
            rows[-1][1] = ""
    return _table(head, rows)


def _counts(results: Results, experiment: Experiment, dataset: GridDataset) -> str:
    for (name, home, _, _), arm in results.arms.items():
        if (name, home) == (experiment.name, dataset.name):
            parts = []
            for metric in dataset.metrics:
                summary = arm.summary(metric)
                parts.append(
                    f"{_words(metric)}: {summary.n} records of {summary.patients} patients"
                )
            scheme = results.splits.get(dataset.name, AS_GIVEN)
            named = "" if scheme == AS_GIVEN else f" ({scheme})"
            return f"{results.split} split{named}; {'; '.join(parts)}."
    return f"{results.split} split; nothing was run."


def _trials(results: Results, experiment: Experiment, dataset: GridDataset) -> list[str]:
    if len(experiment.trials) < 2:
        return []
    lines = [
        "",
        f"Every arm was tried with {len(experiment.trials)} settings; the one with the best "
        f"{_words(dataset.metrics[0])} on the validation split counts:",
        "",
    ]
    for name in (*experiment.arms, *experiment.beside):
        arm = results.arms.get((experiment.name, dataset.name, name, 1.0))
        if arm is not None:
            lines.append(f"* {name}: `{' '.join(arm.trial) or 'as in the recipe'}`")
    return lines


# --- differences ------------------------------------------------------------------------------


def _pairs(experiment: Experiment) -> list[tuple[str, str]]:
    """(arm, arm that it is compared with)."""
    arms = experiment.arms
    pairs: list[tuple[str, str]] = []
    for index, arm in enumerate(arms[1:], start=1):
        if experiment.kind == "ladder":
            pairs.append((arm, arms[index - 1]))
        pairs.append((arm, arms[0]))
    pairs += [(arms[-1], name) for name in experiment.beside]
    return list(dict.fromkeys(pairs))


def _verdict(summary: Summary) -> str:
    # The interval speaks of other patients; that other runs would agree, the seeds must show.
    agree = all(value * summary.value > 0.0 for value in summary.by_seed)
    if not (summary.excludes_zero and agree):
        return "not told apart"
    return "better" if summary.value > 0 else "worse"


def _difference_cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return [_NOT_RUN, "", "", ""]
    seeds = ", ".join(f"{value:+.3f}" for value in summary.by_seed)
    return [f"{summary.value:+.3f}", _interval(summary, "+"), seeds, _verdict(summary)]


def _difference_table(results: Results, experiment: Experiment, dataset: GridDataset) -> list[str]:
    rows = []
    for first, second in _pairs(experiment):
        for metric in dataset.metrics:
            summary = results.difference(experiment, dataset, first, second, metric)
            rows.append([f"{first} - {second}", _words(metric), *_difference_cells(summary)])
    head = ["difference", "metric", "value", "95 % interval", "each seed", "first arm is"]
    return _table(head, rows)


# --- pictures ---------------------------------------------------------------------------------


def _bars(results: Results, experiment: Experiment, dataset: GridDataset) -> list[Bar]:
    metric = dataset.metrics[0]
    bars = []
    for name in (*experiment.arms, *experiment.beside):
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
        for name in experiment.datasets:
            dataset = _dataset(self.results, name)
            self.lines += ["", f"### {experiment.name}: {name}", ""]
            self.lines += [_counts(self.results, experiment, dataset), ""]
            if experiment.kind == "few-label":
                self._few_labels(experiment, dataset)
            else:
                self._compare(experiment, dataset)

    def _compare(self, experiment: Experiment, dataset: GridDataset) -> None:
        self.lines += _arm_table(self.results, experiment, dataset)
        self.lines += _trials(self.results, experiment, dataset)
        self.lines += ["", *_difference_table(self.results, experiment, dataset)]
        title = f"{dataset.name}, {self.results.split} split"
        bars = _bars(self.results, experiment, dataset)
        if bars:
            path, link = self._picture(f"{experiment.name}-{dataset.name}-bars", title)
            draw_bars(path, bars, label=_words(dataset.metrics[0]), title=title)
            self.lines += ["", link]
        curves = [
            curve
            for name in (*experiment.arms, *experiment.beside)
            if (arm := self.results.arms.get((experiment.name, dataset.name, name, 1.0)))
            and (curve := _learning_curve(self.results, name, arm, dataset))
            and len(curve.x) > 1
        ]
        if curves:
            title = f"{dataset.name}, validation split while training"
            path, link = self._picture(f"{experiment.name}-{dataset.name}-learning", title)
            label = _words(dataset.metrics[0])
            draw_curves(path, curves, x_label="optimiser step", y_label=label, title=title)
            self.lines += ["", link]

    def _few_labels(self, experiment: Experiment, dataset: GridDataset) -> None:
        metric = dataset.metrics[0]
        rows, curves = [], []
        for name in experiment.arms:
            points: list[tuple[float, Summary]] = []
            for fraction in experiment.fractions:
                arm = self.results.arms.get((experiment.name, dataset.name, name, fraction))
                rows.append([f"{fraction:.0%}", name, *_arm_cells(arm, [metric])])
                if arm is not None:
                    points.append((fraction, arm.summary(metric)))
            if len(points) > 1:  # one point is no curve
                curves.append(_fraction_curve(name, points))
        head = ["labelled patients", "arm", "seeds", _words(metric), "95 % interval", "over seeds"]
        self.lines += [*_table(head, rows), ""]
        differences = []
        for fraction in experiment.fractions:
            for arm_name in experiment.arms[1:]:
                summary = self.results.difference(
                    experiment, dataset, arm_name, experiment.arms[0], metric, fraction
                )
                pair = f"{arm_name} - {experiment.arms[0]}"
                differences.append([f"{fraction:.0%}", pair, *_difference_cells(summary)])
        head = ["labelled patients", "difference", "value", "95 % interval", "each seed"]
        self.lines += _table([*head, "first arm is"], differences)
        if curves:
            title = f"{dataset.name}, {self.results.split} split, band: 95 % interval"
            path, link = self._picture(f"{experiment.name}-{dataset.name}", title)
            draw_curves(
                path,
                curves,
                x_label="labelled training patients",
                y_label=_words(metric),
                title=title,
                x_ticks=experiment.fractions,
            )
            self.lines += ["", link]

    def missing(self) -> None:
        missing = self.results.missing()
        self.lines += ["", "## Not run", ""]
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
            dataset = _dataset(results, name)
            yield f"\n{experiment.name}/{name}: {_counts(results, experiment, dataset)}\n"
            metric = dataset.metrics[0]
            rows = [
                [arm, f"{fraction:g}", *_arm_cells(found, [metric])]
                for arm in (*experiment.arms, *experiment.beside)
                for fraction in experiment.fractions
                if (found := results.arms.get((experiment.name, name, arm, fraction)))
            ]
            head = ["arm", "fraction", "seeds", _words(metric), "95 % interval", "over seeds"]
            yield from _table(head, rows)


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
