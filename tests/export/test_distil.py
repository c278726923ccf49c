"""Distillation runs on generated data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from support.training import write_recipe
from umd_edge._records import build_examples, read_records
from umd_edge._task import output_name
from umd_edge.errors import DataError, UsageError
from umd_edge_export.distil import Distillation, TeacherPaths, distil
from umd_edge_export.distil_cli import distil as distil_command
from umd_edge_export.distil_cli import soft_targets as targets_command
from umd_edge_export.distil_data import DistillationObjective, add_unlabelled, record_key
from umd_edge_export.distil_report import without_teacher
from umd_edge_export.soft_targets import SoftTargets, SoftTargetsError, write_soft_targets
from umd_edge_train.batches import epoch_batches
from umd_edge_train.checkpoint import CheckpointError, load_weights
from umd_edge_train.corpus import load_corpus
from umd_edge_train.finetuning import finetune
from umd_edge_train.recipe import Recipe, load_recipe
from umd_edge_train.run_inputs import read_inputs

# No evaluation on the way: it takes as long as the training.
QUIET = ("run.evaluate_every_epochs=1000", "optim.epochs=1")
FEATURES = (
    "distillation.token_weight=0.5",
    "distillation.pooled_weight=0.5",
    "distillation.relation_weight=0.5",
    "distillation.relation_heads=2",
)
REST = 'distillation.unlabelled=[{dataset="shapes"}]'


@pytest.fixture(scope="module")
def synth(tmp_path_factory) -> Path:
    from umd_edge_train.synth import synthesise

    folder = tmp_path_factory.mktemp("synth")
    synthesise(folder, images=40, size=32)
    return folder


def _recipe(folder: Path, *settings: str, parts: tuple[str, ...] = ("shapes", "values")) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    return load_recipe(write_recipe(folder, *parts), (*QUIET, *settings))


@pytest.fixture(scope="module")
def teacher(synth: Path, tmp_path_factory) -> Path:
    """Another size, and other widths, than the student's."""
    folder = tmp_path_factory.mktemp("teacher")
    larger = (
        "model.image_size=64",
        "model.vision.hidden_size=24",
        "model.vision.stem_channels=[8, 8, 16, 24]",
        "normalise.mean=[0.4, 0.4, 0.4]",
    )
    finetune(_recipe(folder, *larger), synth, folder / "run")
    return folder / "run" / "final"


@pytest.fixture(scope="module")
def taught(synth: Path, teacher: Path, tmp_path_factory) -> tuple[Recipe, Path]:
    """A student of all losses, with records without labels."""
    folder = tmp_path_factory.mktemp("taught")
    recipe = _recipe(folder, *FEATURES, REST, "datasets.0.fraction=0.5")
    distil(recipe, synth, folder / "run", teachers=[teacher])
    return recipe, folder / "run"


def _losses(out: Path) -> dict[int, dict[str, float]]:
    lines = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {r["step"]: r["losses"] for r in records if r["kind"] == "train"}


def _run(recipe: Recipe, data: Path, out: Path, *teachers: Path, **given) -> Distillation:
    run = Distillation(recipe, data, out, None, TeacherPaths(teachers, **given))
    run.load_pictures()
    return run


def _first_batch(run: Distillation):
    return next(
        epoch_batches(run.pictures, run.store.index, run.tokenizer, run.optim, run.recipe.seed, 0)
    )


# --- what is learnt -----------------------------------------------


def test_a_student_without_a_teacher_is_a_finetuning(synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, "distillation.soft_weight=0")
    distil(recipe, synth, tmp_path / "alone")
    finetune(recipe, synth, tmp_path / "plain")
    a, b = (load_weights(tmp_path / name / "final") for name in ("alone", "plain"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert _losses(tmp_path / "alone") == _losses(tmp_path / "plain")


def test_every_loss_has_a_name_in_the_history(taught: tuple[Recipe, Path]):
    _, out = taught
    named = {name for losses in _losses(out).values() for name in losses}
    soft = {"shapes_soft_loss", "values_soft_loss"}
    assert soft | {"token_loss", "pooled_loss", "relation_loss", "loss"} <= named
    with Image.open(out / "curves.png") as curves:
        assert curves.format == "PNG"


def test_a_student_comes_closer_to_its_teacher(synth: Path, teacher: Path, tmp_path: Path):
    quick = ("optim.learning_rate=0.01", "optim.warmup_fraction=0", "optim.epochs=40")
    told = "distillation.label_weight=0"
    off = tuple(
        f"augment.{name}=0" for name in ("scale", "aspect", "brightness", "contrast", "colour")
    )
    run = _run(_recipe(tmp_path, *quick, *off, told), synth, tmp_path, teacher)
    batch = _first_batch(run)
    losses = [run.train_step(batch) for _ in range(40)]
    soft = [sum(v for k, v in step.items() if k.endswith("soft_loss")) for step in losses]
    assert sum(soft[-5:]) < 0.3 * sum(soft[:5])


def test_the_weights_of_losses_scale_them(synth: Path, teacher: Path, tmp_path: Path):
    """loss = labels + soft weight * (task weight * teacher weight * soft loss), per picture."""
    settings = (
        "distillation.soft_weight=3",
        "distillation.label_weight=0",
        "tasks.0.teacher_weight=0",
        "tasks.1.loss_weight=2",
        "tasks.1.teacher_weight=5",
    )
    run = _run(_recipe(tmp_path, *settings), synth, tmp_path, teacher)
    batch = _first_batch(run)
    named = run.train_step(batch)
    values = sum(task == 1 for task in batch.task.tolist())
    wanted = 3 * 2 * 5 * named["values_soft_loss"] * values / len(batch.rows)
    assert named["loss"] == pytest.approx(wanted, rel=1e-4)


def test_what_a_label_costs_is_no_disagreement_with_a_teacher(synth: Path, tmp_path: Path):
    finetune(_recipe(tmp_path), synth, tmp_path / "own")
    own = tmp_path / "own" / "final"
    recipe = _recipe(tmp_path, "tasks.1.label_cost={ill=3.0}")
    run = Distillation(recipe, synth, tmp_path / "run", own, TeacherPaths((own,)))
    run.load_pictures()
    batch = _first_batch(run)
    apart = run.train_step(batch)["values_soft_loss"]

    run = Distillation(recipe, synth, tmp_path / "again", own, TeacherPaths((own,)))
    run.load_pictures()
    row = run.corpus.tasks[1].outputs.index("ill")
    bias = list(run.model.task_heads[output_name("values")].parameters())[-1]
    with torch.no_grad():
        bias[row] += math.log(3.0)
    # What is left: the student normalises by the batch, the teacher by what it has seen.
    assert run.train_step(batch)["values_soft_loss"] < 0.1 * apart


def test_teacher_and_student_see_the_same_view(synth: Path, teacher: Path, tmp_path: Path):
    run = _run(_recipe(tmp_path), synth, tmp_path, teacher)
    batch = _first_batch(run)
    views = run._step._views(batch, own := _view(run, batch), run._rng(0).initial_seed())
    (spec,) = (spec for spec in views if spec != run.spec)
    assert views[run.spec] is own
    assert views[spec].shape[2:] == (64, 64)
    # back to levels of 0..1 and to the student's size
    theirs = views[spec] * 0.25 + torch.tensor(spec.mean).view(1, 3, 1, 1)
    small = torch.nn.functional.avg_pool2d(theirs, 2)
    mine = own * 0.25 + 0.5
    difference = (small - mine).abs().mean()
    flipped = (small.flip(3) - mine).abs().mean()
    assert difference < 0.05
    assert difference < 0.5 * flipped


def _view(run: Distillation, batch) -> torch.Tensor:
    from umd_edge_train.pictures import augment

    pixels = run.store.fetch(batch.rows)
    return augment(pixels, batch.flips, run.spec, run.recipe.augment, run._rng(0))


# --- resuming -----------------------------------------------------


def test_a_resumed_run_is_the_one_that_was_never_stopped(
    taught: tuple[Recipe, Path], synth: Path, teacher: Path, tmp_path: Path
):
    recipe, whole = taught

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(recipe, synth, tmp_path / "run", teachers=[teacher], on_step=stop)
    # as a version wrote it that did not know this table yet
    saved = tmp_path / "run" / "recipe.json"
    table = json.loads(saved.read_text())
    del table["coordination"]
    saved.write_text(json.dumps(table))
    distil(recipe, synth, tmp_path / "run", teachers=[teacher], resume=True)
    assert _losses(tmp_path / "run") == _losses(whole)
    a, b = load_weights(whole / "final"), load_weights(tmp_path / "run" / "final")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_goes_on_with_its_own_teacher_alone(
    taught: tuple[Recipe, Path], synth: Path, tmp_path: Path
):
    recipe, out = taught
    other = tmp_path / "other"
    finetune(_recipe(tmp_path), synth, other)
    with pytest.raises(UsageError, match="other data"):
        distil(recipe, synth, out, teachers=[other / "final"], resume=True)


# --- records without labels ---------------------------------------


def test_the_rest_of_a_set_takes_part_without_its_labels(synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, REST, "datasets.0.fraction=0.5")
    labelled = load_corpus(recipe, synth)
    corpus = add_unlabelled(recipe, labelled, synth)
    before, after = labelled.train[0][0].examples, corpus.train[0][0].examples
    fresh = after[len(before) :]
    assert fresh
    assert not {record_key(e) for e in before} & {record_key(e) for e in fresh}
    held_out = {e.group for sets in corpus.validation for s in sets for e in s.examples}
    assert not {e.group for e in fresh} & held_out
    assert len(after) == len(
        build_examples(
            read_records(synth / "shapes" / "train.jsonl"), corpus.tasks[0], corpus.fields
        ).examples
    )
    objective = DistillationObjective(recipe, labelled, read_inputs(recipe, synth, None).tokenizer)
    assert objective.targets(0, fresh).tolist() == [-100] * len(fresh)
    losses = objective.losses(0, torch.randn(len(fresh), 4), objective.targets(0, fresh))
    assert not losses.any()
    noted = corpus.sources["shapes without labels (train.jsonl)"]
    assert noted["train_records"] == len(fresh)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ('distillation.unlabelled=[{dataset="nothing"}]', "nothing"),
        ("tasks.0.loss=bce", "bce"),
    ],
)
def test_records_without_labels_that_cannot_be_used_are_refused(
    setting: str, told: str, synth: Path, teacher: Path, tmp_path: Path
):
    parts = ("questions",) if told == "bce" else ("shapes",)
    rest = 'distillation.unlabelled=[{dataset="questions"}]' if told == "bce" else REST
    recipe = _recipe(tmp_path, rest, setting, parts=parts)
    with pytest.raises(UsageError, match=told):
        distil(recipe, synth, tmp_path / "run", teachers=[teacher])


def test_a_file_that_adds_no_record_is_told(synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, REST)
    with pytest.raises(DataError, match="adds nothing"):
        add_unlabelled(recipe, load_corpus(recipe, synth), synth)


# --- stored answers -----------------------------------------------


@pytest.fixture(scope="module")
def stored(synth: Path, teacher: Path, tmp_path_factory) -> tuple[Recipe, Path]:
    folder = tmp_path_factory.mktemp("stored")
    recipe = _recipe(folder)
    write_soft_targets(recipe, synth, [teacher], folder / "targets.safetensors")
    return recipe, folder / "targets.safetensors"


def test_stored_answers_are_the_teachers(stored, synth: Path, teacher: Path, tmp_path: Path):
    recipe, path = stored
    off = {name: 0.0 for name in ("scale", "aspect", "rotate_degrees")}
    off |= {name: 0.0 for name in ("brightness", "contrast", "colour")}
    still = replace(recipe, augment=replace(recipe.augment, **off))
    live = _run(still, synth, tmp_path / "a", teacher)
    kept = _run(still, synth, tmp_path / "b", targets=path)
    batch = _first_batch(live)
    # the mirror is drawn whatever the settings
    batch = replace(batch, flips=torch.zeros_like(batch.flips))
    one, other = live.train_step(batch), kept.train_step(batch)
    for name in ("shapes_soft_loss", "values_soft_loss", "loss"):
        assert other[name] == pytest.approx(one[name], rel=2e-2, abs=1e-3)
    assert kept.corpus.sources["teacher 1"] == live.corpus.sources["teacher 1"]


def test_stored_answers_name_no_record(stored, synth: Path):
    content = stored[1].read_bytes()
    for record in read_records(synth / "shapes" / "train.jsonl"):
        assert str(record.raw["id"]).encode() not in content
        assert str(record.raw["image"]).encode() not in content


def test_answers_to_other_records_are_refused(stored, synth: Path, tmp_path: Path):
    import shutil

    recipe, path = stored
    copy = tmp_path / "synth"
    shutil.copytree(synth, copy)
    manifest = copy / "shapes" / "train.jsonl"
    manifest.write_text(manifest.read_text().split("\n", 1)[1])
    with pytest.raises(SoftTargetsError, match=r"shapes/train\.jsonl"):
        distil(recipe, copy, tmp_path / "run", targets=path)


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "foreign"])
def test_damaged_answers_are_refused(damage: str, stored, synth: Path, tmp_path: Path):
    from safetensors.torch import save

    recipe, path = stored
    given = tmp_path / "targets.safetensors"
    if damage == "cut":
        given.write_bytes(path.read_bytes()[:-40])
    elif damage == "text":
        given.write_text("nothing of the kind")
    elif damage == "foreign":
        given.write_bytes(save({"x": torch.zeros(1)}))
    with pytest.raises(SoftTargetsError):
        SoftTargets(given, recipe, synth, load_corpus(recipe, synth).tasks, frozenset())


def test_answers_under_another_loss_are_refused(stored, synth: Path):
    recipe, path = stored
    tasks = load_corpus(recipe, synth).tasks
    with pytest.raises(UsageError, match="another loss"):
        SoftTargets(path, recipe, synth, tasks, frozenset({"shapes"}))
    with pytest.raises(UsageError, match="at least one"):
        SoftTargets(path, recipe, synth, [replace(tasks[0], name="else")], frozenset())


# --- provenance and refusals --------------------------------------


def test_a_student_owes_what_its_teacher_learnt_from(
    taught: tuple[Recipe, Path], synth: Path, teacher: Path, tmp_path: Path
):
    _, out = taught
    free = json.loads((out / "final" / "provenance.json").read_text())
    assert free["non_commercial"] is False
    assert free["data"]["teacher 1"]["train_records"] > 0
    import shutil

    bound = tmp_path / "bound"
    shutil.copytree(teacher, bound)
    told = json.loads((bound / "provenance.json").read_text())
    told["data"]["shapes"]["non_commercial_records"] = 3
    (bound / "provenance.json").write_text(json.dumps(told))
    run = _run(_recipe(tmp_path), synth, tmp_path / "run", bound)
    assert run.checkpoint.provenance["non_commercial"] is True
    assert run.checkpoint.provenance["data"]["teacher 1"]["non_commercial_records"] == 3


@pytest.mark.parametrize(
    ("settings", "given", "told"),
    [
        ((), {}, "no teacher given"),
        (FEATURES, {"targets": Path("t")}, "features"),
        ((), {"targets": Path("t"), "checkpoints": (Path("c"),)}, "take the teachers' place"),
    ],
)
def test_weights_without_a_teacher_are_refused(settings, given, told, synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, *settings)
    with pytest.raises(UsageError, match=told):
        Distillation(recipe, synth, tmp_path / "run", None, TeacherPaths(**given))


@pytest.mark.parametrize("setting", ["tasks.0.teacher_weight=-1", "tasks.1.temperature=-2"])
def test_settings_of_a_task_that_mean_nothing_are_refused(setting: str, tmp_path: Path):
    with pytest.raises(UsageError, match="0 or more"):
        _recipe(tmp_path, setting)


def test_a_teacher_that_is_no_checkpoint_is_refused(synth: Path, tmp_path: Path):
    with pytest.raises(CheckpointError):
        distil(_recipe(tmp_path), synth, tmp_path / "run", teachers=[tmp_path])


# --- commands -----------------------------------------------------


def test_without_a_teacher_the_labels_count(tmp_path: Path):
    alone = without_teacher(_recipe(tmp_path, *FEATURES, "distillation.label_weight=0"))
    assert not alone.distillation.has_teacher
    assert alone.distillation.label_weight == 1.0


def test_the_commands_store_answers_and_train_on_them(synth: Path, teacher: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path, "shapes")
    quiet = [word for setting in QUIET for word in ("--set", setting)]
    common = ["--recipe", str(recipe), "--data", str(synth), *quiet]
    file = tmp_path / "targets.safetensors"
    runner = CliRunner()
    told = ["--teacher", str(teacher), "--out", str(file)]
    made = runner.invoke(targets_command, [*common, *told])
    assert made.exit_code == 0, made.output
    told = ["--targets", str(file), "--out", str(tmp_path / "run")]
    trained = runner.invoke(distil_command, [*common, *told])
    assert trained.exit_code == 0, trained.output
    assert (tmp_path / "run" / "final" / "config.json").is_file()
