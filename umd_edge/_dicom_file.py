"""Reading a DICOM data set with pydicom (extra `dicom`), quietly and only as far as needed.

Only the tags listed in `PIXEL_TAGS` and `FACT_TAGS` are parsed: names, dates and numbers of
patients are never read. Errors name tags, not values, and do not chain pydicom's own errors, which
quote values.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ._image import read_image_file
from .errors import DicomInputError, MissingDependencyError, UmdEdgeError

__all__ = [
    "FACT_TAGS",
    "INSTALL",
    "PIXEL_TAGS",
    "functional_group",
    "guarded",
    "read_dataset",
    "read_directory",
    "read_header",
]

Result = TypeVar("Result")

INSTALL = 'pip install "umd-edge[dicom]"'
FACT_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("BodyPartExamined", "ViewPosition", "BurnedInAnnotation", "SeriesNumber", "InstanceNumber"),
    *("AnatomicRegionSequence", "ViewCodeSequence", "PixelSpacing", "ImagerPixelSpacing"),
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_LUTS = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
PIXEL_TAGS = [
    *FACT_TAGS,
    *("PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("PresentationLUTShape", "PresentationLUTSequence", "ExtendedOffsetTable"),
    *(name + suffix for name in _LUTS for suffix in ("Descriptor", "Data")),
    *("Segmented" + name + "Data" for name in _LUTS),
    *("ExtendedOffsetTableLengths", "PixelData", "FloatPixelData", "DoubleFloatPixelData"),
]
MAX_INFLATED_BYTES = 512 << 20
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_META_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
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


def _import_pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise MissingDependencyError(
            f"a DICOM file was given, and pydicom 3 or newer is not installed: {INSTALL}"
        ) from error
    return pydicom


def guarded(name: str, work: Callable[[Any], Result]) -> Result:
    """Hand `work` the module pydicom, and turn whatever pydicom raises into an error of ours.

    Args:
        name: How messages call the file.
        work: Called with pydicom, while nothing is logged and no warning shown.

    Raises:
        DicomInputError: pydicom cannot make sense of the file.
        MissingDependencyError: pydicom or a decoder is missing.
    """
    pydicom = _import_pydicom()
    with _quiet_pydicom():
        try:
            return work(pydicom)
        except UmdEdgeError:
            raise
        except ImportError as error:
            raise MissingDependencyError(
                f"{name}: a decoder for this DICOM file is missing: {INSTALL}"
            ) from error
        except Exception as error:
            problem = type(error).__name__
    # Outside the handler, so that pydicom's error and the values in it are not chained.
    raise DicomInputError(
        f"{name} is DICOM that cannot be decoded ({problem} in pydicom): it is damaged, truncated "
        "or breaks the standard; export it again"
    )


def read_dataset(pydicom: Any, data: bytes, name: str) -> Any:
    """The data set in a file, with or without the preamble; its transfer syntax is always set."""
    # pydicom would unpack a deflated file whole, into any amount of memory. The UID has no other
    # place in an image, so it is looked for without trusting the structure around it.
    if _DEFLATED in data:
        return _inflated_dataset(pydicom, data, name)
    is_file = data[128:132] == b"DICM"
    dataset = pydicom.dcmread(io.BytesIO(data), force=not is_file, specific_tags=PIXEL_TAGS)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        uid = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        if not little:
            uid = pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid
    return dataset


def _inflated_dataset(pydicom: Any, data: bytes, name: str) -> Any:
    """The data set of a file in Deflated Explicit VR Little Endian, of at most 512 MiB."""
    if data[132:140] != _META_LENGTH:
        raise DicomInputError(
            f"{name} is deflated DICOM whose file meta information is damaged; export it again"
        )
    start = 144 + int.from_bytes(data[140:144], "little")
    try:
        plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], MAX_INFLATED_BYTES + 1)
    except zlib.error as error:
        raise DicomInputError(
            f"{name} is deflated DICOM whose data is truncated or damaged; export it again"
        ) from error
    if len(plain) > MAX_INFLATED_BYTES:
        raise DicomInputError(
            f"{name} is deflated DICOM of more than {MAX_INFLATED_BYTES} bytes once unpacked"
        )
    tags = [pydicom.tag.Tag(keyword) for keyword in PIXEL_TAGS]
    dataset = pydicom.filereader.read_dataset(
        io.BytesIO(plain), is_implicit_VR=False, is_little_endian=True, specific_tags=tags
    )
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return dataset


def read_header(pydicom: Any, path: Path, name: str) -> Any:
    """The tags before the pixels, without reading the pixels where that can be helped."""
    with path.open("rb") as file:
        is_file = file.read(132)[128:] == b"DICM"
    if is_file:
        meta = pydicom.filereader.read_file_meta_info(path)
        if str(meta.get("TransferSyntaxUID", "")).encode() != _DEFLATED:
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=FACT_TAGS)
    return read_dataset(pydicom, read_image_file(path), name)


def read_directory(pydicom: Any, path: Path, name: str) -> list[list[str]]:
    """The parts of the paths of a DICOMDIR's image records, in their order.

    Raises:
        DicomInputError: It is no DICOMDIR.
    """
    meta = pydicom.filereader.read_file_meta_info(path)
    if str(meta.get("MediaStorageSOPClassUID", "")) != _DIRECTORY_CLASS:
        raise DicomInputError(
            f"{name} is not a DICOMDIR by its MediaStorageSOPClassUID (0002,0002); rename it, or "
            "give the folder"
        )
    if str(meta.get("TransferSyntaxUID", "")).encode() == _DEFLATED:
        raise DicomInputError(f"{name} is a deflated DICOMDIR, which the standard does not allow")
    dataset = pydicom.dcmread(path, specific_tags=["DirectoryRecordSequence"])
    parts = []
    for record in dataset.get("DirectoryRecordSequence") or ():
        file = record.get("ReferencedFileID")
        if record.get("DirectoryRecordType") == "IMAGE" and file:
            parts.append([file] if isinstance(file, str) else [str(part) for part in file])
    return parts


def functional_group(dataset: Any, index: int, sequence: str) -> Any:
    """Where the tags of a functional group stand: per frame, shared, or in the object itself."""
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    shared = dataset.get("SharedFunctionalGroupsSequence")
    for items, position in ((frames, index), (shared, 0)):
        if items and len(items) > position and items[position].get(sequence):
            return items[position].get(sequence)[0]
    return dataset
