"""DICOM to 8-bit pixels, through pydicom (extra `dicom`).

Order of work, after the standard's pixel transformation sequence: Modality LUT or rescale, VOI LUT
or window (the first of each), 8 bits, inversion. An image is inverted exactly once when its
photometric interpretation is MONOCHROME1 or its Presentation LUT Shape is INVERSE.

Only the tags listed in `_TAGS` are parsed: names, dates and numbers of patients are never read.
Errors name tags, not values, and do not chain pydicom's own errors, which quote values.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from ._gdcm import decode_jpeg_12_bit
from ._grey import VoiWindow, grey_to_uint8, lookup, to_uint8
from ._headers import check_size, jpeg2000_size, jpeg_size, repaired_sequential_jpeg
from ._image import DicomFacts, LoadedImage
from .errors import DicomInputError, MissingDependencyError, UmdEdgeError

__all__ = ["load_dicom"]

_INSTALL = 'pip install "umd-edge[dicom]"'
_LUTS = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
_TAGS = [
    *("SOPClassUID", "Modality", "BodyPartExamined", "SamplesPerPixel", "PlanarConfiguration"),
    *("PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape"),
    *("PresentationLUTSequence", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *(name + suffix for name in _LUTS for suffix in ("Descriptor", "Data")),
    *("Segmented" + name + "Data" for name in _LUTS),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
]
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_NO_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose distribution",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
}
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
# pydicom warns and logs with the values of tags in the text. Warnings are silenced for the whole
# process while a file is read, which only one thread may do at a time; log lines of that thread.
_LOCK = threading.Lock()
_LOGGERS = ("pydicom", "pydicom.pixels.utils", "pydicom.pixels.decoders.base")


class _Silence(logging.Filter):
    """Drops what one thread logs."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the lines of other threads."""
        return record.thread != self._thread


@contextmanager
def _quiet_pydicom() -> Iterator[None]:
    # A filter sees what its own logger is given, not what its children are.
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    silence = _Silence()
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.addFilter(silence)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(silence)


def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise MissingDependencyError(
            f"a DICOM file was given, and pydicom 3 or newer is not installed: {_INSTALL}"
        ) from error
    return pydicom


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
    pydicom = _pydicom()
    with _quiet_pydicom():
        try:
            return _load(pydicom, data, name, frame)
        except UmdEdgeError:
            raise
        except ImportError as error:
            raise MissingDependencyError(
                f"{name}: a decoder for this DICOM file is missing: {_INSTALL}"
            ) from error
        except Exception as error:
            problem = type(error).__name__
    # Outside the handler, so that pydicom's error and the values in it are not chained.
    raise DicomInputError(
        f"{name} is DICOM that cannot be decoded ({problem} in pydicom): it is damaged, truncated "
        "or breaks the standard; export it again"
    )


def _load(pydicom: Any, data: bytes, name: str, frame: int | None) -> LoadedImage:
    dataset = _read(pydicom, data, name)
    _check_object(dataset, name)
    facts = _facts(dataset, name)
    index = _frame_index(facts.frames, frame, name)
    array, photometric = _decode(pydicom, dataset, facts, index, name)
    if photometric == "PALETTE COLOR":
        array = pydicom.pixels.apply_color_lut(array, dataset)
        pixels = to_uint8(array, 8 * array.dtype.itemsize)
    elif photometric in _GREY:
        pixels = _grey(dataset, index, array, photometric)[..., None]
    else:
        pixels = to_uint8(array, int(dataset.BitsStored))
    return LoadedImage(np.ascontiguousarray(pixels), facts)


def _read(pydicom: Any, data: bytes, name: str) -> Any:
    is_file = data[128:132] == b"DICM"
    # pydicom would unpack a deflated file whole, into any amount of memory. The UID has no other
    # place in an image, so it is looked for without trusting the structure around it.
    if _DEFLATED in data:
        raise DicomInputError(
            f"{name}: the transfer syntax Deflated Explicit VR Little Endian is not read; save it "
            "as Explicit VR Little Endian (`gdcmconv --raw`)"
        )
    dataset = pydicom.dcmread(io.BytesIO(data), force=not is_file, specific_tags=_TAGS)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        uid = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        if not little:
            uid = pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid
    return dataset


def _check_object(dataset: Any, name: str) -> None:
    kind = _NO_IMAGES.get(str(dataset.get("SOPClassUID", "")))
    if kind:
        raise DicomInputError(
            f"{name} is DICOM, but its SOPClassUID (0008,0016) says that it is {kind}, not a "
            "picture; give the image that it was made from"
        )
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise DicomInputError(f"{name} is DICOM with floating-point pixels; whole numbers are read")
    if "PixelData" not in dataset or not dataset.PixelData:
        raise DicomInputError(
            f"{name} is DICOM without pixels: PixelData (7FE0,0010) is absent or empty, as in "
            "structured reports, presentation states and documents; give an image object"
        )
    if dataset.get("PresentationLUTSequence"):
        raise DicomInputError(
            f"{name}: PresentationLUTSequence (2050,0010) is not supported; export the image with "
            "the shape IDENTITY"
        )


def _facts(dataset: Any, name: str) -> DicomFacts:
    needed = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation")
    missing = [tag for tag in needed if dataset.get(tag) is None]
    if missing:
        raise DicomInputError(f"{name} is DICOM that lacks {missing}; export it again")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_size(columns, rows, name, DicomInputError)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in (*_GREY, *_COLOUR):
        raise DicomInputError(
            f"{name}: PhotometricInterpretation (0028,0004) is not one of {[*_GREY, *_COLOUR]}"
        )
    stored = int(dataset.BitsStored)
    if int(dataset.get("HighBit", stored - 1)) != stored - 1:
        raise DicomInputError(
            f"{name}: HighBit (0028,0102) is not BitsStored (0028,0101) less one; such pixels are "
            "not supported, export the image again"
        )
    return DicomFacts(
        modality=_word(dataset.get("Modality")),
        body_part_examined=_word(dataset.get("BodyPartExamined")),
        photometric=photometric,
        rows=rows,
        columns=columns,
        frames=int(dataset.get("NumberOfFrames") or 1),
    )


def _word(value: object) -> str | None:
    return str(value).strip() or None if value is not None else None


def _frame_index(frames: int, frame: int | None, name: str) -> int:
    if frame is None:
        if frames != 1:
            raise DicomInputError(
                f"{name} holds {frames} frames; name one of 1..{frames} (frame=1 in Python, "
                "--frame 1 on the command line)"
            )
        return 0
    if type(frame) is not int or not 1 <= frame <= frames:
        raise DicomInputError(f"frame {frame!r} of {name} given; 1..{frames} is allowed")
    return frame - 1


def _decode(
    pydicom: Any, dataset: Any, facts: DicomFacts, index: int, name: str
) -> tuple[npt.NDArray[Any], str]:
    """Stored values (H, W) or (H, W, 3) of one frame, YBR turned into RGB; and what they are."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        raise DicomInputError(
            f"{name}: the TransferSyntaxUID (0002,0010) is none that still images have; save the "
            "image as Explicit VR Little Endian"
        ) from None
    if not decoder.is_available:
        raise MissingDependencyError(
            f"{name}: no decoder for the transfer syntax {syntax.name!r} is installed: {_INSTALL}"
        )
    if syntax.is_encapsulated:
        data = _checked_codestream(pydicom, dataset, facts, index, name)
        if syntax == pydicom.uid.JPEGExtended12Bit and int(dataset.BitsStored) > 8:
            return decode_jpeg_12_bit(data, facts.rows, facts.columns), facts.photometric
    array, meta = decoder.as_array(dataset, index=index, raw=False)
    if array.shape[:2] != (facts.rows, facts.columns):
        raise DicomInputError(f"{name}: the pixels are not of Rows x Columns; export it again")
    return array, str(meta["photometric_interpretation"])


def _checked_codestream(
    pydicom: Any, dataset: Any, facts: DicomFacts, index: int, name: str
) -> bytes:
    """One frame's data; refused when its size is not the header's, a known slip in it mended."""
    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    data = pydicom.encaps.get_frame(
        dataset.PixelData, index, number_of_frames=facts.frames, extended_offsets=offsets
    )
    is_jpeg = data[:2] == b"\xff\xd8"
    size = jpeg_size(data) if is_jpeg else jpeg2000_size(data)
    if size is not None and size != (facts.columns, facts.rows):
        raise DicomInputError(
            f"{name}: the compressed pixels are {size[0]} x {size[1]}, Columns (0028,0011) and "
            f"Rows (0028,0010) say {facts.columns} x {facts.rows}; export it again"
        )
    repaired = repaired_sequential_jpeg(data) if is_jpeg else data
    if repaired != data:
        dataset.PixelData = dataset.PixelData.replace(data, repaired)
    return repaired


def _grey(
    dataset: Any, index: int, stored: npt.NDArray[Any], photometric: str
) -> npt.NDArray[np.uint8]:
    """(H, W) uint8 of stored values (H, W)."""
    rescale = _group(dataset, index, "PixelValueTransformationSequence")
    voi = _group(dataset, index, "FrameVOILUTSequence")
    padding = _padding(dataset, stored)
    values: npt.NDArray[Any] = stored
    if dataset.get("ModalityLUTSequence"):
        values = _apply_table(dataset.ModalityLUTSequence[0], stored, "ModalityLUTSequence")[0]
    elif rescale.get("RescaleSlope") is not None:
        values = _rescaled(rescale, stored)
    if voi.get("VOILUTSequence"):
        table, bits = _apply_table(voi.VOILUTSequence[0], values, "VOILUTSequence")
        pixels = to_uint8(table, bits)
    else:
        full_range = int(dataset.BitsStored) == 8 and values.dtype == np.uint8
        pixels = grey_to_uint8(values, _window(voi), padding, full_range=full_range)
    if photometric == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE":
        pixels = np.subtract(255, pixels, dtype=np.uint8)
    return pixels


def _group(dataset: Any, index: int, sequence: str) -> Any:
    """Where the tags of a functional group stand: per frame, shared, or in the object itself."""
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    shared = dataset.get("SharedFunctionalGroupsSequence")
    for items, position in ((frames, index), (shared, 0)):
        if items and len(items) > position and items[position].get(sequence):
            return items[position].get(sequence)[0]
    return dataset


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


def _apply_table(
    item: Any, values: npt.NDArray[Any], name: str
) -> tuple[npt.NDArray[np.int64], int]:
    """Values of a lookup table and its number of bits."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    entries = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    count = count or 65_536
    if entries.size * 2 >= count > entries.size and bits <= 8 and isinstance(data, bytes):
        entries = np.frombuffer(data, np.uint8)  # two entries packed into a word
    if not 1 <= bits <= 16 or entries.size < count:
        raise DicomInputError(f"the table in {name} of the DICOM header is damaged")
    return lookup(values, entries[:count].astype(np.int64), first), bits


def _padding(dataset: Any, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """(H, W) bool: pixels that were added around the picture; None where there are none."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return np.asarray((stored >= low) & (stored <= high))
