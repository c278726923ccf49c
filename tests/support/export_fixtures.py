"""A checkpoint with random weights and generated records, small enough to export in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from umd_edge._preprocess import PreprocessSpec
from umd_edge._structured import StructuredField
from umd_edge._task import TargetSpec, TaskSpec

QUESTIONS = (
    "is this image normal?",
    "which organ is shown in this picture?",
    "is there a bright square in the upper left part of the image, or is it dark?",
)
ANSWERS = ("yes", "no", "liver", "brain")
SIZE = 32

TASKS = (
    TaskSpec(
        name="vqa",
        kind="vqa",
        outputs=ANSWERS,
        reads=("question",),
        target=TargetSpec(field="answer"),
    ),
    TaskSpec(
        name="chest-xray",
        kind="classification",
        outputs=("Pneumonia", "Effusion"),
        multi_label=True,
        prompt="findings in this chest film",
        select={"modality": ("X-ray",)},
        target=TargetSpec(field="labels", absent="negative"),
        probability_kind="sigmoid",
    ),
    TaskSpec(
        name="skin-lesion",
        kind="classification",
        outputs=("benign", "malignant", "unclear"),
        prompt="kind of this skin lesion",
        select={"modality": ("photo",)},
        reads=("structured.itch", "age", "region"),
    ),
)
FIELDS = (
    StructuredField(name="structured.itch", kind="binary"),
    StructuredField(name="age", kind="numeric", unit="a", mean=50.0, std=20.0),
    StructuredField(name="region", kind="categorical", categories=("arm", "face", "back")),
)
SIZES = {
    "image_size": SIZE,
    "vocabulary_size": 256,
    "max_length": 24,
    "vision": {
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 32,
        "patch_size": 8,
        "stem": "conv",
        "stem_channels": [8, 12, 16],
        "stem_convolutions": [1, 1, 1],
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


def make_checkpoint(folder: Path, **changes: object) -> Path:
    """Write a checkpoint; `changes` replace entries of `SIZES`."""
    import torch

    from umd_edge_train.checkpoint import Checkpoint, save_checkpoint
    from umd_edge_train.config import model_config
    from umd_edge_train.models import UMDModel
    from umd_edge_train.tokenizer import train_wordpiece

    folder.mkdir(parents=True)
    tokenizer = train_wordpiece([*QUESTIONS, *(task.prompt for task in TASKS)], 256)
    torch.manual_seed(0)
    model = UMDModel(model_config({**SIZES, **changes}), TASKS, FIELDS).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif "norm" in name.lower() and name.endswith("weight"):
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(0.0, 0.2)
    checkpoint = Checkpoint(
        model=model,
        tokenizer_json=tokenizer,
        tasks=TASKS,
        structured_fields=FIELDS,
        preprocess=PreprocessSpec(height=SIZE, width=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3),
        max_length=24,
        provenance={"created": "2026-01-31T12:00:00+00:00", "data": {}},
    )
    save_checkpoint(folder, checkpoint, model.state_dict())
    return folder


def make_records(folder: Path, count: int = 18, *, non_commercial: bool = False) -> Path:
    """Write generated pictures and a JSONL with questions, films and lesions."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    lines = []
    for index in range(count):
        name = f"{index:03d}.png"
        pixels = rng.integers(0, 256, (SIZE + index, SIZE + 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        record: dict[str, object] = {
            "id": f"r{index}",
            "patient_id": f"p{index // 2}",
            "image": name,
            "non_commercial": non_commercial,
        }
        if index % 3 == 0:
            record |= {
                "question": QUESTIONS[(index // 3) % 3],
                "answer": ANSWERS[(index // 3) % 4],
                "modality": "CT",
            }
        elif index % 3 == 1:
            record |= {"labels": ["Pneumonia"], "modality": "X-ray"}
        else:
            record |= {
                "labels": [TASKS[2].outputs[(index // 3) % 3]],
                "modality": "photo",
                "structured": {"itch": True} if index % 2 else {},
                "age": 20 + index,
                "region": "face",
            }
        lines.append(json.dumps(record))
    path = folder / "train.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
