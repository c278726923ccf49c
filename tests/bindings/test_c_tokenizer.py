"""The tokenizer in C gives the tokens of the tokenizer file, or an error; never other tokens."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.bundles import repack, tiny_files
from support.c_library import CError, CPredictor
from umd_edge._tokenizer import TextTokenizer

# Latin with accents, digits, punctuation, white space, and what the tiny vocabulary knows.
WORDS = "pleural effusion coughing scans CT Öl naïve İstanbul ﬁne [CLS] [MASK] ## x-ray, 3.5"
LETTERS = (
    "aäàåßçéÉİ\u0131ñøœÿŽ中국 \t\n\u00a0\u0301.,;:!?'\"()[]{}#@/\\-\u2013\u2014µ°²½€0123456789"
)


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> CPredictor:
    return CPredictor(tiny_bundle)


@pytest.fixture(scope="module")
def python(opened: CPredictor) -> TextTokenizer:
    return TextTokenizer.from_bytes(tiny_files()["tokenizer.json"], opened.describe().max_length)


def _python_ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode([text])[0][0].tolist()
    return ids


@given(st.lists(st.sampled_from(WORDS.split()) | st.text(LETTERS, max_size=12), max_size=20))
@settings(max_examples=200, deadline=None)
def test_text_gives_the_tokens_of_the_file(
    opened: CPredictor, python: TextTokenizer, parts: list[str]
) -> None:
    text = "a" + " ".join(parts)
    assert opened.tokenize(text) == _python_ids(python, text)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_the_same_tokens_or_is_refused(
    opened: CPredictor, python: TextTokenizer, text: str
) -> None:
    text = text.replace("\0", "") + "a"
    try:
        ids = opened.tokenize(text)
    except CError as error:
        assert error.name == "TextInputError"
        assert any(
            unicodedata.category(c) == "Cn"
            or any(map(unicodedata.combining, unicodedata.normalize("NFD", c)))
            for c in text
        )
        return
    assert ids == _python_ids(python, text)


def _character_bundle(folder: Path) -> tuple[Path, TextTokenizer]:
    """The tiny bundle with letters for tokens, so that every character can be told apart."""
    files = tiny_files()
    document: dict[str, Any] = json.loads(files["tokenizer.json"])
    vocabulary = document["model"]["vocab"]
    tokens = [chr(code) for code in range(0x21, 0x3000) if chr(code) not in vocabulary]
    tokens += ["##" + token for token in tokens]
    vocabulary.update({token: len(vocabulary) + index for index, token in enumerate(tokens)})
    files["tokenizer.json"] = json.dumps(document).encode()
    tokenizer = TextTokenizer.from_bytes(files["tokenizer.json"], 64)
    return repack(folder / "characters.umd", files), tokenizer


def test_every_character_is_treated_as_the_file_says(tmp_path: Path) -> None:
    path, python = _character_bundle(tmp_path)
    opened = CPredictor(path)
    refused = []
    for code in (*range(1, 0x3100), *range(0xA000, 0xA800), *range(0xF900, 0x10000), 0x1F600):
        if 0xD800 <= code <= 0xDFFF:
            continue
        text = f"a{chr(code)}b"
        try:
            ids = opened.tokenize(text)
        except CError:
            refused.append(code)
            continue
        assert ids == _python_ids(python, text)[: opened.describe().max_length], hex(code)
    # Everything in Latin, Greek, Cyrillic and the common signs is known.
    assert not [
        code for code in refused if code < 0x530 and unicodedata.category(chr(code)) != "Cn"
    ]


def test_long_texts_are_cut_like_in_python(opened: CPredictor, python: TextTokenizer) -> None:
    for count in range(0, 201, 8):
        text = "is " + "pleural effusion " * (count // 2)
        assert opened.tokenize(text) == _python_ids(python, text)


@pytest.mark.parametrize("length", [99, 100, 101, 400])
def test_words_at_the_limit_are_cut_into_pieces_or_unknown(
    opened: CPredictor, python: TextTokenizer, length: int
) -> None:
    for letter in ("s", "é", "中"):
        text = "scan" + letter * (length - 4)
        assert opened.tokenize(text) == _python_ids(python, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "empty"),
        (b" \t\xc2\xa0\x1c", "empty"),
        (b"caf\xe9", "not UTF-8"),
        (b"\xc0\xaf", "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b"\xf4\x90\x80\x80", "not UTF-8"),
        (b"abc\xe2\x82", "not UTF-8"),
        (b"x" * 10_001, "at most 10000"),
        ("a\u302e".encode(), r"U\+302E"),
    ],
)
def test_unusable_text_is_a_text_input_error(opened: CPredictor, text: bytes, message: str) -> None:
    with pytest.raises(CError, match=message) as caught:
        opened.tokenize(text)
    assert caught.value.name == "TextInputError"


def _edited(change: Any) -> dict[str, bytes]:
    files = tiny_files()
    document = json.loads(files["tokenizer.json"])
    change(document)
    return {**files, "tokenizer.json": json.dumps(document).encode()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"].update(type="BPE"), "byte-pair encoding is not supported yet"),
        (lambda d: d["model"].update(type="Unigram"), "another type"),
        (lambda d: d["model"].update(vocab={}), "no vocabulary"),
        (lambda d: d["model"].update(unk_token="[NO]"), "unknown token"),
        (lambda d: d["model"].update(max_input_chars_per_word=0), "longest word"),
        (lambda d: d["model"]["vocab"].update(lesion=-1), "number is not one"),
        (lambda d: d.update(normalizer={"type": "NFKC"}), "normaliser"),
        (lambda d: d.update(pre_tokenizer=None), "pre-tokeniser"),
        (lambda d: d.update(post_processor=None), "template"),
        (lambda d: d["post_processor"].update(single=[]), "leaves the text out"),
        (lambda d: d["added_tokens"][0].update(lstrip=True), "special way"),
        (lambda d: d.update(added_tokens=[{"content": "", "id": 1}]), "no content"),
    ],
)
def test_tokenizers_of_another_kind_are_refused_with_the_reason(
    change: Any, message: str, tmp_path: Path
) -> None:
    path = repack(tmp_path / "other.umd", _edited(change))
    with pytest.raises(CError, match=message) as caught:
        CPredictor(path)
    assert caught.value.name == "ManifestError"
