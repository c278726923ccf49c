"""Compressed DICOM pixels: which decoder, and what is checked before it sees a byte.

A codestream says for itself what it holds, and decoders believe it; GDCM ends the process where
that contradicts what it was told. So both are compared first. RLE has no such header and is read
like uncompressed pixels.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from ._dicom_facts import samples_of
from ._dicom_file import INSTALL
from ._gdcm import decode_jpeg_12_bit
from ._grey import stored_values
from ._headers import (
    Codestream,
    codestream_facts,
    is_whole_codestream,
    repaired_sequential_jpeg,
)
from ._image import DicomFacts
from ._jpeg import checked_jpeg
from .errors import DicomInputError, MissingDependencyError

__all__ = ["decode_compressed"]

_UID = "1.2.840.10008.1.2.4."
_EXTENDED = f"{_UID}51"
_LOSSLESS_JPEG = (f"{_UID}57", f"{_UID}70")
_JPEG_LS = (f"{_UID}80", f"{_UID}81")
_JPEGS = (f"{_UID}50", _EXTENDED, *_LOSSLESS_JPEG, *_JPEG_LS)
_LOSSLESS = (*_LOSSLESS_JPEG, f"{_UID}80", f"{_UID}90", f"{_UID}201", f"{_UID}202")
# Pillow notices JPEG data that is damaged, which GDCM passes over. JPEG 2000 is read by the same
# library as HTJ2K. GDCM leaves out JPEG-LS of 6 and 7 bits.
_PLUGINS = {
    **dict.fromkeys((f"{_UID}50", _EXTENDED), "pillow"),
    **dict.fromkeys((f"{_UID}90", f"{_UID}91"), "pylibjpeg"),
    **dict.fromkeys(_LOSSLESS_JPEG, "gdcm"),
    **dict.fromkeys(_JPEG_LS, "pyjpegls"),
}


def decode_compressed(
    pydicom: Any, dataset: Any, facts: DicomFacts, index: int, name: str
) -> tuple[npt.NDArray[Any], str]:
    """Decode one frame, counted from 0.

    Returns:
        Stored values (H, W) or (H, W, 3), YBR turned into RGB; and what they are.

    Raises:
        DicomInputError: The data is cut off, damaged, or not what the header says.
        MissingDependencyError: The decoder is not installed.
    """
    data = _frame_data(pydicom, dataset, facts, index, name)
    found = _checked_facts(dataset, facts, data, name)
    high = _checked_high_bit(dataset, found, name)
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if syntax in (_EXTENDED, *_LOSSLESS_JPEG):
        data = checked_jpeg(repaired_sequential_jpeg(data), found.samples, name)
    if syntax == _EXTENDED and int(dataset.BitsStored) > 8:
        if found.bits != 12 or found.samples != 1:
            raise DicomInputError(
                f"{name}: JPEG Extended of more than 8 bits is read with 12 bits and one sample "
                "alone; export the image again"
            )
        return decode_jpeg_12_bit(data, facts.rows, facts.columns), facts.photometric
    array, meta = _run(pydicom, dataset, facts, found, data, name)
    if syntax in _LOSSLESS:
        # The cells came through unchanged, with anything in the bits that are not the image's.
        signed = dataset.get("PixelRepresentation") == 1
        array = stored_values(array, int(dataset.BitsStored), high, signed=signed)
    return array, str(meta["photometric_interpretation"])


def _run(
    pydicom: Any, dataset: Any, facts: DicomFacts, found: Codestream, data: bytes, name: str
) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    syntax = dataset.file_meta.TransferSyntaxUID
    decoder = pydicom.pixels.get_decoder(syntax)
    plugin = _PLUGINS.get(str(syntax), "")
    if str(syntax) in _JPEG_LS and "pyjpegls" not in decoder.available_plugins:
        plugin = "gdcm"
    if not decoder.is_available or (plugin and plugin not in decoder.available_plugins):
        raise MissingDependencyError(
            f"{name}: no decoder for the transfer syntax {syntax.name!r} is installed: {INSTALL}"
        )
    array, meta = decoder.as_array(
        pydicom.encaps.encapsulate([data]),
        index=0,
        raw=False,
        decoding_plugin=plugin,
        rows=facts.rows,
        columns=facts.columns,
        number_of_frames=1,
        samples_per_pixel=found.samples,
        bits_allocated=int(dataset.BitsAllocated),
        # GDCM ends the process where this contradicts a lossless JPEG.
        bits_stored=found.bits if str(syntax) in _LOSSLESS_JPEG else int(dataset.BitsStored),
        pixel_representation=int(dataset.get("PixelRepresentation") or 0),
        photometric_interpretation=facts.photometric,
        planar_configuration=int(dataset.get("PlanarConfiguration") or 0),
        pixel_keyword="PixelData",
    )
    return array, meta


def _checked_high_bit(dataset: Any, found: Codestream, name: str) -> int:
    """HighBit, once it, BitsAllocated and BitsStored make sense for the codestream."""
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    deepest = 16 if syntax in _JPEGS else 32
    if allocated not in (8, 16, deepest) or not 1 <= stored <= allocated:
        raise DicomInputError(
            f"{name}: BitsAllocated (0028,0100) or BitsStored (0028,0101) does not fit compressed "
            "pixels; export the image again"
        )
    high = int(dataset.get("HighBit", stored - 1))
    if high != stored - 1 and not (syntax in _LOSSLESS and stored <= high < found.bits):
        raise DicomInputError(
            f"{name}: HighBit (0028,0102) is not BitsStored (0028,0101) less one, and the "
            "compressed pixels are not that deep; export the image again"
        )
    return high


def _frame_data(pydicom: Any, dataset: Any, facts: DicomFacts, index: int, name: str) -> bytes:
    """The codestream of one frame, refused where it is cut off."""
    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    data: bytes = pydicom.encaps.get_frame(
        dataset.PixelData, index, number_of_frames=facts.frames, extended_offsets=offsets
    )
    if not is_whole_codestream(data):
        raise DicomInputError(
            f"{name}: the compressed pixels of frame {index + 1} are cut off; copy or export the "
            "file again"
        )
    return data


def _checked_facts(dataset: Any, facts: DicomFacts, data: bytes, name: str) -> Codestream:
    """What the codestream says, which has to be what the object says."""
    found = codestream_facts(data)
    if found is None:
        raise DicomInputError(f"{name}: the compressed pixels have no header; export it again")
    if (found.width, found.height) != (facts.columns, facts.rows):
        raise DicomInputError(
            f"{name}: the compressed pixels are {found.width} x {found.height}, Columns "
            f"(0028,0011) and Rows (0028,0010) say {facts.columns} x {facts.rows}; export it again"
        )
    if found.samples != samples_of(facts.photometric) or found.bits > int(dataset.BitsAllocated):
        raise DicomInputError(
            f"{name}: the compressed pixels have {found.samples} samples of {found.bits} bits; "
            "SamplesPerPixel (0028,0002) or BitsAllocated (0028,0100) says otherwise; export it "
            "again"
        )
    return found
