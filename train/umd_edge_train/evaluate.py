"""Evaluation of a torch model by the runtime's own metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umd_edge._evaluate import example_metrics, wanted_records
from umd_edge._evaluation import MetricValue
from umd_edge._postprocess import probabilities
from umd_edge._preprocess import PreprocessSpec
from umd_edge._records import Example, build_examples, read_records
from umd_edge._task import Kind, OnUnmapped, TaskSpec, output_name
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import DataError, UnknownTaskError

from .checkpoint import Checkpoint
from .devices import device_of, on_training_device
from .models import UMDModel
from .pictures import PictureSource, PictureStore
from .progress import late_bar
from .retrieval import evaluate_retrieval_task
from .split_scheme import split_scheme

__all__ = [
    "evaluate_checkpoint",
    "evaluate_task",
    "find_task",
    "task_logits",
]


def _chunks(examples: Sequence[Example], pictures: int) -> Iterable[list[Example]]:
    """Examples in groups of at most `pictures` different pictures, each picture in one group."""
    by_picture: dict[Any, list[Example]] = {}
    for example in examples:
        by_picture.setdefault(example.image_path, []).append(example)
    groups = list(by_picture.values())
    for start in range(0, len(groups), pictures):
        yield [example for group in groups[start : start + pictures] for example in group]


@torch.inference_mode()
def task_logits(
    model: UMDModel,
    task: TaskSpec,
    examples: Sequence[Example],
    store: PictureSource,
    tokenizer: TextTokenizer,
    spec: PreprocessSpec,
    pictures_per_batch: int = 64,
) -> tuple[list[Example], Tensor]:
    """Logits of every example, computed on the model's device; each picture is encoded once.

    Returns:
        The examples in the order of the rows, and (N, K) float32 on the CPU.
    """
    model.eval()
    device = device_of(model)
    ordered: list[Example] = []
    rows: list[Tensor] = []
    with late_bar(len(examples), task.name, "record") as bar:
        for chunk in _chunks(examples, pictures_per_batch):
            paths = list(dict.fromkeys(example.image_path for example in chunk))
            pixel_values = store.pixel_values([store.index[path] for path in paths], spec)
            image_tokens, _ = model.encode_image(pixel_values.to(device))
            position = {path: i for i, path in enumerate(paths)}
            owner = torch.tensor([position[example.image_path] for example in chunk])
            ids, mask = tokenizer.encode([example.text for example in chunk])
            attention_mask = torch.from_numpy(mask).to(device)
            text_tokens, _ = model.encode_text(torch.from_numpy(ids).to(device), attention_mask)
            joint = model.fuse_tokens(
                image_tokens[owner.to(device)],
                text_tokens,
                attention_mask,
                torch.from_numpy(np.stack([e.structured_values for e in chunk])).to(device),
                torch.from_numpy(np.stack([e.structured_mask for e in chunk])).to(device),
            )
            rows.append(model.task_heads[output_name(task.name)](joint).float().cpu())
            ordered += chunk
            bar.update(len(chunk))
    return ordered, torch.cat(rows)


def evaluate_task(
    model: UMDModel,
    task: TaskSpec,
    examples: Sequence[Example],
    store: PictureSource,
    tokenizer: TextTokenizer,
    spec: PreprocessSpec,
) -> dict[str, MetricValue]:
    """Metrics of one task, by name; see `umd_edge._evaluation` for their definitions."""
    ordered, logits = task_logits(model, task, examples, store, tokenizer, spec)
    return example_metrics(task, ordered, probabilities(logits.numpy(), task))


def find_task(
    tasks: Sequence[TaskSpec], name: str, kinds: Sequence[Kind] = ("classification", "vqa")
) -> TaskSpec:
    """The task of that name and of one of the kinds.

    Raises:
        UnknownTaskError: There is none.
    """
    known = {task.name: task for task in tasks if task.kind in kinds}
    if name not in known:
        raise UnknownTaskError(f"task {name!r} given; this checkpoint has {sorted(known)}")
    return known[name]


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    task_name: str,
    manifests: Sequence[Path],
    on_unmapped: OnUnmapped | None = None,
) -> dict[str, Any]:
    """Evaluate one task of a checkpoint in float32, on a GPU where there is one.

    Args:
        checkpoint: A loaded checkpoint.
        task_name: One of its tasks.
        manifests: JSONL files.
        on_unmapped: Overrides the task's rule for labels that it does not know.

    Returns:
        `{"task", "n", "dropped", "splits", "metrics": {name: {"value", "low", "high", "n"}}}`;
        `splits` has one entry a data set.

    Raises:
        UnknownTaskError: The checkpoint has no such task.
        DataError: A manifest is broken, or holds no record of the task.
    """
    task = find_task(checkpoint.tasks, task_name, ("classification", "vqa", "retrieval"))
    records = [record for path in manifests for record in read_records(path)]
    found = build_examples(records, task, checkpoint.structured_fields, on_unmapped=on_unmapped)
    if not found.examples:
        raise DataError(
            f"no record of {', '.join(map(str, manifests))} fits task {task_name!r}; left out: "
            f"{dict(found.dropped)}. {wanted_records(task)}"
        )
    spec = checkpoint.preprocess
    tokenizer = TextTokenizer.from_bytes(checkpoint.tokenizer_json, checkpoint.max_length)
    model = checkpoint.model
    with on_training_device(model):
        if task.kind == "retrieval":
            metrics = evaluate_retrieval_task(model, found.examples, tokenizer, spec)
        else:
            paths = sorted({example.image_path for example in found.examples})
            store = PictureStore(paths, spec.height, spec.width, spec.coefficient_bits)
            metrics = evaluate_task(model, task, found.examples, store, tokenizer, spec)
    return {
        "task": task_name,
        "n": len(found.examples),
        "dropped": sum(found.dropped.values()),
        "splits": [split_scheme(folder) for folder in dict.fromkeys(p.parent for p in manifests)],
        "metrics": {name: value.to_dict() for name, value in metrics.items()},
    }
