"""Batches: pictures with the examples drawn for them.

A picture is encoded once a step, whatever number of questions is asked of it. The draw depends on
the seed, the epoch and nothing else, so a resumed run sees the same batches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from umd_edge._answers import normalise_answer
from umd_edge._records import Example
from umd_edge._tokenizer import TextTokenizer

from .corpus import Corpus
from .recipe import OptimConfig, Recipe

__all__ = [
    "Batch",
    "Picture",
    "answer_index",
    "epoch_batches",
    "hide_structured",
    "pictures_of",
    "steps_per_epoch",
]


@dataclass(frozen=True, slots=True)
class Picture:
    """One training picture with all examples that are asked of it."""

    path: Path
    flip: bool
    repeat: int
    examples: tuple[tuple[int, Example], ...]
    """(task index, example)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input; E examples of B pictures."""

    rows: list[int]
    """(B,) rows of the picture store."""
    flips: Tensor
    """(B,) bool."""
    owner: Tensor
    """(E,) int64: which of the B pictures an example belongs to."""
    task: Tensor
    """(E,) int64."""
    examples: tuple[Example, ...]
    input_ids: Tensor
    attention_mask: Tensor
    structured_values: Tensor
    structured_mask: Tensor

    def split(self, count: int) -> list[Batch]:
        """`count` batches of neighbouring pictures, of sizes that differ by one at most."""
        if count == 1:
            return [self]
        bounds = np.linspace(0, len(self.rows), count + 1).round().astype(int).tolist()
        return [self._part(low, high) for low, high in itertools.pairwise(bounds)]

    def _part(self, low: int, high: int) -> Batch:
        chosen = torch.nonzero((self.owner >= low) & (self.owner < high)).flatten()
        return Batch(
            rows=self.rows[low:high],
            flips=self.flips[low:high],
            owner=self.owner[chosen] - low,
            task=self.task[chosen],
            examples=tuple(self.examples[i] for i in chosen.tolist()),
            input_ids=self.input_ids[chosen],
            attention_mask=self.attention_mask[chosen],
            structured_values=self.structured_values[chosen],
            structured_mask=self.structured_mask[chosen],
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on a device."""
        return replace(
            self,
            owner=self.owner.to(device),
            task=self.task.to(device),
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            structured_values=self.structured_values.to(device),
            structured_mask=self.structured_mask.to(device),
        )


def pictures_of(recipe: Recipe, corpus: Corpus) -> list[Picture]:
    """Training pictures in a fixed order, with their examples."""
    datasets = {dataset.name: dataset for dataset in recipe.datasets}
    asked: dict[Path, list[tuple[int, Example]]] = {}
    homes: dict[Path, set[str]] = {}
    for index, sets in enumerate(corpus.train):
        for name, examples in zip(recipe.training_of(index).datasets, sets, strict=True):
            for example in examples.examples:
                asked.setdefault(example.image_path, []).append((index, example))
                homes.setdefault(example.image_path, set()).add(name)
    return [
        Picture(
            path,
            # one data set that speaks of sides is enough to forbid it
            flip=all(datasets[name].flip for name in homes[path]),
            repeat=max(datasets[name].repeat for name in homes[path]),
            examples=tuple(asked[path]),
        )
        for path in sorted(asked)
    ]


def hide_structured(mask: Tensor, config: OptimConfig, rng: torch.Generator) -> Tensor:
    """Hide present values at random, so that no single one becomes indispensable.

    Args:
        mask: (n, F) float32, 1 where a value is present.
        config: The three chances `structured_dropout`, `_one` and `_all`.
        rng: Source of the draws.

    Returns:
        (n, F) float32, 1 where a value is present and shown.
    """
    keep = torch.rand(mask.shape, generator=rng) >= config.structured_dropout
    if config.structured_dropout_one:
        picked = (torch.rand(mask.shape, generator=rng) * mask).argmax(1, keepdim=True)
        others = torch.ones_like(keep).scatter(1, picked, False)
        one = torch.rand(len(mask), 1, generator=rng) < config.structured_dropout_one
        keep = torch.where(one, others, keep)
    keep_any = torch.rand(len(mask), 1, generator=rng) >= config.structured_dropout_all
    return mask * keep * keep_any


def _turns(picture: Picture, config: OptimConfig) -> int:
    """How often a picture is shown, so that an epoch is what `optim.epoch` says."""
    if config.epoch == "pictures":
        return 1
    return math.ceil(len(picture.examples) / config.texts_per_image)


def _dealt(
    picture: Picture, turn: int, config: OptimConfig, key: list[int]
) -> npt.NDArray[np.int64]:
    """Which examples a picture is shown with: its turns together show each of them once."""
    again, part = divmod(turn, _turns(picture, config))
    deal = np.random.default_rng([*key, again]).permutation(len(picture.examples))
    return deal[part * config.texts_per_image : (part + 1) * config.texts_per_image]


def epoch_batches(
    pictures: Sequence[Picture],
    store_index: dict[Path, int],
    tokenizer: TextTokenizer,
    config: OptimConfig,
    seed: int,
    epoch: int,
    parts: int = 1,
) -> Iterator[Batch]:
    """The batches of one epoch; the last, smaller one is kept when it has enough pictures.

    Enough are two, for batch normalisation, or one for each of the `parts` that it is split into.
    """
    rng = np.random.default_rng([seed, epoch])
    counts = [picture.repeat * _turns(picture, config) for picture in pictures]
    order = [(i, turn) for i, count in enumerate(counts) for turn in range(count)]
    shuffled = np.arange(len(order))
    rng.shuffle(shuffled)
    torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
    for start in range(0, len(order), config.images_per_batch):
        shown = [order[i] for i in shuffled[start : start + config.images_per_batch]]
        if len(shown) < max(2, parts):
            return
        chosen = [pictures[i] for i, _ in shown]
        drawn: list[tuple[int, int, Example]] = []
        for position, (i, turn) in enumerate(shown):
            picture = pictures[i]
            if config.epoch == "texts":
                picks = _dealt(picture, turn, config, [seed, epoch, i])
            else:
                count = min(config.texts_per_image, len(picture.examples))
                picks = rng.choice(len(picture.examples), size=count, replace=False)
            for pick in picks:
                task, example = picture.examples[pick]
                drawn.append((position, task, example))
        ids, mask = tokenizer.encode([example.text for _, _, example in drawn])
        present = torch.from_numpy(np.stack([e.structured_mask for _, _, e in drawn]))
        yield Batch(
            rows=[store_index[picture.path] for picture in chosen],
            flips=torch.tensor([picture.flip for picture in chosen]),
            owner=torch.tensor([position for position, _, _ in drawn]),
            task=torch.tensor([task for _, task, _ in drawn]),
            examples=tuple(example for _, _, example in drawn),
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            structured_values=torch.from_numpy(
                np.stack([e.structured_values for _, _, e in drawn])
            ),
            structured_mask=hide_structured(present, config, torch_rng),
        )


def steps_per_epoch(pictures: Sequence[Picture], config: OptimConfig, parts: int = 1) -> int:
    """Number of batches that `epoch_batches` gives."""
    total = sum(picture.repeat * _turns(picture, config) for picture in pictures)
    full, rest = divmod(total, config.images_per_batch)
    return full + (rest >= max(2, parts))


def answer_index(outputs: tuple[str, ...]) -> dict[str, int]:
    """Normalised answer -> row of the logits."""
    return {normalise_answer(answer): row for row, answer in enumerate(outputs)}
