"""What a student is told about which pictures and texts belong together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from support.training import write_recipe
from umd_edge.errors import UsageError
from umd_edge_export.distil import Distillation, TeacherPaths, distil
from umd_edge_export.soft_answers import PairEmbeddings
from umd_edge_export.soft_targets import SoftTargetsError, write_soft_targets
from umd_edge_export.teachers import Ensemble, load_teachers
from umd_edge_train.batches import epoch_batches
from umd_edge_train.finetuning import finetune
from umd_edge_train.recipe import Recipe, load_recipe

QUIET = ("run.evaluate_every_epochs=1000", "optim.epochs=1")
STILL = tuple(
    f"augment.{name}=0"
    for name in ("scale", "aspect", "rotate_degrees", "brightness", "contrast", "colour")
)
NAME = "captions_soft_loss"


@pytest.fixture(scope="module")
def synth(tmp_path_factory) -> Path:
    from umd_edge_train.synth import synthesise

    folder = tmp_path_factory.mktemp("synth")
    synthesise(folder, images=40, size=32)
    return folder


def _recipe(folder: Path, *settings: str, parts: tuple[str, ...] = ("captions",)) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    return load_recipe(write_recipe(folder, *parts), (*QUIET, *settings))


@pytest.fixture(scope="module")
def teacher(synth: Path, tmp_path_factory) -> Path:
    """Its embeddings are of another width than the student's."""
    folder = tmp_path_factory.mktemp("teacher")
    other = ("model.fusion.embedding_size=12", "optim.learning_rate=0.01", "optim.epochs=4")
    finetune(_recipe(folder, *other), synth, folder / "run")
    return folder / "run" / "final"


@pytest.fixture(scope="module")
def stored(synth: Path, teacher: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    path = folder / "targets.safetensors"
    assert write_soft_targets(_recipe(folder), synth, [teacher], path) > 0
    return path


def _run(recipe: Recipe, data: Path, out: Path, *teachers: Path, **given) -> Distillation:
    run = Distillation(recipe, data, out, None, TeacherPaths(teachers, **given))
    run.load_pictures()
    return run


def _first_batch(run: Distillation):
    return next(
        epoch_batches(run.pictures, run.store.index, run.tokenizer, run.optim, run.recipe.seed, 0)
    )


def test_a_student_of_retrieval_comes_closer_to_its_teacher(
    synth: Path, teacher: Path, tmp_path: Path
):
    quick = ("optim.learning_rate=0.01", "optim.warmup_fraction=0", "optim.epochs=40")
    told = "distillation.label_weight=0"
    run = _run(_recipe(tmp_path, *quick, *STILL, told), synth, tmp_path, teacher)
    batch = _first_batch(run)
    soft = [run.train_step(batch)[NAME] for _ in range(40)]
    assert sum(soft[-5:]) < 0.3 * sum(soft[:5])


def test_the_loss_is_weighted_like_every_soft_loss(synth: Path, teacher: Path, tmp_path: Path):
    settings = (
        "distillation.soft_weight=3",
        "distillation.label_weight=0",
        "tasks.0.loss_weight=2",
        "tasks.0.teacher_weight=5",
    )
    run = _run(_recipe(tmp_path, *settings), synth, tmp_path, teacher)
    batch = _first_batch(run)
    named = run.train_step(batch)
    wanted = 3 * 2 * 5 * named[NAME] * len(batch.examples) / len(batch.rows)
    assert named["loss"] == pytest.approx(wanted, rel=1e-4)


def test_a_temperature_of_the_task_counts(synth: Path, teacher: Path, tmp_path: Path):
    losses = {}
    for temperature in (1, 20):
        recipe = _recipe(tmp_path, f"tasks.0.temperature={temperature}")
        run = _run(recipe, synth, tmp_path / str(temperature), teacher)
        losses[temperature] = run.train_step(_first_batch(run))[NAME]
    assert losses[1] != pytest.approx(losses[20], rel=1e-3)


def test_a_single_pair_teaches_nothing(synth: Path, teacher: Path, tmp_path: Path):
    run = _run(_recipe(tmp_path), synth, tmp_path, teacher)
    one = _first_batch(run)._part(0, 1)
    assert len(one.examples) == 1
    assert NAME not in run.train_step(replace(one, rows=one.rows * 2, flips=one.flips.repeat(2)))


def test_a_teacher_without_the_task_does_not_teach_it(synth: Path, tmp_path: Path):
    both = ("captions", "shapes")
    finetune(_recipe(tmp_path, parts=("shapes",)), synth, tmp_path / "teacher")
    run = _run(_recipe(tmp_path, parts=both), synth, tmp_path, tmp_path / "teacher" / "final")
    named = run.train_step(_first_batch(run))
    assert "captions_loss" in named
    assert NAME not in named


def test_a_teacher_of_nothing_but_other_kinds_is_refused(
    synth: Path, teacher: Path, tmp_path: Path
):
    """A classification called as the teacher's retrieval is another task."""
    recipe = _recipe(tmp_path, 'tasks.0.name="captions"', parts=("shapes",))
    with pytest.raises(UsageError, match="same name and kind"):
        _run(recipe, synth, tmp_path / "run", teacher)


def test_several_teachers_are_the_mean_of_their_probabilities():
    rng = torch.Generator().manual_seed(3)
    unit = torch.nn.functional.normalize
    images, texts = (
        tuple(unit(torch.randn(4, width, generator=rng), dim=1) for width in (5, 7))
        for _ in range(2)
    )
    by_text, by_image = PairEmbeddings(images, texts, torch.ones(4)).similarities()
    each = [(i @ t.T / 0.07) for i, t in zip(images, texts, strict=True)]
    for found, logits in ((by_text, each), (by_image, [x.T for x in each])):
        wanted = torch.stack([x.softmax(dim=1) for x in logits]).mean(dim=0)
        torch.testing.assert_close(found.softmax(dim=1), wanted, atol=1e-6, rtol=1e-5)


# --- stored -------------------------------------------------------


def test_stored_embeddings_give_the_similarities_of_the_teacher(
    stored: Path, synth: Path, teacher: Path, tmp_path: Path
):
    """Of any batch: what is stored does not depend on which pairs stood together."""
    recipe = _recipe(tmp_path, *STILL)
    live = _run(recipe, synth, tmp_path / "a", teacher)
    kept = _run(recipe, synth, tmp_path / "b", targets=stored)
    batches = epoch_batches(
        live.pictures, live.store.index, live.tokenizer, live.optim, recipe.seed, 3
    )
    for batch in batches:
        # the mirror is drawn whatever the settings
        same = replace(batch, flips=torch.zeros_like(batch.flips))
        one, other = live.train_step(same), kept.train_step(same)
        assert other[NAME] == pytest.approx(one[NAME], rel=2e-2, abs=1e-3)


def test_a_student_learns_from_stored_embeddings(stored: Path, synth: Path, tmp_path: Path):
    distil(_recipe(tmp_path), synth, tmp_path / "run", targets=stored)
    lines = (tmp_path / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    assert all(NAME in step["losses"] for step in steps if step["kind"] == "train")


def test_the_file_holds_vectors_of_unit_length(stored: Path):
    with safe_open(str(stored), framework="pt") as file:
        images = file.get_tensor("logits_captions.images.0").float()
        texts = file.get_tensor("logits_captions.texts.0").float()
    assert images.shape == texts.shape
    assert images.shape[1] == 12
    torch.testing.assert_close(images.norm(dim=1), torch.ones(len(images)), atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("damage", ["without texts", "other length", "earlier format"])
def test_embeddings_that_are_not_whole_are_refused(
    damage: str, stored: Path, synth: Path, tmp_path: Path
):
    with safe_open(str(stored), framework="pt") as file:
        notes = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if damage == "without texts":
        del tensors["logits_captions.texts.0"]
    elif damage == "other length":
        tensors["logits_captions.images.0"] = tensors["logits_captions.images.0"][:-1].clone()
    else:
        notes["format"] = "umd-edge-soft-targets-1"
    given = tmp_path / "targets.safetensors"
    save_file(tensors, given, notes)
    recipe = _recipe(tmp_path)
    told = "reads 'umd-edge-soft-targets-2'" if damage == "earlier format" else "damaged"
    with pytest.raises(SoftTargetsError, match=told):
        distil(recipe, synth, tmp_path / "run", targets=given)


def test_embeddings_of_other_tasks_are_refused(stored: Path, synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, 'tasks.0.name="other"')
    with pytest.raises(UsageError, match=r"of the tasks \['captions'\]"):
        distil(recipe, synth, tmp_path / "run", targets=stored)


def test_a_teacher_embeds_texts_as_it_was_trained_to(synth: Path, teacher: Path, tmp_path: Path):
    from umd_edge_export.distil_data import training_records
    from umd_edge_train.corpus import load_corpus

    recipe = _recipe(tmp_path)
    corpus = load_corpus(recipe, synth)
    records = training_records(recipe, synth)
    ensemble = Ensemble(load_teachers([teacher], records), corpus.tasks, frozenset())
    assert ensemble.retrieval == ["captions"]
    assert not ensemble.shared
    (own,) = ensemble.each()
    examples = corpus.train[0][0].examples[:3]
    found = own.embed_texts("captions", examples, torch.device("cpu"))
    for row, example in zip(found, examples, strict=True):
        ids, mask = (torch.from_numpy(x) for x in own._tokenizer.encode([example.text]))
        alone = own.model.encode_text(ids, mask)[1][0]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-4)
