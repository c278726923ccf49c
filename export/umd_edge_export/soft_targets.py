"""Soft targets: a teacher's answers to every training record, in one file.

A teacher that is too large for the machine of the student, or may not leave its own, answers once.
The file is safetensors: for each task `<task>.keys` (n, 16) uint8 and `<task>.logits` (n, K)
float16, and in its header which outputs, records and teachers they belong to. Records are keyed by
a hash, so the file holds neither names nor texts. The answers are those to the unchanged picture,
whatever augmented view the student sees.

What a retrieval task is taught depends on the other pairs of a batch and cannot be stored; the
embeddings that it is computed from can: `<task>.images.<k>` and `<task>.texts.<k>` (n, D) float16
of teacher k.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from umd_edge._files import write_whole
from umd_edge._image import load_image
from umd_edge._preprocess import PreprocessSpec, preprocess
from umd_edge._records import Example
from umd_edge._task import TaskSpec, output_name
from umd_edge.errors import UmdEdgeError, UsageError
from umd_edge_train.batches import Picture, pictures_of
from umd_edge_train.corpus import load_corpus
from umd_edge_train.recipe import Recipe

from .distil_data import (
    add_unlabelled,
    manifest_hashes,
    sigmoid_tasks,
    training_records,
)
from .distil_features import Encoded
from .soft_answers import PairEmbeddings, Questions, SoftAnswers, output_keys
from .teachers import Ensemble, load_teachers, teacher_sources

__all__ = ["SoftTargets", "SoftTargetsError", "require_teachers", "write_soft_targets"]

_FORMAT = "umd-edge-soft-targets-2"
_PICTURES = 32
_LARGEST = 6e4  # what float16 holds


class SoftTargetsError(UmdEdgeError):
    """A file of soft targets is missing, damaged, or of other records."""

    exit_code: ClassVar[int] = 3


def _key(example: Example, data: Path) -> bytes:
    picture = Path(os.path.relpath(example.image_path, data)).as_posix()
    return hashlib.sha256(f"{picture}\n{example.where}".encode()).digest()[:16]


def _questions(pictures: Sequence[Picture], tasks: Sequence[TaskSpec]) -> Questions:
    asked: dict[str, tuple[list[int], list[Example]]] = {}
    for position, picture in enumerate(pictures):
        for index, example in picture.examples:
            owners, examples = asked.setdefault(tasks[index].name, ([], []))
            owners.append(position)
            examples.append(example)
    return {name: (torch.tensor(owners), examples) for name, (owners, examples) in asked.items()}


def _pixels(pictures: Sequence[Picture], spec: PreprocessSpec) -> Tensor:
    rows = [preprocess(load_image(picture.path).pixels, spec) for picture in pictures]
    return torch.from_numpy(np.stack(rows))


def write_soft_targets(recipe: Recipe, data: Path, teachers: Sequence[Path], out: Path) -> int:
    """Ask teachers about every training record of a recipe, and write what they say.

    Args:
        recipe: Of the student; names data sets and tasks.
        data: Folder of the data sets.
        teachers: Checkpoint directories; several are one teacher, the mean of their probabilities.
        out: File to write.

    Returns:
        How many answers it holds.

    Raises:
        UsageError: No teacher is given, or teachers and recipe have no task in common.
        CheckpointError: A teacher is missing or damaged.
        DataError: The data do not fit the recipe.
    """
    if not teachers:
        raise UsageError("no teacher given; give --teacher CHECKPOINT")
    labelled = load_corpus(recipe, data)
    corpus = add_unlabelled(recipe, labelled, data)
    ensemble = Ensemble(
        load_teachers(teachers, training_records(recipe, data)),
        corpus.tasks,
        sigmoid_tasks(recipe, corpus.tasks),
    )
    keys: dict[str, list[bytes]] = {name: [] for name in (*ensemble.shared, *ensemble.retrieval)}
    # by the end of a tensor's name
    rows: dict[str, list[Tensor]] = {}
    pictures = pictures_of(recipe, corpus)
    for start in tqdm(range(0, len(pictures), _PICTURES), desc="soft targets", unit="batch"):
        chunk = pictures[start : start + _PICTURES]
        questions = _questions(chunk, corpus.tasks)
        specs = {teacher.spec for teacher in ensemble.each()}
        views = {spec: _pixels(chunk, spec) for spec in specs}
        with torch.no_grad():
            encoded = [teacher.encode(views[teacher.spec]) for teacher in ensemble.each()]
        for name, told in _told(ensemble, encoded, questions).items():
            known = torch.nonzero(told.pop("known")).flatten().tolist()
            keys[name] += [_key(questions[name][1][i], data) for i in known]
            for part, values in told.items():
                rows.setdefault(f"{output_name(name)}.{part}", []).append(values)
    header = {
        "tasks": {
            name: {"outputs": outputs, "sigmoid": name in ensemble.sigmoid}
            for name, outputs in ensemble.shared.items()
        },
        "retrieval": {name: len(ensemble.teachers) for name in ensemble.retrieval if keys[name]},
        "manifests": manifest_hashes(recipe, data),
        "teachers": teacher_sources(teachers),
    }
    tensors = {
        name: torch.cat(parts).clamp(-_LARGEST, _LARGEST).half() for name, parts in rows.items()
    }
    for name, listed in keys.items():
        tensors[f"{output_name(name)}.keys"] = torch.tensor([list(key) for key in listed]).byte()
    _write(out, save(tensors, {"format": _FORMAT, "content": json.dumps(header)}))
    return sum(map(len, keys.values()))


def _told(
    ensemble: Ensemble, encoded: Sequence[Encoded], questions: Questions
) -> dict[str, dict[str, Tensor]]:
    """Task -> `known` (E,), and what is kept of those that are, by the name of its tensor."""
    told = {
        name: {"known": answers.known, "logits": answers.logits[answers.known]}
        for name, answers in ensemble(encoded, questions, "float32").items()
    }
    for name, pairs in ensemble.embeddings(encoded, questions, "float32").items():
        told[name] = {"known": pairs.known}
        for part, vectors in (("images", pairs.images), ("texts", pairs.texts)):
            told[name] |= {f"{part}.{number}": value for number, value in enumerate(vectors)}
    return told


def _write(out: Path, content: bytes) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, content)


class SoftTargets:
    """What a file says to the examples of a student; in place of an `Ensemble`.

    Args:
        path: File.
        recipe: Of the student.
        data: Folder of the data sets.
        tasks: Of the student.
        sigmoid: Names of those whose outputs have a probability each.

    Raises:
        SoftTargetsError: The file is missing, damaged, or belongs to other records.
        UsageError: It has no task of the student, or a task of another kind or other outputs.
    """

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        data: Path,
        tasks: Sequence[TaskSpec],
        sigmoid: frozenset[str],
    ) -> None:
        self._data, self.sigmoid = data, sigmoid
        header, tensors = _read(path)
        _require_same_records(path, header["manifests"], manifest_hashes(recipe, data))
        self.sources: dict[str, dict[str, object]] = header["teachers"]
        """What the teachers learnt from, for the provenance."""
        self.shared: dict[str, list[str]] = {}
        self._rows: dict[str, Tensor] = {}
        self._columns: dict[str, Tensor] = {}
        self._places: dict[str, dict[bytes, int]] = {}
        self._logits: dict[str, Tensor] = {}
        self._pairs: dict[str, dict[str, list[Tensor]]] = {}
        """Retrieval task -> `images` and `texts`, of each teacher (n, D) float16."""
        for task in tasks:
            if task.name in header["tasks"] and task.kind != "retrieval":
                self._take(path, task, header["tasks"][task.name], tensors)
            elif task.name in header["retrieval"] and task.kind == "retrieval":
                self._take_pairs(task, header["retrieval"][task.name], tensors)
        if not self.shared and not self._pairs:
            stored = sorted([*header["tasks"], *header["retrieval"]])
            raise UsageError(
                f"soft targets {str(path)!r} are of the tasks {stored}, the student has "
                f"{[task.name for task in tasks]}; at least one must be the same"
            )

    def _take(
        self, path: Path, task: TaskSpec, found: dict[str, Any], tensors: Mapping[str, Tensor]
    ) -> None:
        own, stored = output_keys(task), list(found["outputs"])
        names = [name for name in own if name in set(stored)]
        if found["sigmoid"] != (task.name in self.sigmoid) or len(names) < 1:
            raise UsageError(
                f"soft targets {str(path)!r}: task {task.name!r} has other outputs, or another "
                "loss, than the student's; write them again with the student's recipe"
            )
        stem = output_name(task.name)
        self.shared[task.name] = names
        self._rows[task.name] = torch.tensor([own.index(name) for name in names])
        self._columns[task.name] = torch.tensor([stored.index(name) for name in names])
        self._places[task.name] = _places(tensors[f"{stem}.keys"])
        self._logits[task.name] = tensors[f"{stem}.logits"]

    def _take_pairs(self, task: TaskSpec, teachers: int, tensors: Mapping[str, Tensor]) -> None:
        stem = output_name(task.name)
        self._places[task.name] = _places(tensors[f"{stem}.keys"])
        self._pairs[task.name] = {
            part: [tensors[f"{stem}.{part}.{number}"] for number in range(teachers)]
            for part in ("images", "texts")
        }

    def _rows_of(self, name: str, examples: Sequence[Example]) -> Tensor:
        """(E,) int64: where the examples stand in the file, -1 where they do not."""
        return torch.tensor([self._places[name].get(_key(e, self._data), -1) for e in examples])

    def embeddings(self, questions: Questions, device: torch.device) -> dict[str, PairEmbeddings]:
        """Embeddings of the pairs of one batch; see `Ensemble.embeddings`."""
        said = {}
        for name in (name for name in questions if name in self._pairs):
            rows = self._rows_of(name, questions[name][1])
            images, texts = (
                tuple(one[rows[rows >= 0]].float().to(device) for one in self._pairs[name][part])
                for part in ("images", "texts")
            )
            said[name] = PairEmbeddings(images, texts, (rows >= 0).to(device))
        return said

    def answers(self, questions: Questions, device: torch.device) -> dict[str, SoftAnswers]:
        """Soft answers to the examples of one batch; see `Ensemble.forward`."""
        said = {}
        for name in (name for name in questions if name in self.shared):
            rows = self._rows_of(name, questions[name][1])
            logits = self._logits[name][rows.clamp(min=0)].float()[:, self._columns[name]]
            known = rows >= 0
            said[name] = SoftAnswers(
                (logits * known[:, None]).to(device),
                self._rows[name].to(device),
                known.to(device),
            )
        return said


def require_teachers(path: Path, teachers: Sequence[Path]) -> None:
    """Whether a file holds the word of these teachers and no others.

    Args:
        path: Soft targets.
        teachers: Checkpoint directories.

    Raises:
        UsageError: It is of other teachers.
        SoftTargetsError: It is missing or damaged.
        CheckpointError: A teacher is missing or damaged.
    """
    header, _ = _read(path)
    stored = sorted(str(source["weights"]) for source in header["teachers"].values())
    given = sorted(str(source["weights"]) for source in teacher_sources(teachers).values())
    if stored != given:
        raise UsageError(
            f"soft targets {str(path)!r} are of other teachers than --teacher; give the same ones, "
            "or write the file again"
        )


def _places(keys: Tensor) -> dict[bytes, int]:
    return {row.tobytes(): place for place, row in enumerate(keys.numpy())}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise SoftTargetsError(
            f"soft targets {str(path)!r}: no such file; write it with umd-edge-export soft-targets"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if notes.get("format") != _FORMAT:
            raise SoftTargetsError(
                f"soft targets {str(path)!r} have format {notes.get('format')!r}; this version "
                f"reads {_FORMAT!r}"
            )
        header: dict[str, Any] = json.loads(notes["content"])
        _ = header["tasks"], header["manifests"], header["teachers"]
        parts = {name: ["logits"] for name in header["tasks"]}
        for name, teachers in header["retrieval"].items():
            parts[name] = [f"{side}.{k}" for side in ("images", "texts") for k in range(teachers)]
        for name, listed in parts.items():
            stem = output_name(name)
            if {len(tensors[f"{stem}.{part}"]) for part in listed} != {
                len(tensors[f"{stem}.keys"])
            }:
                raise ValueError
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise SoftTargetsError(
            f"soft targets {str(path)!r} are damaged; write them again with "
            "umd-edge-export soft-targets"
        ) from error
    return header, tensors


def _require_same_records(path: Path, stored: Mapping[str, str], given: Mapping[str, str]) -> None:
    changed = sorted(name for name, digest in given.items() if stored.get(name) != digest)
    if changed:
        raise SoftTargetsError(
            f"soft targets {str(path)!r} were made for other records: {', '.join(changed)} differ "
            "or are missing there; write them again"
        )
