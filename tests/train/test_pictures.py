from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.training import write_recipe
from umd_edge._image import load_image
from umd_edge._preprocess import PreprocessSpec, preprocess
from umd_edge.errors import ImageInputError
from umd_edge_train.batches import epoch_batches, pictures_of, steps_per_epoch
from umd_edge_train.corpus import load_corpus
from umd_edge_train.finetuning import finetune
from umd_edge_train.pictures import PictureStore, StreamedPictures, augment
from umd_edge_train.pretraining import pretrain
from umd_edge_train.recipe import AugmentConfig, load_recipe

SPEC = PreprocessSpec(height=32, width=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
OFF = AugmentConfig(
    scale=0.0, aspect=0.0, rotate_degrees=0.0, brightness=0.0, contrast=0.0, colour=0.0
)
NEVER = torch.zeros(3, dtype=torch.bool)
ALWAYS = torch.ones(3, dtype=torch.bool)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    found = []
    for i, shape in enumerate([(50, 70, 3), (32, 32), (20, 41)]):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        found.append(path)
    return found


@pytest.fixture
def store(paths: list[Path]) -> PictureStore:
    return PictureStore(paths, 32, 32, SPEC.coefficient_bits)


def test_the_store_gives_what_the_device_sees(paths: list[Path], store: PictureStore):
    rows = [store.index[path] for path in paths]
    wanted = np.stack([preprocess(load_image(path).pixels, SPEC) for path in paths])
    assert np.array_equal(store.pixel_values(rows, SPEC).numpy(), wanted)


def test_augmentation_that_is_off_gives_what_the_device_sees(store: PictureStore):
    got = augment(store.pixels, NEVER, SPEC, OFF, _rng())
    assert OFF.is_off
    torch.testing.assert_close(got, store.pixel_values([0, 1, 2], SPEC), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.3},
        {"aspect": 0.3},
        {"rotate_degrees": 20.0},
        {"brightness": 0.3},
        {"contrast": 0.3},
        {"colour": 0.2},
        {"erase": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_augmentation_changes_something_and_keeps_the_range(store, change):
    settings = {**{f: getattr(OFF, f) for f in OFF.__dataclass_fields__}, **change}
    config = AugmentConfig(**settings)
    assert not config.is_off
    got = augment(store.pixels, NEVER, SPEC, config, _rng(1))
    assert (got - store.pixel_values([0, 1, 2], SPEC)).abs().max() > 0.05
    levels = got * torch.tensor(SPEC.std).view(3, 1, 1) + torch.tensor(SPEC.mean).view(3, 1, 1)
    assert levels.min() > -1e-4
    assert levels.max() < 1 + 1e-4
    assert got.shape == (3, 3, 32, 32)
    assert got.dtype == torch.float32


def test_only_pictures_that_may_be_mirrored_are(store: PictureStore):
    plain = store.pixel_values([0, 1, 2], SPEC)
    flips = torch.tensor([True, False, True])
    seen = [set(), set(), set()]
    for seed in range(24):
        got = augment(store.pixels, flips, SPEC, OFF, _rng(seed))
        for i in range(3):
            as_is = torch.allclose(got[i], plain[i], atol=2e-4)
            mirrored = torch.allclose(got[i], plain[i].flip(-1), atol=2e-4)
            assert as_is or mirrored
            seen[i].add(mirrored)
    assert seen == [{True, False}, {False}, {True, False}]


def test_the_same_seed_gives_the_same_pictures(store: PictureStore):
    strong = AugmentConfig(erase=0.5)
    first, again, other = (augment(store.pixels, ALWAYS, SPEC, strong, _rng(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_augmentation_leaves_the_global_random_state_and_the_store_alone(store: PictureStore):
    state, pixels = torch.get_rng_state(), store.pixels.copy()
    augment(store.pixels, ALWAYS, SPEC, AugmentConfig(erase=1.0), _rng())
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(pixels, store.pixels)


def test_a_broken_picture_stops_the_reading(paths: list[Path]):
    paths[1].write_bytes(b"no picture")
    with pytest.raises(ImageInputError):
        PictureStore(paths, 32, 32, 22)


def test_a_missing_picture_stops_the_reading(paths: list[Path]):
    with pytest.raises(ImageInputError):
        PictureStore([*paths, paths[0].with_name("gone.png")], 32, 32, 22)


def test_streamed_pictures_are_those_in_memory(paths: list[Path], store: PictureStore):
    streamed = StreamedPictures(paths, *store.pixels.shape[1:3], SPEC.coefficient_bits)
    assert streamed.index == store.index
    rows = [2, 0, 2]  # the same picture may come twice
    streamed.ahead([0])
    for _ in range(2):
        assert np.array_equal(streamed.fetch(rows), store.fetch(rows))
        assert torch.equal(streamed.pixel_values(rows, SPEC), store.pixel_values(rows, SPEC))
    assert not streamed._coming  # nothing is kept


def test_a_broken_picture_stops_the_stream_when_its_turn_comes(paths: list[Path]):
    streamed = StreamedPictures([*paths, paths[0].with_name("gone.png")], 32, 32, 22)
    assert len(streamed.fetch([0])) == 1
    with pytest.raises(ImageInputError):
        streamed.fetch([len(paths)])


@pytest.mark.parametrize("kind", ["finetune", "pretrain"])
def test_a_streamed_run_is_the_same_and_keeps_no_picture(
    synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    run, found = {"finetune": finetune, "pretrain": pretrain}[kind], []
    for pictures in ("memory", "stream"):
        settings = (f"run.pictures={pictures}", "optim.epochs=1")
        recipe = load_recipe(write_recipe(tmp_path, "questions"), settings)
        if pictures == "stream":
            monkeypatch.setattr(PictureStore, "__init__", _refuse)
        metrics = run(recipe, synth, tmp_path / pictures)
        history = (tmp_path / pictures / "history.jsonl").read_text(encoding="utf-8")
        found.append((json.dumps(metrics), history))  # NaN equals NaN
    assert found[0] == found[1]


def _refuse(*given: object) -> None:
    raise AssertionError("a streamed run holds its pictures in memory")


# --- batches ---------------------------------------


@pytest.fixture(scope="module")
def drawn(synth: Path, tmp_path_factory: pytest.TempPathFactory):
    """What is needed to draw batches from questions and shapes."""
    from umd_edge._tokenizer import TextTokenizer
    from umd_edge_train.tokenizer import train_wordpiece

    recipe = load_recipe(write_recipe(tmp_path_factory.mktemp("r"), "questions", "shapes"))
    corpus = load_corpus(recipe, synth)
    pictures = pictures_of(recipe, corpus)
    index = {picture.path: i for i, picture in enumerate(pictures)}
    tokenizer = TextTokenizer.from_bytes(train_wordpiece(corpus.texts, 160), 16)

    def batches(seed: int, epoch: int, optim=recipe.optim, pictures=pictures):
        return list(epoch_batches(pictures, index, tokenizer, optim, seed, epoch))

    return recipe, pictures, batches


def test_an_epoch_shows_every_picture_once_with_its_own_examples(drawn):
    recipe, pictures, batches = drawn
    found = batches(0, 0)
    assert len(found) == steps_per_epoch(pictures, recipe.optim)
    rows = [row for batch in found for row in batch.rows]
    assert len(rows) == len(set(rows))
    assert len(pictures) - len(rows) < 2
    for batch in found:
        assert len(batch.examples) == len(batch.owner) == len(batch.input_ids)
        for owner, example in zip(batch.owner.tolist(), batch.examples, strict=True):
            assert example.image_path == pictures[batch.rows[owner]].path
        counts = np.bincount(batch.owner.numpy(), minlength=len(batch.rows))
        assert counts.min() >= 1
        assert counts.max() <= recipe.optim.texts_per_image


@pytest.mark.parametrize("texts_per_image", [1, 2, 5])
def test_an_epoch_of_texts_shows_each_text_once(drawn, texts_per_image: int):
    recipe, pictures, batches = drawn
    optim = replace(recipe.optim, epoch="texts", texts_per_image=texts_per_image)
    pictures = [replace(p, repeat=2) if i == 0 else p for i, p in enumerate(pictures)]
    found = batches(3, 1, optim, pictures)
    assert len(found) == steps_per_epoch(pictures, optim)
    shown = Counter(id(example) for batch in found for example in batch.examples)
    wanted = Counter(id(e) for p in pictures for _, e in p.examples for _ in range(p.repeat))
    # the last batch is left out where it is a single picture
    assert shown <= wanted
    assert (wanted - shown).total() <= texts_per_image
    for batch in found:
        assert np.bincount(batch.owner.numpy()).max() <= texts_per_image

    def order(epoch: int) -> list[int]:
        drawn = batches(3, epoch, optim, pictures)
        return [id(example) for batch in drawn for example in batch.examples]

    assert order(1) == order(1) != order(2)


def test_only_data_sets_that_allow_it_are_mirrored(drawn):
    _, pictures, batches = drawn
    for batch in batches(0, 0):
        for row, flip in zip(batch.rows, batch.flips.tolist(), strict=True):
            assert flip == ("shapes" in pictures[row].path.parts)


@pytest.mark.parametrize("both", [True, False])
def test_a_picture_of_two_data_sets_is_mirrored_only_where_both_allow_it(
    synth: Path, tmp_path: Path, both: bool
):
    path = write_recipe(tmp_path, "shapes")
    text = path.read_text(encoding="utf-8")
    again = text[text.index("[[datasets]]") :].replace('"shapes"', '"again"')
    again = again.replace('path = "again"', 'path = "shapes"\nrepeat = 3')
    if not both:
        again = again.replace("flip = true", "flip = false")
    path.write_text(text + again, encoding="utf-8")
    recipe = load_recipe(path)
    pictures = pictures_of(recipe, load_corpus(recipe, synth))
    assert len({picture.path for picture in pictures}) == len(pictures)
    assert {picture.flip for picture in pictures} == {both}
    assert {picture.repeat for picture in pictures} == {3}


def test_batches_depend_on_seed_and_epoch_only(drawn):
    _, _, batches = drawn

    def summary(seed: int, epoch: int):
        return [
            (b.rows, b.owner.tolist(), b.input_ids.tolist(), b.structured_mask.tolist())
            for b in batches(seed, epoch)
        ]

    assert summary(1, 2) == summary(1, 2)
    assert summary(1, 2) != summary(1, 3)
    assert summary(1, 2) != summary(2, 2)


def test_structured_values_are_hidden_at_random_and_never_invented(synth: Path, tmp_path: Path):
    from umd_edge._tokenizer import TextTokenizer
    from umd_edge_train.tokenizer import train_wordpiece

    recipe = load_recipe(write_recipe(tmp_path, "values"))
    corpus = load_corpus(recipe, synth)
    pictures = pictures_of(recipe, corpus)
    index = {picture.path: i for i, picture in enumerate(pictures)}
    tokenizer = TextTokenizer.from_bytes(train_wordpiece(corpus.texts, 160), 16)
    shown = present = 0.0
    for epoch in range(30):
        for batch in epoch_batches(pictures, index, tokenizer, recipe.optim, 0, epoch):
            mask = torch.from_numpy(np.stack([e.structured_mask for e in batch.examples]))
            assert (batch.structured_mask <= mask).all()
            shown += float(batch.structured_mask.sum())
            present += float(mask.sum())
    # 0.7 of single values stay, in 0.85 of the examples
    assert shown / present == pytest.approx(0.7 * 0.85, abs=0.05)
