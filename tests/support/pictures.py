"""Small generated pictures and DICOM objects."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def gradient(height: int = 40, width: int = 52) -> np.ndarray:
    """(H, W, 3) uint8 with a different pattern in each channel."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 5 % 256, columns * 4 % 256, rows * columns % 251], axis=2).astype(
        np.uint8
    )


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG that claims a size and holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0"))
        + png_chunk(b"IEND", b"")
    )


def make_dicom(pixels: np.ndarray, path: Path | None = None, **tags: Any) -> bytes:
    """A DICOM file of these stored values; a tag given as None is left out.

    Args:
        pixels: (H, W), (frames, H, W) or (H, W, 3); 8 or 16 bits, signed or not.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = tags.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    rows, columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    bits = pixels.dtype.itemsize * 8
    values: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
        "SOPInstanceUID": "1.2.3",
        "PatientName": "Secret^Name",
        "PatientID": "SECRET-ID",
        "Modality": "CR",
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
    }
    if colour:
        values["PlanarConfiguration"] = 0
    if pixels.ndim == 3 and not colour:
        values["NumberOfFrames"] = pixels.shape[0]
    values.update(tags)
    values.setdefault("HighBit", (values["BitsStored"] or 1) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that break the standard are wanted here
        for name, value in values.items():
            if value is not None:
                setattr(dataset, name, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    if path is not None:
        path.write_bytes(out.getvalue())
    return out.getvalue()
