from __future__ import annotations

import json
import os
import string
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError
from umd_edge_train.tokenizer import SPECIAL_TOKENS, train_wordpiece

CORPUS = (
    "is there a nodule in the left lung?",
    "is there a nodule in the right lung?",
    "what organ is shown in this image?",
    "which plane is the image taken in?",
    "Does this T2-weighted MRI show an edema?",
)


@pytest.fixture(scope="module")
def trained() -> bytes:
    return train_wordpiece(CORPUS, 200)


@pytest.fixture(scope="module")
def tokenizer(trained: bytes) -> TextTokenizer:
    return TextTokenizer.from_bytes(trained, 32)


def test_the_same_texts_in_any_order_give_the_same_bytes(trained: bytes):
    for _ in range(4):
        assert train_wordpiece(reversed(CORPUS), 200) == trained
        assert train_wordpiece(iter(CORPUS), 200) == trained


def test_another_process_gives_the_same_bytes(trained: bytes):
    """Hash tables are seeded for each process: a resumed run must not renumber the words."""
    code = (
        "import sys; from umd_edge_train.tokenizer import train_wordpiece; "
        f"sys.stdout.buffer.write(train_wordpiece({CORPUS!r}, 200))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    assert done.stdout == trained


def test_another_corpus_gives_another_vocabulary(trained: bytes):
    assert train_wordpiece([*CORPUS, "an entirely different sentence"], 200) != trained


def test_special_tokens_come_first_and_the_size_is_kept(trained: bytes):
    vocabulary = json.loads(trained)["model"]["vocab"]
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert len(vocabulary) <= 200
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_the_size_is_an_upper_bound(trained: bytes):
    small = TextTokenizer.from_bytes(train_wordpiece(CORPUS, 150), 32)
    assert small.vocabulary_size <= 150
    assert TextTokenizer.from_bytes(trained, 32).vocabulary_size > small.vocabulary_size


def test_texts_are_framed_and_case_does_not_matter(tokenizer: TextTokenizer):
    ids, mask = tokenizer.encode(["Is there a NODULE?", "is there a nodule?"])
    assert ids[0].tolist() == ids[1].tolist()
    assert (ids[0][0], ids[0][-1]) == (2, 3)
    assert mask.all()


def test_words_of_the_corpus_become_one_token(trained: bytes):
    tokens = Tokenizer.from_str(trained.decode()).encode("nodule lung").tokens
    assert tokens == ["[CLS]", "nodule", "lung", "[SEP]"]


@settings(max_examples=60, deadline=None)
@given(text=st.text(string.printable, min_size=1, max_size=30).filter(str.strip))
def test_no_ascii_text_becomes_unknown(tokenizer: TextTokenizer, text: str):
    ids, _ = tokenizer.encode([text])
    assert 1 not in ids[0]


def test_a_text_of_strange_letters_is_unknown_and_not_an_error(tokenizer: TextTokenizer):
    ids, _ = tokenizer.encode(["肺"])
    assert ids[0].tolist() == [2, 1, 3]


def test_marks_and_brackets_of_the_vocabulary_are_no_special_words(tokenizer: TextTokenizer):
    ids, _ = tokenizer.encode(["a ##a b"])
    pieces, _ = tokenizer.encode(["a # # a b"])
    assert ids.tolist() == pieces.tolist()


def test_a_letter_of_the_corpus_is_known_anywhere():
    trained = TextTokenizer.from_bytes(train_wordpiece(["é β-cells", "ß"], 160), 16)
    ids, _ = trained.encode(["aβa ßß"])
    assert 1 not in ids[0]


def test_a_vocabulary_without_room_for_the_characters_is_refused():
    with pytest.raises(UsageError, match=r"model\.vocabulary_size: 100 given; 141 or more"):
        train_wordpiece(CORPUS, 100)


def test_a_corpus_of_nothing_still_reads_ascii():
    bare = TextTokenizer.from_bytes(train_wordpiece([], 141), 16)
    ids, _ = bare.encode(["a b!"])
    assert 1 not in ids[0]
