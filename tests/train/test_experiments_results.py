from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from umd_edge.errors import UsageError
from umd_edge_train.cli import main
from umd_edge_train.config import from_dict
from umd_edge_train.experiments.grid import Grid, LeftOut, Plan, make_plan
from umd_edge_train.experiments.page import append_log, write_page
from umd_edge_train.experiments.paired import Summary, paired_difference
from umd_edge_train.experiments.predictions import Predictions
from umd_edge_train.experiments.results import ArmRuns, Results, _chosen, measure_grid
from umd_edge_train.experiments.runner import save_plan
from umd_edge_train.experiments.tables import verdict

_N = 120


def _grid(trials: list[list[str]] | None = None) -> Grid:
    table: dict[str, Any] = {
        "name": "made-up",
        "seeds": [0, 1, 2],
        "datasets": [
            {"name": "eyes", "recipe": "tune.toml", "task": "eyes", "metrics": ["accuracy"]}
        ],
        "stages": [
            {"name": "tune", "command": "finetune", "recipe": "tune.toml"},
            {"name": "cnn", "command": "baseline", "recipe": "tune.toml"},
        ],
        "arms": [
            {"name": "none", "stages": ["tune"]},
            {"name": "mr", "stages": ["tune"], "set": ["a=1"]},
            {"name": "mr+td", "stages": ["tune"], "set": ["a=2"]},
            {"name": "cnn", "stages": ["cnn"]},
        ],
        "experiments": [
            {
                "name": "method",
                "title": "What each part brings",
                "kind": "ladder",
                "datasets": ["eyes"],
                "arms": ["none", "mr", "mr+td"],
                "beside": ["cnn"],
                "trials": trials or [[]],
            },
            {
                "name": "few",
                "title": "Few labels",
                "kind": "few-label",
                "datasets": ["eyes"],
                "arms": ["none", "mr"],
                "fractions": [0.1, 1.0],
            },
        ],
    }
    return from_dict(Grid, table, "grid")


def _predictions(accuracy: float, seed: int) -> Predictions:
    rng = np.random.default_rng([seed, round(accuracy * 100)])
    return Predictions(
        ids=tuple(f"r{i:03d}" for i in range(_N)),
        groups=tuple(f"p{i // 2}" for i in range(_N)),
        kinds=("",) * _N,
        answer_types=("",) * _N,
        right=tuple(bool(v) for v in rng.random(_N) < accuracy),
        metrics={},
    )


def _mark_done(out: Path, run: str) -> None:
    (out / "done").mkdir(parents=True, exist_ok=True)
    (out / "runs" / run / "final").mkdir(parents=True)
    record = {"seconds": 60.0, "commit": "abc123", "stage": "tune"}
    (out / "done" / f"{run}.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "tune.toml").write_text('name = "tune"\n', encoding="utf-8")
    return make_plan(_grid(), tmp_path)


@pytest.fixture
def results(plan: Plan, tmp_path: Path) -> Results:
    """`mr` is far better than `none`, `mr+td` was run with one seed, `cnn` not at all."""
    truth = {"none": 0.4, "mr": 0.8, "mr+td": 0.75}
    arms = {}
    for experiment in plan.grid.experiments:
        for name, accuracy in truth.items():
            if name not in experiment.arms:
                continue
            for fraction in experiment.fractions:
                cells = plan.select([name], [0] if name == "mr+td" else [])
                cells = tuple(cell for cell in cells if cell.fraction == fraction)
                runs = tuple(cell.jobs[-1] for cell in cells)
                for run in runs:
                    if not (tmp_path / "out" / "runs" / run).exists():
                        _mark_done(tmp_path / "out", run)
                arms[experiment.name, "eyes", name, fraction] = ArmRuns(
                    seeds=tuple(cell.seed for cell in cells),
                    runs=runs,
                    predictions=tuple(
                        _predictions(accuracy * fraction**0.1, c.seed) for c in cells
                    ),
                )
    baselines = {("eyes", "majority"): _predictions(0.3, 9)}
    return Results(plan, tmp_path / "out", "val", arms, baselines)


def _history(results: Results) -> None:
    for run in results.arms["method", "eyes", "mr", 1.0].runs:
        records = [
            {"kind": "validation", "step": step, "tasks": {"eyes": {"accuracy": {"value": value}}}}
            for step, value in ((10, 0.3), (20, 0.5), (30, 0.7))
        ]
        text = "".join(json.dumps(record) + "\n" for record in records) + '{"kind": "val'
        (results.folder / "runs" / run / "history.jsonl").write_text(text, encoding="utf-8")


def test_the_page_shows_means_intervals_and_spreads(results: Results, tmp_path: Path):
    write_page(results, tmp_path / "docs" / "results.md")
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    arm = results.arms["method", "eyes", "mr", 1.0]
    rates = [np.mean(p.right) for p in arm.predictions]
    row = next(line for line in page.splitlines() if line.startswith("| mr |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["mr", "3", f"{np.mean(rates):.3f}"]
    assert cells[4] == f"{min(rates):.3f} to {max(rates):.3f}"
    assert f"accuracy: {_N} records of {_N // 2} patients" in page
    assert "| baseline: majority |" in page
    assert "`abc123`" in page


def test_the_page_names_splits_that_are_known(results: Results, tmp_path: Path):
    page = tmp_path / "docs" / "results.md"
    write_page(results, page)
    assert "val split (as the files stand); " in page.read_text(encoding="utf-8")
    write_page(replace(results, splits={"eyes": "published with EYES"}), page)
    assert "val split (published with EYES); " in page.read_text(encoding="utf-8")


def test_the_page_compares_with_the_arm_before_and_with_the_first(results: Results, tmp_path: Path):
    write_page(results, tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    found = [line for line in page.splitlines() if " - " in line and line.startswith("| mr")]
    names = [line.split("|")[1].strip() for line in found]
    assert names == ["mr - none", "mr+td - mr", "mr+td - none", "mr - cnn", "mr+td - cnn"]
    one = results.arms["method", "eyes", "mr", 1.0].outcomes("accuracy")
    other = results.arms["method", "eyes", "none", 1.0].outcomes("accuracy")
    expected = paired_difference(one, other)
    assert f"| {expected.value:+.3f} | {expected.low:+.3f} to {expected.high:+.3f} |" in found[0]
    assert found[0].endswith("| better |")
    # a single seed is compared with the same seed alone
    assert found[1].count("+0.") + found[1].count("-0.") == 4
    assert "| not run |" in found[3]


@pytest.mark.parametrize(
    ("value", "low", "high", "by_seed", "expected"),
    [
        (0.1, 0.05, 0.15, (0.08, 0.12), "better"),
        (-0.1, -0.15, -0.05, (-0.08, -0.12), "worse"),
        (0.1, -0.01, 0.15, (0.08, 0.12), "not told apart"),
        (0.1, 0.05, 0.15, (0.25, -0.05), "not told apart"),
        (0.1, None, None, (0.1,), "not told apart"),
    ],
)
def test_an_arm_is_better_only_where_patients_and_seeds_agree(value, low, high, by_seed, expected):
    summary = Summary(value=value, low=low, high=high, by_seed=by_seed, n=9, patients=9)
    assert verdict(summary) == expected


def test_a_baseline_that_is_ahead_is_named(results: Results, tmp_path: Path):
    better = {("eyes", "pixels"): _predictions(0.6, 9), **results.baselines}
    write_page(replace(results, baselines=better), tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    told = [line for line in page.splitlines() if "is ahead of these" in line]
    # once for each experiment: both compare `none`
    assert told == ["* baseline `pixels` is ahead of these, by accuracy: none (worse)."] * 2
    write_page(results, tmp_path / "results.md")
    assert "is ahead" not in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_an_arm_beside_that_is_ahead_is_named(results: Results, tmp_path: Path):
    own = results.arms["method", "eyes", "none", 1.0]
    cnn = replace(own, predictions=tuple(_predictions(0.7, seed) for seed in own.seeds))
    arms = {**results.arms, ("method", "eyes", "cnn", 1.0): cnn}
    for run in cnn.runs:
        assert (results.folder / "done" / f"{run}.json").exists()
    write_page(replace(results, arms=arms), tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "* `cnn` is ahead of these, by accuracy: none (worse)." in page


def test_what_an_arm_is_and_what_was_left_out_stand_on_the_page(results: Results, tmp_path: Path):
    grid = results.plan.grid
    told = replace(
        grid,
        arms=tuple(replace(a, about="seen nothing") if a.name == "none" else a for a in grid.arms),
        left_out=(LeftOut(what="ears", why="no free records"),),
    )
    write_page(replace(results, asked=replace(results.plan, grid=told)), tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert page.count("\n* none: seen nothing\n") == len(grid.experiments)
    assert "* ears: no free records" in page[page.index("## Not run") :]


def test_what_was_not_run_is_listed(results: Results, tmp_path: Path):
    write_page(results, tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    missing = page[page.index("## Not run") :].splitlines()[2:]
    assert missing == ["* eyes: mr+td, seeds 1, 2", "* eyes: cnn, seeds 0, 1, 2"]
    assert "| cnn | not run |" in page


def test_what_only_a_larger_grid_asks_for_is_listed_as_not_run(results: Results, tmp_path: Path):
    experiments = tuple(
        replace(e, fractions=(0.01, *e.fractions)) if e.name == "few" else e
        for e in results.plan.grid.experiments
    )
    (tmp_path / "whole").mkdir()
    # other recipes, so other runs: what was run in the folder counts all the same
    (tmp_path / "whole" / "tune.toml").write_text('name = "changed"\n', encoding="utf-8")
    whole = replace(results.plan.grid, seeds=(0, 1, 2, 3), experiments=experiments)
    before = results.missing()
    more = replace(results, asked=make_plan(whole, tmp_path / "whole"))
    few = [("eyes", arm, 0.01, [0, 1, 2, 3]) for arm in ("none", "mr")]
    found = more.missing()
    assert [item for item in found if item[2] == 0.01] == few
    assert ("eyes", "mr", 0.1, [3]) in found
    assert before[0] == ("eyes", "mr+td", 1.0, [1, 2])
    assert ("eyes", "mr+td", 1.0, [1, 2, 3]) in found
    write_page(more, tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    missing = page[page.index("## Not run") :]
    assert "* eyes: mr, 1% of the labelled patients, seeds 0, 1, 2, 3" in missing


def test_few_labels_have_a_table_and_a_curve(results: Results, tmp_path: Path):
    write_page(results, tmp_path / "results.md")
    assert "| 100% | baseline: majority |" in (tmp_path / "results.md").read_text(encoding="utf-8")
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| 10% | none | 3 |" in page
    assert re.search(r"\| 10% \| mr - none \| \+0\.\d{3} \|", page)
    assert "(results/few-eyes.png)" in page


def test_pictures_are_there_readable_and_the_same_each_time(results: Results, tmp_path: Path):
    _history(results)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        write_page(results, folder / "results.md")
    page = (folders[0] / "results.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((results/[^)]+\.png)\)", page)
    assert links == [
        "results/method-eyes-bars.png",
        "results/method-eyes-learning.png",
        "results/few-eyes.png",
    ]
    for link in links:
        with Image.open(folders[0] / link) as picture:
            assert min(picture.size) > 100
            assert not {"Software", "date", "Creation Time"} & set(picture.info)
        assert (folders[0] / link).read_bytes() == (folders[1] / link).read_bytes()
    assert page == (folders[1] / "results.md").read_text(encoding="utf-8")


def test_a_look_is_logged_with_date_commit_and_figures(results: Results, tmp_path: Path):
    log = tmp_path / "LOG.md"
    log.write_text("# Log\n", encoding="utf-8")
    append_log(log, results)
    text = log.read_text(encoding="utf-8")
    assert text.startswith("# Log\n")
    assert re.search(r"## \d{4}-\d\d-\d\d \d\d:\d\d UTC: val split, grid `made-up`", text)
    mean = results.arms["method", "eyes", "mr", 1.0].summary("accuracy").value
    assert f"| mr | 1 | 3 | {mean:.3f} |" in text


def test_the_trial_that_is_best_on_validation_counts(tmp_path: Path):
    (tmp_path / "tune.toml").write_text('name = "tune"\n', encoding="utf-8")
    grid = _grid(trials=[["rate=1"], ["rate=2"]])
    plan, out = make_plan(grid, tmp_path), tmp_path / "out"
    cells = [c for c in plan.select(["mr"]) if c.trial]
    for cell in cells:
        _mark_done(out, cell.jobs[-1])
        # the second trial is worse with seed 0 and better on average
        value = {("rate=1",): 0.5, ("rate=2",): 0.45 + 0.1 * cell.seed}[cell.trial]
        text = json.dumps({"validation": {"eyes": {"accuracy": {"value": value}}}})
        (out / "runs" / cell.jobs[-1] / "metrics.json").write_text(text, encoding="utf-8")
    chosen = _chosen(out, cells, grid.experiments[0], grid.datasets[0])
    assert [(cell.trial, cell.seed) for cell in chosen] == [(("rate=2",), s) for s in (0, 1, 2)]
    (out / "runs" / cells[0].jobs[-1] / "metrics.json").unlink()
    with pytest.raises(UsageError, match="trials are chosen by it"):
        _chosen(out, cells, grid.experiments[0], grid.datasets[0])


# --- command ------------------------------------------------------


def _results(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["results", *map(str, arguments)])


def test_the_test_split_needs_a_log(tmp_path: Path):
    done = _results(
        *(tmp_path, "--data", tmp_path, "--out", tmp_path / "page.md", "--split", "test")
    )
    assert done.exit_code == 2
    assert "must be logged" in done.stderr
    assert not (tmp_path / "page.md").exists()


def test_a_folder_without_a_grid_is_a_usage_error(tmp_path: Path):
    done = _results(tmp_path, "--data", tmp_path, "--out", tmp_path / "page.md")
    assert done.exit_code == 2
    assert "holds no grid.json" in done.stderr


def test_a_whole_grid_that_cannot_be_read_is_a_usage_error(plan: Plan, tmp_path: Path):
    save_plan(plan, tmp_path, tmp_path / "out")
    given = ("--data", tmp_path, "--out", tmp_path / "page.md", "--grid", tmp_path / "no.toml")
    done = _results(tmp_path / "out", *given)
    assert done.exit_code == 2
    assert "no.toml' cannot be read" in done.stderr


def test_a_grid_without_a_finished_run_has_no_page(plan: Plan, tmp_path: Path):
    save_plan(plan, tmp_path, tmp_path / "out")
    with pytest.raises(UsageError, match=r"no arm in .* is finished"):
        measure_grid(tmp_path / "out", tmp_path, "val")


@pytest.mark.slow
def test_a_whole_grid_on_generated_data(synth: Path, tmp_path: Path):
    """Two arms and a baseline, from the grid's file to the page, by the commands alone."""
    from support.training import write_recipe

    write_recipe(tmp_path, "shapes")
    (tmp_path / "grid.toml").write_text(
        """
seeds = [0]
[[datasets]]
name = "shapes"
recipe = "recipe.toml"
task = "shapes"
metrics = ["balanced_accuracy"]
[[stages]]
name = "tune"
command = "finetune"
recipe = "recipe.toml"
set = ["optim.epochs=2", "run.evaluate_every_epochs=1"]
[[stages]]
name = "again"
command = "finetune"
recipe = "recipe.toml"
set = ["optim.epochs=1"]
[[stages]]
name = "cnn"
command = "baseline"
recipe = "recipe.toml"
set = ["optim.epochs=2"]
options = ["--kind", "cnn"]
[[arms]]
name = "none"
stages = ["tune"]
[[arms]]
name = "longer"
stages = ["tune", "again"]
[[arms]]
name = "cnn"
stages = ["cnn"]
[[experiments]]
name = "method"
title = "Method"
kind = "ladder"
datasets = ["shapes"]
arms = ["none", "longer"]
beside = ["cnn"]
""",
        encoding="utf-8",
    )
    out, page = tmp_path / "out", tmp_path / "docs" / "results.md"
    arguments = ["grid", str(tmp_path / "grid.toml"), "--data", str(synth), "--out", str(out)]
    done = CliRunner().invoke(main, [*arguments, "--jobs", "2"])
    assert done.exit_code == 0, done.output
    part = (tmp_path / "grid.toml").read_text(encoding="utf-8")
    whole = part.replace("seeds = [0]", "seeds = [0, 1]")
    (tmp_path / "whole.toml").write_text(whole, encoding="utf-8")
    done = _results(out, "--data", synth, "--out", page, "--grid", tmp_path / "whole.toml")
    assert "* shapes: longer, seeds 1" in page.read_text(encoding="utf-8")
    done = _results(out, "--data", synth, "--out", page)
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert "not run" not in text.replace("## Not run", "")
    for name in ("| none |", "| longer |", "| cnn |", "| baseline: pixels |", "longer - none"):
        assert name in text
    assert (page.parent / "results" / "method-shapes-learning.png").exists()
