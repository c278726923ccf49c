"""How much a task leans on single inputs, and on which of them happen to be filled in.

Two questions about structured values (history, signs):

* Does their mere presence give the answer away? A classifier that sees only the pattern of present
  values should be at chance.
* Does the model survive without one of them? Recall of the labels that matter is measured with each
  value withheld in turn, and with all withheld.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from umd_edge._records import Example, build_examples, read_records
from umd_edge._structured import StructuredField
from umd_edge._task import TaskSpec
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError

from .checkpoint import Checkpoint
from .devices import on_training_device
from .evaluate import find_task, task_logits
from .pictures import PictureStore

__all__ = ["dependence_report", "presence_baseline", "withheld_recall"]

_RESAMPLES = 1000


def _classes(examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    targets = np.stack([e.target for e in examples if e.target is not None])
    classes: npt.NDArray[np.int64] = targets.argmax(axis=1)
    return classes


def presence_baseline(
    train: Sequence[Example], held_out: Sequence[Example], outputs: int
) -> dict[str, float]:
    """Balanced accuracy of a classifier that sees only which values are present.

    For each pattern of present values it predicts the class that is most over-represented among the
    training examples with that pattern.

    Returns:
        `{"balanced_accuracy", "low", "high", "chance"}`; chance is 1 / classes present.
    """
    counts: dict[bytes, npt.NDArray[np.float64]] = {}
    totals = np.ones(outputs)
    for example, label in zip(train, _classes(train), strict=True):
        row = counts.setdefault(example.structured_mask.tobytes(), np.zeros(outputs))
        row[label] += 1
        totals[label] += 1
    flat = np.ones(outputs)
    called = np.array(
        [int((counts.get(e.structured_mask.tobytes(), flat) / totals).argmax()) for e in held_out]
    )
    truth = _classes(held_out)
    rng = np.random.default_rng(0)
    samples = [
        _balanced_accuracy(called[rows], truth[rows])
        for rows in rng.integers(0, len(truth), (_RESAMPLES, len(truth)))
    ]
    low, high = np.quantile(samples, [0.025, 0.975])
    return {
        "balanced_accuracy": _balanced_accuracy(called, truth),
        "low": float(low),
        "high": float(high),
        "chance": 1.0 / len(np.unique(truth)),
    }


def _balanced_accuracy(called: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    return float(np.mean([(called[truth == c] == c).mean() for c in np.unique(truth)]))


def _hide(example: Example, columns: Sequence[int]) -> Example:
    mask = example.structured_mask.copy()
    mask[list(columns)] = 0.0
    return replace(example, structured_mask=mask)


def withheld_recall(
    checkpoint: Checkpoint,
    task: TaskSpec,
    examples: Sequence[Example],
    positives: Sequence[str],
) -> dict[str, float]:
    """Recall of a group of labels with structured values withheld.

    An example counts as found when the arg-max is any label of the group.

    Args:
        checkpoint: A model with structured values.
        task: A single-label classification.
        examples: Held-out examples.
        positives: The group, such as all malignant labels.

    Returns:
        Name of what is withheld (`nothing`, each field, `everything`) -> recall.

    Raises:
        UsageError: The task is of another kind, or a label is unknown.
    """
    if task.kind != "classification" or task.multi_label:
        raise UsageError(f"task {task.name!r} is no single-label classification")
    strangers = sorted(set(positives) - set(task.outputs))
    if strangers or not positives:
        raise UsageError(f"labels {strangers} given; {task.name!r} has {list(task.outputs)}")
    rows = {task.outputs.index(name) for name in positives}
    relevant = [e for e, c in zip(examples, _classes(examples), strict=True) if int(c) in rows]
    fields: tuple[StructuredField, ...] = checkpoint.structured_fields
    read = [i for i, field in enumerate(fields) if field.name in task.structured_paths]
    cases = {"nothing": [], **{fields[i].name: [i] for i in read}, "everything": read}
    spec = checkpoint.preprocess
    paths = sorted({example.image_path for example in relevant})
    store = PictureStore(paths, spec.height, spec.width, spec.coefficient_bits)
    tokenizer = TextTokenizer.from_bytes(checkpoint.tokenizer_json, checkpoint.max_length)
    recall = {}
    for name, columns in cases.items():
        hidden = [_hide(example, columns) for example in relevant]
        with on_training_device(checkpoint.model):
            _, logits = task_logits(checkpoint.model, task, hidden, store, tokenizer, spec)
        found = [int(row) in rows for row in logits.argmax(dim=1)]
        recall[name] = float(np.mean(found))
    return recall


def dependence_report(
    checkpoint: Checkpoint, task_name: str, train: Path, held_out: Path, positives: Sequence[str]
) -> dict[str, Any]:
    """Both questions for one task, from JSONL manifests.

    Raises:
        UnknownTaskError: The checkpoint has no such task.
    """
    task = find_task(checkpoint.tasks, task_name)
    fields = checkpoint.structured_fields
    seen = build_examples(read_records(train), task, fields, on_unmapped="drop").examples
    examples = build_examples(read_records(held_out), task, fields).examples
    return {
        "task": task_name,
        "n": len(examples),
        "presence_only": presence_baseline(seen, examples, len(task.outputs)),
        "recall_when_withheld": withheld_recall(checkpoint, task, examples, positives),
    }
