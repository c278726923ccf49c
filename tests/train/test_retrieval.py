from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from support.training import FIELDS, minute_model
from umd_edge import DataError
from umd_edge._preprocess import PreprocessSpec
from umd_edge._records import Example, build_examples, read_records
from umd_edge._retrieval_metrics import retrieval_items
from umd_edge._task import TaskSpec
from umd_edge._tokenizer import TextTokenizer
from umd_edge_train.checkpoint import Checkpoint, save_checkpoint
from umd_edge_train.cli import main
from umd_edge_train.models import UMDModel
from umd_edge_train.pictures import PictureStore
from umd_edge_train.retrieval import evaluate_retrieval_task, score_items
from umd_edge_train.tokenizer import train_wordpiece

TASK = TaskSpec(name="captions", kind="retrieval", outputs=(), reads=("caption",))
SPEC = PreprocessSpec(height=32, width=32)


@pytest.fixture(scope="module")
def manifest(synth: Path) -> Path:
    return synth / "questions" / "images_train.jsonl"


@pytest.fixture(scope="module")
def examples(manifest: Path) -> tuple[Example, ...]:
    return build_examples(read_records(manifest), TASK, ()).examples


@pytest.fixture(scope="module")
def tokenizer_json(examples: tuple[Example, ...]) -> bytes:
    return train_wordpiece([example.text for example in examples], 160)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json: bytes) -> TextTokenizer:
    return TextTokenizer.from_bytes(tokenizer_json, 16)


@pytest.fixture
def model() -> UMDModel:
    return minute_model(tasks=(TASK,))


def test_scores_are_those_of_each_pair_run_alone(
    model: UMDModel, examples: tuple[Example, ...], tokenizer: TextTokenizer
):
    items = retrieval_items(examples[:8])
    store = PictureStore(items.images, 32, 32, SPEC.coefficient_bits)
    scores = score_items(model, items, store, tokenizer, SPEC, method="fusion")
    assert scores.match_logits is not None
    with torch.inference_mode():
        for row in range(len(items.images)):
            tokens, image = model.encode_image(store.pixel_values([row], SPEC))
            for column, text in enumerate(items.texts):
                ids, mask = (torch.from_numpy(part) for part in tokenizer.encode([text]))
                words, sentence = model.encode_text(ids, mask)
                missing = torch.zeros(1, model.num_fields)
                logit = model.fuse(tokens, words, mask, missing, missing)["match_logit"]
                assert scores.match_logits[row, column] == pytest.approx(float(logit), abs=1e-4)
                cosine = float((image * sentence).sum())
                assert scores.cosine[row, column] == pytest.approx(cosine, abs=1e-5)


def test_two_stages_run_the_fusion_for_the_shortlists_only(
    model: UMDModel, examples: tuple[Example, ...], tokenizer: TextTokenizer
):
    items = retrieval_items(examples)
    store = PictureStore(items.images, 32, 32, SPEC.coefficient_bits)
    two = score_items(model, items, store, tokenizer, SPEC, candidates=1)
    every = score_items(model, items, store, tokenizer, SPEC, method="fusion")
    fused = np.isfinite(two.match_logits)
    assert 0 < fused.sum() <= len(items.images) + len(items.texts)
    np.testing.assert_allclose(two.match_logits[fused], every.match_logits[fused], atol=1e-4)


def test_a_model_that_knows_the_pairs_reaches_everything(
    model: UMDModel,
    examples: tuple[Example, ...],
    tokenizer: TextTokenizer,
    monkeypatch: pytest.MonkeyPatch,
):
    items = retrieval_items(examples)
    right = {(int(image), int(text)) for image, text in items.pairs}
    # Pictures and texts that belong together get a vector in common, all others orthogonal ones.
    columns = {pair: index for index, pair in enumerate(sorted(right))}
    images = torch.zeros(len(items.images), len(right))
    texts = torch.zeros(len(items.texts), len(right))
    for (image, text), column in columns.items():
        images[image, column] = texts[text, column] = 1.0
    encoded_images, encoded_texts = model.encode_image, model.encode_text
    seen = {"images": 0, "texts": 0}

    def encode_image(pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        start = seen["images"]
        seen["images"] += len(pixel_values)
        return encoded_images(pixel_values)[0], images[start : seen["images"]]

    def encode_text(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        start = seen["texts"]
        seen["texts"] += len(ids)
        return encoded_texts(ids, mask)[0], texts[start : seen["texts"]]

    monkeypatch.setattr(model, "encode_image", encode_image)
    monkeypatch.setattr(model, "encode_text", encode_text)
    metrics = evaluate_retrieval_task(model, examples, tokenizer, SPEC)
    assert metrics["embedding_image_to_text_r1"].value == 1.0
    assert metrics["embedding_text_to_image_r1"].value == 1.0
    assert metrics["embedding_text_to_image_medr"].value == 1.0
    assert metrics["image_to_text_r1"].n == len(examples)
    assert metrics["image_to_text_r1"].value < 1.0


def test_evaluation_leaves_no_trace_in_the_model(
    model: UMDModel, examples: tuple[Example, ...], tokenizer: TextTokenizer
):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = evaluate_retrieval_task(model.train(), examples, tokenizer, SPEC)
    assert evaluate_retrieval_task(model, examples, tokenizer, SPEC) == first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_missing_picture_names_its_record(
    model: UMDModel, examples: tuple[Example, ...], tokenizer: TextTokenizer, tmp_path: Path
):
    gone = replace(examples[0], image_path=tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"^images_train\.jsonl:1: .*gone\.png"):
        evaluate_retrieval_task(model, [gone], tokenizer, SPEC)


# --- the command --------------------------------------------------


@pytest.fixture
def checkpoint(model: UMDModel, tokenizer_json: bytes, tmp_path: Path) -> Path:
    saved = Checkpoint(
        model=model,
        tokenizer_json=tokenizer_json,
        tasks=(TASK,),
        structured_fields=FIELDS,
        preprocess=SPEC,
        max_length=16,
        provenance={"created": "2026-01-31T12:00:00+00:00", "data": {}},
    )
    (tmp_path / "final").mkdir()
    save_checkpoint(tmp_path / "final", saved, model.state_dict())
    return tmp_path / "final"


def _evaluate(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["evaluate", *(str(argument) for argument in arguments)])


def test_the_command_reports_recall(checkpoint: Path, manifest: Path):
    given = ("--task", "captions", "--data", manifest)
    done = _evaluate(checkpoint, *given, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert set(report) == {"task", "n", "dropped", "metrics", "splits"}
    assert report["n"] == len(manifest.read_text(encoding="utf-8").splitlines())
    names = [f"{way}_{k}" for way in ("image_to_text", "text_to_image") for k in ("r1", "medr")]
    for name in names:
        assert set(report["metrics"][name]) == {"value", "low", "high", "n"}
    assert "text_to_image_r10" in _evaluate(checkpoint, *given).stdout


def test_an_unknown_task_names_the_retrieval_task(checkpoint: Path, manifest: Path):
    done = _evaluate(checkpoint, "--task", "search", "--data", manifest)
    assert done.exit_code == 2
    assert "this checkpoint has ['captions']" in done.stderr
