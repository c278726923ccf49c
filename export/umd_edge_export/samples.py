"""Real samples for ranges, parity and comparison: chosen up front, loaded one at a time.

Only what a task says it reads is taken from a record. Choosing is deterministic and spreads over
files, tasks and pictures; pixels are loaded when a sample is asked for, so memory stays the same
whatever the number of records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from umd_edge._image import load_image
from umd_edge._preprocess import preprocess
from umd_edge._records import Example, Record, build_examples, read_records
from umd_edge._task import TaskSpec
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import DataError, InputError
from umd_edge_train.checkpoint import Checkpoint

__all__ = ["Chosen", "Sample", "SampleSource", "choose_samples", "read_free_records", "stack"]

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chosen:
    """One record as one task sees it."""

    task: TaskSpec
    example: Example = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """The inputs of the three graphs for one record, batch 1, without padding."""

    task: TaskSpec
    pixel_values: Float32Array = field(repr=False)
    """(1, C, H, W)."""
    input_ids: Int64Array = field(repr=False)
    """(1, L)."""
    attention_mask: Int64Array = field(repr=False)
    structured_values: Float32Array = field(repr=False)
    """(1, F)."""
    structured_mask: Float32Array = field(repr=False)

    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """By the names of the graphs' inputs."""
        return {
            "pixel_values": self.pixel_values,
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "structured_values": self.structured_values,
            "structured_mask": self.structured_mask,
        }


def read_free_records(paths: Sequence[Path], *, allow_non_commercial: bool) -> list[list[Record]]:
    """Records of each file.

    Raises:
        DataError: A file is unreadable, or a record is not marked `non_commercial: false` and that
            was not allowed.
    """
    files = []
    for path in paths:
        records = read_records(path)
        bound = [item for item in records if item.raw.get("non_commercial") is not False]
        if bound and not allow_non_commercial:
            raise DataError(
                f"{path}: {len(bound)} of {len(records)} records (first: {bound[0].where}) are not "
                "marked `non_commercial: false`; remove them, or give --allow-non-commercial if "
                "the bundle may depend on them"
            )
        files.append(records)
    return files


_WITHOUT = {
    "range": "its ranges would come from other pictures and texts",
    "budget": "what it loses would not be measured",
}
"""What is wrong with a task that no record fits."""


def _spread(items: Sequence[Example], count: int) -> list[Example]:
    """At most `count` examples at even distances, of different pictures as long as there are."""
    by_picture: dict[Path, list[Example]] = {}
    for item in items:
        by_picture.setdefault(item.image_path, []).append(item)
    rounds = max((len(group) for group in by_picture.values()), default=0)
    ordered: list[Example] = []
    for turn in range(rounds):
        layer = [group[turn] for group in by_picture.values() if turn < len(group)]
        missing = count - len(ordered)
        if len(layer) > missing:
            step = len(layer) / missing
            layer = [layer[int(index * step)] for index in range(missing)]
        ordered += layer
        if len(ordered) >= count:
            break
    return ordered


def choose_samples(
    files: Sequence[Sequence[Record]],
    checkpoint: Checkpoint,
    count: int,
    *,
    use: Literal["range", "budget"] = "range",
) -> list[Chosen]:
    """About `count` samples, spread over every file and task that fit together.

    Args:
        files: Records by file.
        checkpoint: Its tasks say what is read.
        count: Upper bound, but each fitting pair of file and task gives at least one.
        use: What the records are for, as the messages say it.

    Raises:
        DataError: No record fits any task, or none fits one of them: its ranges would be those of
            other pictures and texts, or its loss would stay unknown.
    """
    groups: list[tuple[TaskSpec, tuple[Example, ...]]] = []
    for records in files:
        for task in checkpoint.tasks:
            if task.kind == "retrieval":
                continue
            found = build_examples(
                records, task, checkpoint.structured_fields, on_unmapped="drop"
            ).examples
            if found:
                groups.append((task, found))
    if not groups:
        names = [task.name for task in checkpoint.tasks]
        raise DataError(
            f"the {use} data holds no record that one of the tasks {names} can read; give "
            f"--{use}-data with records like those of the training"
        )
    covered = {task.name for task, _ in groups}
    bare = [item.name for item in checkpoint.tasks if item.kind != "retrieval"]
    bare = [name for name in bare if name not in covered]
    if bare:
        raise DataError(
            f"the {use} data holds no record that task {bare[0]!r} can read (it fits "
            f"{sorted(covered)}); {_WITHOUT[use]}: give --{use}-data for every task of the bundle"
        )
    share = max(1, count // len(groups))
    chosen = [
        [Chosen(task, example) for example in _spread(examples, share)] for task, examples in groups
    ]
    # Interleaved, so that the first few already hold every task.
    longest = max(map(len, chosen))
    return [group[turn] for turn in range(longest) for group in chosen if turn < len(group)]


class SampleSource:
    """Loads chosen records as graph inputs.

    Args:
        checkpoint: Gives preprocessing, tokenizer and structured fields.
        chosen: What to load, in order.
    """

    def __init__(self, checkpoint: Checkpoint, chosen: Sequence[Chosen]) -> None:
        self._spec = checkpoint.preprocess
        self.tokenizer = TextTokenizer.from_bytes(checkpoint.tokenizer_json, checkpoint.max_length)
        self._chosen = list(chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        """The records, in the order in which they are loaded."""
        return tuple(self._chosen)

    def head(self, count: int) -> SampleSource:
        """The first `count` samples."""
        part: SampleSource = object.__new__(SampleSource)
        part.__dict__.update(self.__dict__)
        part._chosen = self._chosen[:count]
        return part

    def __iter__(self) -> Iterator[Sample]:
        for item in self._chosen:
            yield self._load(item)

    def _load(self, item: Chosen) -> Sample:
        example = item.example
        try:
            pixels = preprocess(load_image(example.image_path).pixels, self._spec)
        except InputError as error:
            raise DataError(f"{example.where}: {error}") from error
        input_ids, attention_mask = self.tokenizer.encode([example.text])
        return Sample(
            task=item.task,
            pixel_values=pixels[None],
            input_ids=input_ids,
            attention_mask=attention_mask,
            structured_values=example.structured_values[None],
            structured_mask=example.structured_mask[None],
        )


def pad_texts(
    rows: Sequence[tuple[Int64Array, Int64Array]], length: int, pad_id: int
) -> tuple[Int64Array, Int64Array]:
    """Token ids and masks (1, L) of several texts as (B, length), padded at the end."""
    input_ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for index, (ids, given) in enumerate(rows):
        input_ids[index, : ids.shape[1]] = ids[0]
        mask[index, : ids.shape[1]] = given[0]
    return input_ids, mask


def stack(samples: Sequence[Sample], length: int, pad_id: int) -> dict[str, Any]:
    """Inputs of several samples as one batch, texts padded to `length` tokens."""
    input_ids, attention_mask = pad_texts(
        [(item.input_ids, item.attention_mask) for item in samples], length, pad_id
    )
    return {
        "pixel_values": np.concatenate([item.pixel_values for item in samples]),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "structured_values": np.concatenate([item.structured_values for item in samples]),
        "structured_mask": np.concatenate([item.structured_mask for item in samples]),
    }
