"""Runs of MR-Pretrain and TD-Calib, and what they hand on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.training import write_recipe
from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import CheckpointError, load_checkpoint, load_weights
from umd_edge_train.config import ModelConfig
from umd_edge_train.finetuning import finetune
from umd_edge_train.objectives import PairBatch, PairFeatures
from umd_edge_train.pretraining import PreTraining, adapt, pretrain
from umd_edge_train.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "train" / "recipes"
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


def test_adapt_to_several_sets_is_refused_before_anything_is_read(tmp_path: Path):
    recipe = _recipe(tmp_path, "questions", "shapes")
    told = r"datasets\.path: \['questions', 'shapes'\] given.*adapt to each in a run of its own"
    with pytest.raises(UsageError, match=told):
        adapt(recipe, tmp_path / "absent", tmp_path / "run", init=tmp_path / "absent")
    assert not (tmp_path / "run").exists()


def test_adapt_takes_several_parts_of_one_set(
    pretrained: tuple[Recipe, Path], synth: Path, tmp_path: Path
):
    _, parent = pretrained
    settings = ("datasets.1.path=./questions/", "optim.epochs=1")
    recipe = _recipe(tmp_path, "questions", "captions", settings=settings)
    assert [dataset.path for dataset in recipe.datasets] == ["questions", "./questions/"]
    adapt(recipe, synth, tmp_path / "run", init=parent / "final")
    assert (tmp_path / "run" / "final").is_dir()


EXAMPLE = re.search(
    r"```python\n([^`]*class ConVIRT[^`]*)```",
    (ROOT / "docs" / "training.md").read_text(encoding="utf-8"),
)


def test_the_objective_in_the_docs_trains_as_it_stands(
    synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert EXAMPLE
    _recipe(tmp_path, "captions")  # recipe.toml
    (tmp_path / "data").symlink_to(synth, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(EXAMPLE[1], "docs/training.md", "exec"), names)
    losses = [part["convirt_loss"] for part in _losses(Path("runs/own"))]
    assert losses[-1] < losses[0]
    final = Path("runs/own/final")
    assert load_checkpoint(final).provenance["objectives"] == ["convirt"]
    heads = load_weights(final / "state", "kept")
    assert {n for n in heads if "convirt" in n} == {
        f"further.convirt_loss.{side}_head.{part}"
        for side in ("image", "text")
        for part in ("weight", "bias")
    }


class _Counting(nn.Module):
    """A loss that stays 1 and needs no weight."""

    def __init__(self, sizes: ModelConfig) -> None:
        super().__init__()

    def forward(self, batch: PairBatch, features: PairFeatures) -> Tensor:
        return features.clean.text_global.sum() * 0.0 + 1.0


def test_a_run_is_resumed_with_the_objectives_that_it_was_begun_with(
    pretrained: tuple[Recipe, Path], synth: Path, tmp_path: Path
):
    _, parent = pretrained
    recipe = _recipe(tmp_path, "questions", settings=("run.checkpoint_every_steps=1",))
    out, init = tmp_path / "run", parent / "final"

    def stop(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(recipe, synth, out, init=init, on_step=stop, objectives={"own": _Counting})
    assert [part["own_loss"] for part in _losses(out)] == [1.0, 1.0]
    with pytest.raises(UsageError, match=r"objectives: \[\] given.*begun with \['own'\]"):
        adapt(recipe, synth, out, init=init, resume=True)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("proof-adapt-*.toml")), ids=lambda p: p.stem)
def test_the_projects_own_adaptations_are_to_one_set(recipe: Path, tmp_path: Path):
    # past the check, and stopped by the checkpoint that is not there
    with pytest.raises(CheckpointError):
        adapt(load_recipe(recipe), tmp_path, tmp_path / "run", init=tmp_path / "absent")


def test_a_mask_that_leaves_no_patch_is_refused(synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, "captions", settings=("reconstruction.image_mask_ratio=0.9",))
    with pytest.raises(UsageError, match=r"reconstruction\.image_mask_ratio"):
        pretrain(recipe, synth, tmp_path / "run")


def test_a_misspelt_switch_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"reconstruction\.feature_mim.*'decoder'"):
        _recipe(tmp_path, "captions", settings=("reconstruction.feature_mim=decoded",))
