"""Which texts a tokenizer's vocabulary is trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.training import write_recipe
from umd_edge.errors import UsageError
from umd_edge_train.corpus import load_corpus
from umd_edge_train.recipe import Recipe, load_recipe
from umd_edge_train.run_inputs import read_inputs

_OTHER = 'vocabulary=[{path="questions/images_train.jsonl", fields=["caption"]}]'


def _recipe(folder: Path, *settings: str) -> Recipe:
    return load_recipe(write_recipe(folder, "questions"), settings)


def test_further_texts_come_beside_those_of_the_tasks(synth: Path, tmp_path: Path):
    own = set(load_corpus(_recipe(tmp_path), synth).texts)
    alone = set(load_corpus(_recipe(tmp_path, _OTHER, "vocabulary_alone=true"), synth).texts)
    both = set(load_corpus(_recipe(tmp_path, _OTHER), synth).texts)
    assert own and alone and not own & alone
    assert both == own | alone


def test_alone_needs_some_text(tmp_path: Path):
    with pytest.raises(UsageError, match="vocabulary_alone needs"):
        _recipe(tmp_path, "vocabulary_alone=true")


def test_both_arms_of_the_proof_read_vqarad_in_the_same_words(shared_data: Path):
    recipes = Path(__file__).resolve().parents[2] / "train" / "recipes"
    first, then = (
        read_inputs(load_recipe(recipes / name), shared_data, None).tokenizer_json
        for name in ("proof-pretrain.toml", "proof-finetune-vqarad.toml")
    )
    assert first == then
