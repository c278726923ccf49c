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
from umd_edge._task import compose_text
from umd_edge._task_table import task_text

Array = np.ndarray[Any, Any]
WORDS = (
    "which organ is shown in the x-ray ? is there a pleural-effusion? ¿qué órgano se ve: tórax, "
    "(naïve; 3,5 cm!) Größe, façade 'Ödem' [left/right] 50% a.p. C5/6 ÀÉÎõü don't"
).split()


def question(number: int) -> str:
    """Another one for each number, of 1 to 200 words in no order."""
    count = number * 77 % 201
    words = [WORDS[(number + place) % len(WORDS)] for place in range(count)]
    return " ".join(words) or "x"


def vectors(predictor: umd_edge.Predictor, images: Iterable[Array]) -> Iterable[bytes]:
    """One question or classification for each image, in turn over all tasks."""
    names = [task.name for task in predictor.tasks if task.kind == "classification"]
    for index, image in enumerate(images):
        if index % 2:
            yield _vector(predictor, image, names[index // 2 % len(names)], "")
        else:
            yield _vector(predictor, image, "", question(index // 2))


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
            *(struct.pack("=Ifd", *item) for item in items),
        ]
    )


def _items(
    predictor: umd_edge.Predictor, pixels: Array, task: str, text: str
) -> Sequence[tuple[int, float, float]]:
    """Output, logit and probability of what C lists."""
    encoded, engine = predictor.encode(pixels), predictor._engine
    if task:
        spec = engine.tasks.classification(task)
        findings = encoded.classify(task).findings
        ranked = [(finding.label, finding.probability) for finding in findings]
        features = engine.prompt_features(task_text(spec, None), keep=True)
    else:
        spec = engine.tasks.vqa(None)
        answer = encoded.ask(text)
        ranked = [(answer.answer, answer.probability)]
        ranked += [(item.answer, item.probability) for item in answer.alternatives]
        features = engine.question_features(compose_text(spec.prompt, [text]))
    logits, _ = engine.infer(encoded, spec, features, None)
    outputs = [spec.outputs.index(name) for name, _ in ranked]
    return [
        (output, float(logits[output]), probability)
        for output, (_, probability) in zip(outputs, ranked, strict=True)
    ]
