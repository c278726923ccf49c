"""A run's data: records by data set and split, tasks with fitted outputs, and their examples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umd_edge._answers import normalise_answer
from umd_edge._records import ExampleSet, Record, build_examples, read_records
from umd_edge._structured import StructuredField
from umd_edge._task import TaskSpec
from umd_edge.errors import DataError

from .recipe import DatasetConfig, Recipe, StructuredConfig

__all__ = ["Corpus", "load_corpus", "read_split"]

_UNUSED = StructuredField(name="unused", kind="numeric")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything of a recipe's data but the pixels."""

    tasks: tuple[TaskSpec, ...]
    fields: tuple[StructuredField, ...]
    train: tuple[tuple[ExampleSet, ...], ...]
    """By task, then by data set of that task."""
    validation: tuple[tuple[ExampleSet, ...], ...]
    texts: tuple[str, ...]
    """All training texts, prompts included: the tokenizer's corpus."""
    sources: dict[str, dict[str, object]]
    """By data set: SHA-256 of its manifests, licences and counts, for the provenance."""


def _fold_of(group: str, folds: int) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % folds


def _share(group: str) -> float:
    """A number in [0, 1) for a patient, independent of the folds."""
    return _fold_of(f"share:{group}", 2**32) / 2**32


def _vocabulary_texts(recipe: Recipe, data: Path) -> set[str]:
    return {
        text
        for source in recipe.vocabulary
        for record in read_records(data / source.path)
        if recipe.allow_non_commercial or _is_free(record)
        for name in source.fields
        if isinstance(text := record.get(name), str)
    }


def _is_free(record: Record) -> bool:
    """A record that does not say so is not free."""
    return record.raw.get("non_commercial") is False


def _free_records(records: list[Record], others: list[Record]) -> list[Record]:
    """The free ones; those that do not say are judged by `others` of the same picture."""
    free: set[object] = set()
    bound: set[object] = set()
    for other in others:
        (free if _is_free(other) else bound).add(other.get("image"))
    free -= bound
    return [
        record
        for record in records
        if _is_free(record) or ("non_commercial" not in record.raw and record.get("image") in free)
    ]


def read_split(
    dataset: DatasetConfig, data: Path, split: str, *, free_only: bool
) -> tuple[list[Record], int]:
    """The records of one split that may take part, and the number of those that may not.

    Args:
        dataset: One of a recipe's data sets.
        data: Folder that holds the data sets' folders.
        split: `train`, `val` or `test`.
        free_only: Only records that are free of non-commercial clauses.

    Raises:
        DataError: A manifest is missing or broken.
    """
    path = data / dataset.path / f"{dataset.prefix}{split}.jsonl"
    records = read_records(path)
    if not free_only:
        return records, 0
    others = dataset.free_with.replace("{split}", split)
    free = _free_records(records, read_records(path.with_name(others)) if others else [])
    return free, len(records) - len(free)


def _split(
    recipe: Recipe, dataset: DatasetConfig, data: Path
) -> tuple[list[Record], list[Record], dict[str, object]]:
    """Training records, validation records and provenance of one data set."""
    used: dict[str, list[Record]] = {}
    hashes: dict[str, str] = {}
    refused = 0
    for split in dict.fromkeys(recipe.train_splits + recipe.validation_splits):
        records, left_out = read_split(
            dataset, data, split, free_only=not recipe.allow_non_commercial
        )
        refused += left_out
        path = data / dataset.path / f"{dataset.prefix}{split}.jsonl"
        used[split] = records
        hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    train = [r for split in recipe.train_splits for r in used[split]]
    validation = [r for split in recipe.validation_splits for r in used[split]]
    if recipe.folds:
        pool = [r for records in used.values() for r in records]
        train = [r for r in pool if _fold_of(str(r.get("patient_id")), recipe.folds) != recipe.fold]
        validation = [
            r for r in pool if _fold_of(str(r.get("patient_id")), recipe.folds) == recipe.fold
        ]
    if dataset.fraction < 1.0:
        train = [r for r in train if _share(str(r.get("patient_id"))) < dataset.fraction]
    if not train:
        raise DataError(f"data set {dataset.name!r}: no record may be used for training")
    everyone = train + validation
    provenance: dict[str, object] = {
        "manifests": hashes,
        "licences": dict(Counter(str(r.get("license")) for r in everyone)),
        "non_commercial_records": (
            sum(not _is_free(r) for r in everyone) if recipe.allow_non_commercial else 0
        ),
        "refused_non_commercial_records": refused,
        "train_records": len(train),
        "train_pictures": len({str(r.get("image")) for r in train}),
    }
    return train, validation, provenance


def _fit_field(config: StructuredConfig, records: Sequence[Record]) -> StructuredField:
    """Mean and standard deviation, or categories, of a field among training records."""
    present = [v for r in records if (v := r.get(config.name)) is not None]
    if not present:
        raise DataError(f"structured field {config.name!r} is in no training record")
    if config.kind == "binary":
        return StructuredField(name=config.name, kind="binary", unit=config.unit)
    if config.kind == "categorical":
        categories = tuple(sorted({str(v) for v in present}))
        return StructuredField(name=config.name, kind="categorical", categories=categories)
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present):
        raise DataError(
            f"structured field {config.name!r}: some training records hold no number there; mend "
            "them or make the field categorical"
        )
    numbers = np.asarray(present, dtype=np.float64)
    return StructuredField(
        name=config.name,
        kind="numeric",
        unit=config.unit,
        mean=float(numbers.mean()),
        std=float(numbers.std()) or 1.0,
    )


def _fit_outputs(recipe: Recipe, index: int, records: dict[str, list[Record]]) -> tuple[str, ...]:
    """Answers of a VQA task or labels of a classification, from the training records."""
    training, table = recipe.training_of(index), recipe.tasks[index]
    probe = recipe.spec_of(table, ("?",))
    counts: Counter[str] = Counter()
    for name in training.datasets:
        for record in records[name]:
            value = record.get(probe.target.field)
            if probe.kind == "vqa":
                if isinstance(value, str):
                    counts[normalise_answer(value)] += 1
            else:
                labels = value if isinstance(value, list) else [value]
                counts.update(label for label in labels if isinstance(label, str))
    counts.pop("", None)
    limit = training.answer_min_count
    kept = [(n, answer) for answer, n in counts.items() if n >= limit]
    # most frequent first, then by name: the order never depends on the order of the file
    return tuple(answer for _, answer in sorted(kept, key=lambda pair: (-pair[0], pair[1])))


def _task(
    recipe: Recipe,
    index: int,
    records: dict[str, list[Record]],
    parents: Sequence[TaskSpec],
) -> TaskSpec:
    table = recipe.tasks[index]
    if table.get("kind") == "retrieval" or "labels" in table or "answers" in table:
        return recipe.spec_of(table)
    for parent in parents:
        if parent.name == table.get("name") and parent.kind == table.get("kind"):
            return recipe.spec_of(table, parent.outputs)
    return recipe.spec_of(table, _fit_outputs(recipe, index, records))


def load_corpus(
    recipe: Recipe,
    data: Path,
    parent_tasks: Sequence[TaskSpec] = (),
    parent_fields: Sequence[StructuredField] = (),
) -> Corpus:
    """Read all data sets of a recipe.

    Args:
        recipe: Names data sets, tasks and structured fields.
        data: Folder that holds the data sets' folders.
        parent_tasks: Of the checkpoint that a run starts from: a task of the same name keeps its
            answers in their order, so that its head keeps its meaning.
        parent_fields: Likewise; where given they are used as they are.

    Raises:
        DataError: A manifest is missing or broken, or a record does not fit its task.
    """
    train: dict[str, list[Record]] = {}
    validation: dict[str, list[Record]] = {}
    sources: dict[str, dict[str, object]] = {}
    for dataset in recipe.datasets:
        train[dataset.name], validation[dataset.name], sources[dataset.name] = _split(
            recipe, dataset, data
        )
    everyone = [r for records in train.values() for r in records]
    fields = tuple(_fit_field(f, everyone) for f in recipe.structured_fields) or (_UNUSED,)
    if [field.name for field in fields] == [field.name for field in parent_fields]:
        fields = tuple(parent_fields)
    tasks = tuple(_task(recipe, i, train, parent_tasks) for i in range(len(recipe.tasks)))
    per_task: dict[str, tuple[tuple[ExampleSet, ...], ...]] = {}
    for part, records in (("train", train), ("validation", validation)):
        per_task[part] = tuple(
            tuple(
                build_examples(records[name], task, fields)
                for name in recipe.training_of(i).datasets
            )
            for i, task in enumerate(tasks)
        )
    texts = _vocabulary_texts(recipe, data)
    if not recipe.vocabulary_alone:
        texts |= {e.text for sets in per_task["train"] for s in sets for e in s.examples}
    return Corpus(
        tasks=tasks,
        fields=fields,
        train=per_task["train"],
        validation=per_task["validation"],
        texts=tuple(sorted(texts)),
        sources=sources,
    )
