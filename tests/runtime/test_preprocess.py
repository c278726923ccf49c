from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from umd_edge._preprocess import PreprocessSpec, normalise, preprocess, resize, window_to_uint8
from umd_edge.errors import ImageInputError, ManifestError

SIZES = st.integers(1, 40)
MANY = settings(max_examples=40, deadline=None)


def _noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


# --- resize -------------------------------------------------------


def _exact(values: list[int], n_out: int) -> list[Fraction]:
    """A triangle filter in rational numbers, from its textbook definition."""
    n_in = len(values)
    if n_in == n_out:
        return [Fraction(value) for value in values]
    scale = Fraction(n_in, n_out)
    support = max(scale, Fraction(1))
    out = []
    for x in range(n_out):
        centre = (x + Fraction(1, 2)) * scale
        weights = [max(0, 1 - abs(i + Fraction(1, 2) - centre) / support) for i in range(n_in)]
        out.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return out


@MANY
@given(values=st.lists(st.integers(0, 255), min_size=1, max_size=30), n_out=SIZES)
def test_one_axis_is_the_exact_filter_rounded_half_up(values: list[int], n_out: int):
    got = resize(np.array(values, np.uint8)[:, None, None], n_out, 1)[:, 0, 0]
    for level, exact in zip(got.tolist(), _exact(values, n_out), strict=True):
        # 22 bits: at most a hair from the exact value, so a tie may fall either way
        assert abs(level - exact) <= Fraction(1, 2) + Fraction(1, 1000)


@MANY
@given(n_in=st.integers(1, 300), n_out=st.integers(1, 120), seed=st.integers(0, 99))
def test_one_axis_equals_pillows(n_in: int, n_out: int, seed: int):
    column = _noise(n_in, 1, 1, seed)
    wanted = Image.fromarray(column[..., 0]).resize((1, n_out), Image.Resampling.BILINEAR)
    assert np.array_equal(resize(column, n_out, 1)[..., 0], np.asarray(wanted))


@MANY
@given(h=st.integers(1, 90), w=st.integers(1, 90), height=SIZES, width=SIZES)
def test_two_axes_are_at_most_one_grey_level_from_pillow(h: int, w: int, height: int, width: int):
    image = _noise(h, w, 3, h * w)
    wanted = np.asarray(
        Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), np.int16
    )
    assert np.abs(resize(image, height, width).astype(np.int16) - wanted).max() <= 1


def test_a_filter_whose_support_does_not_grow_would_be_noticed():
    """Negative control: sampling without a wider support aliases, and is far from ours."""
    image = _noise(64, 64, 1)
    ours = resize(image, 8, 8)[..., 0].astype(np.int16)
    nearest = image[4::8, 4::8, 0]
    assert np.abs(ours - nearest).max() > 20


def _reference_image() -> np.ndarray:
    """(97, 131, 3) uint8 by integers alone, the same on every machine and in every language."""
    y, x, c = np.mgrid[0:97, 0:131, 0:3]
    return ((y * 7 + x * 13 + c * 59 + (y * x) % 17 * (c + 3)) % 256).astype(np.uint8)


IMAGE_HASH = "9a424521984a32b9"
# (height, width, bits) -> SHA-256 of the resized pixels. The first two were also checked against
# the exact filter; a change here is a change of what every trained model sees.
GOLDEN = {
    (32, 32, 22): "bc73dc11d73631608bd22a33143d47cd",
    (128, 128, 22): "e83d0de8f9340a84c5c9030de87bcd70",
    (200, 60, 16): "4f384e7a91ee4f06786d32015908ccd2",
}


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_golden(case: tuple[int, int, int]):
    height, width, bits = case
    image = _reference_image()
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == IMAGE_HASH
    small = resize(image, height, width, bits)
    assert hashlib.sha256(small.tobytes()).hexdigest()[:32] == GOLDEN[case]
    image[40, 40, 1] ^= 128
    other = resize(image, height, width, bits)
    assert hashlib.sha256(other.tobytes()).hexdigest()[:32] != GOLDEN[case]


def test_resize_does_not_touch_its_input_and_reads_any_memory_order():
    image = _noise(30, 20, 3)
    kept = image.copy()
    wanted = resize(image, 9, 7)
    assert np.array_equal(image, kept)
    assert np.array_equal(resize(np.asfortranarray(image), 9, 7), wanted)
    assert np.array_equal(resize(image[::-1][::-1], 9, 7), wanted)
    frozen = image.copy()
    frozen.setflags(write=False)
    assert np.array_equal(resize(frozen, 9, 7), wanted)


@pytest.mark.parametrize("bits", [8, 12, 22, 24])
def test_more_bits_come_nearer_to_the_exact_value(bits: int):
    values = _noise(100, 1, 1, 4)
    exact = [float(value) for value in _exact(values[:, 0, 0].tolist(), 13)]
    error = np.abs(resize(values, 13, 1, bits)[:, 0, 0] - exact).max()
    assert error <= 0.5 + 255 * 17 * 2.0 ** -(bits + 1) + 1e-9


def test_white_stays_white_with_the_fewest_bits():
    """Rounded coefficients may sum to more than 1: the result is clipped, and never wraps."""
    white = np.full((64, 64, 1), 255, np.uint8)
    for bits in (8, 22, 24):
        assert resize(white, 24, 24, bits).min() > 240


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
        (np.zeros((0, 4, 3), np.uint8), "0 x 4"),
        (np.zeros((4, 0, 1), np.uint8), "4 x 0"),
        (np.zeros((65_536, 1, 1), np.uint8), "65536 x 1"),
        (np.zeros((1, 65_536, 1), np.uint8), "1 x 65536"),
    ],
)
def test_what_is_no_image_is_refused(image: np.ndarray, expected: str):
    with pytest.raises(ImageInputError, match=expected):
        resize(image, 8, 8)


# --- windowing ----------------------------------------------------


@MANY
@given(
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20),
    low=st.integers(-70_000, 70_000),
    span=st.integers(1, 140_000),
)
def test_windowing_is_the_rational_formula(values: list[int], low: int, span: int):
    got = window_to_uint8(np.array(values, np.int64), low, low + span).tolist()
    for value, level in zip(values, got, strict=True):
        exact = Fraction(min(max(value - low, 0), span) * 255, span) + Fraction(1, 2)
        assert level == exact.numerator // exact.denominator


@MANY
@given(low=st.integers(-2000, 2000), span=st.integers(1, 5000))
def test_windowing_rises_from_0_to_255(low: int, span: int):
    levels = window_to_uint8(np.arange(low - 5, low + span + 6), low, low + span)
    assert (levels[0], levels[5], levels[-6], levels[-1]) == (0, 0, 255, 255)
    assert (np.diff(levels.astype(int)) >= 0).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_windowing_of_any_integer_type_does_not_overflow(dtype: Any):
    limits = np.iinfo(dtype)
    ends = np.array([limits.min, limits.max], dtype=dtype)
    assert window_to_uint8(ends, int(limits.min), int(limits.max)).tolist() == [0, 255]


@pytest.mark.parametrize(("low", "high"), [(5, 5), (6, 5)])
def test_an_empty_window_is_refused(low: int, high: int):
    with pytest.raises(ImageInputError, match="the upper end must be larger"):
        window_to_uint8(np.zeros(3, np.int16), low, high)


# --- the whole ----------------------------------------------------

SPEC = PreprocessSpec(height=12, width=16, mean=(0.1, 0.5, 0.9), std=(0.2, 0.25, 0.5))


def test_colour_is_normalised_channel_by_channel():
    image = _noise(31, 45, 3)
    got = preprocess(image, SPEC)
    small = resize(image, 12, 16).astype(np.float64)
    wanted = ((small / 255 - SPEC.mean) / SPEC.std).astype(np.float32).transpose(2, 0, 1)
    assert np.array_equal(got, wanted)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous


@pytest.mark.parametrize("spec", [SPEC, PreprocessSpec(height=12, width=16)])
def test_grey_is_repeated_for_a_colour_model(spec: PreprocessSpec):
    grey = _noise(31, 45, 1)
    assert np.array_equal(preprocess(grey, spec), preprocess(np.repeat(grey, 3, axis=2), spec))


def test_colour_becomes_grey_by_the_documented_weights():
    spec = PreprocessSpec(height=12, width=16, channels=1, mean=(0.0,), std=(1.0,))
    image = _noise(12, 16, 3)
    wide = image.astype(int)
    grey = (77 * wide[..., 0] + 150 * wide[..., 1] + 29 * wide[..., 2] + 128) // 256
    got = preprocess(image, spec)
    assert got.shape == (1, 12, 16)
    np.testing.assert_array_equal(np.rint(got[0] * 255).astype(int), grey)
    white = np.full((12, 16, 3), 255, np.uint8)
    assert (preprocess(white, spec) == 1.0).all()


def test_a_grey_model_reads_grey_as_it_is():
    spec = PreprocessSpec(height=12, width=16, channels=1, mean=(0.5,), std=(0.25,))
    image = _noise(12, 16, 1)
    assert np.array_equal(
        preprocess(image, spec)[0], ((image[..., 0] / 255 - 0.5) / 0.25).astype(np.float32)
    )


@MANY
@given(h=SIZES, w=SIZES, channels=st.sampled_from([1, 3]))
def test_any_size_gives_the_same_shape_and_range(h: int, w: int, channels: int):
    got = preprocess(_noise(h, w, channels), SPEC)
    assert got.shape == (3, 12, 16)
    low = (0 - np.array(SPEC.mean)) / SPEC.std
    high = (1 - np.array(SPEC.mean)) / SPEC.std
    assert (got.min(axis=(1, 2)) >= low.astype(np.float32)).all()
    assert (got.max(axis=(1, 2)) <= high.astype(np.float32)).all()


def test_normalise_alone_equals_preprocess_at_the_size_of_the_model():
    image = _noise(12, 16, 3)
    assert np.array_equal(normalise(image, SPEC), preprocess(image, SPEC))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 2), (4, 4, 4), (1, 4, 4, 3)])
def test_wrong_channels_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ImageInputError, match=r"\(H, W, 1\) or \(H, W, 3\) needed"):
        preprocess(np.zeros(shape, np.uint8), SPEC)


# --- the settings -------------------------------------------------


def test_spec_round_trip():
    assert PreprocessSpec.from_dict(SPEC.to_dict()) == SPEC


@pytest.mark.parametrize(
    "change",
    [
        {"height": 7},
        {"width": 4097},
        {"height": 12.0},
        {"height": True},
        {"channels": 2},
        {"channels": "3"},
        {"coefficient_bits": 7},
        {"coefficient_bits": 25},
        {"mean": [0.5]},
        {"mean": "half"},
        {"mean": [0.5, 0.5, float("nan")]},
        {"std": [0.25, 0.25, 0.0]},
        {"std": [0.25, 0.25, -1.0]},
        {"std": None},
        {"colour": "red"},
    ],
    ids=str,
)
def test_a_bad_spec_is_refused(change: dict[str, Any]):
    with pytest.raises(ManifestError, match="preprocessing"):
        PreprocessSpec.from_dict({**SPEC.to_dict(), **change})


def test_a_spec_with_a_missing_key_is_refused():
    table = SPEC.to_dict()
    del table["mean"]
    with pytest.raises(ManifestError, match="exactly the keys"):
        PreprocessSpec.from_dict(table)
