from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.pictures import encode, gradient, png_chunk, png_header
from umd_edge import ImageInputError
from umd_edge._image import load_image


@pytest.mark.parametrize(
    ("width", "height"), [(60_000, 60_000), (8_001, 8_000), (70_000, 1), (2**31 - 1, 2**31 - 1)]
)
def test_huge_png_is_refused_from_its_header_at_once(width: int, height: int):
    data = png_header(width, height)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ImageInputError, match=f"{width} x {height}.*64 megapixels"):
        load_image(data)
    assert time.perf_counter() - start < 1.0
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_huge_jpeg_is_refused_from_its_header():
    data = bytearray(encode(Image.fromarray(gradient()), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(ImageInputError, match="60000 x 60000"):
        load_image(bytes(data))


def test_png_without_pixels_is_refused():
    with pytest.raises(ImageInputError, match="0 x 5"):
        load_image(png_header(0, 5))


def test_png_whose_data_ends_early_is_refused():
    with pytest.raises(ImageInputError, match="truncated or damaged"):
        load_image(png_header(100, 100))


def test_png_whose_data_is_a_decompression_bomb_is_cut_to_its_header():
    packed = zlib.compress(bytes(50_000_000), 9)
    header = struct.pack(">IIBBBBB", 10, 10, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", packed)
    tracemalloc.start()
    pixels = load_image(data + png_chunk(b"IEND", b"")).pixels
    assert pixels.shape == (10, 10, 1)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_text_chunk_that_is_a_decompression_bomb_is_refused():
    bomb = b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9)
    data = encode(Image.fromarray(gradient()))
    with pytest.raises(ImageInputError, match="damaged"):
        load_image(data[:33] + png_chunk(b"zTXt", bomb) + data[33:])


def test_jpeg_of_very_many_scans_is_refused():
    data = encode(Image.fromarray(gradient()), "JPEG", progressive=True)
    with pytest.raises(ImageInputError, match="scans"):
        load_image(data[:-2] + b"\xff\xda\x00\x02" * 200 + b"\xff\xd9")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_truncation_is_refused_or_gives_whole_rows(kind: str):
    data = encode(Image.fromarray(gradient()), kind)
    for length in range(1, len(data) - 20, 13):
        with pytest.raises(ImageInputError):
            load_image(data[:length])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_flipped_bytes_never_raise_another_error(kind: str):
    data = encode(Image.fromarray(gradient()), kind)
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            damaged[position] = rng.integers(0, 256)
        try:
            assert load_image(bytes(damaged)).pixels.dtype == np.uint8
        except ImageInputError:
            pass


def test_text_file_named_png_is_refused(tmp_path: Path):
    path = tmp_path / "picture.png"
    path.write_text("this is no picture\n" * 20)
    with pytest.raises(ImageInputError, match="no image by its content"):
        load_image(path)


def test_empty_file_is_refused(tmp_path: Path):
    path = tmp_path / "picture.png"
    path.touch()
    with pytest.raises(ImageInputError, match="empty"):
        load_image(path)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_formats_that_are_not_allowed_do_not_reach_a_decoder(kind: str):
    out = io.BytesIO()
    try:
        Image.fromarray(gradient()).save(out, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    with pytest.raises(ImageInputError, match="PNG, JPEG and DICOM"):
        load_image(out.getvalue())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_device_and_pipe_are_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in ("/dev/zero", tmp_path / "pipe.png"):
        with pytest.raises(ImageInputError, match="no plain file"):
            load_image(path)


def test_sparse_huge_file_is_refused_without_reading_it(tmp_path: Path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(600 << 20)
    start = time.perf_counter()
    with pytest.raises(ImageInputError, match="at most"):
        load_image(path)
    assert time.perf_counter() - start < 1.0


def test_huge_array_is_refused_before_it_is_copied():
    array = np.broadcast_to(np.uint8(0), (60_000, 60_000))
    with pytest.raises(ImageInputError, match="64 megapixels"):
        load_image(array)
