"""What a fine-tuning measures of its retrieval tasks on the way and at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.training import write_recipe
from umd_edge import DataError
from umd_edge_train import finetuning
from umd_edge_train.checkpoint import load_checkpoint
from umd_edge_train.evaluate import evaluate_checkpoint
from umd_edge_train.finetuning import FineTuning, finetune
from umd_edge_train.models import UMDModel
from umd_edge_train.recipe import Recipe, load_recipe

_TWO_SETS = (
    "datasets=[{name='one', path='questions', prefix='images_'}, "
    "{name='other', path='questions', prefix='images_'}]",
    "tasks.0.datasets=['one', 'other']",
)


def _recipe(folder: Path, *settings: str) -> Recipe:
    return load_recipe(write_recipe(folder, "captions"), ("optim.epochs=1", *settings))


def _history(out: Path) -> list[dict[str, Any]]:
    lines = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "validation"]


def test_a_run_of_retrieval_alone_leaves_its_recalls(
    synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stay(_: UMDModel) -> UMDModel:
        raise AssertionError("validated on the processor, whatever the run's device")

    monkeypatch.setattr(UMDModel, "cpu", stay)
    recipe = _recipe(tmp_path)
    found = finetune(recipe, synth, tmp_path / "run")
    final = load_checkpoint(tmp_path / "run" / "final")
    manifest = synth / "questions" / "images_val.jsonl"
    assert found == {"captions": evaluate_checkpoint(final, "captions", [manifest])["metrics"]}
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert saved["validation"] == found == final.provenance["validation"]
    assert [record["tasks"] for record in _history(tmp_path / "run")] == [found]
    assert found["captions"]["text_to_image_r10"]["low"] is not None
    assert finetune(recipe, synth, tmp_path / "run", resume=True) == found


def test_each_data_set_is_a_pool_of_its_own(
    synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: list[int] = []
    find = finetuning.retrieval_items

    def count(examples: Any) -> Any:
        read.append(len(examples))
        return find(examples)

    monkeypatch.setattr(finetuning, "retrieval_items", count)
    recipe = _recipe(tmp_path, *_TWO_SETS, "run.pictures=stream")
    run = FineTuning(recipe, synth, tmp_path / "run", None)
    run.load_pictures()
    found = run.validate()
    assert set(found) == {"captions/one", "captions/other"}
    assert found["captions/one"] == found["captions/other"]
    assert run.validate() == found
    assert len(read) == 2  # the files, once for each pool and not at each validation


def test_a_large_set_is_ranked_in_part_and_says_so(
    synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(finetuning, "_RANKED_RECORDS", 3)
    pools = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        run = FineTuning(_recipe(folder, f"seed={seed}"), synth, folder / "run", None)
        run.load_pictures()
        metrics = run.validate()["captions"]
        assert metrics["image_to_text_r1"]["n"] == 3
        assert run.validate()["captions"] == metrics
        (pool,) = run._pools.values()
        pools.append(pool)
    assert pools[0].images == pools[1].images
    notes = [line for line in capsys.readouterr().err.splitlines() if "ranks 3 of" in line]
    assert len(notes) == 2


def test_a_validation_picture_that_went_missing_names_its_record(
    synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = FineTuning(_recipe(tmp_path), synth, tmp_path / "run", None)
    run.load_pictures()
    gone = next(e.image_path for s in run.corpus.validation[0] for e in s.examples)
    (tmp_path / "kept.png").write_bytes(gone.read_bytes())
    gone.unlink()
    try:
        with pytest.raises(DataError, match=r"^images_val\.jsonl:\d+: .*remove the record"):
            run.validate()
    finally:
        gone.write_bytes((tmp_path / "kept.png").read_bytes())
