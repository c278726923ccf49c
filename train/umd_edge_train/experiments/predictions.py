"""What a run or a baseline gets right, record by record."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from umd_edge._evaluate import example_metrics
from umd_edge._evaluation import is_right
from umd_edge._postprocess import probabilities
from umd_edge._records import Example, Record, build_examples, read_records
from umd_edge._task import TaskSpec
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import DataError, UsageError

from ..checkpoint import Checkpoint, load_checkpoint, write_json
from ..evaluate import find_task, task_logits
from ..pictures import PictureStore
from ..recipe import DatasetConfig, Recipe, recipe_from_dict
from .cnn import is_cnn, load_cnn
from .paired import COMPARED_METRICS, Outcomes

__all__ = [
    "Predictions",
    "fingerprint",
    "kept_predictions",
    "manifests",
    "outcomes",
    "predict_checkpoint",
    "predict_run",
    "predictions_of",
    "task_records",
]

_NO_LETTER = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Predictions:
    """One model on one task and split; records are sorted by their ids."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    kinds: tuple[str, ...]
    """(N,) class of each record, or its question type in lower case."""
    answer_types: tuple[str, ...]
    """(N,) `OPEN`, `CLOSED` or empty."""
    right: tuple[bool, ...]
    metrics: Mapping[str, Mapping[str, Any]]
    """All of the runtime's metrics: name -> `{"value", "low", "high", "n"}`."""

    def to_dict(self) -> dict[str, Any]:
        """JSON object."""
        return {
            "ids": list(self.ids),
            "groups": list(self.groups),
            "kinds": list(self.kinds),
            "answer_types": list(self.answer_types),
            "right": [int(value) for value in self.right],
            "metrics": {name: dict(metric) for name, metric in self.metrics.items()},
        }

    @staticmethod
    def from_dict(table: Mapping[str, Any]) -> Predictions:
        """Read what `to_dict` gave."""
        return Predictions(
            ids=tuple(table["ids"]),
            groups=tuple(table["groups"]),
            kinds=tuple(table["kinds"]),
            answer_types=tuple(table["answer_types"]),
            right=tuple(bool(value) for value in table["right"]),
            metrics=table["metrics"],
        )


def predictions_of(
    task: TaskSpec, examples: Sequence[Example], probability: npt.NDArray[np.float64]
) -> Predictions:
    """Judge probabilities (N, K) of a VQA task or a single-label classification.

    Raises:
        UsageError: The task is multi-label: its records are not right or wrong as a whole.
        DataError: Two records have the same id.
    """
    if task.multi_label or task.kind == "retrieval":
        raise UsageError(
            f"task {task.name!r} is {'multi-label' if task.multi_label else task.kind}; only VQA "
            "and single-label classifications are compared record by record"
        )
    order = sorted(range(len(examples)), key=lambda i: examples[i].id)
    listed = [examples[i] for i in order]
    if len({example.id for example in listed}) != len(listed):
        raise DataError(f"task {task.name!r}: two records have the same id; give each its own")
    rows = probability[order]
    called = rows.argmax(axis=1)
    right, kinds, answer_types = [], [], []
    for example, row in zip(listed, called, strict=True):
        if example.reference is not None:
            right.append(is_right(task.outputs[row], example.reference))
            kinds.append(_slug(example.reference.question_type or ""))
            answer_types.append((example.reference.answer_type or "").upper())
        elif example.target is not None:
            truth = int(np.nanargmax(example.target))
            right.append(int(row) == truth)
            kinds.append(task.outputs[truth])
            answer_types.append("")
    metrics = example_metrics(task, listed, rows)
    return Predictions(
        ids=tuple(example.id for example in listed),
        groups=tuple(example.group for example in listed),
        kinds=tuple(kinds),
        answer_types=tuple(answer_types),
        right=tuple(right),
        metrics={name: metric.to_dict() for name, metric in metrics.items()},
    )


def _slug(text: str) -> str:
    return _NO_LETTER.sub("_", text.lower()).strip("_")


def _strata(predictions: Predictions, metric: str) -> npt.NDArray[np.int64]:
    """Strata whose means of right records give the metric (see `paired`)."""
    kinds = np.asarray(predictions.kinds)
    if metric == "accuracy":
        chosen = np.ones(len(kinds), dtype=np.bool_)
    elif metric == "balanced_accuracy":
        strata: npt.NDArray[np.int64] = np.unique(kinds, return_inverse=True)[1].astype(np.int64)
        return strata
    elif metric in ("closed_accuracy", "open_accuracy"):
        chosen = np.asarray(predictions.answer_types) == metric.partition("_")[0].upper()
    elif metric.startswith("accuracy_excluding_"):
        chosen = kinds != metric.removeprefix("accuracy_excluding_")
    elif metric.startswith("accuracy_"):
        chosen = kinds == metric.removeprefix("accuracy_")
    else:
        raise UsageError(
            f"metric {metric!r} is no mean of right records; {COMPARED_METRICS} are allowed"
        )
    if not chosen.any():
        raise DataError(f"no record counts for {metric!r}; the records are of {set(kinds)}")
    return np.where(chosen, 0, -1).astype(np.int64)


def outcomes(seeds: Sequence[Predictions], metric: str) -> Outcomes:
    """The runs of one arm, ready for the statistics of a metric.

    Raises:
        UsageError: The metric is no mean of right records.
        DataError: The runs are of different records.
    """
    first = seeds[0]
    if any(other.ids != first.ids for other in seeds):
        raise DataError("the seeds of an arm were evaluated on different records; use one data set")
    return Outcomes(
        ids=first.ids,
        groups=first.groups,
        strata=_strata(first, metric),
        right=np.asarray([run.right for run in seeds], dtype=np.bool_),
    )


# --- records and runs -------------------------------------------------------------------------


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
    task = find_task(checkpoint.tasks, task_name)
    recipe = recipe_from_dict(checkpoint.provenance.get("recipe", {}))
    records = task_records(recipe, task_name, data, split)
    found = build_examples(records, task, checkpoint.structured_fields)
    if not found.examples:
        raise DataError(f"the {split} split holds no record of task {task_name!r}")
    spec = checkpoint.preprocess
    paths = sorted({example.image_path for example in found.examples})
    store = PictureStore(paths, spec.height, spec.width, spec.coefficient_bits)
    tokenizer = TextTokenizer.from_bytes(checkpoint.tokenizer_json, checkpoint.max_length)
    ordered, logits = task_logits(checkpoint.model, task, found.examples, store, tokenizer, spec)
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
