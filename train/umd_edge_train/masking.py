"""What a masked view hides: random patches of a picture and random words of a text.

Sources: UMD (arXiv 2404.06057) sections on masked reconstruction; masked patches as in MAE
(arXiv 2111.06377), masked words as in BERT (arXiv 1810.04805) with whole words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError

__all__ = [
    "IGNORED",
    "NO_WORD",
    "Vocabulary",
    "mask_patches",
    "mask_words",
    "visible_patches",
    "word_ids",
]

IGNORED = -100
"""Target of a token that is not to be predicted."""
NO_WORD = -1
"""Word of a token that belongs to none."""
_MASK_TOKENS = ("[MASK]", "<mask>")  # BERT's and RoBERTa's
_MASKED, _REPLACED = 0.8, 0.1  # the rest of the chosen tokens stays as it is


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What masking needs to know of a tokenizer."""

    size: int
    """Number of tokens, special ones included."""
    mask_id: int
    ordinary_ids: tuple[int, ...]
    """All tokens but the special ones: what may replace a token."""

    @classmethod
    def of(cls, tokenizer: TextTokenizer) -> Vocabulary:
        """The vocabulary of a tokenizer.

        Raises:
            UsageError: It has no mask token, or nothing but special tokens.
        """
        vocabulary = tokenizer._tokenizer.get_vocab(with_added_tokens=True)
        mask_ids = [vocabulary[token] for token in _MASK_TOKENS if token in vocabulary]
        if not mask_ids:
            raise UsageError(
                f"tokenizer: none of the tokens {_MASK_TOKENS} is in its vocabulary; texts can "
                "only be masked with one of them"
            )
        special = _special_ids(tokenizer) | {mask_ids[0]}
        ordinary = tuple(sorted(set(vocabulary.values()) - special))
        if not ordinary:
            raise UsageError("tokenizer: its vocabulary holds special tokens only")
        return cls(tokenizer.vocabulary_size, int(mask_ids[0]), ordinary)


def _special_ids(tokenizer: TextTokenizer) -> set[int]:
    added = tokenizer._tokenizer.get_added_tokens_decoder()
    return {int(row) for row, token in added.items() if token.special}


def word_ids(tokenizer: TextTokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of texts, with the word that each one belongs to.

    Words are those of the tokenizer's own splitting, so they need no mark such as "##" in the
    vocabulary. Special tokens belong to none, an unknown word's token included: there is nothing to
    be learnt from predicting that something is unknown.

    Args:
        tokenizer: Its truncation and padding are those of `TextTokenizer.encode`.
        texts: B texts.

    Returns:
        `input_ids`, `attention_mask` (1 = real token) and `word_ids` (-1 = no word), each (B, L)
        int64.

    Raises:
        TextInputError: As `TextTokenizer.encode`.
    """
    ids, mask = tokenizer.encode(texts)
    special = _special_ids(tokenizer)
    words = torch.full(ids.shape, NO_WORD)
    for row, text in enumerate(texts):
        encoding = tokenizer._tokenizer.encode(text)
        for column, (token, word) in enumerate(zip(encoding.ids, encoding.word_ids, strict=True)):
            if word is not None and token not in special:
                words[row, column] = word
    return torch.from_numpy(ids), torch.from_numpy(mask), words


def _uniform(shape: Sequence[int], rng: torch.Generator, device: torch.device) -> Tensor:
    """Uniform numbers that depend on `rng` alone, not on the device of the data."""
    return torch.rand(tuple(shape), generator=rng, device=rng.device).to(device)


def visible_patches(count: int, ratio: float) -> int:
    """How many of `count` patches a masked view keeps: int((1 - ratio) count)."""
    return int((1.0 - ratio) * count + 1e-9)  # 1 - 0.9 is a little less than 0.1


def mask_patches(
    batch: int, count: int, ratio: float, rng: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Choose the patches of a masked view, for each picture its own.

    Args:
        batch: B.
        count: N patches a picture.
        ratio: Part of them that is removed, in (0, 1).
        rng: Source of randomness.
        device: Where the results are wanted.

    Returns:
        The patches kept (B, K) and removed (B, N - K) int64, in ascending order.
    """
    order = _uniform((batch, count), rng, device).argsort(dim=1)
    kept = visible_patches(count, ratio)
    return order[:, :kept].sort(dim=1).values, order[:, kept:].sort(dim=1).values


def _choose_words(word_ids: Tensor, ratio: float, rng: torch.Generator) -> Tensor:
    """(B, L) int64 -> (B, L) bool: tokens of the chosen words."""
    real = word_ids >= 0
    index = word_ids.clamp(min=0)
    columns = int(index.max()) + 1 if index.numel() else 1
    present = torch.zeros(len(word_ids), columns, device=word_ids.device)
    present = present.scatter_reduce(1, index, real.to(present.dtype), "amax") > 0
    count = present.sum(dim=1)
    wanted = (count * ratio + 0.5).floor().clamp(min=1.0)
    scores = _uniform(present.shape, rng, word_ids.device).masked_fill(~present, 2.0)
    rank = scores.argsort(dim=1).argsort(dim=1)
    chosen = (rank < wanted[:, None]) & present
    return chosen.gather(1, index) & real


def mask_words(
    input_ids: Tensor, word_ids: Tensor, ratio: float, vocabulary: Vocabulary, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Corrupt random words, for each text its own.

    Of a text's W words, ratio W (rounded half up, at least one) are chosen, and all their tokens
    are to be predicted: 80 % become the mask token, 10 % a random ordinary token, 10 % stay, token
    by token. A text without words stays as it is.

    Args:
        input_ids: (B, L) int64.
        word_ids: (B, L) int64, -1 = no word.
        ratio: Part of the words that is chosen, in (0, 1).
        vocabulary: Of the tokenizer that gave the ids.
        rng: Source of randomness.

    Returns:
        Corrupted ids (B, L), and targets (B, L) int64: the original id where it is to be predicted,
        `IGNORED` elsewhere.
    """
    chosen = _choose_words(word_ids, ratio, rng)
    targets = input_ids.masked_fill(~chosen, IGNORED)
    draw = _uniform(input_ids.shape, rng, input_ids.device)
    ordinary = torch.tensor(vocabulary.ordinary_ids, device=input_ids.device)
    pick = _uniform(input_ids.shape, rng, input_ids.device) * len(ordinary)
    replacement = ordinary[pick.long().clamp(max=len(ordinary) - 1)]
    corrupted = input_ids.masked_fill(chosen & (draw < _MASKED), vocabulary.mask_id)
    replaced = chosen & (draw >= _MASKED) & (draw < _MASKED + _REPLACED)
    return torch.where(replaced, replacement, corrupted), targets
