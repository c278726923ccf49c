"""All tasks of a checkpoint on one split of its own data sets, with baselines, and its log entry.

This is the one way in which a test split is looked at, and each look is logged.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from umd_edge._answers import normalise_answer
from umd_edge._evaluate import example_metrics, predict_examples, rank_examples
from umd_edge._evaluation import MetricValue, evaluate_classification, evaluate_vqa
from umd_edge._predictor import Predictor
from umd_edge._records import Example, build_examples
from umd_edge._retrieval_metrics import RECALL_AT, retrieval_items
from umd_edge._task import TaskSpec
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import DataError

from .checkpoint import Checkpoint, commit
from .corpus import read_split
from .devices import on_training_device
from .evaluate import evaluate_task, find_task
from .pictures import PictureStore
from .recipe import Recipe, recipe_from_dict
from .retrieval import evaluate_retrieval_task
from .split_scheme import AS_GIVEN, split_scheme

__all__ = ["append_report", "report_split"]


@dataclass(frozen=True, slots=True)
class _Part:
    """One task on one data set."""

    name: str
    task: TaskSpec
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    dropped: int
    splits: str = AS_GIVEN
    """Where they are from, see `split_scheme`."""


def _parts(checkpoint: Checkpoint, recipe: Recipe, data: Path, split: str) -> list[_Part]:
    datasets = {dataset.name: dataset for dataset in recipe.datasets}
    free_only = not recipe.allow_non_commercial
    parts = []
    for index, task in enumerate(checkpoint.tasks):
        for name in recipe.training_of(index).datasets:
            train = [
                record
                for part in recipe.train_splits
                for record in read_split(datasets[name], data, part, free_only=free_only)[0]
            ]
            held_out, _ = read_split(datasets[name], data, split, free_only=free_only)
            fields = checkpoint.structured_fields
            seen = build_examples(train, task, fields, on_unmapped="drop")
            found = build_examples(held_out, task, fields)
            if not found.examples:
                raise DataError(f"{name}/{split}.jsonl holds no record of task {task.name!r}")
            parts.append(
                _Part(
                    f"{task.name}/{name}",
                    task,
                    seen.examples,
                    found.examples,
                    sum(found.dropped.values()),
                    split_scheme(data / datasets[name].path),
                )
            )
    return parts


def _question_prior(part: _Part) -> dict[str, MetricValue]:
    """Baseline that never sees the picture: the question's most frequent training answer."""
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for example in part.train:
        if example.reference is not None:
            answer = normalise_answer(example.reference.answers[0])
            by_question[example.text.casefold()][answer] += 1
            overall[answer] += 1
    default = overall.most_common(1)[0][0]
    predictions = []
    for example in part.held_out:
        counts = by_question.get(example.text.casefold())
        predictions.append(counts.most_common(1)[0][0] if counts else default)
    return evaluate_vqa(
        predictions=predictions,
        confidences=np.ones(len(predictions)),
        references=[e.reference for e in part.held_out if e.reference is not None],
        groups=[e.group for e in part.held_out],
    )


def _label_prior(part: _Part) -> dict[str, MetricValue]:
    """Baseline that sees nothing: the training frequencies of the labels."""
    targets = np.stack([e.target for e in part.train if e.target is not None])
    prior = np.nanmean(targets, axis=0).astype(np.float64)
    return evaluate_classification(
        probabilities=np.tile(prior, (len(part.held_out), 1)),
        targets=np.stack([e.target for e in part.held_out if e.target is not None]),
        groups=[e.group for e in part.held_out],
        labels=part.task.outputs,
        multi_label=part.task.multi_label,
        operating_points=part.task.operating_points,
    )


def _chance(part: _Part) -> dict[str, MetricValue]:
    """Baseline of retrieval that tells nothing apart: what a random order reaches."""
    items = retrieval_items(part.held_out)
    result = {}
    for name, pairs, count in (
        ("image_to_text", items.pairs, len(items.texts)),
        ("text_to_image", items.pairs[:, ::-1], len(items.images)),
    ):
        right = defaultdict(set)
        for query, item in pairs.tolist():
            right[query].add(item)
        hits = np.asarray([len(right[query]) for query in pairs[:, 0].tolist()])
        for k in RECALL_AT:
            # k draws without return, none of them right
            missed = np.prod(
                [np.maximum(count - hits - i, 0) / (count - i) for i in range(min(k, count))],
                axis=0,
            )
            value = float(np.mean(1.0 - missed))
            result[f"{name}_r{k}"] = MetricValue(value=value, low=None, high=None, n=len(pairs))
    return result


def _baseline(part: _Part) -> dict[str, MetricValue]:
    if part.task.kind == "retrieval":
        return _chance(part)
    return _question_prior(part) if part.task.kind == "vqa" else _label_prior(part)


def _bundle_metrics(predictor: Predictor, part: _Part) -> dict[str, MetricValue]:
    """What the device would reach: the same records through a bundle."""
    with tqdm(total=len(part.held_out), desc=part.name, unit="record") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if part.task.kind == "retrieval":
            return rank_examples(predictor, part.task, part.held_out, advance)
        # the bundle's own: its operating points were fitted after the checkpoint was made
        task = find_task(predictor.tasks, part.task.name)
        probability = predict_examples(predictor, task, part.held_out, advance)
    return example_metrics(task, part.held_out, probability)


def report_split(
    checkpoint: Checkpoint, data: Path, split: str, predictor: Predictor | None = None
) -> dict[str, Any]:
    """Metrics and baselines of every task on every data set that it was trained on.

    A checkpoint computes on a GPU where there is one.

    Args:
        checkpoint: Its provenance holds the recipe, which names the data sets.
        data: Folder of the data sets.
        split: `train`, `val` or `test`.
        predictor: A bundle made from the checkpoint; its metrics are then given in place of the
            checkpoint's.

    Returns:
        `{"split", "commit", "created", "tasks": {"<task>/<data set>": {"n", "dropped", "splits",
        "metrics", "baseline"}}}`.

    Raises:
        DataError: A manifest is missing or holds no record of a task.
    """
    recipe = recipe_from_dict(checkpoint.provenance.get("recipe", {}))
    parts = _parts(checkpoint, recipe, data, split)
    spec = checkpoint.preprocess
    paths = sorted({e.image_path for part in parts for e in part.held_out if predictor is None})
    store = PictureStore(paths, spec.height, spec.width, spec.coefficient_bits)
    tokenizer = TextTokenizer.from_bytes(checkpoint.tokenizer_json, checkpoint.max_length)
    tasks: dict[str, Any] = {}
    model = checkpoint.model
    with contextlib.nullcontext() if predictor is not None else on_training_device(model):
        for part in parts:
            if predictor is not None:
                metrics = _bundle_metrics(predictor, part)
            elif part.task.kind == "retrieval":
                metrics = evaluate_retrieval_task(model, part.held_out, tokenizer, spec, store)
            else:
                metrics = evaluate_task(model, part.task, part.held_out, store, tokenizer, spec)
            baseline = _baseline(part)
            tasks[part.name] = {
                "n": len(part.held_out),
                "dropped": part.dropped,
                "splits": part.splits,
                "metrics": {name: value.to_dict() for name, value in metrics.items()},
                "baseline": {name: value.to_dict() for name, value in baseline.items()},
            }
    return {
        "split": split,
        "commit": commit(),
        "created": datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
        "tasks": tasks,
    }


def _row(name: str, metric: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    def number(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.3f}"

    low, high = metric["low"], metric["high"]
    interval = "" if low is None else f"{low:.3f} to {high:.3f}"
    beside = number(baseline["value"]) if baseline else ""
    return f"| {name} | {number(metric['value'])} | {interval} | {metric['n']} | {beside} |"


def append_report(log: Path, subject: str, report: dict[str, Any]) -> None:
    """Append date, commit and figures of a report to a Markdown log."""
    lines = [
        f"\n## {report['created'][:16].replace('T', ' ')} UTC: {report['split']} split, {subject}",
        f"\nCommit `{report['commit']}`.",
    ]
    for name, task in report["tasks"].items():
        lines += [
            f"\n{name}: {task['n']} records, {task['dropped']} dropped; splits: {task['splits']}. "
            "The baseline is the most frequent training answer to the same question, the training "
            "frequencies, or chance.\n",
            "| metric | value | 95 % interval | n | baseline |",
            "| --- | --- | --- | --- | --- |",
        ]
        baseline = task["baseline"]
        lines += [_row(key, metric, baseline.get(key)) for key, metric in task["metrics"].items()]
    with log.open("a", encoding="utf-8") as handle:
        handle.write("\n".join(lines) + "\n")
