from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.pictures import encode, gradient, png_chunk, png_header
from umd_edge import ImageInputError
from umd_edge._image import load_image

RGB = gradient()
GREY = RGB[..., 2]
WIDE = GREY.astype(np.uint16) * 16 + 100


def test_png_gives_the_same_pixels_from_path_bytes_pil_and_array(tmp_path: Path):
    picture = Image.fromarray(RGB)
    data = encode(picture)
    (tmp_path / "a.png").write_bytes(data)
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), data, picture, RGB]
    for source in sources:
        assert np.array_equal(load_image(source).pixels, RGB)


@pytest.mark.parametrize(
    "array", [RGB, GREY, GREY[..., None], RGB[:, ::-1], RGB.transpose(1, 0, 2)]
)
def test_pixels_are_contiguous_uint8_of_three_axes(array: np.ndarray):
    pixels = load_image(array).pixels
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels.squeeze(), array.squeeze())


def test_jpeg_is_decoded(tmp_path: Path):
    data = encode(Image.fromarray(RGB), "JPEG", quality=95)
    pixels = load_image(data).pixels
    assert pixels.shape == RGB.shape
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_name_of_the_file_does_not_matter(tmp_path: Path):
    path = tmp_path / "picture.txt"
    path.write_bytes(encode(Image.fromarray(GREY)))
    assert load_image(path).pixels.shape == (*GREY.shape, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_like_pillow_does(orientation: int):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(RGB), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(load_image(data).pixels, expected)


def test_exif_orientation_outside_the_standard_is_refused():
    exif = Image.Exif()
    exif[0x0112] = 9
    with pytest.raises(ImageInputError, match="orientation"):
        load_image(encode(Image.fromarray(RGB), "PNG", exif=exif))


def _windowed(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    exact = [(2 * (int(v) - low) * 255 + high - low) // (2 * (high - low)) for v in values.ravel()]
    return np.array(exact, np.uint8).reshape(values.shape)


def test_16_bit_grey_is_windowed_by_the_stated_formula_from_every_source():
    expected = _windowed(WIDE)[..., None]
    png = encode(Image.fromarray(WIDE))
    for source in (WIDE, png, Image.open(io.BytesIO(png)), Image.fromarray(WIDE)):
        assert np.array_equal(load_image(source).pixels, expected)


def test_16_bit_colour_array_is_windowed_over_all_channels():
    wide = RGB.astype(np.uint16) * 200
    assert np.array_equal(load_image(wide).pixels, _windowed(wide))


@pytest.mark.parametrize("source", [np.full((4, 4), 7, np.uint16)])
def test_16_bit_image_of_one_value_is_refused(source: np.ndarray):
    for given in (source, encode(Image.fromarray(source))):
        with pytest.raises(ImageInputError, match="equal"):
            load_image(given)


def test_8_bit_image_of_one_value_is_a_picture():
    assert load_image(np.full((4, 4), 7, np.uint8)).pixels.max() == 7


def test_palette_and_bilevel_images_are_read():
    palette = Image.fromarray(RGB).quantize(64)
    assert np.array_equal(load_image(encode(palette)).pixels, np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(GREY > 100)
    assert set(np.unique(load_image(encode(bilevel)).pixels)) == {0, 255}


def test_opaque_alpha_is_dropped():
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    assert np.array_equal(load_image(encode(Image.fromarray(rgba))).pixels, RGB)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_refused_with_advice(mode: str):
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    rgba[0, 0, 3] = 0
    picture = Image.fromarray(rgba)
    if mode == "P":
        data = encode(Image.fromarray(RGB).quantize(16), transparency=3)
    else:
        data = encode(picture.convert(mode))
    with pytest.raises(ImageInputError, match="flatten"):
        load_image(data)


@pytest.mark.parametrize("mode", ["CMYK", "F", "HSV", "YCbCr", "LAB"])
def test_other_modes_are_refused_with_advice(mode: str):
    picture = Image.new(mode, (8, 8))
    with pytest.raises(ImageInputError, match=rf"mode '{mode}'.*RGB"):
        load_image(picture)


def test_cmyk_jpeg_is_refused():
    with pytest.raises(ImageInputError, match="CMYK"):
        load_image(encode(Image.new("CMYK", (8, 8)), "JPEG"))


def test_integer_pil_image_outside_16_bits_is_refused():
    with pytest.raises(ImageInputError, match=r"0\.\.65535"):
        load_image(Image.fromarray(np.array([[0, 70_000]], np.int32)))


def test_16_bit_colour_png_is_refused():
    with pytest.raises(ImageInputError, match="16 bits a channel"):
        load_image(png_header(8, 8, depth=16, colour=2))


def test_animated_png_is_refused():
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageInputError, match="animated"):
        load_image(data)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4), np.int16),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros(16, np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_array_of_another_form_is_refused_with_what_is_allowed(array: np.ndarray):
    with pytest.raises(ImageInputError, match=r"allowed|no pixels"):
        load_image(array)


@pytest.mark.parametrize("source", [None, 5, [[1, 2]], {"a": 1}])
def test_something_else_is_refused(source):
    with pytest.raises(ImageInputError, match="numpy array is needed"):
        load_image(source)


@pytest.mark.parametrize("source", [GREY, encode(Image.fromarray(GREY)), Image.fromarray(GREY)])
def test_frame_of_a_plain_image_is_refused(source):
    with pytest.raises(ImageInputError, match="only DICOM"):
        load_image(source, frame=1)


def test_missing_file_directory_and_nul_in_a_path_are_told(tmp_path: Path):
    with pytest.raises(ImageInputError, match="no file at"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ImageInputError, match="directory"):
        load_image(tmp_path)
    with pytest.raises(ImageInputError, match="cannot be read"):
        load_image("a\0b")


def test_unreadable_text_chunk_does_not_hide_the_picture():
    data = encode(Image.fromarray(GREY))
    with_text = data[:33] + png_chunk(b"tEXt", b"Comment\0hello") + data[33:]
    assert np.array_equal(load_image(with_text).pixels[..., 0], GREY)
