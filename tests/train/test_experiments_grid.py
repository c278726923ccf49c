from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from umd_edge.errors import UsageError
from umd_edge_train.cli import main
from umd_edge_train.experiments.grid import Grid, Plan, load_grid, make_plan
from umd_edge_train.experiments.runner import GridFailedError, GridRun, load_plan, save_plan
from umd_edge_train.recipe import load_recipe

REPOSITORY = Path(__file__).resolve().parents[2]

_GRID = """
seeds = [0, 1]

[[datasets]]
name = "eyes"
recipe = "tune-eyes.toml"
task = "eyes"
metrics = ["accuracy"]

[[datasets]]
name = "ears"
recipe = "tune-ears.toml"
task = "ears"
metrics = ["accuracy"]

[[stages]]
name = "pre"
command = "pretrain"
recipe = "pre.toml"
cost = 5.0

[[stages]]
name = "adapt"
command = "adapt"
recipe = "adapt-{dataset}.toml"
set = ["note={dataset}"]

[[stages]]
name = "tune"
command = "finetune"
recipe = "tune-{dataset}.toml"

[[arms]]
name = "none"
stages = ["tune"]

[[arms]]
name = "mr"
stages = ["pre", "tune"]

[[arms]]
name = "td"
stages = ["pre", "adapt", "tune"]

[[experiments]]
name = "ladder"
title = "Ladder"
kind = "ladder"
datasets = ["eyes", "ears"]
arms = ["none", "mr", "td"]

[[experiments]]
name = "few"
title = "Few"
kind = "few-label"
datasets = ["eyes"]
arms = ["none", "mr"]
fractions = [0.1, 1.0]
"""

# Stands for the command: notes what it was asked, then does as the file `fails` or `hangs` says.
_FAKE = """
import json, os, signal, sys, time
from pathlib import Path

here = Path(__file__).parent
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
out = Path(options["--out"])
entry = {"name": out.name, "argv": sys.argv[1:], "pid": os.getpid()}
entry["threads"] = os.environ["OMP_NUM_THREADS"]
entry["start"] = time.time()
out.mkdir(parents=True, exist_ok=True)
for word in ("fails", "hangs"):
    listed = (here / word).read_text().split() if (here / word).exists() else []
    if any(out.name.startswith(prefix) for prefix in listed):
        with (here / "ledger").open("a") as handle:
            handle.write(json.dumps({**entry, "end": None}) + "\\n")
        print("about to", word, flush=True)
        if word == "fails":
            sys.exit(3)
        time.sleep(60)
time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
if "--init" in options:
    assert Path(options["--init"]).is_dir(), options["--init"]
(out / "final").mkdir()
with (here / "ledger").open("a") as handle:
    handle.write(json.dumps({**entry, "end": time.time()}) + "\\n")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a grid, its recipes and a program that takes the command's place."""
    names = ("pre", "adapt-eyes", "adapt-ears", "tune-eyes", "tune-ears")
    for name in names:
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\n', encoding="utf-8")
    (tmp_path / "grid.toml").write_text(_GRID, encoding="utf-8")
    (tmp_path / "fake.py").write_text(_FAKE, encoding="utf-8")
    (tmp_path / "data").mkdir()
    return tmp_path


def _plan(folder: Path) -> Plan:
    return make_plan(load_grid(folder / "grid.toml"), folder)


def _run(folder: Path, jobs: int = 2, **choice: Any) -> GridRun:
    plan = _plan(folder)
    return GridRun(
        plan,
        plan.select(**choice),
        folder / "data",
        folder / "out",
        jobs=jobs,
        program=(sys.executable, str(folder / "fake.py")),
    )


def _ledger(folder: Path) -> list[dict[str, Any]]:
    path = folder / "ledger"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- plan ---------------------------------------------------------


def test_arms_share_the_runs_that_they_have_in_common(folder: Path):
    plan = _plan(folder)
    counts: dict[str, int] = {}
    for job in plan.jobs:
        counts[job.stage] = counts.get(job.stage, 0) + 1
    # per seed: 1 pre-training for two arms on two sets, 2 adaptations, and tunings of
    # (3 arms x 2 sets) + (2 arms at 10 %): those at 100 % are the ladder's own
    assert counts == {"pre": 2, "adapt": 4, "tune": 16}
    assert len({job.name for job in plan.jobs}) == len(plan.jobs)


def test_a_chain_names_its_parents_and_the_seed_reaches_every_stage(folder: Path):
    plan = _plan(folder)
    jobs = {job.name: job for job in plan.jobs}
    (cell,) = plan.select(["td"], [1], ["ears"])
    pre, adapt, tune = (jobs[name] for name in cell.jobs)
    assert (pre.parent, adapt.parent, tune.parent) == ("", pre.name, adapt.name)
    assert all("seed=1" in job.arguments for job in (pre, adapt, tune))
    assert "note=ears" in adapt.arguments
    assert str(folder / "adapt-ears.toml") in adapt.arguments


def test_a_fraction_of_the_labels_reaches_the_last_stage_alone(folder: Path):
    plan = _plan(folder)
    jobs = {job.name: job for job in plan.jobs}
    cells = plan.select(["mr"], [0], ["eyes"])
    (few,) = [cell for cell in cells if cell.fraction == 0.1]
    (whole,) = [cell for cell in cells if cell.fraction == 1.0]
    assert few.jobs[0] == whole.jobs[0]
    assert "datasets.0.fraction=0.1" in jobs[few.jobs[1]].arguments
    assert "datasets.0.repeat=10" in jobs[few.jobs[1]].arguments
    assert not any("datasets.0." in text for text in jobs[whole.jobs[1]].arguments)


def test_a_stage_that_asks_for_the_fraction_is_run_for_each(folder: Path):
    grid = (folder / "grid.toml").read_text(encoding="utf-8")
    told = 'recipe = "pre.toml"\nset = ["captions={fraction}", "drawn={repeat}"]'
    (folder / "grid.toml").write_text(grid.replace('recipe = "pre.toml"', told), encoding="utf-8")
    plan = _plan(folder)
    jobs = {job.name: job for job in plan.jobs}
    by_fraction = {cell.fraction: cell.jobs[0] for cell in plan.select(["mr"], [0], ["eyes"])}
    assert len(set(by_fraction.values())) == 2
    for fraction, told in ((0.1, {"captions=0.1", "drawn=10"}), (1.0, {"captions=1", "drawn=1"})):
        assert told <= set(jobs[by_fraction[fraction]].arguments)
    # the ladder's whole is the curve's last point
    assert by_fraction[1.0] in plan.select(["td"], [0], ["eyes"])[0].jobs


def test_an_arm_may_go_another_way_with_few_labels(folder: Path):
    whole_before = {c.jobs for c in _plan(folder).cells if c.fraction == 1.0}
    grid = (folder / "grid.toml").read_text(encoding="utf-8")
    old = 'name = "mr"\nstages = ["pre", "tune"]'
    new = f'{old}\nfew_stages = ["pre", "adapt", "tune"]'
    (folder / "grid.toml").write_text(grid.replace(old, new), encoding="utf-8")
    plan = _plan(folder)
    stages = {job.name: job.stage for job in plan.jobs}
    for cell in plan.select(["mr"], [0], ["eyes"]):
        few = ["pre", "adapt", "tune"]
        assert [stages[job] for job in cell.jobs] == (few if cell.fraction < 1.0 else few[::2])
    # runs with all labels stay what they were
    assert {c.jobs for c in plan.cells if c.fraction == 1.0} == whole_before


def test_a_changed_recipe_makes_new_runs_of_it_and_of_what_follows(folder: Path):
    before = {(c.dataset, c.arm, c.fraction, c.seed): c.jobs for c in _plan(folder).cells}
    (folder / "adapt-eyes.toml").write_text('name = "other"\n', encoding="utf-8")
    after = {(c.dataset, c.arm, c.fraction, c.seed): c.jobs for c in _plan(folder).cells}
    assert before.keys() == after.keys()
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {("eyes", "td", 1.0, 0), ("eyes", "td", 1.0, 1)}
    first, second = before["eyes", "td", 1.0, 0], after["eyes", "td", 1.0, 0]
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, False]


def test_a_plan_survives_json(folder: Path):
    plan = _plan(folder)
    save_plan(plan, folder / "data", folder / "out")
    assert load_plan(folder / "out") == plan


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('stages = ["tune"]', 'stages = ["tuna"]', "stages ['tuna'] given"),
        ('stages = ["tune"]', 'stages = ["tune"]\nfew_stages = ["x"]', "few_stages ['x'] given"),
        ('arms = ["none", "mr", "td"]', 'arms = ["none", "mr", "xx"]', "'xx'] given"),
        ('datasets = ["eyes", "ears"]', 'datasets = ["nose"]', "datasets ['nose'] given"),
        ('metrics = ["accuracy"]', 'metrics = ["brier"]', "['brier'] given"),
        ('metrics = ["accuracy"]', 'metrics = ["text_to_image_r0"]', "r0'] given"),
        ('metrics = ["accuracy"]', "metrics = []", "metrics [] given"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "distinct"),
        ("fractions = [0.1, 1.0]", "fractions = [0.0]", "above 0"),
        ('command = "adapt"', 'command = "adopt"', "'adopt' given"),
        ('name = "ears"', 'name = "eyes"', "each name once"),
        ('title = "Few"', 'title = "Few"\ncolour = 1', "unknown settings ['colour']"),
        ('recipe = "pre.toml"', 'recipe = "none.toml"', "cannot be read"),
        ("seeds = [0, 1]", "seeds = [0,", "not valid TOML"),
    ],
)
def test_a_wrong_grid_is_refused(folder: Path, old: str, new: str, message: str):
    assert old in _GRID
    (folder / "grid.toml").write_text(_GRID.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        _plan(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"arms": ["xx"]}, "arm 'xx' given"),
        ({"seeds": [7]}, "seed 7 given"),
        ({"datasets": ["nose"]}, "data set 'nose' given"),
    ],
)
def test_a_choice_that_the_grid_does_not_have_is_refused(folder: Path, choice, message: str):
    with pytest.raises(UsageError) as caught:
        _plan(folder).select(**choice)
    assert message in str(caught.value)


def test_the_grid_of_the_repository_is_sound():
    grid = load_grid(REPOSITORY / "train" / "recipes" / "grid.toml")
    assert isinstance(grid, Grid)
    ladder = grid.experiments[0]
    assert ladder.arms == ("none", "m3ae", "mr", "mr+td", "mr+td+gm")
    assert grid.seeds == (0, 1, 2)


# --- runner -------------------------------------------------------


def test_every_run_runs_once_after_the_one_that_it_needs(folder: Path):
    run = _run(folder, arms=["mr", "td"])
    run.run()
    entries = {entry["name"]: entry for entry in _ledger(folder)}
    assert len(entries) == len(_ledger(folder)) == len(run.jobs)
    assert set(run.states.values()) == {"done"}
    for job in run.jobs.values():
        argv = entries[job.name]["argv"]
        assert entries[job.name]["threads"] == "1"
        assert ("--init" in argv) == bool(job.parent)
        assert "--resume" not in argv
        if job.parent:
            assert entries[job.parent]["end"] <= entries[job.name]["start"]
            assert argv[argv.index("--init") + 1].endswith(f"{job.parent}/final")
    assert run.seconds_left() == 0.0


def test_the_longest_chain_starts_first(folder: Path):
    _run(folder, jobs=1, datasets=["eyes"], seeds=[0]).run()
    stages = [entry["name"].split("-")[0] for entry in _ledger(folder)]
    # pre-training has most ahead of it, then the adaptation, though tunings were free to start
    assert stages == ["pre", "adapt", *["tune"] * 5]


def test_what_is_finished_is_skipped(folder: Path):
    _run(folder, arms=["none"]).run()
    first = len(_ledger(folder))
    again = _run(folder, arms=["none"])
    assert set(again.states.values()) == {"done"}
    again.run()
    assert len(_ledger(folder)) == first


def test_a_failed_stage_fails_its_arm_alone_and_is_named(folder: Path):
    (folder / "fails").write_text("adapt-eyes-s0", encoding="utf-8")
    run = _run(folder)
    with pytest.raises(GridFailedError, match="1 of 22 runs failed: adapt-eyes-s0"):
        run.run()
    states = list(run.states.values())
    assert (states.count("failed"), states.count("blocked"), states.count("done")) == (1, 1, 20)
    (failed,) = [name for name, state in run.states.items() if state == "failed"]
    assert "about to fails" in (folder / "out/logs" / f"{failed}.log").read_text(encoding="utf-8")
    assert "1 failed" in run.table()
    # mended, the same command does what is left and nothing else
    (folder / "fails").unlink()
    before = len(_ledger(folder))
    _run(folder).run()
    rest = _ledger(folder)[before:]
    assert [entry["name"].split("-s0")[0] for entry in rest] == ["adapt-eyes", "tune-eyes"]
    assert "--resume" in rest[0]["argv"]
    assert "--resume" not in rest[1]["argv"]


def test_a_stage_that_leaves_no_checkpoint_has_failed(folder: Path):
    (folder / "fake.py").write_text("pass", encoding="utf-8")
    with pytest.raises(GridFailedError, match="2 of 2 runs failed"):
        _run(folder, arms=["none"], datasets=["ears"]).run()


def _start(folder: Path, *options: str) -> subprocess.Popen[str]:
    script = (
        "import sys; from pathlib import Path; from umd_edge_train.experiments import runner, cli;"
        "runner.GridRun.__init__.__kwdefaults__['program'] = "
        f"(sys.executable, {str(folder / 'fake.py')!r});"
        "from umd_edge_train.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, "grid", str(folder / "grid.toml"), *options]
    paths = os.pathsep.join(str(REPOSITORY / part) for part in ("", "train", "export"))
    return subprocess.Popen(
        [*command, "--data", str(folder / "data"), "--out", str(folder / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def _wait_for(path: Path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def test_an_interrupt_stops_the_stages_and_the_same_command_goes_on(folder: Path):
    (folder / "hangs").write_text("tune", encoding="utf-8")
    process = _start(folder, "--only", "none", "--seeds", "0", "--dataset", "eyes")
    _wait_for(folder / "ledger")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    # nobody is left behind: the lock is free, and the run is resumed
    (folder / "hangs").unlink()
    run = _run(folder, arms=["none"], seeds=[0], datasets=["eyes"])
    assert list(run.states.values()).count("done") < len(run.states)
    run.run()
    assert any("--resume" in entry["argv"] for entry in _ledger(folder))


def test_a_stage_that_a_killed_grid_left_behind_keeps_others_away(folder: Path):
    (folder / "hangs").write_text("tune", encoding="utf-8")
    process = _start(folder, "--only", "none", "--seeds", "0", "--dataset", "ears")
    _wait_for(folder / "ledger")
    process.kill()
    process.communicate(timeout=60)
    with pytest.raises(UsageError, match="left behind"):
        _run(folder, arms=["none"], datasets=["ears"]).run()
    os.kill(_ledger(folder)[0]["pid"], signal.SIGKILL)
    (folder / "hangs").unlink()
    deadline = time.monotonic() + 30
    while True:
        try:
            _run(folder, arms=["none"], seeds=[0], datasets=["ears"]).run()
            break
        except UsageError:  # the kernel has not taken the lock back yet
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_time_left_goes_by_the_runs_that_have_finished(folder: Path):
    run = _run(folder, jobs=2, arms=["mr"], datasets=["ears"])
    assert run.seconds_left() is None
    assert "unknown time left" in run.table()
    (first,) = [name for name in run.jobs if name.startswith("pre-s0")]
    run.states[first], run.seconds[first] = "done", 100.0
    # the other pre-training takes 100 s, each tuning a fifth of it by its cost
    assert run.seconds_left() == pytest.approx(max((100 + 20 + 20) / 2, 120.0))
    assert "1 of 4 runs done, 0 h 02 min left" in run.table()


# --- command ------------------------------------------------------


def _grid(folder: Path, *options: object) -> Any:
    arguments = ("grid", folder / "grid.toml", "--data", folder / "data", "--out", folder / "out")
    return CliRunner().invoke(main, [str(argument) for argument in (*arguments, *options)])


def test_the_plan_is_shown_and_nothing_is_run(folder: Path):
    done = _grid(folder, "--plan")
    assert done.exit_code == 0, done.output
    assert "eyes td" in done.stdout
    assert "pre 0/2 > adapt 0/2 > tune 0/2" in done.stdout
    assert not (folder / "out").exists()


def test_the_runs_of_one_folder_use_one_data_folder(folder: Path):
    save_plan(_plan(folder), folder, folder / "out")
    done = _grid(folder)
    assert done.exit_code == 2
    assert "holds runs on the data in" in done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--seeds", "zero"), "write numbers such as"),
        (("--only", "xx"), "arm 'xx' given"),
        (("--dataset", "xx"), "data set 'xx' given"),
    ],
)
def test_wrong_options_are_usage_errors(folder: Path, options, expected: str):
    done = _grid(folder, *options)
    assert done.exit_code == 2
    assert expected in done.stderr


# --- settings of lists --------------------------------------------

_RECIPES = REPOSITORY / "train" / "recipes"


def test_a_setting_reaches_into_a_list():
    recipe = load_recipe(_RECIPES / "default.toml", ("datasets.2.fraction=0.1",))
    others = len(recipe.datasets) - 3
    fractions = [dataset.fraction for dataset in recipe.datasets]
    assert fractions == [1.0, 1.0, 0.1, *[1.0] * others]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("datasets.9.fraction=0.1", "'9' given where a number from 0 to "),
        ("datasets.last.fraction=0.1", "'last' given"),
        ("datasets.-1.fraction=0.1", "'-1' given"),
        ("datasets.0.name.x=1", "'name' is no table"),
        ("seed.x=1", "'seed' is no table"),
    ],
)
def test_a_setting_of_nothing_in_a_list_is_refused(setting: str, message: str):
    with pytest.raises(UsageError) as caught:
        load_recipe(_RECIPES / "default.toml", (setting,))
    assert message in str(caught.value)


def test_every_setting_of_the_repository_s_grid_fits_its_recipe():
    plan = make_plan(load_grid(_RECIPES / "grid.toml"), _RECIPES)
    for job in plan.jobs:
        options = list(zip(job.arguments[1::2], job.arguments[2::2], strict=True))
        settings = tuple(value for name, value in options if name == "--set")
        recipe = load_recipe(dict(options)["--recipe"], settings)
        assert f"-s{recipe.seed}-" in job.name
