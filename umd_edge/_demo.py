"""The demo: ask about real medical images, classify them, and write down what came out.

The images are those of the user, or four that come with pydicom; none is stored here and nothing is
downloaded. `_picture` draws the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ._files import whole_file, write_whole
from ._image import load_image
from ._predictor import Predictor
from ._results import Answer, Classification, Timing, answers_to_dict
from .errors import InputError, MissingDependencyError, UmdEdgeError, UsageError

__all__ = [
    "HEADER_BESIDE",
    "QUESTIONS",
    "DemoItem",
    "DemoSource",
    "look_at",
    "packaged_images",
    "write_output",
]

QUESTIONS = {
    "modality": "what imaging modality was used to take this image?",
    "organ": "what organ system is shown in the image?",
    "plane": "in what plane is this image taken?",
}
"""Short name -> question."""

HEADER_BESIDE = {"modality": "Modality", "organ": "BodyPartExamined"}
"""Question -> DICOM attribute that is shown beside its answer."""

_PACKAGED = {
    "examples_overlay.dcm": "MR of an abdomen",
    "J2K_pixelrep_mismatch.dcm": "CT of a head",
    "examples_jpeg2k.dcm": "Ultrasound of a lymph node",
    "JPEG-lossy.dcm": "Whole-body scintigram",
}
_SHOWN_SIDE = 900


@dataclass(frozen=True, slots=True)
class DemoSource:
    """One image to look at."""

    image: str
    """As it is named in the output."""
    title: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoItem:
    """What came out for one image."""

    source: DemoSource
    shown: Image.Image | None = None
    """The decoded image, made smaller; None when it could not be used."""
    header: Mapping[str, str | None] | None = None
    """`Modality` and `BodyPartExamined` of a DICOM file; None for other images."""
    answers: Mapping[str, Answer]
    """Name of the question -> answer."""
    classifications: Sequence[Classification]
    encoding: Timing = field(default_factory=Timing)
    """Decoding, preprocessing and the vision graph."""
    error: UmdEdgeError | None = None

    @property
    def first_answer_ms(self) -> float:
        """From the file to the first answer; 0 where nothing was asked."""
        first = next(iter(self.answers.values()), None)
        return 0.0 if first is None else self.encoding.total_ms + first.timing.total_ms

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of a line of `demo.jsonl`, without `image` and `index`."""
        if self.error is not None:
            message = " ".join(str(self.error).split())
            return {"error": {"type": type(self.error).__name__, "message": message}}
        answers = list(self.answers.values())
        keys = ("task", "status", "reason", "findings", "timing_ms")
        classified = [result.to_dict() for result in self.classifications]
        return {
            "header": self.header,
            **(answers_to_dict(answers, self.encoding) if answers else {}),
            "classifications": [{key: result[key] for key in keys} for result in classified],
        }


def packaged_images() -> list[DemoSource]:
    """The four real images that pydicom brings along.

    Raises:
        MissingDependencyError: pydicom is not installed, or without its example files.
    """
    try:
        from pydicom.data import get_testdata_file
    except ImportError as error:
        raise MissingDependencyError(
            "the demo's own images come with pydicom, which is not installed; "
            'pip install "umd-edge[dicom]", or give images of your own'
        ) from error
    sources = []
    for name, title in _PACKAGED.items():
        path = get_testdata_file(name, download=False)
        if path is None:
            raise MissingDependencyError(
                f"this pydicom does not bring {name} along; install pydicom 3, or give images of "
                "your own"
            )
        sources.append(DemoSource(f"pydicom/{name}", title, str(path)))
    return sources


def look_at(
    predictor: Predictor, sources: Sequence[DemoSource], *, frame: int | None = None
) -> Iterator[DemoItem]:
    """Ask the three questions about each image and classify it by every task.

    An image that cannot be used gives an item with its error.
    """
    for source in sources:
        try:
            yield _look_at_one(predictor, source, frame)
        except (InputError, MissingDependencyError) as error:
            yield DemoItem(source=source, answers={}, classifications=(), error=error)


def _look_at_one(predictor: Predictor, source: DemoSource, frame: int | None) -> DemoItem:
    encoded = predictor.encode(source.path, frame=frame)
    facts = encoded.dicom
    kinds = [task.kind for task in predictor.tasks]
    questions = QUESTIONS if kinds.count("vqa") == 1 else {}
    answers = {name: encoded.ask(question) for name, question in questions.items()}
    return DemoItem(
        source=source,
        shown=_small(source.path, frame),
        header=None
        if facts is None
        else {"Modality": facts.modality, "BodyPartExamined": facts.body_part_examined},
        answers=answers,
        classifications=[
            encoded.classify(task.name) for task in predictor.tasks if task.kind == "classification"
        ],
        encoding=encoded.timing,
    )


def _small(path: str, frame: int | None) -> Image.Image:
    pixels = load_image(path, frame=frame).pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE), Image.Resampling.LANCZOS)
    return image


def write_output(
    folder: Path, items: Sequence[DemoItem], picture: Image.Image
) -> tuple[Path, Path]:
    """Write `demo.png` and `demo.jsonl`; each appears whole or not at all.

    Returns:
        The two paths.

    Raises:
        UsageError: The folder cannot be made or written to.
    """
    lines = [
        json.dumps({"image": item.source.image, "index": index, **item.to_dict()})
        for index, item in enumerate(items)
    ]
    text = "".join(line + "\n" for line in lines)
    drawn, listed = folder / "demo.png", folder / "demo.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(drawn) as file:
            picture.save(file, format="PNG")
        write_whole(listed, text.encode("utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot write to {str(folder)!r} ({error.strerror}); name another folder with --out"
        ) from error
    return drawn, listed
