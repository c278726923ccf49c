from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.training import write_recipe
from umd_edge.errors import UsageError
from umd_edge_train.config import PRESETS, ModelConfig, from_dict, model_config
from umd_edge_train.recipe import Recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "train" / "recipes"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, "questions", "shapes")


def _refused(path: Path, setting: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        load_recipe(path, (setting,))
    assert "\n" not in str(caught.value)


# --- recipes that come with the code ---------------------------------------


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RECIPES.glob("*.toml")) if path.name != "grid.toml"],  # holds recipes
    ids=lambda path: path.stem,
)
def test_every_recipe_that_comes_with_the_code_loads(path: Path):
    loaded = load_recipe(path)
    assert loaded.name
    for index, table in enumerate(loaded.tasks):
        assert loaded.spec_of(table, ("?",)).name == table["name"]
        assert loaded.training_of(index).datasets


def test_the_default_recipe_uses_free_records_and_safe_fields_only():
    loaded = load_recipe(RECIPES / "default.toml")
    assert not loaded.allow_non_commercial
    assert {task["name"] for task in loaded.tasks} == {
        "vqa",
        "retrieval",
        "chest-xray",
        "breast-ultrasound",
        "skin-lesion",
    }
    assert {field.name for field in loaded.structured_fields} == {
        "structured.itch",
        "structured.hurt",
        "structured.bleed",
        "structured.elevation",
        "age",
        "region",
    }


def test_the_default_recipe_may_start_from_its_pre_training():
    first = load_recipe(RECIPES / "default-pretrain.toml")
    then = load_recipe(RECIPES / "default.toml")
    assert not first.allow_non_commercial
    assert (first.model, first.normalise) == (then.model, then.normalise)
    assert first.structured_fields == then.structured_fields
    # Every word that the questions and captions of the second hold is one of the first.
    assert {d.path for d in first.datasets} == {d.path for d in then.datasets}
    assert first.vocabulary[0].path == "vqamed19/train.jsonl"


# --- settings ---------------------------------------


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("optim.epochs=7", lambda r: r.optim.epochs == 7),
        ("optim.learning_rate=1e-4", lambda r: r.optim.learning_rate == 1e-4),
        ("optim.learning_rate=1", lambda r: r.optim.learning_rate == 1.0),
        ("optim.warmup_fraction=1", lambda r: r.optim.warmup_fraction == 1.0),
        ("optim.average_decay=0", lambda r: r.optim.average_decay == 0.0),
        ("optim.learning_rate=0", lambda r: r.optim.learning_rate == 0.0),
        ("optim.precision=bfloat16", lambda r: r.optim.precision == "bfloat16"),
        ('optim.precision="bfloat16"', lambda r: r.optim.precision == "bfloat16"),
        ("allow_non_commercial=true", lambda r: r.allow_non_commercial is True),
        ('train_splits=["train", "val"]', lambda r: r.train_splits == ("train", "val")),
        ("model.vision.num_layers=2", lambda r: r.model["vision"]["num_layers"] == 2),
        ("model.fusion.pooling=first", lambda r: r.model["fusion"]["pooling"] == "first"),
        ("augment.scale=0", lambda r: r.augment.scale == 0.0),
        ("name=a=b", lambda r: r.name == "a=b"),
    ],
)
def test_set_overrides(recipe: Path, setting: str, read: Any):
    settings_ = (setting, "validation_splits=[]") if "train_splits" in setting else (setting,)
    assert read(load_recipe(recipe, settings_))


def test_later_settings_win_and_others_stay(recipe: Path):
    loaded = load_recipe(recipe, ("optim.epochs=3", "optim.epochs=4"))
    assert loaded.optim.epochs == 4
    assert loaded.optim.images_per_batch == load_recipe(recipe).optim.images_per_batch


def test_a_recipe_without_a_name_is_called_after_its_file(recipe: Path):
    text = recipe.read_text(encoding="utf-8").replace('name = "minute"\n', "", 1)
    other = recipe.with_name("mine.toml")
    other.write_text(text, encoding="utf-8")
    assert load_recipe(other).name == "mine"


def test_to_dict_gives_every_setting(recipe: Path):
    loaded = load_recipe(recipe)
    table = loaded.to_dict()
    assert table["optim"]["gradient_clip"] == 1.0
    assert from_dict(Recipe, table, "recipe") == loaded


# --- presets ---------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_merged_part_by_part(preset: str):
    plain = model_config({"preset": preset})
    changed = model_config({"preset": preset, "text": {"num_layers": 1}, "dropout": 0.3})
    assert changed.text.num_layers == 1
    assert changed.text.hidden_size == plain.text.hidden_size
    assert changed.vision == plain.vision
    assert changed.fusion == plain.fusion
    assert (changed.dropout, plain.dropout) == (0.3, 0.1)
    assert from_dict(ModelConfig, plain.to_dict(), "model") == plain


# --- refusals ---------------------------------------


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("optim.epochz=3", r"recipe\.optim: unknown settings \['epochz'\]; allowed are .*epochs"),
        ("colour=3", r"recipe: unknown settings \['colour'\]"),
        ("model.vision.depth=3", r"model\.vision: unknown settings \['depth'\]"),
        ("model.size=3", r"model: unknown settings \['size'\]"),
        ("optim.epochs=many", r"recipe\.optim\.epochs: int is needed, 'many' given"),
        ("optim.epochs=1.5", r"recipe\.optim\.epochs: int is needed, 1\.5 given"),
        ("optim.epochs=true", r"recipe\.optim\.epochs: int is needed, True given"),
        ("optim.learning_rate=fast", r"recipe\.optim\.learning_rate: float is needed"),
        ("optim.precision=half", r"recipe\.optim\.precision: 'half' given; one of 'float32'"),
        ("allow_non_commercial=1", r"recipe\.allow_non_commercial: bool is needed"),
        ("train_splits=train", r"recipe\.train_splits: a list is needed"),
        ("train_splits=[1]", r"recipe\.train_splits\[0\]: str is needed"),
        ("optim=3", r"recipe\.optim: a table is needed, int given"),
        ("model=3", r"recipe\.model: dict is needed"),
        ("model.vision=3", r"model\.vision: a table is needed"),
        ("tasks=[]", r"at least one \[\[datasets\]\] and one \[\[tasks\]\]"),
        ("datasets=[]", r"at least one \[\[datasets\]\]"),
        ('datasets=[{name="a"}]', r"recipe\.datasets\[0\]: missing settings \['path'\]"),
        ("optim.images_per_batch=1", r"optim\.images_per_batch: 1 given; 2 or more"),
        ("optim.texts_per_image=0", r"optim\.texts_per_image: 0 given; 1 or more"),
        ("optim.epochs=0", r"optim\.epochs: 0 given; 1 or more"),
        ("optim.learning_rate=-1", r"optim\.learning_rate: -1 given; a finite number, 0 or more,"),
        ("optim.learning_rate=inf", r"optim\.learning_rate: inf given"),
        ("optim.head_rate=nan", r"optim\.head_rate: nan given"),
        ("optim.gradient_clip=0", r"optim\.gradient_clip: 0 given; a finite number above 0"),
        ("optim.average_decay=1", r"optim\.average_decay: 1 given; 0 or more and less than 1"),
        ("optim.warmup_fraction=1.01", r"optim\.warmup_fraction: 1\.01 given; 0\.\.1 is allowed"),
        ("optim.structured_dropout=-0.1", r"optim\.structured_dropout: -0\.1 given; 0\.\.1"),
        ("augment.scale=1", r"augment\.scale: 1 given; 0 or more and less than 1"),
        ("augment.contrast=2", r"augment\.contrast: 2 given; 0\.\.1 is allowed"),
        ("augment.aspect=-1", r"augment\.aspect: -1 given"),
        ("tasks.0.loss_weight=-1", r"tasks\.loss_weight: -1 given"),
        ("tasks.0.label_smoothing=1", r"tasks\.label_smoothing: 1 given"),
        ("datasets.0.repeat=0", r"datasets\.repeat: 0 given; 1 or more"),
        ("run.evaluate_every_epochs=0", r"run\.evaluate_every_epochs: 0 given"),
        ("run.checkpoint_every_steps=0", r"run\.checkpoint_every_steps: 0 given"),
        ("seed=-1", r"recipe\.seed: -1 given"),
        ("folds=3", r"fold -1 given; 0\.\.2 is allowed"),
        ('validation_splits=["train"]', r"\['train'\] are in both"),
        ("epochs", r"--set 'epochs': write it as path\.to\.setting=value"),
        ("=3", r"write it as path\.to\.setting=value"),
        ("name.first=3", r"'name' is no table"),
        (
            "datasets.0.flip=true",
            r"datasets\.flip: true given for \['questions'\], and the task 'vqa' reads",
        ),
        ("tasks.9.prompt=x", r"'9' given where a number from 0"),
    ],
)
def test_a_bad_setting_is_refused_with_its_path(recipe: Path, setting: str, expected: str):
    _refused(recipe, setting, expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('prompt = "which shape is shown"', "", r"recipe: task 'shapes'.*prompt"),
        ("datasets = [", "data = [", r"tasks\[0\]: missing settings \['datasets'\]"),
        ('datasets = ["shapes"]', 'datasets = ["x"]', r"tasks\[1\]\.datasets names \['x'\]"),
        ('class_weight = "balanced"', 'class_weight = "x"', r"tasks\[1\]\.class_weight: 'x'"),
        ('labels = ["disc",', 'labels = ["line",', r"labels or answers occur twice"),
        ('prompt = "which', 'promt = "which', r"recipe: tasks\.shapes: unknown keys \['promt'\]"),
        ('name = "shapes"\nkind', 'name = "vqa"\nkind', r"\[\[tasks\]\] has a name twice"),
        ('name = "shapes"\npath', 'name = "questions"\npath', r"\[\[datasets\]\] has a name twice"),
        ('kind = "vqa"', 'kind = "chat"', r"kind 'chat'"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(recipe: Path, old: str, new: str, expected: str):
    text = recipe.read_text(encoding="utf-8")
    assert old in text
    recipe.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError, match=expected):
        load_recipe(recipe)


@pytest.mark.parametrize("content", [b"[model\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not valid TOML"):
        load_recipe(path)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, name: str):
    with pytest.raises(UsageError, match="cannot be read; give a TOML file"):
        load_recipe(tmp_path / name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(
    part=st.sampled_from(["optim", "model", "augment", "run", "datasets", "tasks", "seed"]),
    value=JSON,
)
def test_any_value_in_any_place_is_read_or_refused_as_a_usage_error(part: str, value: Any):
    table: dict[str, Any] = {
        "name": "x",
        "datasets": [{"name": "a", "path": "a"}],
        "tasks": [{"name": "t", "kind": "classification", "datasets": ["a"], "prompt": "p"}],
    }
    try:
        from_dict(Recipe, {**table, part: value}, "recipe")
    except UsageError as error:
        assert "\n" not in str(error)
