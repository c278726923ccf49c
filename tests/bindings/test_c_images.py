"""Pixels in C become the `pixel_values` of the Python runtime, bit for bit."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.bundles import repack
from support.c_library import (
    MONOCHROME1,
    RGB,
    CError,
    CPredictor,
    Pixels,
    library,
    pixels_of,
)
from umd_edge._grey import GreyLook, VoiWindow, grey_to_uint8
from umd_edge._image import load_image
from umd_edge._preprocess import PreprocessSpec, preprocess, window_to_uint8

MIN_MAX, RANGE, LINEAR, LINEAR_EXACT, SIGMOID = 1, 2, 3, 4, 5
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> CPredictor:
    return CPredictor(tiny_bundle)


def _spec(opened: CPredictor, **other: Any) -> PreprocessSpec:
    facts = opened.describe()
    return PreprocessSpec(**{"height": facts.height, "width": facts.width, **other})


def _same(values: Array, wanted: Array) -> bool:
    return values.tobytes() == wanted.ravel().tobytes()


def _noise(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> Array:
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


sides = st.integers(1, 90)


@given(sides, sides, st.sampled_from([1, 3]), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_eight_bit_images_of_any_size(
    opened: CPredictor, height: int, width: int, channels: int, seed: int
) -> None:
    image = _noise(height, width, channels, seed=seed)
    assert _same(opened.preprocess(image), preprocess(image, _spec(opened)))


@given(sides, sides, st.sampled_from([1, 3]), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_sixteen_bit_images_are_windowed_from_smallest_to_largest(
    opened: CPredictor, height: int, width: int, channels: int, seed: int
) -> None:
    image = _noise(height, width + 1, channels, dtype=np.uint16, seed=seed)
    wanted = preprocess(load_image(image).pixels, _spec(opened))
    assert _same(opened.preprocess(image), wanted)


@pytest.mark.parametrize("shape", [(1, 4000), (3000, 2), (16, 16), (16, 40), (40, 16), (1, 1)])
def test_extreme_and_equal_sizes(opened: CPredictor, shape: tuple[int, int]) -> None:
    image = _noise(*shape, 3)
    assert _same(opened.preprocess(image), preprocess(image, _spec(opened)))


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 1, "mean": [0.3], "std": [0.1]},
        {"coefficient_bits": 24, "height": 21, "width": 9},
        {"coefficient_bits": 8, "mean": [0.1, 0.2, 0.3], "std": [1 / 3, 0.7, 50.066508313539195]},
    ],
)
def test_other_preprocessing_of_a_manifest(change: dict[str, Any], tmp_path: Path) -> None:
    path = repack(tmp_path / "other.umd", edit=lambda m: m["preprocessing"].update(change))
    # The graph is not run, so it need not take images of this form.
    opened = CPredictor(path)
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in change.items()}
    spec = PreprocessSpec(**{"height": 16, "width": 16, **tuples})
    for image in (_noise(33, 47, 3), _noise(12, 50, 1)):
        assert _same(opened.preprocess(image), preprocess(image, spec))


def test_rows_with_a_stride_and_odd_addresses(opened: CPredictor) -> None:
    padded = _noise(30, 41, dtype=np.uint16)
    view = padded[:, 3:33]
    moved = np.frombuffer(b"x" + view.tobytes(), np.uint8)[1:].view(np.uint16).reshape(view.shape)
    wanted = opened.preprocess(np.ascontiguousarray(view))
    assert _same(opened.preprocess(view), wanted)
    assert _same(opened.preprocess(moved), wanted)


@given(st.integers(-40_000, 40_000), st.integers(1, 70_000))
@settings(max_examples=40, deadline=None)
def test_integer_window_of_signed_values(opened: CPredictor, low: int, span: int) -> None:
    image = _noise(20, 30, dtype=np.int16)
    given = opened.preprocess(image, window=RANGE, window_low=low, window_high=low + span)
    grey = window_to_uint8(image, low, low + span)[..., None]
    assert _same(given, preprocess(grey, _spec(opened)))


@pytest.mark.parametrize(
    ("window", "name"),
    [(LINEAR, "LINEAR"), (LINEAR_EXACT, "LINEAR_EXACT"), (SIGMOID, "SIGMOID")],
)
@given(st.floats(-2000, 3000), st.floats(1, 5000), st.sampled_from([0.5, 1.0, 1.7]))
@settings(max_examples=40, deadline=None)
def test_dicom_windows_after_slope_and_intercept(
    opened: CPredictor, window: int, name: str, centre: float, width: float, slope: float
) -> None:
    image = _noise(20, 30, dtype=np.int16) // 8
    given = opened.preprocess(
        image,
        window=window,
        window_centre=centre,
        window_width=width,
        rescale_slope=slope,
        rescale_intercept=-1024.0,
    )
    values = image * slope - 1024.0
    look = GreyLook(interest=VoiWindow(centre, width, name))
    grey = grey_to_uint8(values, look, None)
    assert _same(given, preprocess(grey[..., None], _spec(opened)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_monochrome1_is_inverted_once_after_the_window(opened: CPredictor, dtype: Any) -> None:
    image = _noise(25, 18, dtype=dtype)
    grey = 255 - load_image(image).pixels
    given = opened.preprocess(image, photometric=MONOCHROME1)
    assert _same(given, preprocess(grey, _spec(opened)))


IMAGE = _noise(10, 12)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"data": None}, "no pixels"),
        ({"width": 0}, "no pixels"),
        ({"height": 0}, "no pixels"),
        ({"width": 65_536}, "65535 a side"),
        ({"width": 60_000, "height": 60_000}, "64 megapixels"),
        ({"size": 119}, "too few"),
        ({"stride": 11}, "a row of these pixels has 12"),
        ({"stride": 2**63}, "too few"),
        ({"type": 3}, "unknown type"),
        ({"type": -1}, "unknown type"),
        ({"photometric": 3}, "photometric"),
        ({"photometric": RGB}, "a row of these pixels has 36"),
        ({"window": 6}, "unknown window"),
        ({"window": RANGE, "window_low": 5, "window_high": 5}, "empty"),
        ({"window": LINEAR, "window_width": 0.5}, "at least 1"),
        ({"window": SIGMOID, "window_width": 0.0}, "too small"),
        ({"window": LINEAR, "window_width": float("nan")}, "not finite"),
    ],
)
def test_unusable_pixels_are_an_image_input_error(
    opened: CPredictor, facts: dict[str, Any], message: str
) -> None:
    pixels = pixels_of(IMAGE)
    for name, value in facts.items():
        setattr(pixels, name, value)
    with pytest.raises(CError, match=message) as caught:
        opened.encode_pixels(pixels)
    assert caught.value.name == "ImageInputError"


def test_a_flat_sixteen_bit_image_shows_nothing(opened: CPredictor) -> None:
    with pytest.raises(CError, match="nothing to see"):
        opened.preprocess(np.full((4, 5), 700, np.uint16))


def test_a_small_buffer_is_told_the_room_that_is_needed(opened: CPredictor) -> None:
    pixels, count = pixels_of(IMAGE), ctypes.c_size_t(10)
    buffer = (ctypes.c_float * 10)()
    status = library().umd_preprocess(
        opened.handle, ctypes.byref(pixels), buffer, ctypes.byref(count)
    )
    facts = opened.describe()
    assert library().umd_status_name(status) == b"BufferTooSmall"
    assert count.value == facts.height * facts.width * facts.channels
    assert not any(buffer)


def test_pixels_of_an_older_caller_are_taken(opened: CPredictor) -> None:
    whole = pixels_of(IMAGE)
    short = pixels_of(IMAGE)
    short.struct_size = Pixels.photometric.offset
    short.photometric, short.window = 77, 77  # lies behind the struct of such a caller
    out = ctypes.c_void_p()
    assert library().umd_encode(opened.handle, ctypes.byref(short), None, ctypes.byref(out)) == 0
    library().umd_image_free(out)
    assert _same(opened.preprocess(IMAGE), opened.preprocess(IMAGE, window=0))
    assert whole.struct_size == ctypes.sizeof(Pixels)
