"""Which image a report speaks of: the few identifiers by which other systems file it.

Of the person only PatientID and its issuer are read; a name, a birth date or a sex never is.
"""

from __future__ import annotations

import io
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Union

from ._image import looks_like_dicom, read_image_file
from .errors import DicomInputError

__all__ = ["Evidence", "ImageFile", "read_evidence", "read_image_bytes"]

ImageFile = Union[str, "os.PathLike[str]", bytes]

_NEEDED = {
    "StudyInstanceUID": "StudyInstanceUID (0020,000D)",
    "SeriesInstanceUID": "SeriesInstanceUID (0020,000E)",
    "SOPInstanceUID": "SOPInstanceUID (0008,0018)",
    "SOPClassUID": "SOPClassUID (0008,0016)",
}
_TAGS = [
    *_NEEDED,
    *("SpecificCharacterSet", "PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "Modality", "NumberOfFrames", "Rows"),
]
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_MOST_CHARACTERS = {"PatientID": 64, "IssuerOfPatientID": 64, "AccessionNumber": 16, "StudyID": 16}
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_LAST_TAG = 0x00280010  # Rows
_MAX_HEADER_BYTES = 4 << 20
_STORAGE = "1.2.840.10008.5.1.4.1.1"
# Classes whose objects have one frame by the standard; some makers store clips in them.
_ONE_FRAME = frozenset(
    f"{_STORAGE}.{end}"
    for end in (
        *("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "2", "4", "6", "6.1", "7", "128"),
        *("77.1.1", "77.1.2", "77.1.3", "77.1.4"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The DICOM image that a result was made from. Its repr shows no identifier."""

    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    sop_class_uid: str
    sop_uid: str = field(repr=False)
    patient_id: str = field(repr=False, default="")
    issuer_of_patient_id: str = field(repr=False, default="")
    accession_number: str = field(repr=False, default="")
    """Empty too, as is the study's, where it is longer than the standard allows."""
    study_id: str = field(repr=False, default="")
    study_date: str = field(repr=False, default="")
    """`YYYYMMDD`; empty where absent or malformed."""
    study_time: str = field(repr=False, default="")
    """`HHMMSS.FFFFFF` or the beginning of it; empty where absent or malformed."""
    modality: str = ""
    frames: tuple[int, ...] = ()
    """The frames that were looked at, from 1; empty means the whole object."""

    @property
    def frame_references(self) -> list[int] | None:
        """The frames where the object's class may have several; elsewhere none may be named."""
        return None if self.sop_class_uid in _ONE_FRAME else list(self.frames) or None

    @property
    def frame_note(self) -> str:
        """The same for people, or nothing."""
        if not self.frames:
            return ""
        plural = "s" if len(self.frames) > 1 else ""
        return f"Frame{plural} {', '.join(map(str, self.frames))} of the object."


def read_image_bytes(source: ImageFile) -> bytes:
    """Bytes of an image file, or those given.

    Raises:
        ImageInputError: The file is missing, unreadable or too large.
    """
    if isinstance(source, bytes):
        return source
    return read_image_file(Path(source))


def read_evidence(data: bytes, name: str, *, frames: Sequence[int] = ()) -> Evidence:
    """Identifiers of a DICOM image.

    Args:
        data: The file.
        name: How messages call it.
        frames: Which frames were looked at, from 1; none where the whole object was.

    Raises:
        DicomInputError: No DICOM, unreadable, or without the identifiers of study, series and
            object, or a frame that it does not have; no value is shown.
        MissingDependencyError: pydicom is not installed.
    """
    if not looks_like_dicom(data):
        raise DicomInputError(
            f"{name} is no DICOM file, so it has no study to file a report in; give the DICOM "
            "object, or use FHIR (--out-fhir), which needs none"
        )
    from ._dicom_file import guarded

    return guarded(name, lambda pydicom: _evidence(_header(pydicom, data), name, tuple(frames)))


def _header(pydicom: Any, data: bytes) -> Any:
    """The elements in `_TAGS`; nothing behind them is looked at."""
    if _DEFLATED not in data:
        return pydicom.dcmread(
            io.BytesIO(data), force=True, specific_tags=_TAGS, stop_before_pixels=True
        )
    start = 144 + int.from_bytes(data[140:144], "little")
    # No more than the beginning is unpacked, whatever the file claims.
    plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], _MAX_HEADER_BYTES)
    return pydicom.filereader.read_dataset(
        io.BytesIO(plain),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag > _LAST_TAG,
        specific_tags=[pydicom.tag.Tag(keyword) for keyword in _TAGS],
    )


def _evidence(dataset: Any, name: str, wanted: tuple[int, ...]) -> Evidence:
    bad = [
        tag
        for keyword, tag in _NEEDED.items()
        if not _UID.fullmatch(_text(dataset, keyword)) or len(_text(dataset, keyword)) > 64
    ]
    if bad:
        raise DicomInputError(
            f"{name} lacks a valid {', '.join(bad)}, without which a report cannot refer to it; "
            "export the whole object again"
        )
    if not dataset.get("Rows"):
        raise DicomInputError(
            f"{name} is DICOM without Rows (0028,0010), so no image; a report refers to the image "
            "that a result was made from"
        )
    frames = int(dataset.get("NumberOfFrames") or 1)
    outside = [number for number in wanted if not 1 <= number <= frames]
    if outside:
        raise DicomInputError(f"frame {outside[0]} of {name} given; 1..{frames} is allowed")
    patient_id = _identifier(dataset, "PatientID")
    if not patient_id and dataset.get("PatientID"):
        raise DicomInputError(
            f"{name}: PatientID (0010,0020) has several values or more than 64 characters, which "
            "the standard does not allow; a report with another one would be filed wrongly"
        )
    time = _text(dataset, "StudyTime")
    return Evidence(
        study_uid=_text(dataset, "StudyInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        sop_class_uid=_text(dataset, "SOPClassUID"),
        sop_uid=_text(dataset, "SOPInstanceUID"),
        patient_id=patient_id,
        issuer_of_patient_id=_identifier(dataset, "IssuerOfPatientID"),
        accession_number=_identifier(dataset, "AccessionNumber"),
        study_id=_identifier(dataset, "StudyID"),
        study_date=_date(_text(dataset, "StudyDate")),
        study_time=time if _TIME.fullmatch(time) else "",
        modality=_text(dataset, "Modality"),
        frames=wanted if frames > 1 else (),
    )


def _identifier(dataset: Any, keyword: str) -> str:
    """An identifier, or nothing where it breaks the standard's rule of one short value."""
    value = dataset.get(keyword)
    text = value.strip() if isinstance(value, str) else ""
    return text if len(text) <= _MOST_CHARACTERS[keyword] and "\\" not in text else ""


def _date(text: str) -> str:
    """`YYYYMMDD`, or nothing where that is no day."""
    try:
        return text if datetime.strptime(text, "%Y%m%d").strftime("%Y%m%d") == text else ""
    except ValueError:
        return ""


def _text(dataset: Any, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()
