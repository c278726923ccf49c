"""Minute models and recipes, small enough to train in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from umd_edge._preprocess import PreprocessSpec
from umd_edge._structured import StructuredField
from umd_edge._task import TargetSpec, TaskSpec
from umd_edge_train.checkpoint import Checkpoint
from umd_edge_train.config import ModelConfig, model_config
from umd_edge_train.models import UMDModel

MINUTE: dict[str, Any] = {
    "image_size": 32,
    "vocabulary_size": 160,
    "max_length": 16,
    "dropout": 0.0,
    "vision": {
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 32,
        "stem_channels": [8, 8, 16, 16],
        "stem_convolutions": [1, 1, 1, 1],
    },
    "text": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32},
    "fusion": {
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 32,
        "embedding_size": 8,
    },
}
FIELDS = (
    StructuredField(name="structured.marker", kind="numeric", mean=30.0, std=15.0),
    StructuredField(name="structured.smoker", kind="binary"),
    StructuredField(name="structured.ward", kind="categorical", categories=("north", "south")),
)
TASKS = (
    TaskSpec(
        name="shape",
        kind="classification",
        outputs=("disc", "line", "none"),
        prompt="which shape",
        reads=tuple(field.name for field in FIELDS),
    ),
    TaskSpec(
        name="vqa",
        kind="vqa",
        outputs=("yes", "no", "2", "left lung"),
        reads=("question",),
        target=TargetSpec(field="answer"),
    ),
)

_RECIPE = """
name = "minute"

[model]
image_size = 32
vocabulary_size = 160
max_length = 16
dropout = 0.0
[model.vision]
hidden_size = 16
num_layers = 1
num_heads = 2
intermediate_size = 32
stem_channels = [8, 8, 16, 16]
stem_convolutions = [1, 1, 1, 1]
[model.text]
hidden_size = 16
num_layers = 1
num_heads = 2
intermediate_size = 32
[model.fusion]
hidden_size = 16
num_layers = 1
num_heads = 2
intermediate_size = 32
embedding_size = 8

[optim]
epochs = 2
images_per_batch = 8
texts_per_image = 2

[augment]
rotate_degrees = 0.0

[run]
checkpoint_every_steps = 3

"""
_PARTS = {
    "questions": """
[[datasets]]
name = "questions"
path = "questions"

[[tasks]]
name = "vqa"
kind = "vqa"
datasets = ["questions"]
reads = ["question"]
target = { field = "answer" }
""",
    "shapes": """
[[datasets]]
name = "shapes"
path = "shapes"
flip = true

[[tasks]]
name = "shapes"
kind = "classification"
datasets = ["shapes"]
prompt = "which shape is shown"
labels = ["disc", "square", "line", "no finding"]
class_weight = "balanced"
""",
    "values": """
[[structured_fields]]
name = "structured.marker_mg_l"
kind = "numeric"
unit = "mg/L"

[[structured_fields]]
name = "structured.ward"
kind = "categorical"

[[datasets]]
name = "values"
path = "values"

[[tasks]]
name = "values"
kind = "classification"
datasets = ["values"]
prompt = "is this patient ill"
labels = ["ill", "well"]
reads = ["structured.marker_mg_l", "structured.ward"]
""",
    "captions": """
[[datasets]]
name = "captions"
path = "questions"
prefix = "images_"

[[tasks]]
name = "captions"
kind = "retrieval"
datasets = ["captions"]
reads = ["caption"]
""",
}


def minute_config(**changes: Any) -> ModelConfig:
    """The `MINUTE` settings with some changed; `vision__stem="patch"` reaches into a part."""
    table = {k: dict(v) if isinstance(v, dict) else v for k, v in MINUTE.items()}
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if name:
            table[part][name] = value
        else:
            table[part] = value
    return model_config(table)


def minute_model(
    config: ModelConfig | None = None,
    tasks: tuple[TaskSpec, ...] = TASKS,
    fields: tuple[StructuredField, ...] = FIELDS,
) -> UMDModel:
    """A model with random weights in evaluation mode; its structured values are not mute."""
    torch.manual_seed(7)
    model = UMDModel(config or minute_config(), tasks, fields)
    with torch.no_grad():
        # Weights of 0.02 would hide mistakes behind small numbers.
        for name, parameter in model.named_parameters():
            if not name.startswith(("vision_encoder", "text_encoder")) and parameter.ndim > 1:
                parameter.mul_(15.0)
    return model.eval()


def minute_checkpoint(model: UMDModel | None = None) -> Checkpoint:
    """A checkpoint of a model with random weights, with a tokenizer that nothing reads."""
    return Checkpoint(
        model=model or minute_model(),
        tokenizer_json=b'{"any": "bytes"}',
        tasks=TASKS,
        structured_fields=FIELDS,
        preprocess=PreprocessSpec(height=32, width=32, mean=(0.1, 0.2, 0.3)),
        max_length=16,
        provenance={"commit": "abc", "data": {"licence": "CC0-1.0"}},
    )


def write_recipe(folder: Path, *parts: str) -> Path:
    """A recipe on generated data: any of questions, shapes, values, captions."""
    # Tables of the same kind may stand apart in TOML, so the parts are simply joined.
    path = folder / "recipe.toml"
    path.write_text(_RECIPE + "".join(_PARTS[part] for part in parts), encoding="utf-8")
    return path
