"""Teachers: checkpoints of ours whose soft answers and similarities a student learns.

A teacher reads a record as it was trained to: with its own prompt, tokenizer, structured fields,
picture size and normalisation. Several teachers are one: the mean of their probabilities. Outputs
are matched by name, and only those that all teachers share with the student are taught. A retrieval
task has no outputs: there they say how similar the pictures and texts of a batch are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from umd_edge._preprocess import PreprocessSpec
from umd_edge._records import Example, Record, build_examples
from umd_edge._task import TaskSpec, output_name
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from umd_edge_train.lineage import ancestor, weights_of
from umd_edge_train.losses import Precision, autocast

from .distil_data import RecordKey, record_key, without_target
from .distil_features import Encoded, patch_grid, recorded_relations
from .soft_answers import PairEmbeddings, Questions, SoftAnswers, mean_answers, output_keys

__all__ = ["Ensemble", "Teacher", "load_teachers", "teacher_sources"]


class Teacher(nn.Module):
    """One checkpoint, frozen and in evaluation mode.

    Args:
        checkpoint: Of any size, with its own tokenizer, fields and picture size.
        records: All records that it may be asked about.
    """

    def __init__(self, checkpoint: Checkpoint, records: Iterable[Record]) -> None:
        super().__init__()
        self.model = checkpoint.model.eval().requires_grad_(False)
        self.spec: PreprocessSpec = checkpoint.preprocess
        self.tasks = {task.name: task for task in checkpoint.tasks}
        self.grid_width = self.model.vision_encoder.hidden_size
        self.pooled_widths = {"joint": self.model.match_head.in_features}
        self._tokenizer = TextTokenizer.from_bytes(checkpoint.tokenizer_json, checkpoint.max_length)
        known = list(records)
        self._examples: dict[str, dict[RecordKey, Example]] = {
            name: {
                record_key(example): example
                for example in build_examples(
                    known, without_target(task), checkpoint.structured_fields
                ).examples
            }
            for name, task in self.tasks.items()
        }

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode, whatever is asked of the module around it."""
        return super().train(False)

    def reads(self, task: str, example: Example) -> bool:
        """Whether it has this task and the task takes this record."""
        return record_key(example) in self._examples.get(task, {})

    def encode(self, pixel_values: Tensor, *, relations: bool = False) -> Encoded:
        """Encode B pictures (B, 3, H, W), once for all that is asked of them."""
        # in this layout a convolutional stem takes half the time on a CPU
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        with recorded_relations(self.model.vision_encoder.backbone, wanted=relations) as record:
            tokens, embedding = self.model.encode_image(pixel_values)
        patches = tokens[:, :-1] if self.model.has_summary else tokens
        return Encoded(tokens, patch_grid(patches), {}, tuple(record), embedding.float())

    def joint(
        self, image_tokens: Tensor, owner: Tensor, task: str, examples: Sequence[Example]
    ) -> Tensor:
        """Joint vectors (E, 2 D) of examples whose pictures are encoded.

        Nothing that the student has hidden is hidden here.

        Args:
            image_tokens: (B, N, Dv) of B pictures.
            owner: (E,) int64, which of them each example belongs to.
            task: Name of one of its tasks.
            examples: Examples of the student that it can read (see `reads`).
        """
        own = self._own(task, examples)
        device = image_tokens.device
        text_tokens, _, mask = self._texts(own, device)
        values, present = (
            torch.from_numpy(np.stack(arrays)).to(device)
            for arrays in (
                [example.structured_values for example in own],
                [example.structured_mask for example in own],
            )
        )
        return self.model.fuse_tokens(image_tokens[owner], text_tokens, mask, values, present)

    def embed_texts(self, task: str, examples: Sequence[Example], device: torch.device) -> Tensor:
        """Unit embeddings (E, D) float32 of the texts of examples that it can read."""
        return self._texts(self._own(task, examples), device)[1].float()

    def _own(self, task: str, examples: Sequence[Example]) -> list[Example]:
        """The same records as this teacher reads them."""
        return [self._examples[task][record_key(example)] for example in examples]

    def _texts(self, own: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (E, L, Dt), embeddings (E, D) and mask (E, L)."""
        ids, mask = (
            torch.from_numpy(array).to(device)
            for array in self._tokenizer.encode([example.text for example in own])
        )
        return (*self.model.encode_text(ids, mask), mask)

    def logits(self, task: str, joint: Tensor) -> Tensor:
        """Logits (E, K) float32 of one of its tasks, in its own order of outputs."""
        head: nn.Module = self.model.task_heads[output_name(task)]
        logits: Tensor = head(joint.float())
        return logits


class Ensemble(nn.Module):
    """Several teachers as one.

    Args:
        teachers: At least one.
        tasks: Of the student.
        sigmoid: Names of the tasks whose outputs have a probability each.

    Raises:
        UsageError: No task of the student is a task of all teachers, or such a task shares no
            output with them.
    """

    def __init__(
        self, teachers: Sequence[Teacher], tasks: Sequence[TaskSpec], sigmoid: frozenset[str]
    ) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)
        self.sigmoid = sigmoid
        self.shared: dict[str, list[str]] = {}
        """Task -> the outputs that are taught."""
        self.retrieval: list[str] = []
        """Retrieval tasks whose similarities are taught."""
        self._rows: dict[str, list[Tensor]] = {}
        for task in tasks:
            theirs = [t.tasks[task.name] for t in teachers if task.name in t.tasks]
            kinds = {spec.kind == "retrieval" for spec in theirs}
            if len(theirs) < len(teachers) or kinds != {task.kind == "retrieval"}:
                continue
            if task.kind == "retrieval":
                self.retrieval.append(task.name)
            else:
                self._match(task, theirs)
        if not self.shared and not self.retrieval:
            raise UsageError(
                f"the student's tasks are {[task.name for task in tasks]}, the teachers' "
                f"{[sorted(teacher.tasks) for teacher in teachers]}; at least one task must have "
                "the same name and kind in all of them"
            )

    def _match(self, task: TaskSpec, theirs: Sequence[TaskSpec]) -> None:
        listed = [output_keys(spec) for spec in theirs]
        common = set.intersection(*(set(keys) for keys in listed))
        names = [name for name in output_keys(task) if name in common]
        if len(names) < (1 if task.multi_label else 2):
            raise UsageError(
                f"task {task.name!r}: the student shares the outputs {names} with its teachers; "
                "give teachers of the same labels or answers, or another name to the task"
            )
        self.shared[task.name] = names
        self._rows[task.name] = [
            torch.tensor([keys.index(name) for name in names])
            for keys in (output_keys(task), *listed)
        ]

    def train(self, mode: bool = True) -> Ensemble:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self, encoded: Sequence[Encoded], questions: Questions, precision: Precision
    ) -> dict[str, SoftAnswers]:
        """Soft answers to the examples of one batch of pictures.

        Args:
            encoded: The pictures as each teacher sees them.
            questions: What is asked of them.
            precision: Of text encoders and fusion; heads are always float32.

        Returns:
            By name of task; tasks that are not taught are left out.
        """
        return {
            name: self._answers(name, encoded, *questions[name], precision)
            for name in questions
            if name in self.shared
        }

    def _answers(
        self,
        name: str,
        encoded: Sequence[Encoded],
        owner: Tensor,
        examples: Sequence[Example],
        precision: Precision,
    ) -> SoftAnswers:
        device = encoded[0].tokens.device
        known, asked = self._readable(name, examples, device)
        rows = [columns.to(device) for columns in self._rows[name]]
        logits, joints = [], []
        for teacher, pictures, columns in zip(self.each(), encoded, rows[1:], strict=True):
            joint = torch.zeros(len(examples), teacher.pooled_widths["joint"], device=device)
            answers = torch.zeros(len(examples), len(columns), device=device)
            if asked:
                with autocast(device, precision):
                    found = teacher.joint(
                        pictures.tokens, owner.to(device)[known], name, asked
                    ).float()
                joint[known] = found
                answers[known] = teacher.logits(name, found)[:, columns]
            joints.append(joint)
            logits.append(answers)
        mean = mean_answers(logits, sigmoid=name in self.sigmoid)
        return SoftAnswers(mean, rows[0], known, tuple(joints))

    def _readable(
        self, name: str, examples: Sequence[Example], device: torch.device
    ) -> tuple[Tensor, list[Example]]:
        """Which examples (E,) all teachers can read, and these."""
        read = [all(teacher.reads(name, e) for teacher in self.each()) for e in examples]
        chosen = [example for example, can in zip(examples, read, strict=True) if can]
        return torch.tensor(read, device=device), chosen

    @torch.no_grad()
    def embeddings(
        self, encoded: Sequence[Encoded], questions: Questions, precision: Precision
    ) -> dict[str, PairEmbeddings]:
        """Embeddings of the pairs of one batch, by name of retrieval task; as for `forward`."""
        return {
            name: self._embeddings(name, encoded, *questions[name], precision)
            for name in questions
            if name in self.retrieval
        }

    def _embeddings(
        self,
        name: str,
        encoded: Sequence[Encoded],
        owner: Tensor,
        examples: Sequence[Example],
        precision: Precision,
    ) -> PairEmbeddings:
        device = encoded[0].tokens.device
        known, asked = self._readable(name, examples, device)
        if not asked:
            return PairEmbeddings((), (), known)
        own = owner.to(device)[known]
        with autocast(device, precision):
            texts = [teacher.embed_texts(name, asked, device) for teacher in self.each()]
        images = [cast(Tensor, pictures.embedding)[own] for pictures in encoded]
        return PairEmbeddings(tuple(images), tuple(texts), known)

    def each(self) -> list[Teacher]:
        """The teachers, in order."""
        return cast("list[Teacher]", list(self.teachers))


def load_teachers(paths: Sequence[Path], records: Iterable[Record]) -> list[Teacher]:
    """Teachers from checkpoint directories.

    Raises:
        CheckpointError: A directory is missing, damaged, or no checkpoint.
    """
    known = list(records)
    return [Teacher(load_checkpoint(path), known) for path in paths]


def teacher_sources(paths: Sequence[Path]) -> dict[str, dict[str, object]]:
    """What teachers learnt from, as entries of a provenance: a student owes it to the same records.

    Raises:
        CheckpointError: A directory holds no readable provenance.
    """
    sources: dict[str, dict[str, object]] = {}
    for number, path in enumerate(paths, start=1):
        data = _provenance(path).get("data", {})
        sources[f"teacher {number}"] = ancestor(data, weights_of(path))
    return sources


def _provenance(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"teacher {str(path)!r} holds no readable provenance.json; give a whole checkpoint"
        ) from error
    return found
