"""What the reports for other systems share: which results they are about and which model spoke."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from ._evidence import Evidence, ImageFile, read_evidence, read_image_bytes
from ._results import Answer, BundleInfo, Classification, Finding
from .errors import DicomInputError, UsageError

__all__ = [
    "MANUFACTURER",
    "NOT_A_DEVICE",
    "Reported",
    "as_sources",
    "checked_results",
    "decision_note",
    "device_uid",
    "read_sources",
    "refuse_source",
    "set_note",
]

MANUFACTURER = "umd-edge"
NOT_A_DEVICE = "Not a medical device. For research and development only; not verified by a person."
Reported: TypeAlias = Classification | Answer


def device_uid(bundle: BundleInfo) -> str:
    """The UID of the model as a device: another one for every build, the same on every machine.

    `2.25.` and the first 128 bits of the manifest's SHA-256 as a decimal number (PS3.5 B.2).
    """
    return f"2.25.{int(bundle.sha256[:32], 16)}"


def checked_results(results: Reported | Sequence[Reported]) -> list[Reported]:
    """The results as a list.

    Raises:
        UsageError: There is none, or they are of different bundles, variants or providers.
    """
    listed = [results] if isinstance(results, (Classification, Answer)) else list(results)
    if not listed:
        raise UsageError("a report needs at least one result, none given")
    if len({(item.bundle, item.variant, item.provider) for item in listed}) != 1:
        raise UsageError(
            "the results are of different bundles, variants or providers; a report is about one of "
            "them: write one for each"
        )
    return listed


def set_note(result: Reported) -> str:
    """What cannot be excluded, for people; nothing where no coverage was asked for."""
    chosen = result.prediction_set
    if chosen is None:
        return ""
    listed = ", ".join(chosen.outputs) or "none"
    return f"Not excluded at coverage {chosen.coverage:g}: {listed}."


def decision_note(finding: Finding) -> str:
    """Where a finding was decided, for people; nothing where no operating point was asked for."""
    point = finding.operating_point
    if point is None:
        return ""
    return (
        f"Present from {point.threshold:.4g} on, where sensitivity {point.sensitivity:.3f} and "
        f"specificity {point.specificity:.3f} are expected."
    )


def as_sources(source: ImageFile | Sequence[ImageFile] | None) -> list[ImageFile]:
    """One image file or several as a list; empty for None."""
    if source is None:
        return []
    if isinstance(source, (str, bytes, os.PathLike)):
        return [source]
    return list(source)


def refuse_source(path: str | os.PathLike[str], sources: Sequence[ImageFile]) -> None:
    """Refuse to write a report over an image that it is about.

    Raises:
        UsageError: `path` is one of the sources, under whatever name.
    """
    target = Path(path)
    for source in sources:
        if isinstance(source, bytes):
            continue
        image = Path(source)
        if target.exists() and image.exists() and target.samefile(image):
            raise UsageError(
                f"the report would replace its own source {str(image)!r}; name another file"
            )


def read_sources(
    results: Sequence[Reported], sources: Sequence[ImageFile], frame: int | None
) -> list[Evidence]:
    """Identifiers of the DICOM images that results are about.

    Args:
        results: What came out.
        sources: DICOM files.
        frame: The frame that was looked at, from 1; None means what the results say.

    Raises:
        DicomInputError: A source is no DICOM image, lacks identifiers, or is, where there is one
            alone, another object than the results are about.
    """
    facts = next((item.dicom for item in results if item.dicom is not None), None)
    frames: tuple[int, ...] = () if frame is None else (frame,)
    if not frames and len(sources) == 1:
        frames = _frames_told(results)
    evidence = []
    for source in sources:
        name = "the image" if isinstance(source, bytes) else repr(str(source))
        evidence.append(read_evidence(read_image_bytes(source), name, frames=frames))
    told = facts.sop_instance_uid if facts is not None and len(sources) == 1 else None
    if told is not None and told != evidence[0].sop_uid:
        raise DicomInputError(
            "the results are about another DICOM object than the source: their SOPInstanceUID "
            "(0008,0018) differ; give the image that was classified"
        )
    return evidence


def _frames_told(results: Sequence[Reported]) -> tuple[int, ...]:
    """The frames that the results say they come from; empty where they say nothing."""
    clip = next((item for item in results if item.frames is not None), None)
    if clip is not None and clip.frames is not None:
        left_out = {item.index for item in clip.images.left_out} if clip.images else set()
        numbers = clip.frames.numbers
        return tuple(number for row, number in enumerate(numbers) if row not in left_out)
    facts = next((item.dicom for item in results if item.dicom is not None), None)
    return () if facts is None or facts.frame is None else (facts.frame,)
