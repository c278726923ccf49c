"""Golden vectors for the C test program: what the Python runtime makes of images and texts."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import umd_edge
from umd_edge._image import load_image
from umd_edge._preprocess import preprocess

Array = np.ndarray[Any, Any]
QUESTIONS = (
    "Which organ is shown?",
    "is there a pleural effusion ?",
    "Qué órgano se ve: ¿tórax? (naïve; 3,5 cm!)",
    "what is it " + "really " * 200,
    "x",
)


def vectors(predictor: umd_edge.Predictor, images: Iterable[Array]) -> Iterable[bytes]:
    """One question or classification for each image, in turn over all tasks."""
    names = [task.name for task in predictor.tasks if task.kind == "classification"]
    for index, image in enumerate(images):
        if index % 2:
            yield _vector(predictor, image, names[index // 2 % len(names)], "")
        else:
            yield _vector(predictor, image, "", QUESTIONS[index // 2 % len(QUESTIONS)])


def write_vectors(path: Path, predictor: umd_edge.Predictor, images: Iterable[Array]) -> Path:
    """Write the file that `bindings/c/tests/umd_edge_test.c` describes."""
    path.write_bytes(b"".join(vectors(predictor, images)))
    return path


def _vector(predictor: umd_edge.Predictor, image: Array, task: str, text: str) -> bytes:
    pixels = np.ascontiguousarray(image)
    channels = 3 if pixels.ndim == 3 else 1
    name, words = task.encode(), text.encode()
    height, width = pixels.shape[:2]
    numbers = (width, height, channels, pixels.itemsize, len(name), len(words))
    head = struct.pack("=6I", *numbers)
    ids = np.zeros(0, np.int64)
    if text:
        ids = predictor._engine.tokenizer.encode([text])[0][0]
    values = preprocess(load_image(pixels).pixels, predictor.manifest.preprocessing)
    items = _items(predictor, pixels, task, text)
    return b"".join(
        [
            *(head, name, words, pixels.tobytes()),
            *(struct.pack("=I", ids.size), ids.tobytes()),
            *(struct.pack("=I", values.size), values.tobytes()),
            struct.pack("=I", len(items)),
            *(struct.pack("=Id", output, probability) for output, probability in items),
        ]
    )


def _items(
    predictor: umd_edge.Predictor, pixels: Array, task: str, text: str
) -> Sequence[tuple[int, float]]:
    if task:
        findings = predictor.classify(pixels, task).findings
        return [(index, finding.probability) for index, finding in enumerate(findings)]
    answer = predictor.ask(pixels, text)
    answers = next(t.outputs for t in predictor.tasks if t.kind == "vqa")
    ranked = [(answer.answer, answer.probability)]
    ranked += [(item.answer, item.probability) for item in answer.alternatives]
    return [(answers.index(name), probability) for name, probability in ranked]
