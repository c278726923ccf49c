"""Predictions of runs on the records of a split, kept beside the grid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from umd_edge._postprocess import probabilities
from umd_edge._records import Record, build_examples, read_records
from umd_edge._retrieval_metrics import retrieval_items
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import DataError, UsageError

from ..checkpoint import Checkpoint, load_checkpoint, write_json
from ..devices import on_training_device
from ..evaluate import find_task, task_logits
from ..pictures import PictureStore
from ..recipe import DatasetConfig, Recipe, recipe_from_dict
from ..retrieval import score_items
from .cnn import is_cnn, load_cnn
from .predictions import Predictions, predictions_of, retrieval_predictions

__all__ = [
    "fingerprint",
    "kept_predictions",
    "manifests",
    "predict_checkpoint",
    "predict_run",
    "task_records",
]


def split_records(data: Path, dataset: DatasetConfig, split: str, recipe: Recipe) -> list[Record]:
    """The records of a split that a recipe may use."""
    records = read_records(data / dataset.path / f"{dataset.prefix}{split}.jsonl")
    if recipe.allow_non_commercial:
        return records
    return [record for record in records if record.raw.get("non_commercial") is False]


def task_records(recipe: Recipe, task: str, data: Path, split: str) -> list[Record]:
    """The records of a split of all data sets that a task is trained on.

    Raises:
        UsageError: The recipe has no such task.
    """
    names = [str(table.get("name")) for table in recipe.tasks]
    if task not in names:
        raise UsageError(f"task {task!r} given; the recipe has {names}")
    chosen = recipe.training_of(names.index(task)).datasets
    return [
        record
        for dataset in recipe.datasets
        if dataset.name in chosen
        for record in split_records(data, dataset, split, recipe)
    ]


def predict_checkpoint(
    checkpoint: Checkpoint, task_name: str, data: Path, split: str
) -> Predictions:
    """Predictions of a checkpoint on a split of the data sets that it was trained on.

    Raises:
        UnknownTaskError: The checkpoint has no such task.
        DataError: A manifest is broken, or holds no record of the task.
    """
    task = find_task(checkpoint.tasks, task_name, ("classification", "vqa", "retrieval"))
    recipe = recipe_from_dict(checkpoint.provenance.get("recipe", {}))
    records = task_records(recipe, task_name, data, split)
    found = build_examples(records, task, checkpoint.structured_fields)
    if not found.examples:
        raise DataError(f"the {split} split holds no record of task {task_name!r}")
    spec = checkpoint.preprocess
    tokenizer = TextTokenizer.from_bytes(checkpoint.tokenizer_json, checkpoint.max_length)
    if task.kind == "retrieval":
        items = retrieval_items(found.examples)
        store = PictureStore(items.images, spec.height, spec.width, spec.coefficient_bits)
        with on_training_device(checkpoint.model):
            scores = score_items(checkpoint.model, items, store, tokenizer, spec)
        return retrieval_predictions(task, found.examples, items, scores)
    paths = sorted({example.image_path for example in found.examples})
    store = PictureStore(paths, spec.height, spec.width, spec.coefficient_bits)
    model = checkpoint.model
    with on_training_device(model):
        ordered, logits = task_logits(model, task, found.examples, store, tokenizer, spec)
    return predictions_of(task, ordered, probabilities(logits.numpy(), task))


def fingerprint(text: str, files: Sequence[Path]) -> str:
    """SHA-256 over a text and the content of files.

    Raises:
        DataError: A file cannot be read.
    """
    digest = hashlib.sha256(text.encode())
    for path in files:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise DataError(f"{path}: cannot be read; it is part of what was measured") from error
    return digest.hexdigest()


def manifests(recipe: Recipe, data: Path, split: str) -> list[Path]:
    """The JSONL files of a split."""
    return [data / d.path / f"{d.prefix}{split}.jsonl" for d in recipe.datasets]


def _run_mark(final: Path, task: str, data: Path, split: str) -> str:
    provenance = json.loads((final / "provenance.json").read_text(encoding="utf-8"))
    recipe = recipe_from_dict(provenance.get("recipe", {}))
    files = [*sorted(final.glob("*.safetensors")), *manifests(recipe, data, split)]
    return fingerprint(f"{task}\0{split}", files)


def kept_predictions(kept: Path, mark: str, make: Callable[[], Predictions]) -> Predictions:
    """The predictions in a JSON file when they carry this mark; else new ones, which it keeps."""
    if kept.exists():
        table = json.loads(kept.read_text(encoding="utf-8"))
        if table.get("fingerprint") == mark:
            return Predictions.from_dict(table)
    found = make()
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, {"fingerprint": mark, **found.to_dict()})
    return found


def predict_run(final: Path, task: str, data: Path, split: str, kept: Path) -> Predictions:
    """Predictions of a finished run; those in `kept` are used when nothing has changed since.

    Args:
        final: Checkpoint of a run, or of the small CNN.
        task: Name of the task.
        data: Folder of the data sets.
        split: Which records.
        kept: JSON file to keep the predictions in.
    """

    def make() -> Predictions:
        checkpoint = load_cnn(final) if is_cnn(final) else load_checkpoint(final)
        return predict_checkpoint(checkpoint, task, data, split)

    return kept_predictions(kept, _run_mark(final, task, data, split), make)
