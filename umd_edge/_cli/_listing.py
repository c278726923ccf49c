"""Folders and DICOMDIRs among the images of a command line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._output import note, progress

__all__ = ["instance_line", "listed"]


def listed(given: Sequence[str]) -> list[str]:
    """Put the images of folders and DICOMDIRs in the place of these, and say how many there are.

    Raises:
        ImageInputError: A folder or DICOMDIR without an image.
    """
    images: list[str] = []
    for path in given:
        if Path(path).name.upper() == "DICOMDIR" or os.path.isdir(path):
            images += _images_of(path)
        else:
            images.append(path)
    return images


def instance_line(dicom: Mapping[str, Any]) -> str:
    """Which instance a result is about, from the object `dicom` of its JSON line."""
    names = {"study": "study_instance_uid", "series": "series_instance_uid"}
    names["instance"] = "sop_instance_uid"
    parts = [f"{word} {dicom[key]}" for word, key in names.items() if dicom[key]]
    if dicom["frame"] is not None:
        parts.append(f"frame {dicom['frame']}")
    return ", ".join(parts)


def _images_of(path: str) -> list[str]:
    from .._study import list_studies

    left_out: Counter[str] = Counter()
    with progress(f"looking through {path}") as advance:
        studies = list_studies(
            path, on_left_out=lambda file, reason: left_out.update([reason]), on_progress=advance
        )
    series = [one for study in studies for one in study.series]
    images = [instance.path for one in series for instance in one.instances]
    dicom = [study for study in studies if study.study_instance_uid is not None]
    parts = [_count(len(images), "image")]
    if dicom:
        of_dicom = sum(len(study.series) for study in dicom)
        parts += [_count(of_dicom, "series"), _count(len(dicom), "study", "studies")]
    note(f"{path}: {', '.join(parts)}")
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        note(f"{path}: {_count(left_out.total(), 'file')} left out: {reasons}")
    return images


def _count(number: int, one: str, several: str | None = None) -> str:
    word = one if number == 1 or one.endswith("s") else several or f"{one}s"
    return f"{number} {word}"
