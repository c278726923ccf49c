"""Tokenizers: a WordPiece vocabulary trained on a corpus, or the one of a published encoder."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

from .models.pretrained import load_published

__all__ = ["SPECIAL_TOKENS", "published_tokenizer", "train_wordpiece"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(texts: Iterable[str], vocabulary_size: int) -> bytes:
    """Train a lower-case WordPiece tokenizer.

    Every printable ASCII character is in the alphabet, so that no ASCII text becomes unknown.

    Args:
        texts: The corpus; only training records.
        vocabulary_size: Upper bound, special tokens included.

    Returns:
        The bytes of a `tokenizer.json`; the same texts give the same bytes.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    alphabet = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    tokenizer.train_from_iterator(
        sorted(texts),
        WordPieceTrainer(
            vocab_size=vocabulary_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return tokenizer.to_str(pretty=False).encode("utf-8")


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

    def load() -> bytes:
        backend: Tokenizer = AutoTokenizer.from_pretrained(name).backend_tokenizer
        return backend.to_str(pretty=False).encode("utf-8")

    return load_published("model.text.pretrained (tokenizer)", name, load)
