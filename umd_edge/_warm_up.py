"""The first run of everything, on made-up input."""

from __future__ import annotations

import io
from time import perf_counter
from typing import TYPE_CHECKING

from ._encoded import EncodedImage
from ._image import load_image
from ._results import Timing

if TYPE_CHECKING:
    from ._predictor import Predictor

__all__ = ["warm_up"]

_QUESTION = "what is shown?"


def warm_up(predictor: Predictor) -> Timing:
    """See `Predictor.warm_up`; nothing of it is recorded or kept but the prompts."""
    from PIL import Image

    engine = predictor._engine
    start = perf_counter()
    file = io.BytesIO()
    Image.new("L", (64, 64), 128).save(file, "PNG")
    loaded = load_image(file.getvalue())
    encoded = EncodedImage(engine, loaded, (perf_counter() - start) * 1e3)
    encoded.features()
    timing = encoded.timing
    for task in predictor.tasks:
        if task.kind == "vqa":
            timing += engine.answer(encoded, _QUESTION, task.name).timing
        elif task.kind == "classification":
            timing += engine.classify(encoded, task.name, None, None).timing
    return timing
