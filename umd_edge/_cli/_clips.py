"""Clips on the command line: `classify --frames` and `ask --frames`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from .._defaults import FRAMES
from .._frames import MOST_FRAMES
from .._image import kind_of
from .._predictor import Predictor
from .._results import Classification
from ..errors import UsageError

__all__ = [
    "check_frames",
    "classify_frames",
    "frames_line",
    "frames_option",
    "part_names",
]

frames_option = click.option(
    "--frames",
    type=click.IntRange(1, MOST_FRAMES),
    help="One answer for a clip or a DICOM file with several frames, from this many of them, "
    f"spread evenly. [{FRAMES} for MP4, AVI and MPEG; DICOM needs the number]",
)


def check_frames(frames: int | None, **others: object) -> None:
    """Refuse `--frames` beside an option that says otherwise which pictures are meant.

    Raises:
        UsageError: Both are given.
    """
    for name, value in others.items():
        if frames is not None and value not in (None, False, ()):
            raise UsageError(f"--frames and --{name} are both given; give one of the two")


def classify_frames(
    predictor: Predictor,
    image: str,
    task: str,
    options: Mapping[str, Any],
    frames: int | None,
) -> Classification:
    """Classify an image, or that many frames of a clip as one."""
    if frames is None or kind_of(image) == "image":
        return predictor.classify(image, task, **options)
    clip = predictor.encode_clip(image, frames)
    given = {name: value for name, value in options.items() if name != "frame"}
    result = clip.classify(task, **given)
    return replace(result, timing=clip.timing + result.timing)


def frames_line(frames: Mapping[str, Any]) -> str:
    """Which frames a result comes from, from the object `frames` of its JSON line."""
    numbers = ", ".join(str(number) for number in frames["numbers"])
    return f"frames {numbers} of {frames['total']}"


def part_names(line: Mapping[str, Any]) -> list[str]:
    """How to call the images that a JSON line was combined of: paths, or frames of a clip."""
    if "frames" in line:
        return [f"frame {number}" for number in line["frames"]["numbers"]]
    return list(line.get("study", ()))
