from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.training import write_recipe
from umd_edge._rank import PairScores
from umd_edge._records import Example, VQAReference
from umd_edge._retrieval_metrics import RetrievalItems
from umd_edge._task import TargetSpec, TaskSpec
from umd_edge.errors import DataError, UsageError
from umd_edge_train.checkpoint import load_checkpoint
from umd_edge_train.evaluate import evaluate_checkpoint
from umd_edge_train.experiments.paired import paired_difference, summarise
from umd_edge_train.experiments.predictions import (
    Predictions,
    outcomes,
    predictions_of,
    retrieval_predictions,
)
from umd_edge_train.experiments.run_predictions import predict_run
from umd_edge_train.finetuning import finetune
from umd_edge_train.recipe import load_recipe

_SINGLE = TaskSpec(name="t", kind="classification", outputs=("a", "b"), prompt="which")
_SEVERAL = TaskSpec(
    name="m",
    kind="classification",
    outputs=("Pneumonia", "Edema"),
    prompt="which",
    multi_label=True,
    probability_kind="sigmoid",
)
_VQA = TaskSpec(
    name="v",
    kind="vqa",
    outputs=("yes", "no"),
    reads=("question",),
    target=TargetSpec(field="answer"),
)
_CAPTIONS = TaskSpec(name="r", kind="retrieval", outputs=(), reads=("caption",))


def _example(name: str, **values: Any) -> Example:
    empty = np.zeros(1, np.float32)
    return Example(name, f"p-{name}", Path("x.png"), "which", empty, empty, **values)


def test_records_are_judged_one_by_one_and_sorted():
    examples = [
        _example("r2", target=np.array([1, 0], np.float32)),
        _example("r1", target=np.array([0, 1], np.float32)),
    ]
    found = predictions_of(_SINGLE, examples, np.array([[0.9, 0.1], [0.8, 0.2]]))
    assert (found.ids, found.right, found.kinds) == (("r1", "r2"), (False, True), ("b", "a"))
    assert found.groups == ("p-r1", "p-r2")
    assert found.metrics["accuracy"]["value"] == 0.5
    assert Predictions.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def _vqa_predictions() -> Predictions:
    examples = [
        _example("a", reference=VQAReference(("yes",), "CLOSED", "Organ System")),
        _example("b", reference=VQAReference(("no",), "OPEN", "abnormality")),
        _example("c", reference=VQAReference(("tumour", "Yes."), "OPEN", "plane")),
    ]
    return predictions_of(_VQA, examples, np.array([[0.4, 0.6], [0.3, 0.7], [0.9, 0.1]]))


@pytest.mark.parametrize(
    "metric",
    [
        "accuracy",
        "closed_accuracy",
        "open_accuracy",
        "accuracy_organ_system",
        "accuracy_excluding_abnormality",
    ],
)
def test_strata_give_the_metrics_of_the_runtime(metric: str):
    found = _vqa_predictions()
    summary = summarise(outcomes([found], metric))
    assert summary.value == pytest.approx(found.metrics[metric]["value"])
    assert summary.n == found.metrics[metric]["n"]


def test_a_metric_without_records_is_refused():
    with pytest.raises(DataError, match="no record counts"):
        outcomes([_vqa_predictions()], "accuracy_modality")


def test_seeds_on_other_records_are_refused():
    one = _vqa_predictions()
    other = Predictions.from_dict({**one.to_dict(), "ids": ["x", "y", "z"]})
    with pytest.raises(DataError, match="different records"):
        outcomes([one, other], "accuracy")


def test_two_records_of_one_name_are_refused():
    pair = [_example("r", target=np.array([1, 0], np.float32))] * 2
    with pytest.raises(DataError, match="same id"):
        predictions_of(_SINGLE, pair, np.full((2, 2), 0.5))


# --- several labels -----------------------------------------------


def _several(seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(0).integers(0, 2, (12, 2)).astype(np.float32)
    truth[3, 1] = np.nan
    examples = [_example(f"r{i:02d}", target=row) for i, row in enumerate(truth)]
    score = np.clip(0.3 * np.nan_to_num(truth) + rng.random((12, 2)) * 0.6, 0, 1)
    return predictions_of(_SEVERAL, examples, score)


@pytest.mark.parametrize("metric", ["macro_auroc", "auroc_Pneumonia", "auroc_Edema"])
def test_rankings_give_the_metrics_of_the_runtime(metric: str):
    found = _several(1)
    summary = summarise(outcomes([found], metric))
    assert summary.value == pytest.approx(found.metrics[metric]["value"])
    assert summary.low == pytest.approx(found.metrics[metric]["low"])
    assert summary.n == found.metrics[metric]["n"]
    assert Predictions.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_two_arms_of_several_labels_are_compared_on_the_same_patients():
    one, other = [_several(1), _several(2)], [_several(3), _several(4)]
    found = paired_difference(outcomes(one, "macro_auroc"), outcomes(other, "macro_auroc"))
    by_hand = [
        a.metrics["macro_auroc"]["value"] - b.metrics["macro_auroc"]["value"]
        for a, b in zip(one, other, strict=True)
    ]
    assert found.by_seed == pytest.approx(by_hand)
    assert found.value == pytest.approx(np.mean(by_hand))


@pytest.mark.parametrize(
    ("make", "metric", "told"),
    [
        (_vqa_predictions, "macro_auroc", "several labels"),
        (_vqa_predictions, "auroc_yes", "several labels"),
        (_vqa_predictions, "text_to_image_r5", "retrieval alone"),
        (_vqa_predictions, "brier", "are allowed"),
        (lambda: _several(1), "accuracy", "several labels"),
        (lambda: _several(1), "auroc_Hernia", "the task has"),
    ],
)
def test_a_metric_of_another_kind_of_task_is_refused(make: Any, metric: str, told: str):
    with pytest.raises(UsageError, match=told):
        outcomes([make()], metric)


# --- retrieval ----------------------------------------------------


def _queries() -> Predictions:
    rng = np.random.default_rng(0)
    examples = [_example(f"r{9 - i}") for i in range(8)]
    items = RetrievalItems(
        images=tuple(Path(f"{i}.png") for i in range(7)),
        texts=tuple("abcdef"),
        pairs=np.stack([np.arange(8) % 7, np.arange(8) % 6], axis=1),
        groups=tuple(e.group for e in examples),
    )
    cosine = rng.uniform(-1, 1, (7, 6)).astype(np.float32)
    scores = PairScores(method="embedding", candidates=6, cosine=cosine, match_logits=None)
    return retrieval_predictions(_CAPTIONS, examples, items, scores)


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
@pytest.mark.parametrize("rank", [1, 5])
def test_ranks_give_the_recalls_of_the_runtime(direction: str, rank: int):
    found = _queries()
    summary = summarise(outcomes([found], f"{direction}_r{rank}"))
    runtime = found.metrics[f"{direction}_r{rank}"]
    assert (summary.value, summary.low, summary.n) == pytest.approx(
        (runtime["value"], runtime["low"], runtime["n"])
    )
    assert Predictions.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_queries_are_sorted_by_their_record():
    found = _queries()
    assert found.ids[:2] == ("image_to_text r2", "image_to_text r3")
    assert found.ids[8:10] == ("text_to_image r2", "text_to_image r3")
    assert found.right == tuple(rank == 1 for rank in found.ranks)
    shuffled = replace(found, ids=found.ids[::-1])
    with pytest.raises(DataError, match="different records"):
        outcomes([found, shuffled], "text_to_image_r1")


def test_a_run_of_retrieval_is_judged_and_kept(synth: Path, tmp_path: Path):
    recipe = load_recipe(write_recipe(tmp_path, "captions"), ("optim.epochs=1",))
    finetune(recipe, synth, tmp_path / "run")
    final, kept = tmp_path / "run" / "final", tmp_path / "kept.json"
    found = predict_run(final, "captions", synth, "val", kept)
    manifest = synth / "questions" / "images_val.jsonl"
    runtime = evaluate_checkpoint(load_checkpoint(final), "captions", [manifest])["metrics"]
    assert set(found.metrics) == set(runtime)
    for name, metric in runtime.items():
        assert found.metrics[name]["value"] == pytest.approx(metric["value"], abs=1e-6)
    assert predict_run(final, "captions", synth, "val", kept) == found
