"""The recipes with the paper's settings, on the sets that they name as converters write them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from support import public_sets as sets
from support.training import MINUTE
from umd_edge._records import Example
from umd_edge.errors import DataError
from umd_edge_train.batches import Picture, pictures_of, steps_per_epoch
from umd_edge_train.converters import medicat
from umd_edge_train.corpus import load_corpus
from umd_edge_train.data_cli import data
from umd_edge_train.finetuning import finetune
from umd_edge_train.pretraining import adapt, pretrain
from umd_edge_train.recipe import Recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "train" / "recipes"
PRETRAINED = ["paper-pretrain", "m3ae-pretrain"]
DOWNSTREAM = ["paper-vqa-rad", "paper-slake", "paper-vqa-med-2019", "paper-melinda", "paper-roco"]
_COMMAND = "#   data convert "
_QUICK = (
    "optim.epochs=1",
    "optim.images_per_batch=8",
    "optim.accumulation=1",
    "optim.precision=float32",
    "run.evaluate_every_epochs=1000",
)


def _recipe(name: str, *settings: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.toml", settings)


def _small(name: str) -> Recipe:
    """The same recipe with a minute model that starts from nothing."""
    # of fifteen drawn texts: the made set has fewer
    quick = (*_QUICK, "tasks.0.drawn_texts=2") if name == "paper-roco" else _QUICK
    recipe = _recipe(name, *quick)
    model = {key: dict(v) if isinstance(v, dict) else v for key, v in MINUTE.items()}
    model["text"] |= {"positions": recipe.model["text"]["positions"]}
    model["fusion"] |= recipe.model.get("fusion", {})
    # fewer layers than `mim_layer` speaks of
    reconstruction = replace(recipe.reconstruction, mim_layer=-1)
    return replace(recipe, model=model, reconstruction=reconstruction)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder made by the commands that stand in the recipes' own comments."""
    folder = tmp_path_factory.mktemp("paper")
    references = folder / "sources" / "references"
    for split in ("train", "val", "test"):
        row = {"roco_image_id": "PMC1000_fig-1.jpg", "gorc_references": ["Seen in figure 1."]}
        sets.json_lines(references / f"roco_{split}_references.jsonl", [row])
    done: set[str] = set()
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(medicat, "_HELD_OUT", 4)  # of 20 figures, not 1,000 of many
    for name in (*PRETRAINED, *DOWNSTREAM):
        text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
        commands = [line for line in text.splitlines() if line.startswith(_COMMAND)]
        assert commands, name
        for command in set(commands) - done:
            kind, _, out, *options = shlex.split(command.removeprefix(_COMMAND))
            source = folder / "sources" / kind
            if not source.exists():
                sets.BUILDERS[kind](source)
            options = [str(references) if part == "REFERENCES" else part for part in options]
            arguments = [kind, source, folder / out, *options]
            found = CliRunner().invoke(data, ["convert", *map(str, arguments)])
            assert found.exit_code == 0, found.output
            done.add(command)
    monkeypatch.undo()
    return folder / "data"


@pytest.mark.parametrize("name", PRETRAINED + DOWNSTREAM)
def test_a_paper_recipe_reads_all_that_its_commands_convert(name: str, converted: Path):
    recipe = _recipe(name)
    corpus = load_corpus(recipe, converted)
    written = 0
    for dataset in recipe.datasets:
        manifest = converted / dataset.path / "train.jsonl"
        written += len(manifest.read_text(encoding="utf-8").splitlines())
    assert sum(len(s.examples) for found in corpus.train for s in found) == written > 0
    assert all(any(len(s.examples) for s in found) for found in corpus.validation)


@pytest.mark.parametrize("name", ["paper-pretrain", "paper-melinda"])
def test_without_their_leave_sets_that_are_not_free_are_refused(name: str, converted: Path):
    recipe = _recipe(name, "allow_non_commercial=false")
    with pytest.raises(DataError, match="no record may be used for training"):
        load_corpus(recipe, converted)


@pytest.mark.parametrize(
    ("name", "settings", "pictures", "texts", "steps"),
    [
        ("paper-vqa-rad", (), 314, 3064, 48),
        (
            "paper-vqa-rad",
            ("optim.images_per_batch=32", "optim.accumulation=2"),  # of `adapt`
            314,
            3064,
            96,
        ),
        ("paper-slake", (), 450, 4919, 154),
        ("paper-vqa-med-2019", (), 3200, 9600, 300),
        ("paper-melinda", (), 4344, 4344, 272),
        ("paper-pretrain", (), 2000, 404_700, 1581),  # texts alone count
    ],
)
def test_an_epoch_has_the_steps_of_the_released_runs(
    name: str, settings: tuple[str, ...], pictures: int, texts: int, steps: int
):
    optim = _recipe(name, *settings).optim
    share, rest = divmod(texts, pictures)
    example: tuple[int, Example] = (0, None)  # type: ignore[assignment]
    shown = [
        Picture(Path(str(i)), False, 1, (example,) * (share + (i < rest))) for i in range(pictures)
    ]
    assert steps_per_epoch(shown, optim, optim.accumulation) == steps


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("paper-pretrain", 64),
        ("paper-vqa-rad", 32),
        ("paper-slake", 32),
        ("paper-vqa-med-2019", 32),
        ("paper-melinda", 128),
        ("paper-roco", 40),
    ],
)
def test_texts_are_as_long_as_the_papers(name: str, length: int):
    assert _recipe(name).model["max_length"] == length


@pytest.mark.parametrize("name", ["paper-pretrain", *DOWNSTREAM])
def test_the_teacher_starts_and_moves_as_in_the_released_code(name: str):
    config = _recipe(name).reconstruction
    assert (config.teacher_init, config.teacher_update) == ("random", "micro_batch")
    assert config.teacher_decay == 0.995


@pytest.mark.slow
def test_the_whole_method_runs_with_texts_of_other_lengths(converted: Path, tmp_path: Path):
    small = _small("paper-pretrain")
    small = replace(small, model={**small.model, "max_length": 12})
    pretrain(small, converted, tmp_path / "mr")
    for name in DOWNSTREAM:
        recipe = _small(name)
        recipe = replace(recipe, model={**recipe.model, "max_length": 20})
        first, second = tmp_path / f"{name}-td", tmp_path / f"{name}-gm"
        adapt(recipe, converted, first, init=tmp_path / "mr" / "final")
        finetune(recipe, converted, second, init=first / "final")
        assert (second / "coordination.png").exists()


@pytest.mark.slow
def test_the_m3ae_recipe_runs(converted: Path, tmp_path: Path):
    recipe = _small("m3ae-pretrain")
    metrics = pretrain(recipe, converted, tmp_path / "run")
    assert "mlm_loss" in str(metrics)
    assert not pictures_of(recipe, load_corpus(recipe, converted))[0].flip
