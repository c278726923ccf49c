"""Labelled records whose answers are what a predictor itself decides: its accuracy is then 1."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

QUESTIONS = ("which organ is shown ?", "what modality is shown ?", "is there a finding ?")


def make_labelled(
    folder: Path,
    predictor: Any,
    count: int,
    change: Callable[[int, dict[str, Any]], object] = lambda index, record: None,
) -> Path:
    """Write `count` records of the task `vqa`, one patient each.

    Args:
        folder: Made here.
        predictor: Gives the answers.
        count: How many.
        change: Called with the index and the record before it is written.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    lines = []
    for index in range(count):
        picture = folder / f"{index:03d}.png"
        rough = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((24, 24)).save(picture)
        question = QUESTIONS[index % len(QUESTIONS)]
        record = {
            "id": f"record-{index}",
            "patient_id": f"patient-{index}",
            "image": picture.name,
            "question": question,
            "answer": predictor.ask(picture, question).answer,
            "non_commercial": False,
        }
        change(index, record)
        lines.append(json.dumps(record))
    path = folder / "labelled.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
