"""DICOM to 8-bit pixels, through pydicom (extra `dicom`).

Order of work, after the standard's pixel transformation sequence (PS3.3 C.11, PS3.4 N.2): Modality
LUT or rescale, VOI LUT or window (the first of each), Presentation LUT or polarity, 8 bits.
Overlays are left out. An image is inverted at most once: where its Presentation LUT Shape says
so, or, in the absence of that tag, where it is MONOCHROME1.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ._colour import ybr_to_rgb
from ._dicom_compressed import decode_compressed
from ._dicom_facts import GREY, check_object, dicom_facts, is_video
from ._dicom_file import INSTALL, functional_group, guarded, read_dataset
from ._dicom_tables import grey_table, palette_to_rgb
from ._grey import GreyLook, LookupTable, VoiWindow, grey_to_uint8, stored_values, to_uint8
from ._image import DicomFacts, LoadedImage
from ._video import check_taken, load_clip_frames
from .errors import DicomInputError, MissingDependencyError

__all__ = ["load_dicom", "load_dicom_frames"]


def load_dicom(data: bytes, name: str, frame: int | None) -> LoadedImage:
    """Decode one frame.

    Args:
        data: The file.
        name: How messages call it.
        frame: Counted from 1; must be named where there are several.

    Raises:
        DicomInputError: No pixels, not an image, unsupported, damaged, or no frame named.
        MissingDependencyError: pydicom or the decoder of the transfer syntax is missing.
    """
    return load_dicom_frames(data, name, lambda total: [frame])[0]


def load_dicom_frames(
    data: bytes, name: str, choose: Callable[[int], Sequence[int | None]]
) -> list[LoadedImage]:
    """Decode several frames of one object, which `choose` names for a number of frames.

    See `load_dicom`.
    """

    def work(pydicom: Any) -> list[LoadedImage]:
        dataset = read_dataset(pydicom, data, name)
        check_object(dataset, name)
        total = int(dataset.get("NumberOfFrames") or 1)
        indices = [_frame_index(total, frame, name) for frame in choose(total)]
        if len(indices) > 1:
            facts = dicom_facts(dataset, 0, name)
            check_taken(len(indices), facts.rows * facts.columns, name)
        if is_video(dataset):
            return _load_video(pydicom, dataset, indices, name)
        return [_load_frame(pydicom, dataset, index, name) for index in indices]

    return guarded(name, work)


def _load_video(pydicom: Any, dataset: Any, indices: Sequence[int], name: str) -> list[LoadedImage]:
    """Frames of an object whose pixels are one MPEG stream (PS3.5 8.2.5 to 8.2.12)."""
    data = io.BytesIO(dataset.PixelData)
    try:
        pydicom.encaps.parse_basic_offsets(data)
        stream = b"".join(pydicom.encaps.generate_fragments(data))
    except ValueError:
        raise DicomInputError(
            f"{name}: the TransferSyntaxUID (0002,0010) says that the pixels are a video, and they "
            "are not; export it again"
        ) from None
    facts = [dicom_facts(dataset, index, name) for index in indices]
    images = load_clip_frames(stream, name, [index + 1 for index in indices])
    if any(image.pixels.shape[:2] != (facts[0].rows, facts[0].columns) for image in images):
        raise DicomInputError(f"{name}: the video is not of Rows x Columns; export it again")
    return [replace(image, dicom=fact) for image, fact in zip(images, facts, strict=True)]


def _load_frame(pydicom: Any, dataset: Any, index: int, name: str) -> LoadedImage:
    facts = dicom_facts(dataset, index, name)
    array, photometric = _decode(pydicom, dataset, facts, index, name)
    if photometric == "PALETTE COLOR":
        pixels = palette_to_rgb(pydicom, dataset, array, name)
    elif photometric in GREY:
        pixels = _grey(dataset, index, array, photometric)[..., None]
    else:
        pixels = to_uint8(array, int(dataset.BitsStored))
    return LoadedImage(np.ascontiguousarray(pixels), facts)


def _frame_index(frames: int, frame: int | None, name: str) -> int:
    if frame is None:
        if frames != 1:
            raise DicomInputError(
                f"{name} holds {frames} frames; name one of 1..{frames} (frame=1 in Python, "
                "--frame 1 on the command line), or take several as a clip (encode_clip, --frames)"
            )
        return 0
    if type(frame) is not int or not 1 <= frame <= frames:
        raise DicomInputError(f"frame {frame!r} of {name} given; 1..{frames} is allowed")
    return frame - 1


def _check_rest(pydicom: Any, dataset: Any, name: str) -> None:
    """Refuse pixels behind the last one that the header tells of; padding there has one value."""
    rest = dataset.PixelData[pydicom.pixels.utils.get_expected_length(dataset) :]
    if len(rest) > 1 and rest.count(rest[:1]) != len(rest):
        raise DicomInputError(
            f"{name}: PixelData (7FE0,0010) holds more pixels than Rows, Columns, NumberOfFrames "
            "say, so that a part of a picture would be taken for the whole; export it again"
        )


def _decode(
    pydicom: Any, dataset: Any, facts: DicomFacts, index: int, name: str
) -> tuple[npt.NDArray[Any], str]:
    """Stored values (H, W) or (H, W, 3) of one frame, YBR turned into RGB; and what they are."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        raise DicomInputError(
            f"{name}: the TransferSyntaxUID (0002,0010) is none of those that are read (see "
            "docs/dicom.md); save the image as Explicit VR Little Endian"
        ) from None
    if not decoder.is_available:
        raise MissingDependencyError(
            f"{name}: no decoder for the transfer syntax {syntax.name!r} is installed: {INSTALL}"
        )
    if not syntax.is_encapsulated or syntax == pydicom.uid.RLELossless:
        bits = _bits(dataset, name)
        if not syntax.is_encapsulated:
            _check_rest(pydicom, dataset, name)
        array, meta = decoder.as_array(dataset, index=index, raw=True, correct_unused_bits=False)
        # What stands in the other bits may be overlays or anything.
        array = stored_values(array, *bits, signed=dataset.get("PixelRepresentation") == 1)
        photometric = str(meta["photometric_interpretation"])
        if photometric in ("YBR_FULL", "YBR_FULL_422"):
            array, photometric = ybr_to_rgb(array, int(dataset.BitsStored)), "RGB"
    else:
        array, photometric = decode_compressed(pydicom, dataset, facts, index, name)
    if array.shape[:2] != (facts.rows, facts.columns):
        raise DicomInputError(f"{name}: the pixels are not of Rows x Columns; export it again")
    return array, photometric


def _bits(dataset: Any, name: str) -> tuple[int, int]:
    """BitsStored and HighBit of pixels that are not compressed, once they make sense."""
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = int(dataset.get("HighBit", stored - 1))
    if allocated > 16 and not dataset.file_meta.TransferSyntaxUID.is_little_endian:
        raise DicomInputError(
            f"{name}: pixels of {allocated} bits in Explicit VR Big Endian are not read: writers "
            "differ in the order of the halves; save the image as Explicit VR Little Endian"
        )
    if not 1 <= stored <= high + 1 <= allocated:
        raise DicomInputError(
            f"{name}: BitsStored (0028,0101) and HighBit (0028,0102) do not fit BitsAllocated "
            "(0028,0100); export the image again"
        )
    return stored, high


def _grey(
    dataset: Any, index: int, stored: npt.NDArray[Any], photometric: str
) -> npt.NDArray[np.uint8]:
    """(H, W) uint8 of stored values (H, W)."""
    rescale = functional_group(dataset, index, "PixelValueTransformationSequence")
    voi = functional_group(dataset, index, "FrameVOILUTSequence")
    signed = stored.dtype.kind == "i"
    values: npt.NDArray[Any] = stored
    if dataset.get("ModalityLUTSequence"):
        item = dataset.ModalityLUTSequence[0]
        values = grey_table(dataset, item, "ModalityLUTSequence", signed=signed).apply(stored)
        signed = False
    elif rescale.get("RescaleSlope") is not None:
        values = _rescaled(rescale, stored)
        signed = signed or bool(values.min() < 0)
    interest: VoiWindow | LookupTable | None = _window(voi)
    if voi.get("VOILUTSequence"):
        interest = grey_table(dataset, voi.VOILUTSequence[0], "VOILUTSequence", signed=signed)
    presentation = None
    if dataset.get("PresentationLUTSequence"):
        item = dataset.PresentationLUTSequence[0]
        presentation = grey_table(dataset, item, "PresentationLUTSequence", signed=False)
    look = GreyLook(
        interest=interest,
        presentation=presentation,
        inverted=_is_inverted(dataset, photometric),
        full_range=int(dataset.BitsStored) == 8 and values.dtype == np.uint8,
    )
    return grey_to_uint8(values, look, _padding(dataset, stored))


def _is_inverted(dataset: Any, photometric: str) -> bool:
    """Whether low values are bright.

    Source: PS3.3 C.11.6.1.2: the shape, where given, says what the output is, whatever the
    photometric interpretation; C.7.6.3.1.2 otherwise.
    """
    shape = str(dataset.get("PresentationLUTShape") or "")
    if shape in ("IDENTITY", "INVERSE"):
        return shape == "INVERSE"
    if shape:
        raise DicomInputError(
            "PresentationLUTShape (2050,0020) of the DICOM header is neither IDENTITY nor INVERSE"
        )
    return photometric == "MONOCHROME1"


def _number(value: object, tag: str) -> float:
    """The first of one or several numbers."""
    first = value if isinstance(value, (int, float, str)) else next(iter(value))  # type: ignore[call-overload]
    number = float(first)
    if not np.isfinite(number):
        raise DicomInputError(f"{tag} of the DICOM header is not a finite number")
    return number


def _rescaled(dataset: Any, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    slope = _number(dataset.RescaleSlope, "RescaleSlope (0028,1053)")
    intercept = _number(dataset.get("RescaleIntercept") or 0.0, "RescaleIntercept (0028,1052)")
    if slope == 0:
        raise DicomInputError("RescaleSlope (0028,1053) of the DICOM header is 0")
    if (slope, intercept) == (1.0, 0.0):
        return stored
    return stored.astype(np.float64) * slope + intercept


def _window(dataset: Any) -> VoiWindow | None:
    centre, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if centre in (None, "") or width in (None, ""):
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    return VoiWindow(
        _number(centre, "WindowCenter (0028,1050)"),
        _number(width, "WindowWidth (0028,1051)"),
        function,
    )


def _padding(dataset: Any, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """(H, W) bool: pixels that were added around the picture; None where there are none."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    given = [int(value), int(value if limit is None else limit)]
    if stored.dtype.kind == "i":  # written as US where PS3.3 C.7.5.1.1.2 asks for SS
        given = [number - 65_536 if number > 32_767 else number for number in given]
    low, high = sorted(given)
    return np.asarray((stored >= low) & (stored <= high))
