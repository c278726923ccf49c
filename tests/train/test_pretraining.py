"""Runs of MR-Pretrain and TD-Calib, and what they hand on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from support.training import write_recipe
from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import load_checkpoint, load_weights
from umd_edge_train.finetuning import finetune
from umd_edge_train.pretraining import PreTraining, adapt, pretrain
from umd_edge_train.recipe import Recipe, load_recipe

QUIET = ("run.evaluate_every_epochs=1000", "augment.scale=0.0")
SWITCHES = {
    "released": ("reconstruction.teacher_init=random", "reconstruction.teacher_update=micro_batch"),
    "ours": ("reconstruction.feature_mim=decoder", "reconstruction.feature_mlm=predictor"),
    "contrast": (
        "reconstruction.feature_mim=decoder",
        "reconstruction.feature_target=channel",
        "reconstruction.stem=blanked",
        "reconstruction.contrast_weight=1.0",
    ),
    "m3ae": (
        "reconstruction.views=separate",
        "reconstruction.mim_layer=0",
        "reconstruction.feature_mim=none",
        "reconstruction.feature_mlm=none",
        "reconstruction.mim_weight=1.0",
        "reconstruction.mlm_weight=1.0",
    ),
}


def _recipe(folder: Path, *parts: str, settings: tuple[str, ...] = ()) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    return load_recipe(write_recipe(folder, *parts), (*QUIET, *settings))


def _losses(out: Path) -> list[dict[str, float]]:
    lines = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [r["losses"] for r in map(json.loads, lines) if r["kind"] == "train"]


@pytest.fixture(scope="module")
def pretrained(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A pre-training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("pretrained")
    recipe = _recipe(folder, "captions", settings=SWITCHES["ours"])
    pretrain(recipe, synth, folder / "run")
    return recipe, folder / "run"


@pytest.mark.parametrize("name", SWITCHES)
def test_every_set_of_switches_trains(name: str, synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, "captions", settings=(*SWITCHES[name], "optim.epochs=1"))
    metrics = pretrain(recipe, synth, tmp_path / "run")["reconstruction"]
    expected = {"mim_loss", "mlm_loss", "itm_loss", "mlm_accuracy", "itm_accuracy"}
    if name != "m3ae":
        expected |= {"feature_mim_loss", "feature_mlm_loss"}
    if name == "contrast":
        expected |= {"contrast_loss", "contrast_accuracy"}
    assert set(metrics) == expected
    assert set(_losses(tmp_path / "run")[0]) == {n for n in expected if n.endswith("_loss")} | {
        "loss"
    }


PICTURES = """
[[datasets]]
name = "pictures"
path = "questions"
prefix = "images_"

[[tasks]]
name = "pictures"
kind = "retrieval"
datasets = ["pictures"]
prompt = "a picture"
reads = []
"""


def test_a_picture_is_shown_without_a_text_only_where_it_has_none(synth: Path, tmp_path: Path):
    path = write_recipe(tmp_path, "captions")
    path.write_text(path.read_text(encoding="utf-8") + PICTURES, encoding="utf-8")
    captioned = PreTraining(load_recipe(path), synth, tmp_path / "all", None, itm=True)
    assert all(task == 0 for picture in captioned.pictures for task, _ in picture.examples)
    recipe = load_recipe(path, ("datasets.0.fraction=0.5", "optim.epochs=1"))
    few = PreTraining(recipe, synth, tmp_path / "few", None, itm=True)
    assert [p.path for p in few.pictures] == [p.path for p in captioned.pictures]
    tasks = [{task for task, _ in picture.examples} for picture in few.pictures]
    assert {0} in tasks
    assert {1} in tasks
    assert all(len(one) == 1 for one in tasks)
    pairs = few.module.pairs(["a picture", "a picture of a disc"], torch.zeros(2, 3, 32, 32))
    assert pairs.is_worded.tolist() == [False, True]
    metrics = few.execute()["reconstruction"]
    # every validation picture has its caption, though a prompt stands beside it
    assert metrics["itm_accuracy"]["n"] == metrics["mlm_loss"]["n"]


def test_an_epoch_of_texts_counts_those_that_are_shown(synth: Path, tmp_path: Path):
    path = write_recipe(tmp_path, "questions")
    path.write_text(path.read_text(encoding="utf-8") + PICTURES, encoding="utf-8")
    recipe = load_recipe(path, (*QUIET, "optim.epoch=texts", "optim.epochs=2"))
    run = PreTraining(recipe, synth, tmp_path / "run", None, itm=True)
    texts = sum(len(found.examples) for found in run.corpus.train[0])  # and none of the prompts
    assert run.per_epoch == texts // 8 + (texts % 8 > 1)
    shown = []
    run.execute(on_step=shown.append)
    assert shown == list(range(1, 2 * run.per_epoch + 1))


def test_pictures_alone_have_no_words_to_predict_or_match(synth: Path, tmp_path: Path):
    path = write_recipe(tmp_path)
    path.write_text(path.read_text(encoding="utf-8") + PICTURES, encoding="utf-8")
    settings = (*QUIET, *SWITCHES["contrast"], "optim.epochs=1")
    metrics = pretrain(load_recipe(path, settings), synth, tmp_path / "run")["reconstruction"]
    assert metrics["mlm_loss"]["value"] == 0.0
    assert metrics["mim_loss"]["value"] > 0.0
    assert not {"itm_loss", "contrast_loss"} & set(metrics)


def test_pairs_are_learnt(synth: Path, tmp_path: Path):
    settings = (*SWITCHES["ours"], "optim.epochs=12", "optim.learning_rate=3e-3")
    pretrain(_recipe(tmp_path, "captions", settings=settings), synth, tmp_path / "run")
    losses = _losses(tmp_path / "run")
    for name in ("mim_loss", "mlm_loss"):
        first, last = (sum(part[name] for part in losses[i:j]) for i, j in ((0, 8), (-8, None)))
        assert last < 0.9 * first, name


def test_a_stopped_pretraining_goes_on_with_the_same_losses(
    pretrained: tuple[Recipe, Path], synth: Path, tmp_path: Path
):
    recipe, unbroken = pretrained

    def stop(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, synth, out, on_step=stop)
    pretrain(recipe, synth, out, resume=True)
    assert _losses(out) == _losses(unbroken)
    for name in ("model", "kept"):
        a, b = (
            load_weights(f / ("final/state" if name == "kept" else "final"), name)
            for f in (out, unbroken)
        )
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_teacher_is_never_handed_to_the_optimiser(synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, "captions")
    run = PreTraining(recipe, synth, tmp_path / "run", None, itm=True)
    trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    teacher = run.objective.teacher
    assert teacher is not None
    assert trained.isdisjoint(id(p) for p in teacher.parameters())
    assert {id(p) for p in run.objective.mlm_head.parameters()} <= trained


def test_calibration_continues_heads_and_decoder_without_matching(
    pretrained: tuple[Recipe, Path], synth: Path, tmp_path: Path
):
    _, parent = pretrained
    recipe = _recipe(tmp_path, "questions", settings=SWITCHES["ours"])
    run = PreTraining(recipe, synth, tmp_path / "a", parent / "final", itm=False)
    kept = load_weights(parent / "final" / "state", "kept")
    own = run.objective.state_dict()
    assert any(name.startswith("mlm_head.") for name in kept)
    assert all(torch.equal(own[name], tensor) for name, tensor in kept.items())
    metrics = adapt(recipe, synth, tmp_path / "b", init=parent / "final")["reconstruction"]
    assert "itm_loss" not in metrics
    assert "mlm_loss" in metrics


def test_calibration_reads_no_label(
    pretrained: tuple[Recipe, Path], synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, parent = pretrained

    def refuse(*_: object) -> None:
        raise AssertionError("a label was read")

    monkeypatch.setattr("umd_edge_train.objectives.SupervisedObjective.targets", refuse)
    recipe = _recipe(tmp_path, "questions", settings=("optim.epochs=1",))
    adapt(recipe, synth, tmp_path / "run", init=parent / "final")


def test_fine_tuning_starts_from_a_pretraining(
    pretrained: tuple[Recipe, Path], synth: Path, tmp_path: Path
):
    _, parent = pretrained
    recipe = _recipe(tmp_path, "questions", settings=("optim.learning_rate=1e-9",))
    finetune(recipe, synth, tmp_path / "run", init=parent / "final")
    before = load_checkpoint(parent / "final").model.state_dict()
    after = load_checkpoint(tmp_path / "run" / "final").model.state_dict()
    name = "fusion.image_projection.weight"
    assert torch.allclose(before[name], after[name], atol=1e-5)


def test_adapt_without_a_checkpoint_says_what_is_missing(synth: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="--init"):
        adapt(_recipe(tmp_path, "questions"), synth, tmp_path / "run", init=None)


def test_a_mask_that_leaves_no_patch_is_refused(synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, "captions", settings=("reconstruction.image_mask_ratio=0.9",))
    with pytest.raises(UsageError, match=r"reconstruction\.image_mask_ratio"):
        pretrain(recipe, synth, tmp_path / "run")


def test_a_misspelt_switch_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"reconstruction\.feature_mim.*'decoder'"):
        _recipe(tmp_path, "captions", settings=("reconstruction.feature_mim=decoded",))
