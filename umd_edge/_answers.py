"""Answer normalisation: when two spellings of an answer count as the same.

The usual VQA rules: lower case, no punctuation between words, number words as digits, no articles,
one space between words.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["normalise_answer"]

_NUMBERS = {
    word: str(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ARTICLES = frozenset({"a", "an", "the"})
_APOSTROPHES = re.compile(r"['\u2019`]")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[,](?=\d)")
_PUNCTUATION = re.compile(r"[^\w\s.%+/-]|_")
_LOOSE = re.compile(r"(?<!\d)\.|\.(?!\d)|(?<!\w)[-/+]|[-/](?!\w)")


def normalise_answer(answer: str) -> str:
    """Bring an answer to the form in which answers are compared.

    `"The Right lung."` and `"right lung"` become equal, and so do `"Two"` and `"2"`. A full stop or
    a comma inside a number and a hyphen inside a word are kept or dropped alike on both sides.
    """
    text = unicodedata.normalize("NFKC", answer).casefold()
    text = _BETWEEN_DIGITS.sub("", _APOSTROPHES.sub("", text))
    text = _LOOSE.sub(" ", _PUNCTUATION.sub(" ", text))
    words = [_NUMBERS.get(word, word) for word in text.split()]
    kept = [word for word in words if word not in _ARTICLES]
    return " ".join(kept or words)
