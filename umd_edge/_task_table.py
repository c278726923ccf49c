"""Which task a call means, and what it lets a caller give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._manifest import Manifest
from ._postprocess import check_coverage, check_operating_request
from ._structured import encode_structured
from ._task import TaskSpec, compose_text
from .errors import TextInputError, UnknownTaskError

__all__ = ["ClassificationInput", "TaskTable", "check_question", "task_text"]

Float32Array = npt.NDArray[np.float32]


class ClassificationInput(NamedTuple):
    """What a classification reads beside the image."""

    task: TaskSpec
    text: str
    """The whole text, prompt included."""
    structured: tuple[Float32Array, Float32Array] | None
    """Values (1, F) and mask (1, F), float32; None where none were given."""


class TaskTable:
    """The tasks of a bundle, by name and kind."""

    def __init__(self, manifest: Manifest) -> None:
        self._fields = manifest.structured_fields
        self._tasks = {task.name: task for task in manifest.tasks}
        self._names: dict[str, list[str]] = {}
        for task in manifest.tasks:
            self._names.setdefault(task.kind, []).append(task.name)

    def vqa(self, name: str | None) -> TaskSpec:
        """The question-answering task of that name; the only one where None.

        Raises:
            UnknownTaskError: There is none, or None was given and there are several.
        """
        return self._only("vqa", name, "question-answering")

    def classification(self, name: str) -> TaskSpec:
        """The classification task of that name.

        Raises:
            UnknownTaskError: There is none.
        """
        names = self._names.get("classification", ())
        if name not in names:
            raise UnknownTaskError(_unknown(name, "classification", names))
        return self._tasks[name]

    def retrieval(self, name: str | None) -> TaskSpec:
        """The retrieval task of that name; the only one where None.

        Raises:
            UnknownTaskError: There is none, or None was given and there are several.
        """
        hint = ". A bundle without one was not trained to match images and texts"
        return self._only("retrieval", name, "retrieval", hint)

    def check_ask(self, question: object, name: str | None, coverage: float | None) -> TaskSpec:
        """The task that answers, after all that a caller of `ask` gives was checked.

        Raises:
            UnknownTaskError: As in `vqa`.
            TextInputError: The question is empty.
            UsageError: The task has no prediction sets at that coverage.
        """
        task = self.vqa(name)
        check_question(question)
        check_coverage(task, coverage)
        return task

    def check_classify(
        self,
        name: str,
        text: str | None,
        structured: Mapping[str, Any] | None,
        sensitivity: float | None,
        specificity: float | None,
        coverage: float | None,
    ) -> ClassificationInput:
        """What the task reads, after all that a caller of `classify` gives was checked.

        Raises:
            UnknownTaskError: As in `classification`.
            UsageError: The task has no operating point or prediction sets as asked for.
            TextInputError: The text is empty, or not read by the task.
            StructuredInputError: A value is not read by the task, or of a wrong type.
        """
        task = self.classification(name)
        check_operating_request(task, sensitivity, specificity)
        check_coverage(task, coverage)
        full_text = task_text(task, text)
        return ClassificationInput(task, full_text, self.structured(task, structured))

    def _only(self, kind: str, name: str | None, words: str, hint: str = "") -> TaskSpec:
        names = self._names.get(kind, [])
        if name is None and len(names) == 1:
            name = names[0]
        if name is None or name not in names:
            raise UnknownTaskError(_unknown(name, words, names) + hint)
        return self._tasks[name]

    def structured(
        self, task: TaskSpec, structured: Mapping[str, Any] | None
    ) -> tuple[Float32Array, Float32Array] | None:
        """Values (1, F) and mask (1, F) of what the user gave.

        Raises:
            StructuredInputError: A value is not read by the task, or of a wrong type.
        """
        if structured is None:
            return None
        values, mask = encode_structured(structured, self._fields, allowed=task.structured_paths)
        return values[None], mask[None]


def _unknown(name: str | None, kind: str, names: Sequence[str]) -> str:
    given = "no task given" if name is None else f"task {name!r} given"
    return f"{given}; {kind} tasks of this bundle: {list(names) or 'none'}"


def check_question(question: object) -> None:
    """Refuse an empty question.

    Raises:
        TextInputError: It is empty or no string.
    """
    if not isinstance(question, str) or not question.strip():
        raise TextInputError("the question is empty; write one, such as 'Which organ is this?'")


def task_text(task: TaskSpec, text: str | None) -> str:
    """What the text encoder reads for a classification.

    Raises:
        TextInputError: Text is empty, or given to a task that reads none.
    """
    if text is None:
        return task.prompt
    if not task.text_paths:
        raise TextInputError(f"task {task.name!r} reads no text; leave the text out")
    if not isinstance(text, str) or not text.strip():
        raise TextInputError("the text is empty; write it or leave it out")
    return compose_text(task.prompt, [text])
