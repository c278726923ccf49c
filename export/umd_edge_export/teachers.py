"""Teachers: checkpoints of ours whose soft answers a student learns.

A teacher reads a record as it was trained to: with its own prompt, tokenizer, structured fields,
picture size and normalisation. Several teachers are one: the mean of their probabilities. Outputs
are matched by name, and only those that all teachers share with the student are taught.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from umd_edge._answers import normalise_answer
from umd_edge._preprocess import PreprocessSpec
from umd_edge._records import Example, Record, build_examples
from umd_edge._task import TaskSpec, output_name
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import Checkpoint, load_checkpoint
from umd_edge_train.losses import Precision, autocast

__all__ = [
    "Ensemble",
    "RecordKey",
    "SoftAnswers",
    "Teacher",
    "load_teachers",
    "mean_answers",
    "record_key",
]

RecordKey = tuple[str, str]


def record_key(example: Example) -> RecordKey:
    """What tells the records of a run apart: the picture, and the line of its file."""
    return str(example.image_path), example.where


class SoftAnswers(NamedTuple):
    """What teachers say to E examples of one task."""

    logits: Tensor
    """(E, K) float32, K the outputs that teacher and student share."""
    rows: Tensor
    """(K,) int64: where these outputs stand among the student's."""
    known: Tensor
    """(E,) bool: whether the teachers can read the example at all."""


def _output_keys(task: TaskSpec) -> list[str]:
    return [normalise_answer(o) if task.kind == "vqa" else o for o in task.outputs]


def _unlabelled(task: TaskSpec) -> TaskSpec:
    """The same task without its target: a teacher reads records whose answer nobody knows."""
    return replace(task, kind="retrieval", outputs=(), multi_label=False, operating_points={})


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
        self.tasks = {task.name: task for task in checkpoint.tasks if task.kind != "retrieval"}
        self._tokenizer = TextTokenizer.from_bytes(checkpoint.tokenizer_json, checkpoint.max_length)
        known = list(records)
        self._examples: dict[str, dict[RecordKey, Example]] = {
            name: {
                record_key(example): example
                for example in build_examples(
                    known, _unlabelled(task), checkpoint.structured_fields
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
        own = [self._examples[task][record_key(example)] for example in examples]
        device = image_tokens.device
        ids, mask = (
            torch.from_numpy(array).to(device)
            for array in self._tokenizer.encode([example.text for example in own])
        )
        text_tokens, _ = self.model.encode_text(ids, mask)
        values, present = (
            torch.from_numpy(np.stack(arrays)).to(device)
            for arrays in (
                [example.structured_values for example in own],
                [example.structured_mask for example in own],
            )
        )
        return self.model.fuse_tokens(image_tokens[owner], text_tokens, mask, values, present)

    def logits(self, task: str, joint: Tensor) -> Tensor:
        """Logits (E, K) float32 of one of its tasks, in its own order of outputs."""
        head: nn.Module = self.model.task_heads[output_name(task)]
        logits: Tensor = head(joint.float())
        return logits


def mean_answers(logits: Sequence[Tensor], *, sigmoid: bool) -> Tensor:
    """Logits of the mean probability of several teachers.

    Args:
        logits: (E, K) float32 of each teacher.
        sigmoid: One probability for each output, not one distribution over all.

    Returns:
        (E, K) float32. Of one teacher: its own logits, up to a constant of each row (softmax).
    """
    stacked = torch.stack(list(logits))
    count = math.log(len(stacked))
    if not sigmoid:
        return torch.logsumexp(functional.log_softmax(stacked, dim=2), dim=0) - count
    yes = torch.logsumexp(functional.logsigmoid(stacked), dim=0)
    no = torch.logsumexp(functional.logsigmoid(-stacked), dim=0)
    return yes - no


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
        self._rows: dict[str, list[Tensor]] = {}
        for task in tasks:
            theirs = [teacher.tasks.get(task.name) for teacher in teachers]
            if task.kind != "retrieval" and all(found is not None for found in theirs):
                self._match(task, [found for found in theirs if found is not None])
        if not self.shared:
            raise UsageError(
                f"the student's tasks are {[task.name for task in tasks]}, the teachers' "
                f"{[sorted(teacher.tasks) for teacher in teachers]}; at least one task must have "
                "the same name in all of them"
            )

    def _match(self, task: TaskSpec, theirs: Sequence[TaskSpec]) -> None:
        listed = [_output_keys(spec) for spec in theirs]
        common = set.intersection(*(set(keys) for keys in listed))
        names = [name for name in _output_keys(task) if name in common]
        if len(names) < (1 if task.multi_label else 2):
            raise UsageError(
                f"task {task.name!r}: the student shares the outputs {names} with its teachers; "
                "give teachers of the same labels or answers, or another name to the task"
            )
        self.shared[task.name] = names
        self._rows[task.name] = [
            torch.tensor([keys.index(name) for name in names])
            for keys in (_output_keys(task), *listed)
        ]

    def train(self, mode: bool = True) -> Ensemble:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self,
        views: Mapping[PreprocessSpec, Tensor],
        questions: Mapping[str, tuple[Tensor, Sequence[Example]]],
        precision: Precision,
    ) -> dict[str, SoftAnswers]:
        """Soft answers to the examples of one batch of B pictures.

        Args:
            views: The pictures (B, 3, H, W) float32 as each preprocessing of a teacher makes them.
            questions: Task -> owners (E,) int64 among the pictures, and examples.
            precision: Of encoders and fusion; heads are always float32.

        Returns:
            By name of task; tasks that are not taught are left out.
        """
        said: dict[str, list[Tensor]] = {name: [] for name in questions if name in self.shared}
        known = {
            name: torch.tensor([self._all_read(name, e) for e in questions[name][1]])
            for name in said
        }
        for index, teacher in enumerate(self.each()):
            pixel_values = views[teacher.spec]
            with autocast(pixel_values.device, precision):
                # in this layout a convolutional stem takes half the time on a CPU
                image_tokens, _ = teacher.model.encode_image(
                    pixel_values.contiguous(memory_format=torch.channels_last)
                )
            for name in said:
                said[name].append(
                    self._ask(
                        teacher,
                        index,
                        name,
                        image_tokens,
                        questions[name],
                        known[name],
                        precision,
                    )
                )
        return {
            name: SoftAnswers(
                mean_answers(logits, sigmoid=name in self.sigmoid),
                self._rows[name][0].to(logits[0].device),
                known[name].to(logits[0].device),
            )
            for name, logits in said.items()
        }

    def each(self) -> list[Teacher]:
        """The teachers, in order."""
        return cast("list[Teacher]", list(self.teachers))

    def _all_read(self, task: str, example: Example) -> bool:
        return all(teacher.reads(task, example) for teacher in self.each())

    def _ask(
        self,
        teacher: Teacher,
        index: int,
        task: str,
        image_tokens: Tensor,
        question: tuple[Tensor, Sequence[Example]],
        known: Tensor,
        precision: Precision,
    ) -> Tensor:
        """Logits (E, K) float32 of the shared outputs; zeros where the teacher cannot read."""
        owner, examples = question
        asked = torch.nonzero(known).flatten()
        columns = self._rows[task][1 + index].to(image_tokens.device)
        answers = torch.zeros(len(examples), len(columns), device=image_tokens.device)
        if not len(asked):
            return answers
        with autocast(image_tokens.device, precision):
            joint = teacher.joint(
                image_tokens,
                owner.to(image_tokens.device)[asked.to(image_tokens.device)],
                task,
                [examples[i] for i in asked.tolist()],
            )
        answers[asked.to(answers.device)] = teacher.logits(task, joint)[:, columns]
        return answers


def load_teachers(paths: Sequence[Path], records: Iterable[Record]) -> list[Teacher]:
    """Teachers from checkpoint directories.

    Raises:
        CheckpointError: A directory is missing, damaged, or no checkpoint.
    """
    known = list(records)
    return [Teacher(load_checkpoint(path), known) for path in paths]
