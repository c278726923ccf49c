"""The records of a distillation: those of the recipe's splits, and those without labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from umd_edge._records import Example, Record, VQAReference, build_examples, read_records
from umd_edge._task import TaskSpec
from umd_edge.errors import DataError, UsageError
from umd_edge_train.corpus import Corpus
from umd_edge_train.distillation_config import UnlabelledConfig
from umd_edge_train.objectives import SupervisedObjective
from umd_edge_train.recipe import DatasetConfig, Recipe

__all__ = [
    "DistillationObjective",
    "RecordKey",
    "add_unlabelled",
    "manifest_hashes",
    "record_key",
    "sigmoid_tasks",
    "training_records",
    "without_target",
]

RecordKey = tuple[str, str]


def record_key(example: Example) -> RecordKey:
    """What tells the records of a run apart: the picture, and the line of its file."""
    return str(example.image_path), example.where


def without_target(task: TaskSpec) -> TaskSpec:
    """The same task as a reader alone: it takes records whose answer nobody knows."""
    return replace(task, kind="retrieval", outputs=(), multi_label=False, operating_points={})


def _manifests(recipe: Recipe, data: Path) -> list[Path]:
    """Every file that holds training records, once."""
    splits = dict.fromkeys(recipe.train_splits)
    if recipe.folds:
        splits |= dict.fromkeys(recipe.validation_splits)
    labelled = [
        data / dataset.path / f"{dataset.prefix}{split}.jsonl"
        for dataset in recipe.datasets
        for split in splits
    ]
    others = [_unlabelled_file(recipe, data, given) for given in recipe.distillation.unlabelled]
    return list(dict.fromkeys(labelled + others))


def training_records(recipe: Recipe, data: Path) -> list[Record]:
    """Every record that a student may be asked about in training."""
    return [record for path in _manifests(recipe, data) for record in read_records(path)]


def manifest_hashes(recipe: Recipe, data: Path) -> dict[str, str]:
    """SHA-256 of the files of `training_records`, by their path below `data`."""
    return {
        path.relative_to(data).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _manifests(recipe, data)
    }


def _dataset(recipe: Recipe, given: UnlabelledConfig) -> DatasetConfig:
    for dataset in recipe.datasets:
        if dataset.name == given.dataset:
            return dataset
    raise UsageError(
        f"distillation.unlabelled: data set {given.dataset!r} given; "
        f"[[datasets]] has {[dataset.name for dataset in recipe.datasets]}"
    )


def _unlabelled_file(recipe: Recipe, data: Path, given: UnlabelledConfig) -> Path:
    return data / _dataset(recipe, given).path / given.file


def _blank(example: Example, task: TaskSpec) -> Example:
    """The example with an unknown answer."""
    if task.kind == "vqa":
        return replace(example, reference=VQAReference(()))
    return replace(example, target=np.full(len(task.outputs), np.nan, dtype=np.float32))


def add_unlabelled(recipe: Recipe, corpus: Corpus, data: Path) -> Corpus:
    """The corpus with the records of `distillation.unlabelled` as examples of unknown answer.

    Records that take part with their labels and patients of the validation are left out.

    Raises:
        UsageError: A data set is none of the recipe's, or a VQA task has the loss `bce`, under
            which an unknown answer would count as a wrong one.
        DataError: A file is missing or broken, or adds no record.
    """
    held_out = {e.group for sets in corpus.validation for s in sets for e in s.examples}
    train, sources = [list(sets) for sets in corpus.train], dict(corpus.sources)
    for given in recipe.distillation.unlabelled:
        dataset = _dataset(recipe, given)
        records = read_records(data / dataset.path / given.file)
        if not recipe.allow_non_commercial:
            records = [r for r in records if r.raw.get("non_commercial") is False]
        used: set[RecordKey] = set()
        for index, task in enumerate(corpus.tasks):
            training = recipe.training_of(index)
            if task.kind == "retrieval" or dataset.name not in training.datasets:
                continue
            if task.kind == "vqa" and training.loss == "bce":
                raise UsageError(
                    f"distillation.unlabelled: task {task.name!r} has the loss 'bce', under which "
                    "an unknown answer counts as a wrong one; set its loss to 'softmax'"
                )
            place = training.datasets.index(dataset.name)
            known = {record_key(e) for e in train[index][place].examples}
            found = build_examples(records, without_target(task), corpus.fields).examples
            fresh = tuple(
                _blank(example, task)
                for example in found
                if record_key(example) not in known and example.group not in held_out
            )
            used |= {record_key(example) for example in fresh}
            train[index][place] = replace(
                train[index][place], examples=train[index][place].examples + fresh
            )
        if not used:
            raise DataError(
                f"distillation.unlabelled: {given.file} of data set {dataset.name!r} adds nothing: "
                "its records take part with their labels, are held out, or are not free; lower "
                "the data set's fraction, or name another file"
            )
        sources[f"{dataset.name} without labels ({given.file})"] = _provenance(
            [r for r in records if (str(r.image_path), r.where) in used],
            data / dataset.path / given.file,
        )
    return replace(corpus, train=tuple(tuple(sets) for sets in train), sources=sources)


def _provenance(records: Sequence[Record], path: Path) -> dict[str, object]:
    return {
        "manifests": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
        "licences": dict(Counter(str(r.get("license")) for r in records)),
        "non_commercial_records": sum(r.raw.get("non_commercial") is not False for r in records),
        "train_records": len(records),
        "train_pictures": len({str(r.get("image")) for r in records}),
    }


class DistillationObjective(SupervisedObjective):
    """The supervised losses, 0 for examples whose answer is unknown."""

    def targets(self, index: int, examples: Sequence[Example]) -> Tensor:
        """As in `SupervisedObjective`; -100 or NaN where the answer is unknown."""
        targets = super().targets(index, examples)
        task = self.tasks[index]
        if task.kind == "classification" and not task.multi_label:
            unknown = [e.target is None or bool(np.isnan(e.target).any()) for e in examples]
            targets = targets.masked_fill(torch.tensor(unknown), -100)
        return targets


def sigmoid_tasks(recipe: Recipe, tasks: Sequence[TaskSpec]) -> frozenset[str]:
    """Tasks whose outputs have a probability each: several labels, or the paper's VQA loss."""
    return frozenset(
        task.name
        for index, task in enumerate(tasks)
        if task.multi_label or (task.kind == "vqa" and recipe.training_of(index).loss == "bce")
    )
