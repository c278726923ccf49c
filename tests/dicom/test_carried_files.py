"""pydicom's own files, of many makers, against DCMTK's rendering or an uncompressed twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from support.dcmtk import rendered, wrapped  # noqa: E402
from umd_edge import DicomInputError, ImageInputError  # noqa: E402
from umd_edge._image import load_image  # noqa: E402

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
MINMAX, WINDOW = ("+Wm",), ("+Wi", "1")
# Reference: dcmj2pnm. Options say which window it is to take.
RENDERED: dict[str, tuple[str, ...]] = {
    "CT_small.dcm": MINMAX,
    "ExplVR_BigEnd.dcm": (),
    "JPEG-lossy.dcm": MINMAX,
    "JPGExtended.dcm": MINMAX,
    "MR_small.dcm": WINDOW,
    "MR_small_RLE.dcm": WINDOW,
    "MR_small_bigendian.dcm": WINDOW,
    "MR_small_expb.dcm": WINDOW,
    "MR_small_implicit.dcm": WINDOW,
    "MR_small_jpeg_ls_lossless.dcm": WINDOW,
    "MR_small_padded.dcm": WINDOW,
    "JPEGLSNearLossless_08.dcm": (),
    "JPEGLSNearLossless_16.dcm": MINMAX,
    "SC_jpeg_no_color_transform.dcm": (),
    "SC_jpeg_no_color_transform_2.dcm": (),
    "SC_rgb_dcmtk_+eb+cr.dcm": (),
    "SC_rgb_dcmtk_+eb+cy+n1.dcm": (),
    "SC_rgb_dcmtk_+eb+cy+n2.dcm": (),
    "SC_rgb_dcmtk_+eb+cy+np.dcm": (),
    "SC_rgb_dcmtk_+eb+cy+s2.dcm": (),
    "SC_rgb_dcmtk_+eb+cy+s4.dcm": (),
    "SC_rgb_jls_lossy_line.dcm": (),
    "SC_rgb_jls_lossy_sample.dcm": (),
    "SC_rgb_jpeg_app14_dcmd.dcm": (),
    "SC_rgb_jpeg_dcmd.dcm": (),
    "SC_rgb_jpeg_dcmtk.dcm": (),
    "SC_rgb_jpeg_gdcm.dcm": (),
    "SC_rgb_jpeg_lossy_gdcm.dcm": (),
    "SC_rgb_rle.dcm": (),
    "SC_rgb_rle_16bit.dcm": (),
    "SC_rgb_rle_32bit.dcm": (),
    "SC_rgb_small_odd.dcm": (),
    "SC_rgb_small_odd_big_endian.dcm": (),
    "SC_rgb_small_odd_jpeg.dcm": (),
    "SC_ybr_full_422_uncompressed.dcm": (),
    "examples_overlay.dcm": WINDOW,
    "examples_palette.dcm": (),
    "examples_rgb_color.dcm": (),
    "image_dfl.dcm": (),
    "dicomdirtests/77654033/CR1/6154": WINDOW,
    "dicomdirtests/77654033/CT2/17106": WINDOW,
    "dicomdirtests/98892003/MR1/15820": WINDOW,
}
LAST_FRAMES = {
    "SC_rgb_rle_2frame.dcm": 2,
    "SC_rgb_rle_16bit_2frame.dcm": 2,
    "SC_rgb_rle_32bit_2frame.dcm": 2,
    "examples_ybr_color.dcm": 30,
}
# DCMTK does not read JPEG 2000. File -> (its uncompressed twin, tolerance in grey levels).
TWINS = {
    "MR_small_jp2klossless.dcm": ("MR_small.dcm", 0),
    "SC_rgb_gdcm_KY.dcm": ("SC_rgb_rle.dcm", 0),
}


def carried(name: str) -> Path:
    """A file that lies in pydicom's wheel; never one that would have to be fetched."""
    if not (FOLDER / name).is_file():
        pytest.skip(f"this pydicom does not carry {name}")
    return FOLDER / name


def copied(name: str, folder: Path) -> Path:
    """A copy in a folder that a rendering can be written to."""
    target = folder / "carried.dcm"
    target.write_bytes(carried(name).read_bytes())
    return target


@pytest.mark.parametrize("name", RENDERED)
def test_carried_file_is_shown_as_dcmtk_shows_it(name: str, tmp_path):
    path = copied(name, tmp_path)
    expected = rendered(path, *RENDERED[name])
    pixels = load_image(path).pixels
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", LAST_FRAMES)
def test_last_frame_of_a_carried_file_is_shown_as_dcmtk_shows_it(name: str, tmp_path):
    path, frame = copied(name, tmp_path), LAST_FRAMES[name]
    expected = rendered(path, frame=frame)
    assert np.abs(load_image(path, frame=frame).pixels.astype(int) - expected).max() <= 1
    with pytest.raises(DicomInputError, match=f"holds {frame} frames"):
        load_image(path)


@pytest.mark.parametrize("name", TWINS)
def test_carried_jpeg_2000_is_its_twin(name: str):
    twin, tolerance = TWINS[name]
    pixels, expected = load_image(carried(name)).pixels, load_image(carried(twin)).pixels
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


def test_overlay_of_a_carried_file_is_left_out(tmp_path):
    path = copied("examples_overlay.dcm", tmp_path)
    dataset = pydicom.dcmread(path)
    overlaid = dataset.overlay_array(0x6000).astype(bool)
    assert overlaid.any()
    del dataset[0x6000, 0x3000]
    dataset.save_as(tmp_path / "bare.dcm")
    assert np.array_equal(load_image(path).pixels, load_image(tmp_path / "bare.dcm").pixels)


def test_every_carried_file_is_read_or_refused_with_a_reason():
    read = 0
    for path in sorted(FOLDER.glob("*.dcm")):
        try:
            read += load_image(path).pixels.size > 0
        except ImageInputError as error:
            assert len(str(error)) > 40
            assert path.name in str(error)
    assert read > 40


def test_real_film_inside_dicom_is_the_film(shared_data: Path, tmp_path: Path):
    films = sorted((shared_data / "native").glob("*.jpg"))[:4]
    assert len(films) == 4
    for film in films:
        pixels, inside = load_image(film).pixels, load_image(wrapped(film, tmp_path)).pixels
        grey = inside[..., :1] if pixels.shape[2] == 1 else inside
        assert np.array_equal(pixels, grey)
