"""The report of a distillation: teacher, student, and the student without a teacher."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from support.training import write_recipe
from umd_edge._records import read_records
from umd_edge.errors import DataError, UnknownTaskError, UsageError
from umd_edge_export.distil import TeacherPaths
from umd_edge_export.distil_cli import distil_report
from umd_edge_export.distil_page import _losses
from umd_edge_export.distil_report import report_distillation
from umd_edge_export.distil_scores import (
    PartScores,
    changed_decisions,
    results,
    score_part,
    task_parts,
)
from umd_edge_export.soft_targets import write_soft_targets
from umd_edge_train.checkpoint import load_checkpoint
from umd_edge_train.evaluate import evaluate_checkpoint
from umd_edge_train.finetuning import finetune
from umd_edge_train.recipe import Recipe, load_recipe

QUIET = ("run.evaluate_every_epochs=1000", "optim.epochs=1")
SETS = (
    ("questions", "questions"),
    ("again", "questions"),
    ("captions", "questions"),
    ("shapes", "shapes"),
)
# one VQA task on two sets, one with several labels, one with a single one, and retrieval
TABLES = """
[[tasks]]
name = "vqa"
kind = "vqa"
datasets = ["questions", "again"]
reads = ["question"]
target = { field = "answer" }

[[tasks]]
name = "captions"
kind = "retrieval"
datasets = ["captions"]
reads = ["caption"]

[[tasks]]
name = "findings"
kind = "classification"
datasets = ["shapes"]
prompt = "which shapes are shown"
labels = ["disc", "square", "line"]
multi_label = true
probability = { kind = "sigmoid" }
[tasks.target]
field = "labels"
absent = "negative"
on_unmapped = "drop"

[[tasks]]
name = "shapes"
kind = "classification"
datasets = ["shapes"]
prompt = "which shape is shown"
labels = ["disc", "square", "line", "no finding"]
"""
TASKS = ["vqa/questions", "vqa/again", "captions", "findings", "shapes"]
STUDENT, ALONE, TEACHER = "student", "student without teacher", "teacher"


def _recipe(folder: Path, *settings: str) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    path = write_recipe(folder)
    sets = "".join(
        f'[[datasets]]\nname = "{name}"\npath = "{where}"\n'
        + ('prefix = "images_"\n' if name == "captions" else "")
        for name, where in SETS
    )
    path.write_text(path.read_text() + sets + TABLES)
    return load_recipe(path, (*QUIET, *settings))


@pytest.fixture(scope="module")
def synth(tmp_path_factory) -> Path:
    from umd_edge_train.synth import synthesise

    folder = tmp_path_factory.mktemp("synth")
    synthesise(folder, images=40, size=32)
    return folder


@pytest.fixture(scope="module")
def teacher(synth: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    finetune(_recipe(folder, "optim.learning_rate=0.01"), synth, folder / "run")
    return folder / "run" / "final"


@pytest.fixture(scope="module")
def study(synth: Path, teacher: Path, tmp_path_factory) -> tuple[Recipe, Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("study")
    recipe = _recipe(out)
    paths = TeacherPaths((teacher,))
    return recipe, out, report_distillation(recipe, synth, out, teachers=paths, seeds=(0, 1))


def test_every_task_has_its_metric_all_arms_and_pairs(study):
    _, out, report = study
    metrics = {name: found["metric"] for name, found in report["tasks"].items()}
    recall, several = "recall_at_10", "macro_auroc"
    assert metrics == dict(
        zip(TASKS, ["accuracy", "accuracy", recall, several, "balanced_accuracy"], strict=True)
    )
    for found in (*report["tasks"].values(), report["pooled"]):
        assert list(found["arms"]) == [STUDENT, ALONE, TEACHER]
        assert len(found["arms"][STUDENT]["by_seed"]) == 2
        assert len(found["arms"][TEACHER]["by_seed"]) == 1
        assert list(found["differences"]) == [f"{STUDENT} - {ALONE}", f"{STUDENT} - {TEACHER} 1"]
        for pair, other in zip(found["differences"].values(), (ALONE, TEACHER), strict=True):
            arms = [found["arms"][name]["value"] for name in (STUDENT, other)]
            assert pair["value"] == pytest.approx(arms[0] - arms[1])
            assert np.mean(pair["by_seed"]) == pytest.approx(pair["value"])
            assert pair["low"] <= pair["value"] <= pair["high"]
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))


@pytest.mark.parametrize("task", ["findings", "shapes"])
def test_a_task_has_the_value_of_the_evaluation(task: str, study, synth: Path):
    """An independent way to the same number: the metrics of `umd-edge-train evaluate`."""
    _, out, report = study
    found = report["tasks"][task]
    values = []
    for seed in (0, 1):
        checkpoint = load_checkpoint(out / f"student-seed-{seed}" / "final")
        result = evaluate_checkpoint(checkpoint, task, [synth / "shapes" / "val.jsonl"])
        values.append(result["metrics"][found["metric"]]["value"])
    assert found["arms"][STUDENT]["by_seed"] == pytest.approx(values, abs=1e-6)


def test_all_tasks_together_count_every_record_but_those_of_retrieval(study, synth: Path):
    recipe, out, report = study
    parts = [part for part in task_parts(recipe) if part.is_pooled]
    assert [part.name for part in parts] == [name for name in TASKS if name != "captions"]
    totals, count = [], 0
    for seed in (0, 1):
        checkpoint = load_checkpoint(out / f"alone-seed-{seed}" / "final")
        scored = [score_part(checkpoint, part, recipe, synth, "val") for part in parts]
        count = sum(len(part.ids) for part in scored)
        totals.append(sum(part.scores.sum() for part in scored) / count)
    found = report["pooled"]["arms"][ALONE]
    assert found["n"] == count
    assert found["by_seed"] == pytest.approx(totals)
    # a patient of two tasks is one patient
    patients = {
        record.get("patient_id")
        for name in ("questions", "shapes")
        for record in read_records(synth / name / "val.jsonl")
    }
    assert found["patients"] == len(patients)
    for pair in report["pooled"]["differences"].values():
        assert 0.0 <= pair["changed_decisions"] <= 1.0


def test_page_and_pictures_show_every_task_and_named_loss(study):
    _, out, _ = study
    page = (out / "report.html").read_text()
    for task in ("all tasks", *TASKS):
        name = task.replace("/", "-").replace(" ", "-") + ".png"
        assert f"<h2>{task}: " in page
        assert f'src="{name}"' in page
        with Image.open(out / name) as picture:
            assert picture.format == "PNG"
    for name in ("differences.png", "losses.png"):
        assert f'src="{name}"' in page
        with Image.open(out / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5.0


def test_a_record_names_no_patient_where_it_is_shown(study, synth: Path):
    recipe, out, _ = study
    checkpoint = load_checkpoint(out / "alone-seed-0" / "final")
    scored = score_part(checkpoint, task_parts(recipe)[-1], recipe, synth, "val")
    record = read_records(synth / "shapes" / "val.jsonl")[0]
    assert str(record.raw["patient_id"]) not in repr(scored)


# --- what counts as right -----------------------------------------


def test_a_threshold_of_one_arm_alone_does_not_count(study, synth: Path):
    recipe, out, _ = study
    part = next(part for part in task_parts(recipe) if part.task == "findings")
    plain = load_checkpoint(out / "alone-seed-0" / "final")
    tuned = replace(
        plain,
        tasks=tuple(
            replace(t, operating_points=dict.fromkeys(t.outputs, 0.01), temperature=3.0)
            if t.name == "findings"
            else t
            for t in plain.tasks
        ),
    )
    one, other = (score_part(c, part, recipe, synth, "val") for c in (plain, tuned))
    np.testing.assert_array_equal(one.scores, other.scores)


def _scores(decisions: list[set[str]], outputs: tuple[str, ...] = ()) -> PartScores:
    names = tuple(str(i) for i in range(len(decisions)))
    found = tuple(frozenset(one) for one in decisions)
    return PartScores(names, names, np.zeros(len(names)), (), found, outputs)


def test_changed_decisions_are_counted_by_name():
    one, other = _scores([{"yes"}, {"no"}]), _scores([{"yes"}, {"left"}])
    np.testing.assert_array_equal(changed_decisions(one, other), [0.0, 1.0])
    several = [_scores(found, ("a", "b", "c")) for found in ([{"a"}, {"a", "b"}], [set(), {"c"}])]
    np.testing.assert_allclose(changed_decisions(*several), [1 / 3, 1.0])


def test_runs_of_other_records_or_labels_are_not_joined():
    one = _scores([{"a"}])
    for other in (_scores([{"a"}, {"a"}]), _scores([{"a"}], ("a",))):
        with pytest.raises(DataError, match="different records or labels"):
            results([one, other], "accuracy")


def test_losses_of_some_steps_alone_are_drawn_for_all_seeds(tmp_path: Path):
    """Neither seed has the loss `rare` in its last step."""
    folders = []
    for seed, seen in enumerate((197, 193)):
        folders.append(tmp_path / str(seed))
        folders[-1].mkdir()
        steps = [
            {"step": step, "losses": {"loss": 1.0, **({"rare": 2.0} if step <= seen else {})}}
            for step in range(1, 201)
        ]
        (folders[-1] / "history.jsonl").write_text("\n".join(map(json.dumps, steps)))
    panels = _losses({STUDENT: folders})
    assert list(panels) == ["loss", "rare"]
    (curve,) = panels["rare"]
    assert len(curve.x) > 50
    assert set(curve.y) == {2.0}


def test_records_that_another_file_declares_free_are_judged(study, synth: Path, tmp_path: Path):
    recipe, out, _ = study
    copy = tmp_path / "synth"
    shutil.copytree(synth, copy)
    path = copy / "questions" / "images_val.jsonl"
    raws = [dict(record.raw) for record in read_records(path)]
    for raw in raws:
        del raw["non_commercial"]
    path.write_text("\n".join(map(json.dumps, raws)))
    part = next(part for part in task_parts(recipe) if part.kind == "retrieval")
    checkpoint = load_checkpoint(out / "alone-seed-0" / "final")
    with pytest.raises(DataError, match="holds no record"):
        score_part(checkpoint, part, recipe, copy, "val")
    told = part._replace(dataset=replace(part.dataset, free_with="{split}.jsonl"))
    assert len(score_part(checkpoint, told, recipe, copy, "val").ids) == len(raws)


# --- stored answers -----------------------------------------------


@pytest.fixture(scope="module")
def targets(study, synth: Path, teacher: Path) -> Path:
    recipe, out, _ = study
    write_soft_targets(recipe, synth, [teacher], out / "targets.safetensors")
    return out / "targets.safetensors"


def test_students_of_stored_answers_are_compared_with_who_gave_them(
    study, targets: Path, synth: Path, teacher: Path, tmp_path: Path
):
    recipe, out, before = study
    shutil.copytree(out / "alone-seed-0", tmp_path / "alone-seed-0")
    given = TeacherPaths((teacher,), targets)
    report = report_distillation(recipe, synth, tmp_path, teachers=given, seeds=(0,))
    assert report["pooled"]["arms"][TEACHER] == before["pooled"]["arms"][TEACHER]
    found = json.loads((tmp_path / "student-seed-0" / "final" / "provenance.json").read_text())
    assert "teacher 1" in found["data"]


def test_stored_answers_of_somebody_else_are_refused(study, targets: Path, synth: Path):
    recipe, out, _ = study
    given = TeacherPaths((out / "alone-seed-0" / "final",), targets)
    with pytest.raises(UsageError, match="of other teachers"):
        report_distillation(recipe, synth, out, teachers=given, seeds=(0, 1))


# --- refusals -----------------------------------------------------


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_a_report_needs_different_seeds(seeds, synth: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="seeds"):
        report_distillation(
            _recipe(tmp_path), synth, tmp_path, teachers=TeacherPaths(), seeds=seeds
        )


def test_a_teacher_that_lacks_a_task_is_refused(study, synth: Path, tmp_path: Path):
    recipe, out, _ = study
    checkpoint = load_checkpoint(out / "alone-seed-0" / "final")
    fewer = replace(checkpoint, tasks=tuple(t for t in checkpoint.tasks if t.name != "shapes"))
    with pytest.raises(UnknownTaskError, match="shapes"):
        score_part(fewer, task_parts(recipe)[-1], recipe, synth, "val")


def test_a_split_without_a_record_of_a_task_is_refused(study, synth: Path):
    recipe, out, _ = study
    checkpoint = load_checkpoint(out / "alone-seed-0" / "final")
    nothing = tuple(
        replace(task, select={"modality": ("a modality of no record",)})
        for task in checkpoint.tasks
    )
    with pytest.raises(DataError, match="holds no record of task 'shapes'"):
        score_part(replace(checkpoint, tasks=nothing), task_parts(recipe)[-1], recipe, synth, "val")


def test_the_command_prints_every_task_and_trains_no_finished_run(
    study, synth: Path, teacher: Path
):
    _, out, report = study
    runs = {p: p.stat().st_mtime_ns for p in out.glob("*/final/model.safetensors")}
    words = ["--recipe", str(out / "recipe.toml"), "--data", str(synth), "--out", str(out)]
    words += [word for setting in QUIET for word in ("--set", setting)]
    words += ["--teacher", str(teacher), "--seed", "0", "--seed", "1"]
    told = CliRunner().invoke(distil_report, words)
    assert told.exit_code == 0, told.output
    for line in ("vqa/again accuracy", "findings macro_auroc", "all tasks accuracy"):
        assert line in told.stdout
    assert " to " in told.stdout
    assert runs == {p: p.stat().st_mtime_ns for p in runs}
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
