"""What is taken over from a DICOM header into `DicomFacts`, and what a header must not say."""

from __future__ import annotations

import math
import re
from typing import Any

from ._dicom_file import functional_group
from ._headers import check_size
from ._image import DicomFacts
from .errors import DicomInputError

__all__ = [
    "COLOUR",
    "GREY",
    "check_object",
    "dicom_facts",
    "identity",
    "is_video",
    "no_image",
    "samples_of",
]

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
# Storage SOP classes (PS3.4 B.5), by how their UID begins; the longest match counts.
_NO_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66": "raw data or a registration",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose distribution",
    "1.2.840.10008.5.1.4.1.1.481.3": "a structure set",
    "1.2.840.10008.5.1.4.1.1.481.5": "a treatment plan",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.88": "a structured report",
    "1.2.840.10008.5.1.4.1.1.104": "an encapsulated document",
    "1.2.840.10008.5.1.4.1.1.11": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.9": "a waveform",
    "1.2.840.10008.1.3.10": "a directory (DICOMDIR)",
}
# Codes of the region and the view where the header has a sequence instead of the plain tag:
# SNOMED CT (SCT) and its older form (SRT), PS3.16 CID 4030 and CID 4010.
_BODY_PARTS = {
    **dict.fromkeys(("816094009", "51185008", "T-D3000"), "CHEST"),
    **dict.fromkeys(("39607008", "T-28000"), "LUNG"),
    **dict.fromkeys(("76752008", "T-04000"), "BREAST"),
    **dict.fromkeys(("818981001", "113345001", "T-D4000"), "ABDOMEN"),
    **dict.fromkeys(("816092008", "12921003", "T-D6000"), "PELVIS"),
    **dict.fromkeys(("69536005", "T-D1100"), "HEAD"),
    **dict.fromkeys(("12738006", "T-A0100"), "BRAIN"),
    **dict.fromkeys(("89546000", "T-11100"), "SKULL"),
    **dict.fromkeys(("45048000", "T-D1600"), "NECK"),
    **dict.fromkeys(("80891009", "T-32000"), "HEART"),
    **dict.fromkeys(("10200004", "T-62000"), "LIVER"),
    **dict.fromkeys(("64033007", "T-71000"), "KIDNEY"),
    **dict.fromkeys(("421060004", "T-D0146"), "SPINE"),
    **dict.fromkeys(("122494005", "T-11501"), "CSPINE"),
    **dict.fromkeys(("122495006", "T-11502"), "TSPINE"),
    **dict.fromkeys(("122496007", "T-11503"), "LSPINE"),
    **dict.fromkeys(("85562004", "T-D8700"), "HAND"),
    **dict.fromkeys(("56459004", "T-D9700"), "FOOT"),
    **dict.fromkeys(("72696002", "T-D9200"), "KNEE"),
    **dict.fromkeys(("16982005", "T-D2220"), "SHOULDER"),
}
_VIEWS = {
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("272479007", "R-10214"), "PA"),
    **dict.fromkeys(("399173006", "R-10236"), "LL"),
    **dict.fromkeys(("399198007", "R-10232"), "RL"),
    **dict.fromkeys(("399162004", "R-10242"), "CC"),
    **dict.fromkeys(("399368009", "R-10226"), "MLO"),
}
_VIDEO = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.10[0-8](\.1)?$")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def no_image(dataset: Any) -> str:
    """What a data set is instead of a picture by its SOP class; empty where nothing is known."""
    meta = getattr(dataset, "file_meta", {})
    uid = dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""
    kinds = [
        (len(key), kind) for key, kind in _NO_IMAGES.items() if f"{uid}.".startswith(f"{key}.")
    ]
    return max(kinds, default=(0, ""))[1]


def is_video(dataset: Any) -> bool:
    """Whether the pixels are one stream of MPEG-2, H.264 or H.265 (PS3.5 A.4.5 to A.4.9)."""
    return _VIDEO.match(str(dataset.file_meta.TransferSyntaxUID)) is not None


def check_object(dataset: Any, name: str) -> None:
    """Refuse what is no picture of grey levels or colours in whole numbers.

    Raises:
        DicomInputError: It is of another kind, or has no pixels.
    """
    other = no_image(dataset)
    if other:
        raise DicomInputError(
            f"{name} is DICOM, but its SOPClassUID (0008,0016) says that it is {other}, not a "
            "picture; give the image that belongs to it"
        )
    if not len(dataset):  # what pydicom gives back of a data set that ends within an element
        raise DicomInputError(
            f"{name} is DICOM that is cut off, within PixelData (7FE0,0010) or before it; copy or "
            "export the file again"
        )
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise DicomInputError(f"{name} is DICOM with floating-point pixels; whole numbers are read")
    if dataset.get("PixelData"):
        return
    if dataset.get("Rows") is not None:
        raise DicomInputError(
            f"{name} is DICOM without its pixels: PixelData (7FE0,0010) is absent, empty or cut "
            "off; copy or export the file again"
        )
    raise DicomInputError(
        f"{name} is DICOM without pixels: PixelData (7FE0,0010) is absent or empty, as in "
        "structured reports, presentation states and documents; give an image object"
    )


def dicom_facts(dataset: Any, index: int, name: str) -> DicomFacts:
    """Facts of a frame (counted from 0), after checking what is needed to decode it.

    Raises:
        DicomInputError: A tag is missing, or the image is too large or of an unknown kind.
    """
    needed = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation")
    missing = [tag for tag in needed if dataset.get(tag) is None]
    if missing:
        raise DicomInputError(f"{name} is DICOM that lacks {missing}; export it again")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_size(columns, rows, name, DicomInputError)
    photometric = str(dataset.PhotometricInterpretation)
    known = [*GREY, *COLOUR, "YBR_PARTIAL_420"] if is_video(dataset) else [*GREY, *COLOUR]
    if photometric not in known:
        raise DicomInputError(f"{name}: PhotometricInterpretation (0028,0004) is none of {known}")
    given = dataset.get("SamplesPerPixel")
    if given is not None and int(given) != samples_of(photometric):
        raise DicomInputError(
            f"{name}: SamplesPerPixel (0028,0002) does not fit PhotometricInterpretation "
            "(0028,0004); export the image again"
        )
    measures = functional_group(dataset, index, "PixelMeasuresSequence")
    return DicomFacts(
        modality=_word(dataset.get("Modality")),
        body_part_examined=_body_part(dataset, index),
        view_position=_word(dataset.get("ViewPosition"))
        or _coded(dataset.get("ViewCodeSequence"), _VIEWS),
        burned_in_annotation=_word(dataset.get("BurnedInAnnotation")),
        photometric=photometric,
        rows=rows,
        columns=columns,
        frames=int(dataset.get("NumberOfFrames") or 1),
        frame=index + 1,
        pixel_spacing_mm=_spacing(measures.get("PixelSpacing")),
        imager_pixel_spacing_mm=_spacing(dataset.get("ImagerPixelSpacing")),
        **identity(dataset),
    )


def samples_of(photometric: str) -> int:
    """How many values a pixel has."""
    return 1 if photometric in (*GREY, "PALETTE COLOR") else 3


def identity(dataset: Any) -> dict[str, str | None]:
    """The UIDs of `DicomFacts` by name; None for what is no UID and so might be anything."""
    return {
        "study_instance_uid": _uid(dataset.get("StudyInstanceUID")),
        "series_instance_uid": _uid(dataset.get("SeriesInstanceUID")),
        "sop_instance_uid": _uid(dataset.get("SOPInstanceUID")),
        "sop_class_uid": _uid(dataset.get("SOPClassUID")),
    }


def _word(value: object) -> str | None:
    return str(value).strip() or None if value is not None else None


def _uid(value: object) -> str | None:
    text = str(value)
    return text if len(text) <= 64 and _UID.fullmatch(text) else None


def _body_part(dataset: Any, index: int) -> str | None:
    plain = _word(dataset.get("BodyPartExamined"))
    anatomy = functional_group(dataset, index, "FrameAnatomySequence")
    return plain or _coded(anatomy.get("AnatomicRegionSequence"), _BODY_PARTS)


def _coded(sequence: Any, words: dict[str, str]) -> str | None:
    """The word for a code; `(code)` itself for one that is not in the table, so that it differs."""
    if not sequence:
        return None
    code = _word(sequence[0].get("CodeValue"))
    return None if code is None else words.get(code, f"({code})")


def _spacing(value: Any) -> tuple[float, float] | None:
    """Two positive numbers, or None: a result does not depend on them."""
    try:
        rows, columns = (float(number) for number in value)
    except (TypeError, ValueError):
        return None
    return (rows, columns) if 0 < rows < math.inf and 0 < columns < math.inf else None
