"""What is drawn over an image."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from umd_edge import Explanation, ImageInputError
from umd_edge._overlay import colours, draw_explanation, overlay_png
from umd_edge._results import BundleInfo, Timing


def _made(size: tuple[int, int], **changes) -> Explanation:
    values = np.zeros((7, 7), np.float32)
    values[2, 4] = 0.5
    given = {
        "status": "ok",
        "bundle": BundleInfo("b", "1", "0" * 64),
        "variant": "int8",
        "provider": "cpu",
        "timing": Timing(),
        "task": "breast-ultrasound",
        "method": "attention",
        "target": "malignant",
        "probability": 0.75,
        "map": values,
        "image_size": size,
        "proven": True,
    }
    return Explanation(**{**given, **changes})


def _image(height: int, width: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from([1, 3]))
def test_image_keeps_its_resolution(height: int, width: int, channels: int):
    picture = draw_explanation(_image(height, width, channels), _made((height, width)))
    assert picture.width == max(width, 360)
    assert picture.height > height


def test_pixels_far_from_the_map_stay_grey_and_as_they_are():
    pixels = _image(350, 420)
    shown = np.asarray(draw_explanation(pixels, _made((350, 420))))[:350]
    # only the strongest patch and its neighbours are coloured: columns 3 to 6 of 7
    np.testing.assert_array_equal(shown[:, :180], np.repeat(pixels[:, :180], 3, axis=2))
    y, x = round(350 * 2.5 / 7), round(420 * 4.5 / 7)
    red, green, blue = shown[y, x].astype(int)
    assert red > blue + 60 and green > blue + 60  # yellow at the peak


def test_small_image_stands_in_the_middle_of_a_margin():
    pixels = np.full((50, 60, 1), 200, np.uint8)
    shown = np.asarray(draw_explanation(pixels, _made((50, 60), map=np.zeros((7, 7), np.float32))))
    assert (shown[:50, 150:210] == 200).all()
    assert (shown[:50, :150] < 60).all() and (shown[:50, 210:] < 60).all()


@settings(deadline=None)
@given(st.floats(0, 0.99))
def test_stronger_is_brighter(strength: float):
    weights = np.array([0.299, 0.587, 0.114])
    weaker, stronger = (colours(np.float32(v)) @ weights for v in (strength, strength + 0.01))
    assert stronger >= weaker - 1


def test_tall_image_is_blended_like_a_whole_one():
    pixels, found = _image(700, 400, 3), _made((700, 400))
    cover = 0.6 * found.at_image_resolution()[..., None]
    expected = pixels * (1 - cover) + colours(found.at_image_resolution()) * cover
    shown = np.asarray(draw_explanation(pixels, found))[:700]
    np.testing.assert_allclose(shown, expected, atol=0.51)


@pytest.mark.parametrize(
    "changes",
    [
        {"proven": False},
        {"status": "abstain"},
        {"status": "out_of_distribution"},
        {"target": "benign"},
        {"method": "ablation"},
    ],
)
def test_the_strip_says_what_the_map_is_worth(changes):
    pixels = _image(300, 400)
    plain, other = (
        np.asarray(draw_explanation(pixels, item))
        for item in (_made((300, 400)), _made((300, 400), **changes))
    )
    np.testing.assert_array_equal(plain[:300], other[:300])
    assert (plain[300:] != other[300:]).any()
    # a warning has its own colour
    warned = (np.abs(other[300:].astype(int) - (246, 190, 80)).sum(axis=2) < 12).any()
    assert warned == bool({"proven", "status"} & set(changes))


def test_no_map_leaves_the_image_as_it_is():
    pixels = _image(300, 400)
    found = _made((300, 400), status="outside_intended_use", map=None, target="", probability=0.0)
    shown = np.asarray(draw_explanation(pixels, found))
    np.testing.assert_array_equal(shown[:300], np.repeat(pixels, 3, axis=2))


def test_png_holds_the_picture_and_no_text_chunk():
    pixels, found = _image(120, 400, 3), _made((120, 400))
    data = overlay_png(pixels, found)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(
            np.asarray(image), np.asarray(draw_explanation(pixels, found))
        )
        assert not image.info


@pytest.mark.parametrize("shape", [(120, 401, 1), (400, 120, 1), (120, 400, 4)])
def test_pixels_of_another_image_are_refused(shape):
    with pytest.raises(ImageInputError, match="the explained image has"):
        draw_explanation(np.zeros(shape, np.uint8), _made((120, 400)))


def test_answer_that_the_font_lacks_is_drawn_all_the_same():
    found = dataclasses.replace(_made((100, 400)), target="\u75c5 " * 80)
    assert draw_explanation(_image(100, 400), found).width == 400


def test_record_draws_itself_over_any_form_of_its_image(tmp_path):
    pixels, found = _image(120, 400), _made((120, 400))
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
    assert found.to_png(tmp_path / "a.png") == found.to_png(pixels) == overlay_png(pixels, found)
    with pytest.raises(ImageInputError, match="no file"):
        found.to_png(tmp_path / "b.png")
