from __future__ import annotations

import sys

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("gdcm")

from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.encaps import get_frame  # noqa: E402

from umd_edge._gdcm import decode_jpeg_12_bit  # noqa: E402
from umd_edge._image import load_image  # noqa: E402
from umd_edge.errors import DicomInputError, MissingDependencyError  # noqa: E402

NAME = "JPGExtended.dcm"


@pytest.fixture
def frame():
    dataset = pydicom.dcmread(get_testdata_file(NAME, download=False))
    return get_frame(dataset.PixelData, 0, number_of_frames=1), dataset


def test_12_bit_jpeg_is_decoded_to_its_grey_levels(frame, capfd):
    data, dataset = frame
    pixels = decode_jpeg_12_bit(data, dataset.Rows, dataset.Columns)
    assert (pixels.shape, pixels.dtype) == ((1024, 256), np.uint16)
    assert (pixels.min(), pixels.max()) == (0, 264)
    assert pixels.mean() == pytest.approx(14.37, abs=0.05)
    assert capfd.readouterr().err == ""


def test_the_grey_levels_are_those_of_another_decoder_within_one(frame):
    pytest.importorskip("libjpeg")
    data, dataset = frame
    pixels = decode_jpeg_12_bit(data, dataset.Rows, dataset.Columns)
    assert np.abs(dataset.pixel_array.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("length", [0, 200, 3000])
def test_truncated_data_is_refused(frame, length):
    data, dataset = frame
    with pytest.raises(DicomInputError, match="truncated or damaged"):
        decode_jpeg_12_bit(data[:length], dataset.Rows, dataset.Columns)


def test_without_gdcm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gdcm", None)
    with pytest.raises(MissingDependencyError, match=r"umd-edge\[dicom\]"):
        load_image(get_testdata_file(NAME, download=False))
