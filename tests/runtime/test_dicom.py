from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from pydicom.dataset import Dataset  # noqa: E402

from support.pictures import gradient, make_dicom  # noqa: E402
from umd_edge import DicomInputError, MissingDependencyError  # noqa: E402
from umd_edge._image import load_image  # noqa: E402

RGB = gradient()
GREY = RGB[..., 2]
WIDE = (GREY.astype(np.int16) * 10 - 500).astype(np.int16)


def _pixels(data: bytes, **options) -> np.ndarray:
    return load_image(data, **options).pixels[..., 0]


def _linear(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1 written out value by value."""
    out = np.empty(x.shape, np.uint8)
    for index, value in np.ndenumerate(x.astype(float)):
        if value <= centre - 0.5 - (width - 1) / 2:
            y = 0.0
        elif value > centre - 0.5 + (width - 1) / 2:
            y = 255.0
        else:
            y = ((value - (centre - 0.5)) / (width - 1) + 0.5) * 255
        out[index] = int(np.floor(y + 0.5))
    return out


def _carried(name: str) -> str:
    """A file that lies in pydicom's wheel; never one that would have to be fetched."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    if not (folder / name).is_file():
        pytest.skip(f"this pydicom does not carry {name}")
    return os.fspath(folder / name)


def test_bytes_without_window_are_shown_as_they_are():
    assert np.array_equal(_pixels(make_dicom(GREY)), GREY)


def test_facts_name_what_the_gate_needs_and_no_patient():
    data = make_dicom(GREY, BodyPartExamined=" CHEST ")
    facts = load_image(data).dicom
    assert facts is not None
    assert (facts.modality, facts.body_part_examined) == ("CR", "CHEST")
    assert (facts.rows, facts.columns, facts.frames) == (*GREY.shape, 1)
    assert "Secret" not in repr(facts)


def test_absent_and_empty_tags_are_none():
    facts = load_image(make_dicom(GREY, Modality="", BodyPartExamined=None)).dicom
    assert facts is not None
    assert (facts.modality, facts.body_part_examined) == (None, None)


def test_deep_grey_without_window_runs_from_smallest_to_largest():
    pixels = _pixels(make_dicom(WIDE))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.array_equal(pixels, _pixels(make_dicom(WIDE, RescaleSlope=3, RescaleIntercept=-7)))


def test_padding_does_not_take_part_in_smallest_and_largest():
    padded = WIDE.copy()
    padded[0] = -2000
    with_tag = _pixels(make_dicom(padded, PixelPaddingValue=-2000))
    assert np.array_equal(with_tag[1:], _pixels(make_dicom(WIDE[1:])))
    assert not np.array_equal(_pixels(make_dicom(padded))[1:], with_tag[1:])


@pytest.mark.parametrize(("centre", "width"), [(200, 800), (0, 1), (500.5, 2), (-3000, 10)])
def test_linear_window_is_the_formula_of_the_standard(centre: float, width: float):
    data = make_dicom(WIDE, WindowCenter=centre, WindowWidth=width)
    assert np.array_equal(_pixels(data), _linear(WIDE, centre, width))


def test_window_comes_after_rescale():
    tags = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 300, "WindowWidth": 900}
    assert np.array_equal(_pixels(make_dicom(WIDE, **tags)), _linear(WIDE * 2 - 100.0, 300, 900))


def test_first_of_several_windows_is_taken():
    several = make_dicom(WIDE, WindowCenter=[200, 0], WindowWidth=[800, 5])
    one = make_dicom(WIDE, WindowCenter=200, WindowWidth=800)
    assert np.array_equal(_pixels(several), _pixels(one))


def test_linear_exact_and_sigmoid_follow_their_formulas():
    tags = {"WindowCenter": 200, "WindowWidth": 800}
    exact = _pixels(make_dicom(WIDE, VOILUTFunction="LINEAR_EXACT", **tags))
    expected = np.clip((WIDE - 200.0) / 800 + 0.5, 0, 1)
    assert np.array_equal(exact, np.floor(expected * 255 + 0.5))
    sigmoid = _pixels(make_dicom(WIDE, VOILUTFunction="SIGMOID", **tags))
    expected = 1 / (1 + np.exp(-4 * (WIDE - 200.0) / 800))
    assert np.array_equal(sigmoid, np.floor(expected * 255 + 0.5))


@pytest.mark.parametrize(
    "tags",
    [
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    ],
)
def test_image_is_inverted_exactly_once(tags: dict):
    window = {"WindowCenter": 200, "WindowWidth": 800}
    plain = _pixels(make_dicom(WIDE, PresentationLUTShape="IDENTITY", **window))
    assert np.array_equal(_pixels(make_dicom(WIDE, **window, **tags)), 255 - plain)


def _table(first: int, entries: list[int], bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return item


def test_voi_table_comes_before_the_window():
    entries = [int(v) for v in np.linspace(0, 4095, 64)]
    data = make_dicom(
        GREY, VOILUTSequence=[_table(100, entries, 12)], WindowCenter=1, WindowWidth=1
    )
    index = np.clip(GREY.astype(int) - 100, 0, 63)
    expected = (np.array(entries)[index] * 510 + 4095) // (2 * 4095)
    assert np.array_equal(_pixels(data), expected)


def test_modality_table_replaces_the_stored_values():
    data = make_dicom(
        GREY,
        ModalityLUTSequence=[_table(0, [4 * i for i in range(256)], 16)],
        WindowCenter=400,
        WindowWidth=500,
    )
    assert np.array_equal(_pixels(data), _linear(GREY.astype(int) * 4, 400, 500))


def test_fewer_stored_than_allocated_bits_are_read():
    values = (GREY.astype(np.uint16) * 16).astype(np.uint16)
    data = make_dicom(values, BitsStored=12, WindowCenter=2048, WindowWidth=4096)
    assert np.array_equal(_pixels(data), _linear(values, 2048, 4096))


def test_rgb_stays_and_ybr_becomes_rgb():
    assert np.array_equal(load_image(make_dicom(RGB)).pixels, RGB)
    from pydicom.pixels import convert_color_space

    ybr = convert_color_space(RGB, "RGB", "YBR_FULL")
    back = load_image(make_dicom(ybr, PhotometricInterpretation="YBR_FULL")).pixels
    assert np.abs(back.astype(int) - RGB.astype(int)).max() <= 3


def test_palette_becomes_rgb():
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for index, colour in enumerate(("Red", "Green", "Blue")):
        table = (np.arange(256) * (index + 1) % 256 * 257).astype("<u2")
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    pixels = load_image(make_dicom(GREY, **tags)).pixels
    expected = np.stack([GREY.astype(int) * k % 256 for k in (1, 2, 3)], axis=2)
    assert np.array_equal(pixels, expected)


FRAMES = np.stack([GREY, 255 - GREY, GREY // 2] + [GREY // 3] * 7)


def test_ten_frames_without_a_frame_named_are_refused_with_advice():
    with pytest.raises(DicomInputError, match=r"10 frames; name one of 1\.\.10.*--frame"):
        load_image(make_dicom(FRAMES))


@pytest.mark.parametrize("frame", [1, 2, 3, 10])
def test_named_frame_is_the_one_that_comes(frame: int):
    assert np.array_equal(_pixels(make_dicom(FRAMES), frame=frame), FRAMES[frame - 1])


@pytest.mark.parametrize("frame", [0, 11, -1, True, 1.0])
def test_frame_that_is_not_there_is_refused(frame):
    with pytest.raises(DicomInputError, match=r"1\.\.10"):
        load_image(make_dicom(FRAMES), frame=frame)


def test_frame_1_of_a_single_frame_may_be_named():
    assert np.array_equal(_pixels(make_dicom(GREY), frame=1), GREY)


def test_functional_groups_give_rescale_and_window_of_their_frame():
    def group(centre: float) -> Dataset:
        voi = Dataset()
        voi.WindowCenter, voi.WindowWidth = centre, 300
        item = Dataset()
        item.FrameVOILUTSequence = [voi]
        return item

    shared = Dataset()
    shared.PixelValueTransformationSequence = [Dataset()]
    shared.PixelValueTransformationSequence[0].RescaleSlope = 2
    shared.PixelValueTransformationSequence[0].RescaleIntercept = 10
    data = make_dicom(
        np.stack([WIDE, WIDE]),
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[group(0), group(900)],
    )
    for frame, centre in ((1, 0), (2, 900)):
        assert np.array_equal(_pixels(data, frame=frame), _linear(WIDE * 2.0 + 10, centre, 300))


def test_rle_gives_the_same_pixels(tmp_path: Path):
    dataset = pydicom.dcmread(_write(tmp_path, make_dicom(GREY)))
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    assert np.array_equal(load_image(tmp_path / "rle.dcm").pixels[..., 0], GREY)


def _write(folder: Path, data: bytes) -> Path:
    (folder / "plain.dcm").write_bytes(data)
    return folder / "plain.dcm"


def test_file_without_preamble_is_read():
    data = make_dicom(GREY)
    assert np.array_equal(_pixels(data[132:]), GREY)


@pytest.mark.parametrize("implicit", [True, False])
def test_data_set_without_file_meta_is_read(implicit: bool):
    dataset = pydicom.dcmread(io.BytesIO(make_dicom(GREY)))
    del dataset.file_meta
    out = io.BytesIO()
    dataset.preamble = None
    dataset.save_as(out, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    assert out.getvalue()[:2] == b"\x08\x00"
    assert np.array_equal(_pixels(out.getvalue()), GREY)


def test_old_writers_wrong_scan_end_is_mended():
    bad, good = _carried("JPEG-lossy.dcm"), _carried("JPGExtended.dcm")
    assert np.array_equal(load_image(bad).pixels, load_image(good).pixels)


def test_compressed_file_gives_the_pixels_of_the_plain_one():
    plain, packed = _carried("MR_small.dcm"), _carried("MR_small_RLE.dcm")
    assert np.array_equal(load_image(plain).pixels, load_image(packed).pixels)
    other = load_image(_carried("CT_small.dcm")).pixels
    assert not np.array_equal(load_image(plain).pixels, other[:64, :64])


def test_dose_of_a_carried_file_is_no_picture():
    path = _carried("rtdose.dcm")
    with pytest.raises(DicomInputError, match="dose"):
        load_image(path)


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    data = make_dicom(GREY)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "umd-edge\[dicom\]"'):
        load_image(data)


def test_without_the_decoder_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    path = _carried("examples_jpeg2k.dcm")
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless)
    monkeypatch.setattr(type(decoder), "is_available", False)
    with pytest.raises(MissingDependencyError, match=r"JPEG 2000.*umd-edge\[dicom\]"):
        load_image(path)


def test_reading_leaves_the_filters_for_warnings_alone():
    before = list(warnings.filters)
    load_image(make_dicom(GREY))
    assert warnings.filters == before
