"""What a teacher or a student gets right, record by record, on one task and data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from umd_edge._postprocess import positives
from umd_edge._records import Example, build_examples
from umd_edge._retrieval_metrics import query_ranks, retrieval_items
from umd_edge._task import TaskSpec
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import DataError
from umd_edge_train.checkpoint import Checkpoint
from umd_edge_train.corpus import read_split
from umd_edge_train.devices import on_training_device
from umd_edge_train.evaluate import find_task
from umd_edge_train.experiments.paired import Outcomes, Rankings, Results
from umd_edge_train.pictures import PictureStore
from umd_edge_train.recipe import DatasetConfig, Recipe
from umd_edge_train.retrieval import score_items

from .compare import record_score
from .sides import CheckpointSide
from .soft_answers import output_keys
from .trust_records import unfitted

__all__ = ["Part", "PartScores", "changed_decisions", "results", "score_part", "task_parts"]

FloatArray = npt.NDArray[np.float64]
OnProgress = Callable[[int, int], None]
_RECALL_AT = 10


class Part(NamedTuple):
    """A task on one of its data sets."""

    name: str
    """Of the task, and behind a slash of the data set where it has several."""
    task: str
    kind: str
    dataset: DatasetConfig
    metric: str
    """What its models are compared by."""

    @property
    def is_pooled(self) -> bool:
        """Whether its records are right or wrong by themselves, and not by the pool around them."""
        return self.kind != "retrieval"


@dataclass(frozen=True, slots=True)
class PartScores:
    """One model on the N records of a part, in the order of their file."""

    ids: tuple[str, ...] = field(repr=False)
    """File and line of each record."""
    groups: tuple[str, ...] = field(repr=False)
    """Patients."""
    scores: FloatArray = field(repr=False)
    """(N,) of 0..1: see `record_score`; of retrieval the share of both directions in which the
    right item is among the first ten by the embeddings."""
    classes: tuple[str, ...] = field(repr=False, default=())
    """Of a single-label classification: the label of each record."""
    decisions: tuple[frozenset[str], ...] = field(repr=False, default=())
    """The outputs that are positive; empty for retrieval."""
    outputs: tuple[str, ...] = field(repr=False, default=())
    """K keys of the outputs in alphabetical order, of a multi-label task alone."""
    probabilities: FloatArray = field(repr=False, default_factory=lambda: np.zeros((0, 0)))
    """(N, K) of a multi-label task, in that order."""
    targets: FloatArray = field(repr=False, default_factory=lambda: np.zeros((0, 0)))
    """(N, K) likewise: 1, 0, or NaN for unknown."""


def _metric(kind: str, *, multi_label: bool) -> str:
    if kind == "retrieval":
        return f"recall_at_{_RECALL_AT}"
    if kind == "vqa":
        return "accuracy"
    return "macro_auroc" if multi_label else "balanced_accuracy"


def task_parts(recipe: Recipe) -> list[Part]:
    """Every task of a recipe on each of its data sets."""
    datasets = {dataset.name: dataset for dataset in recipe.datasets}
    parts = []
    for index, table in enumerate(recipe.tasks):
        name, kind = str(table["name"]), str(table["kind"])
        metric = _metric(kind, multi_label=bool(table.get("multi_label")))
        chosen = recipe.training_of(index).datasets
        parts += [
            Part(name + (f"/{one}" if len(chosen) > 1 else ""), name, kind, datasets[one], metric)
            for one in chosen
        ]
    return parts


def _as_trained(task: TaskSpec) -> TaskSpec:
    """Without what was fitted behind the training, which one arm might have and another not."""
    return replace(unfitted(task), out_of_distribution=None, thresholds={})


def score_part(
    checkpoint: Checkpoint,
    part: Part,
    recipe: Recipe,
    data: Path,
    split: str,
    on_progress: OnProgress = lambda done, total: None,
) -> PartScores:
    """Run a checkpoint in float32 on the records of a part, and judge what it says.

    Args:
        checkpoint: Of any size, with its own prompt, fields and picture size.
        part: The task must be among the checkpoint's.
        recipe: Says whether restricted records take part.
        data: Folder of the data sets.
        split: Which records.
        on_progress: Called with records done, all records.

    Raises:
        UnknownTaskError: The checkpoint has no such task.
        DataError: A manifest or picture is broken, or no record is of the task.
    """
    task = _as_trained(
        find_task(checkpoint.tasks, part.task, ("classification", "vqa", "retrieval"))
    )
    free_only = not recipe.allow_non_commercial
    records, _ = read_split(part.dataset, data, split, free_only=free_only)
    found = build_examples(records, task, checkpoint.structured_fields).examples
    examples = [e for e in found if e.target is None or bool(np.isfinite(e.target).any())]
    if not examples:
        raise DataError(
            f"the {split} split of data set {part.dataset.name!r} holds no record of task "
            f"{part.task!r}; name another split, or leave the task out of the recipe"
        )
    ids = tuple(example.where for example in examples)
    groups = tuple(example.group for example in examples)
    if part.kind == "retrieval":
        return PartScores(ids, groups, _recalled(checkpoint, examples))
    probability = CheckpointSide(checkpoint).predict(task, examples, on_progress)
    scores = np.asarray(
        [record_score(task, e, row) for e, row in zip(examples, probability, strict=True)]
    )
    keys = output_keys(task)
    decisions = tuple(
        frozenset(key for key, yes in zip(keys, positives(row, task), strict=True) if yes)
        for row in probability
    )
    if part.metric != "macro_auroc":
        return PartScores(ids, groups, scores, _classes(task, examples), decisions)
    order = np.argsort(keys)
    targets = np.stack([e.target for e in examples if e.target is not None]).astype(np.float64)
    outputs = tuple(keys[i] for i in order)
    table = probability[:, order], targets[:, order]
    return PartScores(ids, groups, scores, (), decisions, outputs, *table)


def _classes(task: TaskSpec, examples: Sequence[Example]) -> tuple[str, ...]:
    return tuple(
        task.outputs[int(np.nanargmax(e.target))] for e in examples if e.target is not None
    )


def _recalled(checkpoint: Checkpoint, examples: Sequence[Example]) -> FloatArray:
    """(N,) 0, 0.5 or 1: in how many directions the right item is among the first ten."""
    spec, items = checkpoint.preprocess, retrieval_items(examples)
    store = PictureStore(items.images, spec.height, spec.width, spec.coefficient_bits)
    tokenizer = TextTokenizer.from_bytes(checkpoint.tokenizer_json, checkpoint.max_length)
    model = checkpoint.model
    with on_training_device(model):
        scored = score_items(model, items, store, tokenizer, spec, method="embedding")
    hits = [
        query_ranks(places, pairs) <= _RECALL_AT
        for places, pairs in (
            (scored.text_places(), items.pairs),
            (scored.image_places(), items.pairs[:, ::-1]),
        )
    ]
    return np.asarray(np.mean(hits, axis=0), dtype=np.float64)


def results(runs: Sequence[PartScores], metric: str) -> Results:
    """The runs of one arm on a part, ready for the statistics of its metric.

    Raises:
        DataError: The runs are of different records or labels, or the metric is undefined on them.
    """
    first = runs[0]
    if any((run.ids, run.outputs) != (first.ids, first.outputs) for run in runs):
        raise DataError("the runs of an arm have different records or labels; use one data set")
    if metric == "macro_auroc":
        scores = np.stack([run.probabilities for run in runs])
        return Rankings(first.ids, first.groups, first.targets, scores)
    strata = np.zeros(len(first.ids), dtype=np.int64)
    if metric == "balanced_accuracy":
        strata = np.unique(first.classes, return_inverse=True)[1].astype(np.int64)
    return Outcomes(first.ids, first.groups, strata, np.stack([run.scores for run in runs]))


def changed_decisions(one: PartScores, other: PartScores) -> FloatArray:
    """(N,) share of each record's decisions that differ, by the names of the outputs."""
    labels = len(one.outputs) or 1
    pairs = zip(one.decisions, other.decisions, strict=True)
    # a single decision that differs is two names that do
    return np.asarray([min(1.0, len(a ^ b) / labels) for a, b in pairs])
