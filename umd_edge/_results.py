"""Frozen records of what came out, with what is needed to audit it.

A repr shows no question and no answer, so that a logged record tells nothing about a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ._record import dataclass
from ._trust_curves import OperatingPoint
from ._trust_sets import PredictionSet

if TYPE_CHECKING:
    from ._image import DicomFacts

__all__ = [
    "Alternative",
    "Answer",
    "BundleInfo",
    "Classification",
    "ClipFrames",
    "Embeddings",
    "Finding",
    "Int8Path",
    "LeftOut",
    "Result",
    "Status",
    "StudyImages",
    "Timing",
    "answers_to_dict",
]

Status = Literal["ok", "abstain", "out_of_distribution", "outside_intended_use"]
Int8Path = Literal["", "native", "u8u8"]


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """Which bundle gave a result."""

    name: str
    version: str
    sha256: str
    """SHA-256 of the bytes of `manifest.json`, which holds the hash of every other file."""

    def to_dict(self) -> dict[str, str]:
        """The JSON object."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of each stage; 0.0 where a stage was not needed again."""

    decode_ms: float = 0.0
    """Reading and decoding the file, windowing to 8 bits."""
    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    text_ms: float = 0.0
    """Tokenising and the text graph. Where there is a second core a first question is read while
    the vision graph runs; this is then no part of the total."""
    fusion_ms: float = 0.0
    total_ms: float = 0.0
    """Of the whole call: the stages that it ran, with the time between them."""

    def __add__(self, other: Timing) -> Timing:
        # Spelled out, as it stands in every call: a loop over the fields takes three times as long.
        return Timing(
            self.decode_ms + other.decode_ms,
            self.preprocess_ms + other.preprocess_ms,
            self.vision_ms + other.vision_ms,
            self.text_ms + other.text_ms,
            self.fusion_ms + other.fusion_ms,
            self.total_ms + other.total_ms,
        )

    def to_dict(self) -> dict[str, float]:
        """The JSON object `timing_ms`, in milliseconds rounded to microseconds."""
        return {
            "decode": round(self.decode_ms, 3),
            "preprocess": round(self.preprocess_ms, 3),
            "vision": round(self.vision_ms, 3),
            "text": round(self.text_ms, 3),
            "fusion": round(self.fusion_ms, 3),
            "total": round(self.total_ms, 3),
        }


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image of a study that has no part in the result."""

    index: int
    """Its place among what was given, from 0."""
    status: str
    """As of a result; `error` where the image could not be read, `duplicate` where it was given
    before."""
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"index": self.index, "status": self.status, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class StudyImages:
    """How many images of a study a combined result comes from."""

    given: int
    used: int
    left_out: tuple[LeftOut, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        left_out = [item.to_dict() for item in self.left_out]
        return {"given": self.given, "used": self.used, "left_out": left_out}


@dataclass(frozen=True, slots=True)
class ClipFrames:
    """Which frames of a clip a result comes from."""

    numbers: tuple[int, ...]
    """Counted from 1; `images` of the result says which of them were left out, by their place."""
    total: int
    """How many frames the clip has."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"numbers": list(self.numbers), "total": self.total}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What every result carries."""

    status: Status
    """`ok`, or why the values must not be used as they are."""
    reason: str = ""
    """Why the status is not `ok`; names header tags, never their values."""
    bundle: BundleInfo
    variant: str
    provider: str
    int8_path: Int8Path = ""
    """How 8-bit products are summed on this processor: `native`, or `u8u8` where the native way
    could saturate; empty for a variant without them."""
    timing: Timing
    ood_score: float | None = None
    """How far the image is from those that the task was fitted on; 1.0 is the threshold. None
    where the bundle has no such score, or nothing was inferred."""
    images: StudyImages | None = field(default=None, repr=False)
    """Of a combined result: what it comes from; None for a single image."""
    frames: ClipFrames | None = None
    """Of a clip: which of its frames were used; None for images."""
    dicom: DicomFacts | None = field(default=None, repr=False)
    """Which DICOM instance and frame the image was, and its spacing; None for other images."""

    def common_dict(self) -> dict[str, Any]:
        """The keys that every JSON line shares; `dicom` and `frames` where there are any."""
        common: dict[str, Any] = {} if self.dicom is None else {"dicom": self.dicom.to_dict()}
        if self.frames is not None:
            common["frames"] = self.frames.to_dict()
        return {
            **common,
            "bundle": self.bundle.to_dict(),
            "variant": self.variant,
            "provider": self.provider,
            "int8_path": self.int8_path,
            "timing_ms": self.timing.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """One label of a classification."""

    label: str
    probability: float
    positive: bool
    """The arg-max of a single-label task; at or above the operating point otherwise, and wherever
    a sensitivity or specificity was asked for."""
    operating_point: OperatingPoint | None = None
    """Where a sensitivity or specificity was asked for: what decided, and what it reaches. None
    too for a label without an operating curve, which is then decided as without the request."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `operating_point` is there only where one was picked."""
        picked = self.operating_point
        return {
            "label": self.label,
            "probability": self.probability,
            "positive": self.positive,
            **({} if picked is None else {"operating_point": picked.to_dict()}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification(Result):
    """Findings of one task for one image, in the order of the task's labels."""

    task: str
    findings: tuple[Finding, ...] = field(repr=False)
    """Empty when the status is `outside_intended_use`."""
    prediction_set: PredictionSet | None = None
    """What cannot be excluded, where a coverage was asked for."""

    @property
    def top(self) -> Finding | None:
        """The most probable finding, or None when there are none."""
        return max(self.findings, key=lambda finding: finding.probability, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of a `classify` line, without `image` and `index`."""
        return {
            **self.common_dict(),
            "task": self.task,
            "status": self.status,
            "reason": self.reason,
            **_score_dict(self.ood_score),
            **_images_dict(self.images),
            "findings": [finding.to_dict() for finding in self.findings],
            **_set_dict(self.prediction_set),
        }


@dataclass(frozen=True, slots=True)
class Alternative:
    """A less probable answer."""

    answer: str
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"answer": self.answer, "probability": self.probability}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Result):
    """Answer to one question about one image."""

    question: str = field(repr=False)
    answer: str = field(repr=False)
    """Empty when the status is `outside_intended_use`."""
    probability: float
    alternatives: tuple[Alternative, ...] = field(repr=False)
    """The next most probable answers, in order; the answer itself is not among them."""
    prediction_set: PredictionSet | None = None
    """Answers that cannot be excluded, where a coverage was asked for."""

    @property
    def text(self) -> str:
        """The answer."""
        return self.answer

    def to_dict(self) -> dict[str, Any]:
        """One element of the `answers` of an `ask` line."""
        return {
            "question": self.question,
            "answer": self.answer,
            "probability": self.probability,
            "alternatives": [item.to_dict() for item in self.alternatives],
            "status": self.status,
            "reason": self.reason,
            **_score_dict(self.ood_score),
            **_images_dict(self.images),
            **_set_dict(self.prediction_set),
        }


def _score_dict(score: float | None) -> dict[str, float]:
    return {} if score is None else {"ood_score": score}


def _images_dict(images: StudyImages | None) -> dict[str, Any]:
    return {} if images is None else {"images": images.to_dict()}


def _set_dict(given: PredictionSet | None) -> dict[str, Any]:
    return {} if given is None else {"prediction_set": given.to_dict()}


def answers_to_dict(answers: Sequence[Answer], encoding: Timing | None = None) -> dict[str, Any]:
    """The JSON object of an `ask` line, without `image` and `index`.

    Args:
        answers: At least one, all about one image and from one predictor; their times are added.
        encoding: `EncodedImage.timing`, to be added where the image was encoded beforehand.
    """
    timing = sum((answer.timing for answer in answers), encoding or Timing())
    common = answers[0].common_dict()
    common["timing_ms"] = timing.to_dict()
    return {**common, "answers": [answer.to_dict() for answer in answers]}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """Vectors of images or texts in the space that both share."""

    values: npt.NDArray[np.float32] = field(repr=False)
    """(N, D) float32."""
    bundle: BundleInfo
    variant: str
    provider: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "bundle": self.bundle.to_dict(),
            "variant": self.variant,
            "provider": self.provider,
            "embeddings": self.values.tolist(),
        }
