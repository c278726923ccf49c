"""Tables of results in Markdown: arms, baselines, and differences on the same records."""

from __future__ import annotations

from collections.abc import Sequence

from ..split_scheme import AS_GIVEN
from .grid import Experiment, GridDataset
from .paired import Summary
from .results import ArmRuns, Results

__all__ = [
    "arm_cells",
    "arm_table",
    "baseline_rows",
    "baselines_ahead",
    "dataset_of",
    "difference_cells",
    "difference_table",
    "in_words",
    "markdown_table",
    "records_counted",
    "trials_told",
    "verdict",
]

_NOT_RUN = "not run"


def dataset_of(results: Results, name: str) -> GridDataset:
    """A data set of the grid, by its name."""
    return next(d for d in results.plan.grid.datasets if d.name == name)


def in_words(metric: str) -> str:
    """A metric's name as a reader would write it."""
    return metric.replace("_", " ")


def _interval(summary: Summary, sign: str = "") -> str:
    if summary.low is None or summary.high is None:
        return "undefined"
    return f"{summary.low:{sign}.3f} to {summary.high:{sign}.3f}"


def _spread(summary: Summary) -> str:
    if len(summary.by_seed) < 2:
        return "one run"
    return f"{min(summary.by_seed):.3f} to {max(summary.by_seed):.3f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


# --- arms -------------------------------------------------------------------------------------


def arm_cells(arm: ArmRuns | None, metrics: Sequence[str]) -> list[str]:
    """Number of seeds; then of each metric its mean, its interval and the spread over the seeds."""
    if arm is None:
        return [_NOT_RUN] + [""] * (3 * len(metrics))
    cells = [str(len(arm.seeds))]
    for metric in metrics:
        summary = arm.summary(metric)
        cells += [f"{summary.value:.3f}", _interval(summary), _spread(summary)]
    return cells


def arm_table(results: Results, experiment: Experiment, dataset: GridDataset) -> list[str]:
    """Every arm with all patients labelled, then the baselines."""
    head = ["arm", "seeds"]
    for metric in dataset.metrics:
        head += [in_words(metric), "95 % interval", "over seeds"]
    rows = []
    for name in experiment.compared:
        arm = results.arms.get((experiment.name, dataset.name, name, 1.0))
        rows.append([name, *arm_cells(arm, dataset.metrics)])
    rows += baseline_rows(results, dataset, dataset.metrics)
    return markdown_table(head, rows)


def baseline_rows(
    results: Results, dataset: GridDataset, metrics: Sequence[str]
) -> list[list[str]]:
    """Rows of the fitted baselines of a data set, without a number of seeds."""
    rows = []
    for (home, kind), predictions in results.baselines.items():
        if home == dataset.name:
            cells = arm_cells(ArmRuns((0,), (kind,), (predictions,)), metrics)
            rows.append([f"baseline: {kind}", "", *cells[1:]])
    return rows


def records_counted(results: Results, experiment: Experiment, dataset: GridDataset) -> str:
    """Which split, where it is from, and how many records and patients stand behind a metric."""
    for (name, home, _, _), arm in results.arms.items():
        if (name, home) == (experiment.name, dataset.name):
            parts = []
            for metric in dataset.metrics:
                summary = arm.summary(metric)
                parts.append(
                    f"{in_words(metric)}: {summary.n} records of {summary.patients} patients"
                )
            scheme = results.splits.get(dataset.name, AS_GIVEN)
            return f"{results.split} split ({scheme}); {'; '.join(parts)}."
    return f"{results.split} split; nothing was run."


def trials_told(results: Results, experiment: Experiment, dataset: GridDataset) -> list[str]:
    """Which settings of each arm count, where several were tried."""
    if len(experiment.trials) < 2:
        return []
    lines = [
        "",
        f"Every arm was tried with {len(experiment.trials)} settings; the one with the best "
        f"{in_words(dataset.metrics[0])} on the validation split counts:",
        "",
    ]
    for name in experiment.compared:
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
    pairs += [(arm, name) for name in experiment.beside for arm in arms]
    return list(dict.fromkeys(pairs))


def verdict(summary: Summary) -> str:
    """Whether the first of two arms is better, worse, or cannot be told apart."""
    # The interval speaks of other patients; that other runs would agree, the seeds must show.
    agree = all(value * summary.value > 0.0 for value in summary.by_seed)
    if not (summary.excludes_zero and agree):
        return "not told apart"
    return "better" if summary.value > 0 else "worse"


def difference_cells(summary: Summary | None) -> list[str]:
    """A difference, its interval, each seed's, and the verdict."""
    if summary is None:
        return [_NOT_RUN, "", "", ""]
    seeds = ", ".join(f"{value:+.3f}" for value in summary.by_seed)
    return [f"{summary.value:+.3f}", _interval(summary, "+"), seeds, verdict(summary)]


def difference_table(results: Results, experiment: Experiment, dataset: GridDataset) -> list[str]:
    """Each pair of arms that the experiment compares."""
    rows = []
    for first, second in _pairs(experiment):
        for metric in dataset.metrics:
            summary = results.difference(experiment, dataset, first, second, metric)
            rows.append([f"{first} - {second}", in_words(metric), *difference_cells(summary)])
    head = ["difference", "metric", "value", "95 % interval", "each seed", "first arm is"]
    return markdown_table(head, rows)


def baselines_ahead(results: Results, experiment: Experiment, dataset: GridDataset) -> list[str]:
    """Sentences that say which arms a baseline is ahead of, with all patients labelled."""
    metric = dataset.metrics[0]
    arms = {
        name: arm
        for name in experiment.arms
        if (arm := results.arms.get((experiment.name, dataset.name, name, 1.0)))
    }
    against: dict[str, dict[str, Summary | None]] = {
        f"`{name}`": {
            arm: results.difference(experiment, dataset, arm, name, metric) for arm in arms
        }
        for name in experiment.beside
    }
    for home, kind in results.baselines:
        if home == dataset.name:
            against[f"baseline `{kind}`"] = {
                name: results.over_baseline(arm, dataset, kind, metric)
                for name, arm in arms.items()
            }
    lines = []
    for baseline, differences in against.items():
        behind = {a: s for a, s in differences.items() if s is not None and s.value < 0}
        if behind:
            listed = ", ".join(f"{arm} ({verdict(found)})" for arm, found in behind.items())
            lines.append(f"* {baseline} is ahead of these, by {in_words(metric)}: {listed}.")
    return ["", *lines] if lines else []
