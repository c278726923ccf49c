"""The tiny bundle with a retrieval task, and pictures and texts to rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support.bundles import repack

TEXTS = ["chest x ray", "brain", "fever , cough", "pleural effusion in the chest", "skin lesion"]


def searchable(out: Path, **changes: Any) -> Path:
    """Write the tiny bundle with a task `search`; `changes` replace keys of the task."""
    table: dict[str, Any] = {
        "name": "search",
        "kind": "retrieval",
        "labels": [],
        "multi_label": False,
        "prompt": "",
        "select": {},
        "reads": ["caption"],
        "target": {"field": "labels", "map": {}, "absent": "error", "on_unmapped": "error"},
        "group": "patient_id",
        "probability": {"kind": "softmax", "temperature": 1.0},
        "operating_points": {},
        "thresholds": {},
        "applies_to": {},
    }
    return repack(out, edit=lambda manifest: manifest["tasks"].append({**table, **changes}))


def pictures(folder: Path, count: int = 6) -> list[Path]:
    """PNG files that differ in brightness and pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        rng = np.random.default_rng(index)
        low = 30 * index
        pixels = rng.integers(low, low + 60, (20 + index, 24, 3), dtype=np.uint8)
        paths.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def captions(folder: Path, count: int = 6) -> Path:
    """A JSONL with a caption for each picture; two pictures share one."""
    lines = []
    for index, path in enumerate(pictures(folder, count)):
        record = {
            "id": f"r{index}",
            "patient_id": f"p{index // 2}",
            "image": path.name,
            "caption": TEXTS[index % len(TEXTS)],
        }
        lines.append(json.dumps(record))
    data = folder / "captions.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    return data
