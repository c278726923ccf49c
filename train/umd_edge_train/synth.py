"""Generated data sets with known findings, for tests and smoke runs.

No picture here comes from a person. Each set shows bright shapes at known places on a background
whose texture stands for the modality, split by patient, and is small enough for a tiny model to
learn within a minute on a processor. The same seed gives the same files.

`shapes`
    Single label: disc, square, line or no finding.
`findings`
    Multi-label: any of disc, square, line; an absent label means that it is not there.
`questions`
    Open and closed questions about what is there, where, how many and in which modality.
`values`
    Single label, from the picture and from structured values: one of them informative, the others
    noise, each missing completely at random.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from umd_edge.errors import UsageError

__all__ = ["MIN_IMAGES", "SETS", "Shape", "render", "synthesise"]

MIN_IMAGES = 40
"""Fewer pictures would leave a split without some of the labels."""

Kind = Literal["disc", "square", "line"]
KINDS: tuple[Kind, ...] = ("disc", "square", "line")
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
MODALITIES = ("CT", "MR", "Ultrasound", "X-ray")
_MISSING = 0.2
_VALIDATION = 0.15
_TEST = 0.15


@dataclass(frozen=True, slots=True)
class Shape:
    """A finding with its place, in fractions of the picture."""

    kind: Kind
    quadrant: str
    x: float
    """Centre, from the left edge."""
    y: float
    """Centre, from the top edge."""
    radius: float

    @property
    def lesion(self) -> dict[str, Any]:
        """The manifest's `lesions` entry: box (x0, y0, x1, y1) and its area, as fractions."""
        half_height = self.radius / 4 if self.kind == "line" else self.radius
        box = (
            self.x - self.radius,
            self.y - half_height,
            self.x + self.radius,
            self.y + half_height,
        )
        return {
            "bbox": [round(v, 4) for v in box],
            "area": round(4 * self.radius * half_height, 4),
            "kind": self.kind,
        }


@dataclass(frozen=True, slots=True)
class _Patient:
    """What all pictures of a person share."""

    number: int
    split: str
    modality: str
    age: int
    sex: str
    background: npt.NDArray[np.float64] = field(repr=False)
    """(size, size) float64, 0..1."""


def _smooth_noise(
    rng: np.random.Generator, size: int, cells: int
) -> npt.NDArray[np.float64]:  # (size, size), 0..1
    """Random hills with about `cells` of them along a side, by bilinear interpolation."""
    grid = rng.random((cells + 1, cells + 1))
    place = np.linspace(0, cells - 1e-6, size)
    low = place.astype(np.intp)
    part = place - low
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    columns = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return np.asarray(columns, dtype=np.float64)


def _background(
    rng: np.random.Generator, modality: str, size: int
) -> npt.NDArray[np.float64]:  # (size, size), 0..1
    """A texture that tells the modality; the hills below it differ from patient to patient."""
    hills = _smooth_noise(rng, size, 5)
    y, x = np.mgrid[0:size, 0:size] / size
    if modality == "MR":
        angle, phase, waves = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi), rng.uniform(9, 12)
        texture = 0.5 + 0.5 * np.sin(
            2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y) + phase
        )
    elif modality == "Ultrasound":
        texture = rng.rayleigh(0.4, (size, size)).clip(0, 1)
    elif modality == "X-ray":
        texture = np.repeat(rng.random((size // 6 + 1, 1)), 6, axis=0)[:size] * np.ones((1, size))
    else:
        texture = np.hypot(x - 0.5, y - 0.5) < rng.uniform(0.42, 0.48)
    return np.asarray(0.55 * hills + 0.3 * texture, dtype=np.float64) / 0.85 * 0.55


def render(
    background: npt.NDArray[np.float64],
    shapes: tuple[Shape, ...],
    rng: np.random.Generator,
) -> npt.NDArray[np.uint8]:
    """Draw shapes on a background.

    Args:
        background: (S, S) float64, 0..1.
        shapes: Drawn bright, in this order.
        rng: Source of the grain.

    Returns:
        (S, S) uint8 greys.
    """
    size = background.shape[0]
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    picture = background + rng.normal(0, 0.03, background.shape)
    for shape in shapes:
        dx, dy = np.abs(x - shape.x), np.abs(y - shape.y)
        if shape.kind == "disc":
            inside = np.hypot(dx, dy) <= shape.radius
        elif shape.kind == "square":
            inside = np.maximum(dx, dy) <= shape.radius
        else:
            inside = (dx <= shape.radius) & (dy <= shape.radius / 4)
        picture[inside] = 0.95 + rng.normal(0, 0.02)
    return np.asarray((picture * 255).round().clip(0, 255), dtype=np.uint8)


def _shape(rng: np.random.Generator, kind: Kind, quadrant: str) -> Shape:
    left, top = "left" in quadrant, "upper" in quadrant
    x, y = rng.uniform(0.19, 0.31, 2)
    radius = float(rng.uniform(0.09, 0.15))
    return Shape(kind, quadrant, float(x if left else 1 - x), float(y if top else 1 - y), radius)


def _splits(rng: np.random.Generator, count: int) -> list[str]:
    held = max(1, round(count * _VALIDATION)), max(1, round(count * _TEST))
    names = ["val"] * held[0] + ["test"] * held[1] + ["train"] * (count - sum(held))
    return [names[i] for i in rng.permutation(count)]


def _patients(rng: np.random.Generator, images: int, size: int) -> Iterator[_Patient]:
    """Yield a patient for each picture: one to three pictures each, neighbours in the order."""
    counts: list[int] = []
    while sum(counts) < images:
        counts.append(min(int(rng.integers(1, 4)), images - sum(counts)))
    for number, (count, split) in enumerate(
        zip(counts, _splits(rng, len(counts)), strict=True), start=1
    ):
        modality = str(rng.choice(MODALITIES))
        patient = _Patient(
            number=number,
            split=split,
            modality=modality,
            age=int(rng.integers(20, 90)),
            sex=str(rng.choice(["F", "M"])),
            background=_background(rng, modality, size),
        )
        for _ in range(count):
            yield patient


class _Writer:
    """Collects the records of one set and writes its pictures and JSONL files."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.lines: dict[str, list[str]] = {}
        (folder / "images").mkdir(parents=True, exist_ok=True)

    def picture(self, number: int, pixels: npt.NDArray[np.uint8]) -> str:
        name = f"images/{self.folder.name}-{number:05d}.png"
        Image.fromarray(pixels).save(self.folder / name, optimize=False)
        return name

    def record(
        self, file: str, identity: str, patient: _Patient, image: str, extra: dict[str, Any]
    ) -> None:
        record = {
            "id": f"{self.folder.name}-{identity}",
            "patient_id": f"{self.folder.name}-p{patient.number:05d}",
            "image": image,
            "width": self.size,
            "height": self.size,
            "split": patient.split,
            "modality": patient.modality,
            **extra,
            "license": "CC0-1.0",
            "source_url": "https://creativecommons.org/publicdomain/zero/1.0/",
            "non_commercial": False,
            "dataset": self.folder.name,
        }
        self.lines.setdefault(file, []).append(json.dumps(record))

    def close(self) -> None:
        for name, lines in self.lines.items():
            text = "\n".join(lines) + "\n"
            (self.folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


def _write_shapes(writer: _Writer, rng: np.random.Generator, images: int) -> None:
    for number, patient in enumerate(_patients(rng, images, writer.size)):
        kind = (*KINDS, None)[int(rng.integers(4))]
        shapes = () if kind is None else (_shape(rng, kind, str(rng.choice(QUADRANTS))),)
        image = writer.picture(number, render(patient.background, shapes, rng))
        extra = {
            "age": patient.age,
            "sex": patient.sex,
            "labels": [kind or "no finding"],
            **({"lesions": [s.lesion for s in shapes]} if shapes else {}),
        }
        writer.record(patient.split, f"{number:05d}", patient, image, extra)


def _several(rng: np.random.Generator, chance: float) -> tuple[Shape, ...]:
    """Each kind with the same chance, never two in one quadrant."""
    places = rng.permutation(QUADRANTS)
    present = rng.random(len(KINDS)) < chance
    return tuple(
        _shape(rng, kind, str(place))
        for kind, place, there in zip(KINDS, places, present, strict=False)
        if there
    )


def _write_findings(writer: _Writer, rng: np.random.Generator, images: int) -> None:
    for number, patient in enumerate(_patients(rng, images, writer.size)):
        shapes = _several(rng, 0.4)
        image = writer.picture(number, render(patient.background, shapes, rng))
        extra = {
            "age": patient.age,
            "sex": patient.sex,
            "labels": [str(shape.kind) for shape in shapes] or ["No Finding"],
            **({"lesions": [s.lesion for s in shapes]} if shapes else {}),
        }
        writer.record(patient.split, f"{number:05d}", patient, image, extra)


def _questions(
    rng: np.random.Generator, modality: str, shapes: tuple[Shape, ...]
) -> Iterator[tuple[str, str, list[str], str]]:
    """Yield question, its type, the answers that count as right, and OPEN or CLOSED."""
    kinds = {shape.kind for shape in shapes}
    yield "what modality is this image?", "modality", [modality.lower()], "OPEN"
    asked = str(rng.choice(MODALITIES))
    answer = "yes" if asked == modality else "no"
    yield f"is this a {asked.lower()} image?", "modality", [answer], "CLOSED"
    kind = KINDS[int(rng.integers(len(KINDS)))]
    answer = "yes" if kind in kinds else "no"
    yield f"is there a {kind}?", "presence", [answer], "CLOSED"
    yield "how many findings are there?", "count", [str(len(shapes))], "OPEN"
    if shapes:
        shape = shapes[int(rng.integers(len(shapes)))]
        places = [shape.quadrant, f"{shape.quadrant} quadrant"]
        yield f"where is the {shape.kind}?", "position", places, "OPEN"
        names = [shape.kind, f"a {shape.kind}"]
        yield f"what is in the {shape.quadrant} quadrant?", "finding", names, "OPEN"


def _write_questions(writer: _Writer, rng: np.random.Generator, images: int) -> None:
    for number, patient in enumerate(_patients(rng, images, writer.size)):
        shapes = _several(rng, 0.5)
        image = writer.picture(number, render(patient.background, shapes, rng))
        parts = [f"a {shape.kind} in the {shape.quadrant} quadrant" for shape in shapes]
        caption = f"{patient.modality} image: {', '.join(parts) or 'no finding'}."
        writer.record(
            f"images_{patient.split}", f"{number:05d}", patient, image, {"caption": caption}
        )
        asked = _questions(rng, patient.modality, shapes)
        for index, (question, kind, answers, answer_type) in enumerate(asked):
            extra = {
                "question": question,
                "answer": answers[0],
                "answers": answers,
                "answer_type": answer_type,
                "yes_no": answer_type == "CLOSED",
                "question_type": kind,
            }
            writer.record(patient.split, f"{number:05d}-{index}", patient, image, extra)


def _write_values(writer: _Writer, rng: np.random.Generator, images: int) -> None:
    for number, patient in enumerate(_patients(rng, images, writer.size)):
        is_ill = bool(rng.random() < 0.5)
        # The picture alone is right in four of five cases; the marker settles most of the others.
        shows = rng.random() < (0.8 if is_ill else 0.2)
        shapes = (_shape(rng, "disc", str(rng.choice(QUADRANTS))),) if shows else ()
        marker = max(1.0, float(rng.normal(50 if is_ill else 22, 14)))
        values: dict[str, Any] = {
            "marker_mg_l": round(marker, 1),
            "sodium_mmol_l": round(float(rng.normal(140, 3)), 1),
            "smoker": bool(rng.random() < 0.3),
            "ward": str(rng.choice(["north", "south", "west"])),
        }
        kept = rng.random(len(values)) >= _MISSING
        structured = {k: v for (k, v), keep in zip(values.items(), kept, strict=True) if keep}
        image = writer.picture(number, render(patient.background, shapes, rng))
        extra = {
            "age": patient.age,
            "sex": patient.sex,
            "structured": structured,
            "labels": ["ill" if is_ill else "well"],
        }
        writer.record(patient.split, f"{number:05d}", patient, image, extra)


_WRITERS: dict[str, Callable[[_Writer, np.random.Generator, int], None]] = {
    "shapes": _write_shapes,
    "findings": _write_findings,
    "questions": _write_questions,
    "values": _write_values,
}
SETS = tuple(_WRITERS)
"""Names of the sets, which are the names of their folders."""


def synthesise(
    out: str | Path,
    *,
    seed: int = 0,
    images: int = 240,
    size: int = 96,
    on_set: Callable[[str], None] | None = None,
) -> tuple[Path, ...]:
    """Write all sets below `out`.

    Args:
        out: Folder; `out/<set>/{train,val,test}.jsonl` and `out/<set>/images/*.png` are written.
        seed: Same seed, same files.
        images: Pictures of each set, at least `MIN_IMAGES`.
        size: Side of the pictures, in pixels, 32 to 1024.
        on_set: Called with the name of each set that is done.

    Returns:
        The folders of the sets.

    Raises:
        UsageError: A number is out of range, or a set's folder is there already: files of two
            runs would mix. Or the folder cannot be written.
    """
    if seed < 0 or images < MIN_IMAGES or not 32 <= size <= 1024:
        raise UsageError(
            f"seed {seed}, images {images}, size {size} given; a seed of 0 or more, "
            f"{MIN_IMAGES} images or more and a size of 32 to 1024 pixels are allowed"
        )
    folders = tuple(Path(out) / name for name in SETS)
    for folder in folders:
        if folder.exists():
            raise UsageError(
                f"{folder} exists already; give --out a new folder, or remove this one"
            )
    try:
        for index, folder in enumerate(folders):
            writer = _Writer(folder, size)
            _WRITERS[folder.name](writer, np.random.default_rng([seed, index]), images)
            writer.close()
            if on_set is not None:
                on_set(folder.name)
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written ({error.strerror}); name another folder"
        ) from error
    return folders
