from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from umd_edge import _tokenizer
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import ManifestError, TextInputError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "is", "there", "a", "nodule", "##s", "?"]

ADDED: list[dict[str, Any]] = [
    {
        "id": WORDS.index("[CLS]"),
        "content": "[CLS]",
        **{"single_word": False, "lstrip": False, "rstrip": False},
        **{"normalized": False, "special": True},
    }
]


def _file(**changes: Any) -> bytes:
    """A small WordPiece `tokenizer.json`, written by hand."""
    template = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    words = changes.pop("words", WORDS)
    table = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": template,
            "special_tokens": {
                name: {"id": name, "ids": [words.index(name)], "tokens": [name]}
                for name in ("[CLS]", "[SEP]")
            },
        },
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: index for index, word in enumerate(words)},
        },
    }
    return json.dumps({**table, **changes}).encode()


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.from_bytes(_file(), 8)


def test_texts_become_tokens_padded_at_the_end(tokenizer: TextTokenizer):
    ids, mask = tokenizer.encode(["Is there a nodule?", "nodules"])
    assert ids.tolist() == [[2, 4, 5, 6, 7, 9, 3], [2, 7, 8, 3, 0, 0, 0]]
    assert mask.tolist() == [[1] * 7, [1, 1, 1, 1, 0, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64
    assert tokenizer.vocabulary_size == len(WORDS)


def test_a_long_text_is_cut_at_the_end_and_keeps_its_frame(tokenizer: TextTokenizer):
    ids, mask = tokenizer.encode(["nodule is there " * 20])
    assert ids.tolist() == [[2, 7, 4, 5, 7, 4, 5, 3]]
    assert mask.all()


def test_padding_of_the_file_is_ours_and_not_its_own():
    padding = {
        "strategy": {"Fixed": 20},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    ids, _ = TextTokenizer.from_bytes(_file(padding=padding), 8).encode(["a"])
    assert ids.tolist() == [[2, 6, 3]]


def test_padding_uses_the_padding_token_wherever_it_stands():
    words = [*WORDS[1:], "[PAD]"]
    tokenizer = TextTokenizer.from_bytes(_file(words=words), 8)
    ids, mask = tokenizer.encode(["a a", "a"])
    assert ids[1, -1] == tokenizer.pad_id == len(words) - 1
    assert mask[1, -1] == 0


def test_robertas_padding_token_is_known():
    words = ["<pad>", *WORDS[1:]]
    assert TextTokenizer.from_bytes(_file(words=words), 8).pad_id == 0


LETTERS = st.sampled_from("is there a nodules?! x\u00e9\U0001f600")
TEXTS = st.text(LETTERS, min_size=1).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_a_text_is_the_same_alone_and_in_company(texts: list[str]):
    tokenizer = TextTokenizer.from_bytes(_file(), 8)
    ids, mask = tokenizer.encode(texts)
    assert ids.shape == mask.shape
    assert ids.shape[1] == mask.sum(axis=1).max() <= 8
    for row, text in enumerate(texts):
        alone, _ = tokenizer.encode([text])
        assert ids[row, : mask[row].sum()].tolist() == alone[0].tolist()
        assert not ids[row][mask[row] == 0].any()


# What may look past a space: other spaces, combining marks, control characters, special tokens.
ODD = "aA .?\u0301\u0307\u00a0\u2003\u0085\x1c\t\n\u200b\u4e2d\u0130\u03a3\ufffd"
PIECES = st.lists(st.sampled_from([*ODD, "  ", "[CLS]", "[cls]", "nodule", "x" * 101]), min_size=1)


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "Lowercase"},
        {
            "type": "BertNormalizer",
            **{"clean_text": True, "handle_chinese_chars": True},
            **{"strip_accents": None, "lowercase": True},
        },
    ],
)
@settings(max_examples=60, deadline=None)
@given(PIECES)
def test_word_by_word_is_what_the_file_says(normalizer: Any, pieces: list[str]):
    text = "".join(pieces)
    if not text.strip():
        return
    data = _file(normalizer=normalizer, added_tokens=ADDED)
    reference = Tokenizer.from_str(data.decode())
    reference.enable_truncation(6)
    tokenizer = TextTokenizer.from_bytes(data, 6)
    assert tokenizer._frame == ([2], [3])
    for _ in range(2):  # the second time from the words kept
        assert tokenizer.encode_one(text).tolist() == [reference.encode(text).ids]


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "a "}, "content": "nodule"}},
        {"added_tokens": [{**ADDED[0], "lstrip": True}]},
        {"added_tokens": [{**ADDED[0], "content": "is there", "id": len(WORDS)}]},
    ],
)
def test_a_tokenizer_that_looks_past_spaces_reads_whole_texts(changes: dict[str, Any]):
    data = _file(**changes)
    tokenizer = TextTokenizer.from_bytes(data, 8)
    assert tokenizer._frame is None
    wanted = Tokenizer.from_str(data.decode()).encode("is there a a").ids
    assert tokenizer.encode_one("is there a a").tolist() == [wanted[:8]]


def test_words_kept_are_bounded(monkeypatch: pytest.MonkeyPatch):
    tokenizer = TextTokenizer.from_bytes(_file(), 8)
    monkeypatch.setattr(_tokenizer, "_WORDS_KEPT", 3)
    for word in ("is", "there", "a", "nodule", "nodules", "is"):
        tokenizer.encode_one(word)
        assert len(tokenizer._words) <= 3
    tokenizer.encode_one("y" * 33)
    assert "y" * 33 not in tokenizer._words


@pytest.mark.parametrize("texts", [[""], ["  \n"], ["a", ""], [None], [3], [b"a"]])
def test_an_empty_text_is_refused(tokenizer: TextTokenizer, texts: list[Any]):
    with pytest.raises(TextInputError, match="the text is empty"):
        tokenizer.encode(texts)


def test_no_text_is_refused(tokenizer: TextTokenizer):
    with pytest.raises(TextInputError, match="no text given"):
        tokenizer.encode([])


def test_a_book_is_refused_and_not_repeated(tokenizer: TextTokenizer):
    tokenizer.encode(["x" * 10_000])
    with pytest.raises(TextInputError, match="10001 characters; at most 10000") as caught:
        tokenizer.encode(["x" * 10_001])
    assert "xxx" not in str(caught.value)


@pytest.mark.parametrize("max_length", [-1, 0, 3, 4097])
def test_a_length_without_room_is_refused(max_length: int):
    with pytest.raises(ManifestError, match=rf"max_length: {max_length} given; 4\.\.4096"):
        TextTokenizer.from_bytes(_file(), max_length)


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b"\xff\xfe", b'{"version": "9"}'])
def test_a_file_that_is_no_tokenizer_is_refused(data: bytes):
    with pytest.raises(ManifestError, match="cannot be read as a tokenizers JSON file"):
        TextTokenizer.from_bytes(data, 8)


def test_a_tokenizer_without_padding_is_refused():
    with pytest.raises(ManifestError, match=r"none of the tokens .*\[PAD\].*<pad>"):
        TextTokenizer.from_bytes(_file(words=WORDS[1:]), 8)


def test_the_tokenizer_of_the_tiny_bundle_is_read(tiny_bundle: Path):
    from umd_edge._bundle import Bundle

    assert Bundle.open(tiny_bundle).manifest.tokenizer.max_length >= 4


def test_half_a_character_is_refused_and_not_repeated(tokenizer: TextTokenizer):
    for text in ("what \udcff ?", "\ud83d", "is there a \ud800"):
        with pytest.raises(TextInputError, match="half a character") as caught:
            tokenizer.encode([text])
        assert caught.value.__cause__ is None
    tokenizer.encode(["what 😀 ?"])
