from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import TextInputError, UsageError
from umd_edge_train.masking import (
    IGNORED,
    Vocabulary,
    mask_patches,
    mask_words,
    visible_patches,
    word_ids,
)
from umd_edge_train.tokenizer import train_wordpiece

QUICK = settings(max_examples=40, deadline=None)
CPU = torch.device("cpu")
VOCABULARY = Vocabulary(160, 4, tuple(range(5, 160)))
TEXTS = ["is there a nodule in the left lung", "what organ is it"]


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def wordpiece() -> TextTokenizer:
    return TextTokenizer.from_bytes(train_wordpiece(TEXTS, 300), 16)


@pytest.fixture(scope="module")
def byte_pairs() -> TextTokenizer:
    """As RoBERTa's: words are marked by a space in front, not by "##"."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=290,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return TextTokenizer.from_bytes(tokenizer.to_str().encode(), 16)


# --- words ---------------------------------------


def test_pieces_of_a_word_share_its_index(wordpiece: TextTokenizer):
    ids, mask, words = word_ids(wordpiece, ["what zyx is it", "lung"])
    wanted_ids, wanted_mask = wordpiece.encode(["what zyx is it", "lung"])
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(mask, wanted_mask)
    # no word of the corpus begins with "zyx": three pieces
    assert words.tolist() == [[-1, 0, 1, 1, 1, 2, 3, -1], [-1, 0, -1, -1, -1, -1, -1, -1]]


def test_words_need_no_mark_in_the_vocabulary(byte_pairs: TextTokenizer):
    _, _, words = word_ids(byte_pairs, ["is zyx it"])
    found = words[0].tolist()
    assert found[:2] == [-1, 0]
    assert found[-2:] == [2, -1]
    assert found.count(1) >= 3


@pytest.mark.parametrize("text", ["what [MASK] is it", "what \u2603 is it", "what [PAD] is it"])
def test_special_tokens_inside_a_text_belong_to_no_word(wordpiece: TextTokenizer, text: str):
    ids, _, words = word_ids(wordpiece, [text])
    assert words[0, 2] == -1
    assert ids[0, 2] < 5
    assert (words[0] >= 0).sum() == 3


def test_a_cut_text_keeps_the_words_of_its_tokens(wordpiece: TextTokenizer):
    ids, mask, words = word_ids(wordpiece, [" ".join(["lung"] * 50)])
    assert ids.shape == mask.shape == words.shape == (1, 16)
    assert words[0].tolist() == [-1, *range(14), -1]


def test_an_empty_text_is_refused(wordpiece: TextTokenizer):
    with pytest.raises(TextInputError, match="empty"):
        word_ids(wordpiece, ["lung", " "])


def test_the_vocabulary_separates_special_from_ordinary_tokens(
    wordpiece: TextTokenizer, byte_pairs: TextTokenizer
):
    for tokenizer, name in ((wordpiece, "[MASK]"), (byte_pairs, "<mask>")):
        vocabulary = Vocabulary.of(tokenizer)
        assert vocabulary.mask_id == tokenizer._tokenizer.token_to_id(name)
        assert vocabulary.size == tokenizer.vocabulary_size
        assert vocabulary.ordinary_ids == tuple(range(5, vocabulary.size))


def test_a_vocabulary_without_a_mask_token_is_refused():
    table = json.loads(train_wordpiece(TEXTS, 160))
    table["added_tokens"] = [t for t in table["added_tokens"] if t["content"] != "[MASK]"]
    table["model"]["vocab"]["[BLANK]"] = table["model"]["vocab"].pop("[MASK]")
    tokenizer = TextTokenizer.from_bytes(json.dumps(table).encode(), 16)
    with pytest.raises(UsageError, match=r"\[MASK\].*<mask>"):
        Vocabulary.of(tokenizer)


# --- patches ---------------------------------------


@pytest.mark.parametrize(
    ("count", "ratio", "kept"),
    [(576, 0.75, 144), (49, 0.75, 12), (4, 0.75, 1), (100, 0.9, 10), (10, 0.7, 3), (3, 0.75, 0)],
)
def test_a_quarter_of_the_patches_is_visible(count: int, ratio: float, kept: int):
    assert visible_patches(count, ratio) == kept


@QUICK
@given(
    batch=st.integers(1, 5),
    count=st.integers(4, 60),
    ratio=st.floats(0.05, 0.75),
    seed=st.integers(0, 99),
)
def test_kept_and_removed_patches_are_a_partition(batch: int, count: int, ratio: float, seed: int):
    keep, removed = mask_patches(batch, count, ratio, _rng(seed), CPU)
    assert keep.shape == (batch, visible_patches(count, ratio))
    for kept, gone in zip(keep.tolist(), removed.tolist(), strict=True):
        assert kept == sorted(kept)
        assert gone == sorted(gone)
        assert sorted(kept + gone) == list(range(count))


def test_each_picture_has_patches_of_its_own_and_all_are_as_likely():
    keep, _ = mask_patches(4000, 16, 0.75, _rng(), CPU)
    assert len({tuple(row) for row in keep.tolist()}) > 1000  # of C(16, 4) = 1,820
    # 4,000 draws with p = 1/4: five standard deviations are 137
    assert (torch.bincount(keep.flatten(), minlength=16) - 1000).abs().max() < 137


def test_the_same_generator_gives_the_same_masks():
    first, again, other = (mask_patches(3, 36, 0.75, _rng(s), CPU)[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- masked words ---------------------------------------


@st.composite
def _texts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and words of a batch: special tokens at both ends, words of 1 to 3 tokens, padding."""
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        sizes = draw(st.lists(st.integers(1, 3), max_size=12))
        words = [word for word, size in enumerate(sizes) for _ in range(size)]
        rows.append([-1, *words, -1])
    length = max(map(len, rows))
    word_of = torch.tensor([row + [-1] * (length - len(row)) for row in rows])
    ids = torch.randint(5, 160, word_of.shape, generator=_rng(draw(st.integers(0, 99))))
    return ids.masked_fill(word_of < 0, 2), word_of


@QUICK
@given(texts=_texts(), ratio=st.floats(0.05, 0.9), seed=st.integers(0, 99))
def test_whole_words_are_chosen_and_never_none(
    texts: tuple[torch.Tensor, torch.Tensor], ratio: float, seed: int
):
    ids, word_of = texts
    corrupted, targets = mask_words(ids, word_of, ratio, VOCABULARY, _rng(seed))
    for row in range(len(ids)):
        chosen = {int(w) for w, t in zip(word_of[row], targets[row], strict=True) if t != IGNORED}
        present = {int(w) for w in word_of[row] if w >= 0}
        wanted = int(np.floor(np.float32(len(present)) * np.float32(ratio) + np.float32(0.5)))
        assert -1 not in chosen
        assert len(chosen) == (max(1, wanted) if present else 0)
        for column in range(ids.shape[1]):
            if int(word_of[row, column]) in chosen:
                assert targets[row, column] == ids[row, column]
            else:
                assert targets[row, column] == IGNORED
                assert corrupted[row, column] == ids[row, column]


def test_words_are_masked_replaced_and_kept_as_in_bert():
    ids = torch.full((400, 100), 7)
    word_of = torch.arange(100).expand(400, 100)
    corrupted, targets = mask_words(ids, word_of, 0.15, VOCABULARY, _rng())
    chosen = corrupted[targets != IGNORED]
    assert len(chosen) == 400 * 15
    masked = (chosen == VOCABULARY.mask_id).float().mean()
    kept = (chosen == 7).float().mean()
    # five standard deviations at 6,000 draws; 1 in 155 replacements is the token itself
    assert abs(masked - 0.8) < 5 * (0.8 * 0.2 / 6000) ** 0.5
    assert abs(kept - 0.1 - 0.1 / 155) < 5 * (0.1 * 0.9 / 6000) ** 0.5
    replaced = chosen[(chosen != 7) & (chosen != VOCABULARY.mask_id)]
    assert replaced.min() >= 5
    assert len(replaced.unique()) > 130  # of 154, 600 draws


def test_all_words_are_as_likely_whatever_their_length():
    word_of = torch.tensor([-1, 0, 0, 0, 1, 2, 2, 3, -1]).expand(4000, 9)
    _, targets = mask_words(torch.full((4000, 9), 7), word_of, 0.15, VOCABULARY, _rng())
    starts = torch.tensor([1, 4, 5, 7])
    often = (targets[:, starts] != IGNORED).sum(dim=0)
    assert often.sum() == 4000  # one of four words
    assert (often - 1000).abs().max() < 137


def test_texts_without_words_stay_as_they_are():
    ids = torch.tensor([[2, 3, 0], [2, 1, 3]])
    corrupted, targets = mask_words(ids, torch.full((2, 3), -1), 0.15, VOCABULARY, _rng())
    assert torch.equal(corrupted, ids)
    assert (targets == IGNORED).all()
