"""Images that no task was made for: photographs, noise, blank frames, and films turned about.

None of them is used in any fit. The generators are seeded, so that a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

__all__ = ["OWN_KINDS", "Pixels", "blanks", "found_photographs", "noises", "photographs"]

Pixels = npt.NDArray[np.uint8]
"""(H, W, 1 or 3)."""

_SIZES = (64, 112, 150, 224, 320, 512)
_SIDE = 224


def found_photographs() -> list[Path]:
    """Photographs that scikit-learn and Matplotlib bring along, where they are installed."""
    import matplotlib
    import sklearn

    places = [
        Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg",
        Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg",
        Path(matplotlib.__file__).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg",
    ]
    return [place for place in places if place.is_file()]


def photographs(paths: Sequence[Path], count: int, seed: int = 1) -> list[Pixels]:
    """Whole photographs first, then parts of them, half of all in grey."""
    rng = np.random.default_rng(seed)
    opened = [Image.open(path).convert("RGB") for path in paths]
    made: list[Pixels] = []
    for index in range(count):
        image = opened[index % len(opened)]
        if index >= 2 * len(opened):
            share = rng.uniform(0.25, 0.8)
            width, height = (int(share * side) for side in image.size)
            left, top = (
                int(rng.integers(0, side - part + 1))
                for side, part in zip(image.size, (width, height), strict=True)
            )
            image = image.crop((left, top, left + width, top + height)).resize((_SIDE, _SIDE))
        grey = (index // len(opened)) % 2 == 1
        pixels = np.asarray(image.convert("L") if grey else image)
        made.append(pixels[..., None] if grey else pixels)
    return made


def noises(count: int, seed: int = 2) -> list[Pixels]:
    """Uniform, Gaussian, salt and pepper, and blurred noise; grey and coloured; several sizes."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        side, channels = int(rng.choice(_SIZES)), (1, 3)[(index // 4) % 2]
        shape = (side, side, channels)
        kind = index % 4
        if kind == 0:
            values = rng.integers(0, 256, shape).astype(float)
        elif kind == 1:
            values = rng.normal(rng.uniform(60, 200), rng.uniform(15, 80), shape)
        elif kind == 2:
            values = 255.0 * (rng.random(shape) < rng.uniform(0.05, 0.5))
        else:
            values = _blurred(rng.normal(128, 60, (side, side)), rng.uniform(0.5, 4))
        made.append(np.clip(values, 0, 255).astype(np.uint8))
    return made


def _blurred(values: npt.NDArray[np.float64], radius: float) -> npt.NDArray[np.float64]:
    image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float64)
    spread: npt.NDArray[np.float64] = (soft - soft.mean()) / (soft.std() + 1e-6) * 50 + 128
    return spread[..., None]


def blanks(count: int, seed: int = 3) -> list[Pixels]:
    """Black, grey and white frames first, then any colour, faint sensor noise, and slopes."""
    rng = np.random.default_rng(seed)
    levels = (0, 255, 128, 5, 32, 64, 96, 160, 200, 230)
    made: list[Pixels] = [np.full((_SIDE, _SIDE, 1), level, np.uint8) for level in levels]
    while len(made) < count:
        kind = len(made) % 3
        if kind == 0:
            colour = rng.integers(0, 256, 3).astype(np.uint8)
            frame = np.broadcast_to(colour, (_SIDE, _SIDE, 3)).copy()
        elif kind == 1:
            faint = rng.normal(rng.uniform(0, 255), rng.uniform(0.5, 4), (_SIDE, _SIDE, 1))
            frame = np.clip(faint, 0, 255).astype(np.uint8)
        else:
            ends = rng.uniform(0, 255, 2).tolist()
            slope = np.linspace(ends[0], ends[1], _SIDE)[:, None] * np.ones((1, _SIDE))
            frame = (slope if len(made) % 2 else slope.T).astype(np.uint8)[..., None]
        made.append(frame)
    return made[:count]


def _cropped(pixels: Pixels) -> Pixels:
    """The middle ninth."""
    rows, columns = pixels.shape[:2]
    return np.ascontiguousarray(
        pixels[rows // 3 : rows - rows // 3, columns // 3 : columns - columns // 3]
    )


OWN_KINDS: dict[str, Callable[[Pixels], Pixels]] = {
    "inverted": lambda pixels: 255 - pixels,
    "quarter turn": lambda pixels: np.ascontiguousarray(np.rot90(pixels)),
    "upside down": lambda pixels: np.ascontiguousarray(pixels[::-1, ::-1]),
    "middle ninth": _cropped,
}
"""What is done to a task's own validation images."""
