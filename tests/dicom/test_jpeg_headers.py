from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from pydicom.encaps import encapsulate, get_frame  # noqa: E402

from support.dcmtk import rewritten  # noqa: E402
from support.pictures import gradient, make_dicom  # noqa: E402
from umd_edge import DicomInputError  # noqa: E402
from umd_edge._headers import codestream_facts, is_whole_codestream  # noqa: E402
from umd_edge._image import load_image  # noqa: E402
from umd_edge._jpeg import checked_jpeg  # noqa: E402

RGB = gradient()
GREY = RGB[..., 2]
KINDS = {
    # name: pixels, tags, options of dcmcjpeg
    "lossless-grey": (GREY, {}, "+el"),
    "lossless-rgb": (RGB, {}, "+el"),
    "lossless-sv1-12bit": (GREY.astype(np.uint16) * 16, {"BitsStored": 12}, "+e1"),
    "extended-12bit": (GREY.astype(np.uint16) * 16, {"BitsStored": 12}, "+ee"),
}


@pytest.fixture(scope="module", params=KINDS)
def stream(request, tmp_path_factory) -> tuple[str, bytes, int]:
    """A codestream that DCMTK made, and its number of samples."""
    pixels, tags, option = KINDS[request.param]
    folder = tmp_path_factory.mktemp("jpeg")
    path = rewritten(make_dicom(pixels, **tags), folder, "dcmcjpeg", option)
    dataset = pydicom.dcmread(path)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    return request.param, frame, 3 if pixels.ndim == 3 else 1


def test_sound_stream_loses_only_segments_that_decoding_does_not_need(stream):
    _, data, samples = stream
    checked = checked_jpeg(data, samples, "it")
    assert codestream_facts(checked) == codestream_facts(data)
    assert is_whole_codestream(checked)
    assert b"JFIF" not in checked
    assert checked_jpeg(checked, samples, "it") == checked


def test_comments_and_fill_bytes_change_nothing(stream):
    _, data, samples = stream
    comment = b"\xff\xfe\x00\x06JANE"
    told = data[:2] + comment + b"\xff\xff\xff" + data[2:]
    assert checked_jpeg(told, samples, "it") == checked_jpeg(data, samples, "it")
    assert b"JANE" not in checked_jpeg(told, samples, "it")


def test_another_number_of_samples_is_refused(stream):
    _, data, samples = stream
    with pytest.raises(DicomInputError, match="damaged JPEG header"):
        checked_jpeg(data, 4 - samples, "it")


def test_header_that_is_cut_off_is_refused(stream):
    _, data, samples = stream
    scan = data.index(b"\xff\xda")
    for length in range(3, scan + 8):
        with pytest.raises(DicomInputError, match="damaged JPEG header"):
            checked_jpeg(data[:length], samples, "it")


def test_second_frame_header_is_refused(stream):
    _, data, samples = stream
    start = next(place for place in range(len(data)) if data[place : place + 2] in SOF)
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    header = data[start : start + 2 + length]
    with pytest.raises(DicomInputError, match="damaged JPEG header"):
        checked_jpeg(data[:start] + header + data[start:], samples, "it")


SOF = (b"\xff\xc1", b"\xff\xc3")


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.integers(2, 200), byte=st.integers(0, 255))
def test_any_byte_of_the_header_is_sound_or_refused(stream, place: int, byte: int):
    _, data, samples = stream
    changed = data[:place] + bytes([byte]) + data[place + 1 :]
    try:
        checked = checked_jpeg(changed, samples, "it")
    except DicomInputError:
        return
    assert checked_jpeg(checked, samples, "it") == checked


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300))
def test_readers_of_headers_end_for_any_bytes(data: bytes):
    for start in (b"\xff\xd8", b"\xff\x4f\xff\x51"):
        codestream_facts(start + data)
        is_whole_codestream(start + data)
    with pytest.raises(DicomInputError):
        checked_jpeg(b"\xff\xd8\xff\xfe" + data[:1], 1, "it")


def test_facts_are_those_of_the_stream(stream):
    name, data, samples = stream
    found = codestream_facts(data)
    assert found is not None
    assert (found.height, found.width, found.samples) == (*GREY.shape, samples)
    # DCMTK codes whole cells without loss.
    expected = {"extended-12bit": 12, "lossless-sv1-12bit": 16}
    assert found.bits == expected.get(name, 8)


def test_stream_of_another_depth_or_colour_is_told_with_the_tags():
    dataset = pydicom.dcmread(io.BytesIO(make_dicom(RGB)))
    dataset.compress(pydicom.uid.JPEG2000Lossless, encoding_plugin="pylibjpeg")
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    data = make_dicom(
        GREY,
        TransferSyntaxUID=pydicom.uid.JPEG2000Lossless,
        PixelData=encapsulate([frame]),
    )
    with pytest.raises(
        DicomInputError, match=r"3 samples of 8 bits; SamplesPerPixel \(0028,0002\)"
    ):
        load_image(data)
