"""Lookup tables of a DICOM header: grey ones as `LookupTable`, palettes straight to RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._grey import LookupTable, to_uint8
from .errors import DicomInputError

__all__ = ["grey_table", "palette_to_rgb"]

_COLOURS = ("Red", "Green", "Blue")


def grey_table(dataset: Any, item: Any, name: str, *, signed: bool) -> LookupTable:
    """A table of grey values.

    Args:
        dataset: The object, for its byte order.
        item: Holds LUTDescriptor and LUTData.
        name: The sequence, for messages.
        signed: The input of the table can be negative.

    Raises:
        DicomInputError: The table is damaged.
    """
    return _table(dataset, item.LUTDescriptor, item.LUTData, name, signed)


def palette_to_rgb(
    pydicom: Any, dataset: Any, indices: npt.NDArray[Any], name: str
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 of palette indices (H, W).

    Raises:
        DicomInputError: The palette is missing, damaged, or would give a black picture.

    Source: PS3.3 C.7.6.3.1.5 and C.7.6.3.1.6; segmented palettes (C.7.9.2) by pydicom.
    """
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        coloured = pydicom.pixels.apply_color_lut(indices, dataset)
        return to_uint8(coloured, 8 * coloured.dtype.itemsize)
    signed = indices.dtype.kind == "i"
    tables = []
    for colour in _COLOURS:
        prefix = f"{colour}PaletteColorLookupTable"
        given = dataset.get(f"{prefix}Descriptor"), dataset.get(f"{prefix}Data")
        if None in given:
            raise DicomInputError(f"{name} is DICOM in palette colours that lacks {prefix}Data")
        tables.append(_table(dataset, *given, f"{prefix}Data", signed))
    if all(table.bits > 8 and table.entries.max() < 256 for table in tables):
        if any(table.entries.max() for table in tables):
            raise DicomInputError(
                f"{name}: the palette claims {tables[0].bits} bits and uses the low 8 alone, which "
                "would be a black picture; export the image again"
            )
    return np.stack([to_uint8(table.apply(indices), table.bits) for table in tables], axis=-1)


def _table(dataset: Any, descriptor: Any, data: Any, name: str, signed: bool) -> LookupTable:
    count, first, bits = (int(number) for number in descriptor)
    count = count or 65_536
    if not 1 <= bits <= 16:
        raise DicomInputError(f"the table in {name} of the DICOM header is damaged")
    entries = np.asarray(data) if not isinstance(data, bytes) else _unpacked(dataset, data, count)
    if entries.size < count:
        raise DicomInputError(f"the table in {name} of the DICOM header is damaged")
    if signed and first > 32_767:
        first -= 65_536  # written as US where PS3.3 C.11.1.1 asks for SS
    return LookupTable(entries[:count].astype(np.int64), first, bits)


def _unpacked(dataset: Any, data: bytes, count: int) -> npt.NDArray[Any]:
    """Entries of 16 bits, or of 8 bits where there are too few bytes for that."""
    little = dataset.file_meta.TransferSyntaxUID.is_little_endian
    words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2")
    if words.size >= count:
        return words
    # Two entries share a word, the first in its low byte.
    return words.astype("<u2").view(np.uint8)
