"""Baselines on a recipe's own records: what is reached without looking, or with little to look at.

* `majority`: the most frequent training answer or label; of several labels, how frequent each is.
* `question-only`: softmax regression on the words of the question alone.
* `pixels`: softmax regression on 16 x 16 greys and the words of the question; of several labels,
  a logistic regression for each.
* `cnn`: the stem, a mean and a bag of words, trained like the model (see `cnn`).

The regressions choose the strength of their weight decay on a fifth of the training patients; the
split that is reported has no say in it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from umd_edge._answers import normalise_answer
from umd_edge._preprocess import PreprocessSpec
from umd_edge._records import Example, build_examples
from umd_edge._task import TaskSpec
from umd_edge.errors import DataError, UsageError

from ..batches import answer_index
from ..corpus import Corpus, load_corpus
from ..pictures import PictureStore
from ..recipe import Recipe
from .predictions import Predictions, predictions_of
from .run_predictions import task_records

__all__ = ["FITTED", "KINDS", "Baseline", "baseline_predictions"]

Baseline = Literal["majority", "question-only", "pixels", "cnn"]
KINDS: tuple[Baseline, ...] = get_args(Baseline)
FITTED: tuple[Baseline, ...] = ("majority", "question-only", "pixels")
"""Those that are fitted on the spot, without a training run."""

FloatArray = npt.NDArray[np.float64]

_SIDE = 16
_DECAYS = (0.1, 1.0, 10.0)
_ITERATIONS = 100
_HELD_OUT = 5
_OUTSIDE = -1
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class _Part:
    """One task: training examples, and those that are reported."""

    task: TaskSpec
    class_weight: Literal["none", "sqrt", "balanced"]
    train: tuple[Example, ...]
    """Only those whose answer is an output of the task."""
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    """Output of each training example; of several labels (N, K) 1, 0 or NaN for unknown."""
    held_out: tuple[Example, ...]


def _classes(task: TaskSpec, examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    """Output of each example; -1 for an answer outside the vocabulary."""
    rows = []
    known = answer_index(task.outputs) if task.kind == "vqa" else {}
    for example in examples:
        if example.reference is not None:
            row = known.get(normalise_answer(example.reference.answers[0]), _OUTSIDE)
        else:
            row = _OUTSIDE if example.target is None else int(np.nanargmax(example.target))
        rows.append(row)
    return np.asarray(rows, dtype=np.int64)


def _part(recipe: Recipe, corpus: Corpus, task_name: str, data: Path, split: str) -> _Part:
    names = [task.name for task in corpus.tasks]
    if task_name not in names:
        raise UsageError(f"task {task_name!r} given; the recipe has {names}")
    index = names.index(task_name)
    task = corpus.tasks[index]
    if task.kind == "retrieval":
        raise UsageError(f"task {task_name!r}: baselines are for VQA and classification")
    examples = [e for part in corpus.train[index] for e in part.examples]
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    inside: npt.NDArray[np.bool_]
    if task.multi_label:
        targets = np.stack([e.target for e in examples if e.target is not None])
        inside = np.asarray(np.isfinite(targets).any(axis=1))
    else:
        targets = _classes(task, examples)
        inside = targets != _OUTSIDE
    held_out = build_examples(task_records(recipe, task_name, data, split), task, corpus.fields)
    if not inside.any() or not held_out.examples:
        raise DataError(f"task {task_name!r}: no training record, or none in the {split} split")
    return _Part(
        task=task,
        class_weight=recipe.training_of(index).class_weight,
        train=tuple(e for e, use in zip(examples, inside, strict=True) if use),
        targets=targets[inside],
        held_out=held_out.examples,
    )


# --- features ---------------------------------------------------------------------------------


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _bag(examples: Sequence[Example], vocabulary: dict[str, int]) -> FloatArray:
    """Which words a text holds: (N, V); words that training never saw are left out."""
    bag = np.zeros((len(examples), len(vocabulary)))
    for row, example in enumerate(examples):
        bag[row, [vocabulary[w] for w in _words(example.text) if w in vocabulary]] = 1.0
    return bag


def _greys(examples: Sequence[Example]) -> FloatArray:
    """Grey levels of 16 x 16 cells: (N, 256) float64, 0..1."""
    paths = sorted({example.image_path for example in examples})
    spec = PreprocessSpec(height=_SIDE, width=_SIDE)
    store = PictureStore(paths, spec.height, spec.width, spec.coefficient_bits)
    greys = store.pixels.mean(axis=3).reshape(len(paths), -1) / 255.0
    rows: FloatArray = greys[[store.index[example.image_path] for example in examples]]
    return rows


def _features(part: _Part, kind: Baseline) -> tuple[FloatArray, FloatArray]:
    """Features of training and reported examples."""
    listed = sorted({word for example in part.train for word in _words(example.text)})
    vocabulary = {word: column for column, word in enumerate(listed)}
    train, held_out = _bag(part.train, vocabulary), _bag(part.held_out, vocabulary)
    if kind == "pixels":
        seen, unseen = _greys(part.train), _greys(part.held_out)
        mean, std = seen.mean(axis=0), seen.std(axis=0) + 1e-6
        train = np.concatenate([train, (seen - mean) / std], axis=1)
        held_out = np.concatenate([held_out, (unseen - mean) / std], axis=1)
    return train, held_out


# --- regression -------------------------------------------------------------------------------


def _errors(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum of the weighted negative log-likelihoods; unknown labels are left out."""
    if targets.ndim == 1:
        return functional.cross_entropy(logits, targets, weights, reduction="sum")
    known = ~torch.isnan(targets)
    terms = functional.binary_cross_entropy_with_logits(
        logits, torch.nan_to_num(targets), reduction="none"
    )
    return (terms * known).sum()


def _fit(x: Tensor, targets: Tensor, weights: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Matrix (V, K) and bias (K,) of the weighted, decayed maximum likelihood (L-BFGS)."""
    matrix = torch.zeros(x.shape[1], len(weights), requires_grad=True)
    bias = torch.zeros(len(weights), requires_grad=True)
    solver = torch.optim.LBFGS(
        [matrix, bias], max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        errors = _errors(x @ matrix + bias, targets, weights)
        loss = (errors + 0.5 * decay * matrix.square().sum()) / len(x)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    return matrix.detach(), bias.detach()


def _is_held_out(example: Example) -> bool:
    digest = hashlib.sha256(example.group.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _HELD_OUT == 0


def _best_decay(part: _Part, x: Tensor, targets: Tensor, weights: Tensor) -> float:
    """The weight decay with the smallest weighted loss on a fifth of the training patients."""
    inner = torch.tensor([_is_held_out(example) for example in part.train])
    if inner.all() or not inner.any():  # a single patient, or nearly
        return _DECAYS[1]
    losses = []
    for decay in _DECAYS:
        matrix, bias = _fit(x[~inner], targets[~inner], weights, decay)
        losses.append(float(_errors(x[inner] @ matrix + bias, targets[inner], weights)))
    return _DECAYS[int(np.argmin(losses))]


def _class_weights(part: _Part) -> Tensor:
    """The recipe's class weights, so that a baseline pursues what the model is trained for."""
    if part.task.multi_label:
        return torch.ones(len(part.task.outputs))
    classes = part.targets.astype(np.int64)
    counts = np.maximum(np.bincount(classes, minlength=len(part.task.outputs)), 1)
    power = {"none": 0.0, "sqrt": -0.5, "balanced": -1.0}[part.class_weight]
    weights = counts.astype(np.float64) ** power
    return torch.from_numpy(weights / (weights[classes].mean())).float()


def _regression(part: _Part, kind: Baseline) -> FloatArray:
    train, held_out = _features(part, kind)
    x, targets = torch.from_numpy(train).float(), torch.from_numpy(part.targets)
    weights = _class_weights(part)
    matrix, bias = _fit(x, targets, weights, _best_decay(part, x, targets, weights))
    logits = (torch.from_numpy(held_out).float() @ matrix + bias).double()
    several = part.task.multi_label
    probability = torch.sigmoid(logits) if several else torch.softmax(logits, dim=1)
    array: FloatArray = probability.numpy()
    return array


def _majority(part: _Part) -> FloatArray:
    """Training frequencies for everybody; the arg-max is the most frequent output."""
    if part.task.multi_label:
        # a label that is known of no record: as many as not
        known = np.isfinite(part.targets)
        shares = (np.nansum(part.targets, axis=0) + 0.5) / (known.sum(axis=0) + 1.0)
    else:
        classes = part.targets.astype(np.int64)
        counts = np.bincount(classes, minlength=len(part.task.outputs)).astype(np.float64)
        shares = counts / counts.sum()
    return np.tile(shares, (len(part.held_out), 1))


def baseline_predictions(
    kind: Baseline, recipe: Recipe, task: str, data: Path, split: str
) -> Predictions:
    """Fit one of `FITTED` on a recipe's training records and judge it on a split.

    Args:
        kind: Which baseline.
        recipe: Names the data sets and how their records become examples.
        task: One of its VQA or classification tasks.
        data: Folder of the data sets.
        split: Which records are judged.

    Raises:
        UsageError: The task is of another kind, or the baseline needs a training run.
        DataError: There is nothing to fit or to judge.
    """
    if kind not in FITTED:
        raise UsageError(f"baseline {kind!r} given; one of {list(FITTED)} is fitted on the spot")
    part = _part(recipe, load_corpus(recipe, data), task, data, split)
    probability = _majority(part) if kind == "majority" else _regression(part, kind)
    return predictions_of(part.task, part.held_out, probability)
