"""Text to `input_ids`, through the `tokenizer.json` that travels with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .errors import ManifestError, TextInputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextTokenizer"]

_MAX_CHARACTERS = 10_000
_PAD_TOKENS = ("[PAD]", "<pad>")  # BERT's and RoBERTa's
_WORDS_KEPT = 4096
_LONGEST_KEPT = 32
# Kinds that never look past a space: a text is then its words' tokens one after the other.
_NORMALISERS = ("NoneType", "BertNormalizer", "Lowercase")
_SPLITTERS = ("BertPreTokenizer",)
_MODELS = ("WordPiece",)
_PROBE = "a"


class TextTokenizer:
    """A Hugging Face `tokenizers` file with our truncation and padding.

    Texts longer than `max_length` tokens are cut at the end; the first and last token of the
    template stay.

    Where the tokenizer works word by word, the tokens of the words seen so far are kept: questions
    are made of few words, and looking them up takes a fifth of the time. The tokens are the same.
    Thread-safe: two threads may both tokenise a word, and both find the same.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self._tokenizer = tokenizer
        self.max_length = max_length
        tokenizer.enable_truncation(max_length)
        pad_ids = [tokenizer.token_to_id(token) for token in _PAD_TOKENS]
        known = [pad_id for pad_id in pad_ids if pad_id is not None]
        if not known:
            raise ManifestError(
                f"tokenizer: none of the tokens {_PAD_TOKENS} is in its vocabulary; one is needed"
            )
        self.pad_id = int(known[0])
        tokenizer.no_padding()
        self._frame = _frame(tokenizer)
        self._words: dict[str, list[int]] = {}

    @classmethod
    def from_bytes(cls, data: bytes, max_length: int) -> TextTokenizer:
        """Read the bytes of a `tokenizer.json`.

        Raises:
            ManifestError: The file is not a tokenizer, or `max_length` is below 4.
        """
        from tokenizers import Tokenizer

        if not 4 <= max_length <= 4096:
            raise ManifestError(f"tokenizer.max_length: {max_length!r} given; 4..4096 allowed")
        try:
            return cls(Tokenizer.from_str(data.decode("utf-8")), max_length)
        except ManifestError:
            raise
        except BaseException as error:
            if not _is_failure(error):
                raise
            raise ManifestError(
                "tokenizer file cannot be read as a tokenizers JSON file"
            ) from error

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, special ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tokens of each text, padded at the end to the longest.

        Returns:
            `input_ids` (B, L) int64 and `attention_mask` (B, L) int64 with 1 = real token.

        Raises:
            TextInputError: No text, an empty text, one of more than 10,000 characters, or half a
                character in it.
            ManifestError: The tokenizer fails.
        """
        if not texts:
            raise TextInputError("no text given; at least one is needed")
        rows = [self._ids(text) for text in texts]
        length = max(len(row) for row in rows)
        input_ids = np.full((len(rows), length), self.pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), length), dtype=np.int64)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = row
            attention_mask[index, : len(row)] = 1
        return input_ids, attention_mask

    def encode_one(self, text: str) -> npt.NDArray[np.int64]:
        """`input_ids` (1, L) int64 of one text; its mask is all ones.

        Raises:
            TextInputError: As for `encode`.
        """
        return np.array([self._ids(text)], dtype=np.int64)

    def _ids(self, text: str) -> list[int]:
        if not isinstance(text, str) or not text.strip():
            raise TextInputError("the text is empty; write a question or leave it out")
        if len(text) > _MAX_CHARACTERS:
            raise TextInputError(
                f"the text has {len(text)} characters; at most {_MAX_CHARACTERS} are allowed"
            )
        if self._frame is None:
            # Not `encode_batch`: it hands even one text to a pool of threads, which costs more than
            # it saves for the few short texts that come here.
            return self._tokenise(text, special=True)
        first, last = self._frame
        ids = list(first)
        known = self._words
        for word in text.split(" "):
            found = known.get(word)
            ids += self._word_ids(word) if found is None else found
            if len(ids) >= self.max_length:
                break
        del ids[self.max_length - len(last) :]
        return ids + last

    def _word_ids(self, word: str) -> list[int]:
        ids = self._tokenise(word, special=False)
        if len(word) <= _LONGEST_KEPT:
            if len(self._words) >= _WORDS_KEPT:
                self._words.clear()
            self._words[word] = ids
        return ids

    def _tokenise(self, text: str, *, special: bool) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        except BaseException as error:
            if not _is_failure(error):
                raise
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise TextInputError(
                    "the text holds half a character (a lone surrogate): it was no valid UTF-8 or "
                    "UTF-16; write it again"
                ) from None  # the error would quote the text
            raise ManifestError(
                "the bundle's tokenizer cannot tokenise the text; use another bundle"
            ) from error
        return ids


def _is_failure(error: BaseException) -> bool:
    """Whether `tokenizers` failed: it raises plain Exception, and panics with a class of its own.

    A panic is no Exception, so that nobody catches it by accident; a hostile file brings one about.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]] | None:
    """What the template puts before and after every text; None where words are not apart."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)
    allowed = (_NORMALISERS, _SPLITTERS, _MODELS)
    if any(type(p).__name__ not in names for p, names in zip(parts, allowed, strict=True)):
        return None
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.lstrip or token.rstrip or token.content.split() != [token.content]:
            return None
    try:
        bare = tokenizer.encode(_PROBE, add_special_tokens=False).ids
        whole = tokenizer.encode(_PROBE).ids
    except Exception:  # a vocabulary without a token for unknown words
        return None
    places = [at for at in range(len(whole)) if whole[at : at + len(bare)] == bare]
    if not bare or len(places) != 1:
        return None
    return whole[: places[0]], whole[places[0] + len(bare) :]
