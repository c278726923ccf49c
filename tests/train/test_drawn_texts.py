"""A picture's own text among drawn ones, as the paper trains retrieval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from support.training import write_recipe
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError
from umd_edge_train.batches import Batch, epoch_batches, pictures_of
from umd_edge_train.corpus import load_corpus
from umd_edge_train.drawn_texts import DrawnTexts
from umd_edge_train.finetuning import finetune
from umd_edge_train.losses import batch_features, batch_loss
from umd_edge_train.models import UMDModel
from umd_edge_train.objectives import SupervisedObjective
from umd_edge_train.recipe import load_recipe
from umd_edge_train.run_inputs import RunInputs, read_inputs

_WORDS = ["one lung", "two lungs", "a liver", "one heart", "no finding", "a knee"]
_PAPER = ("tasks.0.drawn_texts=3", "tasks.0.contrast_weight=0")


@pytest.fixture(scope="module")
def inputs(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> RunInputs:
    recipe = load_recipe(write_recipe(tmp_path_factory.mktemp("r"), "captions"), list(_PAPER))
    return read_inputs(recipe, synth, None)


@pytest.fixture(scope="module")
def tokenizer(inputs: RunInputs) -> TextTokenizer:
    return inputs.tokenizer


@given(
    own=st.lists(st.sampled_from([*_WORDS, "unknown"]), min_size=1, max_size=8),
    count=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_drawn_texts_are_different_and_never_the_right_one(
    tokenizer: TextTokenizer, own: list[str], count: int, seed: int
):
    ids, mask = DrawnTexts(_WORDS * 2, count, tokenizer, "t").draw(
        own, torch.Generator().manual_seed(seed)
    )
    known = {text: tokenizer.encode([text])[0][0].tolist() for text in _WORDS}
    rows = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    assert len(rows) == count * len(own)
    for index, text in enumerate(own):
        drawn = rows[index * count : (index + 1) * count]
        assert len({tuple(row) for row in drawn}) == count
        assert all(row in known.values() for row in drawn)
        assert known.get(text) not in drawn


def test_every_other_text_is_drawn(tokenizer: TextTokenizer):
    drawn = DrawnTexts(_WORDS, 1, tokenizer, "t")
    seen = {
        tuple(drawn.draw(["a liver"], torch.Generator().manual_seed(seed))[0][0].tolist())
        for seed in range(80)
    }
    assert len(seen) == len(_WORDS) - 1


def test_too_few_texts_are_refused(tokenizer: TextTokenizer):
    with pytest.raises(UsageError, match="6 given for 't', whose training split has 6 different"):
        DrawnTexts(_WORDS, 6, tokenizer, "t")


def _batch_and_model(
    synth: Path, tmp_path: Path, inputs: RunInputs, *settings: str
) -> tuple[Batch, UMDModel, SupervisedObjective, Tensor]:
    recipe = load_recipe(write_recipe(tmp_path, "captions"), list(settings))
    corpus = load_corpus(recipe, synth)
    pictures = pictures_of(recipe, corpus)
    index = {picture.path: row for row, picture in enumerate(pictures)}
    batch = next(epoch_batches(pictures, index, inputs.tokenizer, recipe.optim, 0, 0))
    torch.manual_seed(0)
    model = UMDModel(inputs.config, corpus.tasks, corpus.fields).eval()
    nn.init.normal_(model.match_head.weight)
    objective = SupervisedObjective(recipe, corpus, inputs.tokenizer)
    return batch, model, objective, torch.rand(len(batch.rows), 3, 32, 32)


def test_the_loss_is_a_softmax_over_the_right_text_and_the_drawn_ones(
    synth: Path, tmp_path: Path, inputs: RunInputs
):
    batch, model, objective, pixels = _batch_and_model(synth, tmp_path, inputs, *_PAPER)
    loss, named = batch_loss(
        model, objective, batch, pixels, "float32", torch.Generator().manual_seed(3)
    )
    # The reference scores one pair at a time.
    texts = [example.text for example in batch.examples]
    drawn = objective.drawn[0]
    assert drawn is not None
    ids, mask = drawn.draw(texts, torch.Generator().manual_seed(3))
    image_tokens = batch_features(model, batch, pixels, "float32").image_tokens
    expected = []
    for row, owner in enumerate(batch.owner.tolist()):
        candidates = [(batch.input_ids[row], batch.attention_mask[row])]
        candidates += [(ids[3 * row + k], mask[3 * row + k]) for k in range(3)]
        scores = []
        for tokens, shown in candidates:
            text = model.encode_text(tokens[None], shown[None])[0]
            joint = model.fuse_tokens(
                image_tokens[owner][None],
                text,
                shown[None],
                batch.structured_values[row][None],
                batch.structured_mask[row][None],
            )
            scores.append(float(model.match_head(joint).detach()))
        expected.append(float(np.log(np.exp(scores).sum()) - scores[0]))
    assert named["captions_loss"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert float(loss.detach()) == pytest.approx(np.sum(expected) / len(batch.rows), rel=1e-4)


def test_the_coordination_sees_all_candidates_the_right_one_first(
    synth: Path, tmp_path: Path, inputs: RunInputs
):
    batch, model, objective, pixels = _batch_and_model(synth, tmp_path, inputs, *_PAPER)
    seen: list[tuple[tuple[int, ...], list[int]]] = []
    batch_loss(
        model,
        objective,
        batch,
        pixels,
        "float32",
        torch.Generator().manual_seed(3),
        observe=lambda head, joint, first: seen.append((tuple(joint.shape), first.tolist())),
    )
    count = len(batch.examples)
    assert seen == [((count, 4, 2 * inputs.config.fusion.hidden_size), [0] * count)]


def test_every_weight_of_the_matching_path_learns_and_the_embeddings_do_not(
    synth: Path, tmp_path: Path, inputs: RunInputs
):
    batch, model, objective, pixels = _batch_and_model(synth, tmp_path, inputs, *_PAPER)
    loss, _ = batch_loss(
        model, objective, batch, pixels, "float32", torch.Generator().manual_seed(3)
    )
    loss.backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {"match_head.weight", "fusion.image_projection.weight"} <= moved
    assert any(name.startswith("vision_encoder") for name in moved)
    assert any(name.startswith("text_encoder") for name in moved)
    assert not any(name.startswith(("image_embedding", "text_embedding")) for name in moved)


def test_contrast_weighs_as_told(synth: Path, tmp_path: Path, inputs: RunInputs):
    found = []
    for weight in (0.0, 1.0, 3.0):
        batch, model, objective, pixels = _batch_and_model(
            synth, tmp_path, inputs, _PAPER[0], f"tasks.0.contrast_weight={weight}"
        )
        _, named = batch_loss(
            model, objective, batch, pixels, "float32", torch.Generator().manual_seed(3)
        )
        found.append(named["captions_loss"])
    assert found[1] > found[0]
    assert found[2] - found[0] == pytest.approx(3 * (found[1] - found[0]), rel=1e-4)


def test_a_run_learns_with_drawn_texts_and_resumes(synth: Path, tmp_path: Path):
    recipe = load_recipe(write_recipe(tmp_path, "captions"), list(_PAPER))
    finetune(recipe, synth, tmp_path / "whole")
    steps = []

    def stop(step: int) -> None:
        steps.append(step)
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(recipe, synth, tmp_path / "cut", on_step=stop)
    finetune(recipe, synth, tmp_path / "cut", resume=True)
    whole, cut = (
        (tmp_path / name / "final" / "model.safetensors").read_bytes() for name in ("whole", "cut")
    )
    assert whole == cut


@pytest.mark.parametrize(
    ("part", "setting", "told"),
    [
        ("questions", "tasks.0.drawn_texts=3", "only retrieval"),
        ("captions", "tasks.0.drawn_texts=5000", "different texts"),
        ("captions", "tasks.0.drawn_texts=-1", "drawn_texts"),
        ("captions", "tasks.0.contrast_weight=-1", "contrast_weight"),
    ],
)
def test_wrong_settings_are_told(
    synth: Path, tmp_path: Path, inputs: RunInputs, part: str, setting: str, told: str
):
    with pytest.raises(UsageError, match=told):
        recipe = load_recipe(write_recipe(tmp_path, part), [setting])
        SupervisedObjective(recipe, load_corpus(recipe, synth), inputs.tokenizer)
