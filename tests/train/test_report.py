from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from support import public_sets
from support.retrieval import captions
from support.training import write_recipe
from umd_edge._records import build_examples, read_records
from umd_edge._retrieval_metrics import evaluate_retrieval, retrieval_items
from umd_edge._structured import StructuredField
from umd_edge.errors import DataError
from umd_edge_train import devices
from umd_edge_train.checkpoint import Checkpoint, load_checkpoint
from umd_edge_train.converters import ConvertOptions, convert
from umd_edge_train.corpus import load_corpus
from umd_edge_train.evaluate import evaluate_checkpoint
from umd_edge_train.finetuning import finetune
from umd_edge_train.models import UMDModel
from umd_edge_train.recipe import load_recipe, recipe_from_dict
from umd_edge_train.report import _chance, _Part, append_report, report_split
from umd_edge_train.split_scheme import split_scheme


@pytest.fixture(scope="module")
def trained(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("report")
    recipe = load_recipe(write_recipe(folder, "captions", "values"), ("optim.epochs=1",))
    finetune(recipe, synth, folder / "run")
    return load_checkpoint(folder / "run" / "final")


def test_every_task_is_reported_beside_a_baseline(trained: Checkpoint, synth: Path, tmp_path: Path):
    report = report_split(trained, synth, "val")
    assert set(report["tasks"]) == {"captions/captions", "values/values"}
    pairs = report["tasks"]["captions/captions"]
    manifest = synth / "questions" / "images_val.jsonl"
    reference = evaluate_checkpoint(trained, "captions", [manifest])
    assert pairs["metrics"] == reference["metrics"]
    assert pairs["n"] == reference["n"]
    assert 0.0 < pairs["baseline"]["image_to_text_r1"]["value"] < 1.0
    append_report(tmp_path / "LOG.md", "a run", report)
    text = (tmp_path / "LOG.md").read_text(encoding="utf-8")
    assert "| image_to_text_r1 |" in text and "| accuracy |" in text


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_checkpoint_computes_on_the_training_device(
    trained: Checkpoint, synth: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    moves: list[torch.device] = []
    gpu = torch.device("cuda", 7)
    monkeypatch.setattr(devices, "training_device", lambda: gpu)
    monkeypatch.setattr(UMDModel, "to", lambda _, device: moves.append(device))
    if command == "report":
        report_split(trained, synth, "val")
    else:
        evaluate_checkpoint(trained, "values", [synth / "values" / "val.jsonl"])
    assert moves == [gpu, torch.device("cpu")]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (ConvertOptions(), "by a hash of the picture, seed 0, 0.1 val, 0.2 test"),
        (ConvertOptions(splits="published"), "published with SLAKE"),
    ],
)
def test_every_report_names_the_splits(tmp_path: Path, options: ConvertOptions, named: str):
    convert("slake", public_sets.slake(tmp_path / "source"), tmp_path / "questions", options)
    settings = ("optim.epochs=1", "optim.images_per_batch=2", "tasks.0.target.on_unmapped=drop")
    recipe = load_recipe(write_recipe(tmp_path, "questions"), settings)
    finetune(recipe, tmp_path, tmp_path / "run")
    trained = load_checkpoint(tmp_path / "run" / "final")
    assert named in trained.provenance["splits"]["questions"]
    report = report_split(trained, tmp_path, "train")
    assert named in report["tasks"]["vqa/questions"]["splits"]
    append_report(tmp_path / "LOG.md", "a run", report)
    assert f"splits: {named}" in (tmp_path / "LOG.md").read_text(encoding="utf-8")
    manifest = tmp_path / "questions" / "train.jsonl"
    (scheme,) = evaluate_checkpoint(trained, "vqa", [manifest])["splits"]
    assert named in scheme


def test_splits_that_nothing_tells_of_stay_unnamed_and_a_broken_note_is_an_error(tmp_path: Path):
    assert split_scheme(tmp_path) == "as the files stand"
    (tmp_path / "convert.json").write_text('{"options": {}}', encoding="utf-8")
    with pytest.raises(DataError, match="does not say how the set was split"):
        split_scheme(tmp_path)


def test_published_splits_that_share_patients_say_so(tmp_path: Path):
    options = ConvertOptions(splits="published", carve_val=0.3)
    convert("vqa-rad", public_sets.vqa_rad(tmp_path / "source"), tmp_path / "out", options)
    found = split_scheme(tmp_path / "out")
    assert "published with VQA-RAD, 0.3 of train as val; " in found
    assert "patients are in more than one" in found


def test_chance_is_what_random_orders_reach_on_average(tmp_path: Path):
    recipe = load_recipe(write_recipe(tmp_path, "captions"))
    task = recipe.spec_of(recipe.tasks[0])
    records = read_records(captions(tmp_path / "d"))
    unused = (StructuredField(name="unused", kind="numeric"),)
    examples = build_examples(records, task, unused).examples
    found = _chance(_Part("captions", task, examples, examples, 0))
    items = retrieval_items(examples)
    rng, rounds = np.random.default_rng(0), 400
    total = dict.fromkeys(found, 0.0)
    for _ in range(rounds):
        order = rng.permuted(np.tile(np.arange(len(items.texts)), (len(items.images), 1)), axis=1)
        other = rng.permuted(np.tile(np.arange(len(items.images)), (len(items.texts), 1)), axis=1)
        metrics = evaluate_retrieval(
            text_places=order, image_places=other, pairs=items.pairs, groups=items.groups
        )
        for name in total:
            total[name] += float(metrics[name].value or 0.0)
    for name, value in found.items():
        assert value.value == pytest.approx(total[name] / rounds, abs=0.06)
    assert found["image_to_text_r10"].value == 1.0


def test_a_split_without_records_of_a_task_is_refused(
    trained: Checkpoint, synth: Path, tmp_path: Path
):
    for name in ("questions", "values"):
        (tmp_path / name).mkdir()
        for split in ("train", "val", "images_train", "images_val"):
            source = synth / name / f"{split}.jsonl"
            if source.exists():
                text = "" if split == "images_val" else source.read_text(encoding="utf-8")
                (tmp_path / name / source.name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"images_val|captions"):
        report_split(trained, tmp_path, "val")


def test_held_out_records_that_are_not_free_take_no_part(trained: Checkpoint, synth: Path):
    corpus = load_corpus(recipe_from_dict(trained.provenance["recipe"]), synth)
    report = report_split(trained, synth, "val")
    count = sum(len(s.examples) for s in corpus.validation[1])
    assert report["tasks"]["values/values"]["n"] == count
