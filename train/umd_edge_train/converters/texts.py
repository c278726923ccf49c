"""Texts and answers of a record.

Source of the text rules: the pre-training preparation of M3AE, which UMD uses too: whitespace is
collapsed, texts of under three words are dropped, every text is a pair of its own with the picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from umd_edge._answers import normalise_answer

__all__ = ["MIN_WORDS", "collapse", "is_pair", "license_name", "question_fields"]

MIN_WORDS = 3


def collapse(text: str) -> str:
    """The text with single spaces between its words and none around it."""
    return " ".join(text.split())


def is_pair(text: str) -> bool:
    """Whether a text is long enough to be paired with its picture."""
    return len(text.split()) >= MIN_WORDS


def question_fields(
    question: str,
    answers: Sequence[str],
    answer_type: str | None = None,
    question_type: str | None = None,
) -> dict[str, Any]:
    """The manifest's fields of a question.

    Args:
        question: As the source has it.
        answers: All that count as right, the one to learn first.
        answer_type: `OPEN` or `CLOSED`; where None, yes and no are closed and all else is open.
        question_type: As the source names it.
    """
    is_yes_no = normalise_answer(answers[0]) in ("yes", "no")
    return {
        "question": collapse(question),
        "answer": collapse(answers[0]),
        "answers": list(_distinct(collapse(answer) for answer in answers)),
        "answer_type": answer_type or ("CLOSED" if is_yes_no else "OPEN"),
        "yes_no": is_yes_no,
        "question_type": question_type,
    }


def license_name(code: str) -> tuple[str | None, bool | None]:
    """A Creative Commons code of an article, such as `CC BY-NC`, without its unknown version.

    Returns:
        The name, or None for any other terms; and whether they exclude commercial use, or None
        where that is not known.
    """
    name = collapse(code).upper().replace(" ", "-")
    if name in ("CC0", "PD", "PUBLIC-DOMAIN"):
        return name, False
    if not name.startswith("CC-BY"):
        return None, None
    return name, "NC" in name.split("-")


def _distinct(values: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(value for value in values if value)
