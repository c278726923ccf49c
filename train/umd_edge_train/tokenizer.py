"""Tokenizers: a WordPiece vocabulary trained on a corpus, or the one of a published encoder."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

from umd_edge.errors import UsageError

__all__ = ["SPECIAL_TOKENS", "published_tokenizer", "train_wordpiece"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(texts: Iterable[str], vocabulary_size: int) -> bytes:
    """Train a lower-case WordPiece tokenizer.

    Every printable ASCII character is in the alphabet, at the start and inside of a word, so that
    no ASCII text becomes unknown.

    Args:
        texts: The corpus; only training records.
        vocabulary_size: Upper bound, special tokens included.

    Returns:
        The bytes of a `tokenizer.json`; the same texts give the same bytes.

    Raises:
        UsageError: The vocabulary has no room for the characters.
    """
    corpus = sorted(texts)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    seen = {c for text in corpus for c in tokenizer.normalizer.normalize_str(text)}
    ascii_ = {chr(code) for code in range(33, 127) if not chr(code).isupper()}
    alphabet = sorted(ascii_ | {c for c in seen if not c.isspace()})
    # The trainer numbers inner characters in the order of a hash table, which differs from run to
    # run and decides ties between merges. Given as special tokens they have fixed numbers.
    first = [*SPECIAL_TOKENS, *alphabet, *(f"##{c}" for c in alphabet)]
    if vocabulary_size < len(first):
        raise UsageError(
            f"model.vocabulary_size: {vocabulary_size} given; {len(first)} or more is needed for "
            "the characters of the training texts"
        )
    tokenizer.train_from_iterator(
        corpus,
        WordPieceTrainer(
            vocab_size=vocabulary_size,
            special_tokens=first,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
    )
    tokenizer = _with_special_tokens_only(tokenizer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return tokenizer.to_str(pretty=False).encode("utf-8")


def _with_special_tokens_only(tokenizer: Tokenizer) -> Tokenizer:
    """A copy whose single characters are ordinary tokens again."""
    table = json.loads(tokenizer.to_str())
    table["added_tokens"] = [t for t in table["added_tokens"] if t["content"] in SPECIAL_TOKENS]
    return Tokenizer.from_str(json.dumps(table))


def published_tokenizer(name: str) -> bytes:
    """The tokenizer that the weights of a published text encoder were trained with.

    Args:
        name: Local directory or hub id.

    Returns:
        The bytes of its `tokenizer.json`.

    Raises:
        UsageError: It cannot be loaded, or has no fast tokenizer.
    """
    from transformers import AutoTokenizer

    from .models.pretrained import load_published

    def load() -> bytes:
        backend: Tokenizer = AutoTokenizer.from_pretrained(name).backend_tokenizer
        return backend.to_str(pretty=False).encode("utf-8")

    return load_published("model.text.pretrained (tokenizer)", name, load)
