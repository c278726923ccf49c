"""12-bit JPEG through GDCM, which pydicom's own plug-in for it leaves out.

Of the decoders that pydicom knows, only one of GPL-3.0 licence reads JPEG Extended (process 2 and
4) of more than 8 bits. GDCM (BSD) reads it as well; pydicom does not ask it to. Only images of one
component are decoded here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .errors import DicomInputError, MissingDependencyError

__all__ = ["decode_jpeg_12_bit"]


def decode_jpeg_12_bit(data: bytes, rows: int, columns: int) -> npt.NDArray[np.uint16]:
    """Decode one frame.

    Args:
        data: The JPEG stream, whose size has been compared with the header's.
        rows: Rows of the DICOM header.
        columns: Columns of the DICOM header.

    Returns:
        (rows, columns) uint16, 0..4095.

    Raises:
        MissingDependencyError: GDCM is not installed.
        DicomInputError: GDCM cannot decode the stream.
    """
    try:
        import gdcm
    except ImportError as error:
        raise MissingDependencyError(
            'JPEG of 12 bits in DICOM needs python-gdcm: pip install "umd-edge[dicom]"'
        ) from error
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(
        gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2)
    )
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 12, 12, 11, 0))
    # GDCM hands the bytes over as text with surrogates.
    text = image.GetBuffer()
    pixels = b"" if text is None else text.encode("utf-8", "surrogateescape")
    if len(pixels) != 2 * rows * columns:
        raise DicomInputError(
            "the 12-bit JPEG data is truncated or damaged; export the image again"
        )
    return np.frombuffer(pixels, "<u2").reshape(rows, columns).astype(np.uint16)
