"""Rules that hold for any input, tried on generated ones."""

from __future__ import annotations

import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from support.bundles import tiny_manifest  # noqa: E402
from umd_edge import ManifestError, UmdEdgeError  # noqa: E402
from umd_edge._fields import is_safe_path  # noqa: E402
from umd_edge._headers import codestream_facts, jpeg_size, repaired_sequential_jpeg  # noqa: E402
from umd_edge._image import load_image  # noqa: E402
from umd_edge._json import dump_canonical, load_strict  # noqa: E402
from umd_edge._manifest import Manifest  # noqa: E402
from umd_edge._preprocess import resize, window_to_uint8  # noqa: E402

COMMON = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
FINITE = st.floats(-1e6, 1e6, allow_nan=False)
POSITIVE = st.floats(1e-3, 1e3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FINITE | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
SIDES = st.integers(1, 70)


@st.composite
def manifests(draw) -> dict:
    document = tiny_manifest()
    labels = draw(st.lists(TEXTS, min_size=1, max_size=5, unique=True))
    task = {
        **document["tasks"][2],
        "name": draw(NAMES),
        "labels": labels,
        "prompt": draw(TEXTS.filter(str.strip)),
        "probability": {
            "kind": draw(st.sampled_from(["softmax", "sigmoid"])),
            "temperature": draw(POSITIVE),
        },
        "operating_points": draw(st.dictionaries(st.sampled_from(labels), st.floats(0, 1))),
        "applies_to": {"dicom_modality": draw(st.lists(TEXTS, max_size=3))},
    }
    field = {"name": draw(TEXTS), "kind": "numeric", "unit": "a"}
    field |= {"mean": draw(FINITE), "std": draw(POSITIVE), "categories": []}
    used = {field["name"]: field} if field["name"] not in ("age",) else {}
    return {
        **document,
        "tasks": [*document["tasks"], *([task] if task["name"] != "vqa" else [])],
        "structured_fields": [
            *document["structured_fields"],
            *(f for n, f in used.items() if n not in ("structured.itch", "region")),
        ],
        "extensions": draw(st.dictionaries(TEXTS, JSON, max_size=3)),
        "provenance": draw(st.dictionaries(TEXTS, JSON, max_size=3)),
        "intended_use": {**document["intended_use"], "limits": draw(st.lists(TEXTS, max_size=3))},
    }


@COMMON
@given(manifests())
def test_manifest_round_trips_through_bytes(document: dict):
    manifest = Manifest.from_dict(document)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert Manifest.from_bytes(manifest.to_bytes()).to_bytes() == manifest.to_bytes()


@COMMON
@given(st.data())
def test_any_value_in_any_place_is_read_or_refused_as_a_manifest_error(data):
    document = tiny_manifest()
    target = document
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(target[key], (dict, list)) and target[key] and data.draw(st.booleans()):
            target = target[key]
            continue
        target[key] = data.draw(JSON)
        break
    try:
        manifest = Manifest.from_dict(document)
    except UmdEdgeError as error:
        assert str(error)
    else:
        assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@COMMON
@given(JSON)
def test_json_round_trips(value):
    assert load_strict(dump_canonical(value)) == value


@COMMON
@given(st.binary(max_size=200))
def test_any_bytes_as_manifest_are_a_manifest_error(data: bytes):
    with pytest.raises(ManifestError):
        Manifest.from_bytes(data)


@COMMON
@given(st.text(max_size=30))
def test_safe_path_stays_inside(name: str):
    if is_safe_path(name):
        assert name.isascii()
        assert not name.startswith("/")
        assert ".." not in name.split("/")
        assert not set(name) & set('\\:*?"<>|\n\0 ')


@COMMON
@given(st.binary(max_size=400))
def test_any_bytes_as_image_are_an_input_error_or_pixels(data: bytes):
    for prefix in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\0" * 128 + b"DICM"):
        try:
            assert load_image(prefix + data).pixels.ndim == 3
        except UmdEdgeError as error:
            assert str(error)


@COMMON
@given(st.binary(max_size=200))
def test_header_readers_end_for_any_bytes(data: bytes):
    jpeg_size(b"\xff\xd8" + data)
    codestream_facts(b"\xff\x4f\xff\x51" + data)
    repaired = repaired_sequential_jpeg(b"\xff\xd8" + data)
    assert len(repaired) == len(data) + 2


@COMMON
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 255), st.integers(18, 24))
def test_resize_keeps_a_flat_image_flat(h: int, w: int, height: int, width: int, v: int, bits: int):
    # Rounded coefficients sum to 1 within taps / 2**(bits + 1): many taps want many bits.
    image = np.full((h, w, 1), v, np.uint8)
    assert np.unique(resize(image, height, width, bits)).tolist() == [v]


@COMMON
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_resize_stays_within_the_values_and_turns_with_the_image(h, w, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3)).astype(np.uint8)
    small = resize(image, height, width)
    assert small.shape == (height, width, 3)
    assert small.min() >= image.min()
    assert small.max() <= image.max()
    flipped = resize(np.ascontiguousarray(image[::-1, ::-1]), height, width)[::-1, ::-1]
    assert np.array_equal(flipped, small)
    assert np.array_equal(resize(image, h, w), image)


@COMMON
@given(SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_resize_treats_channels_alike(height: int, width: int, seed: int):
    image = np.random.default_rng(seed).integers(0, 256, (23, 31, 3)).astype(np.uint8)
    whole = resize(image, height, width)
    for channel in range(3):
        one = resize(np.ascontiguousarray(image[..., channel : channel + 1]), height, width)
        assert np.array_equal(one[..., 0], whole[..., channel])


def _plain_resize_axis(values: list[int], n_out: int, bits: int) -> list[int]:
    """The formula of the documentation, one number at a time."""
    n_in = len(values)
    out = []
    for x in range(n_out):
        weights = [
            max(0, 2 * max(n_in, n_out) - abs((2 * i + 1) * n_out - (2 * x + 1) * n_in))
            for i in range(n_in)
        ]
        total = sum(weights)
        fixed = [(2 * (weight << bits) + total) // (2 * total) for weight in weights]
        summed = sum(c * v for c, v in zip(fixed, values, strict=True)) + (1 << (bits - 1))
        out.append(min(255, max(0, summed >> bits)))
    return out


@COMMON
@given(st.lists(st.integers(0, 255), min_size=1, max_size=40), SIDES, st.integers(12, 24))
def test_resize_is_the_documented_formula(values: list[int], n_out: int, bits: int):
    expected = _plain_resize_axis(values, n_out, bits) if n_out != len(values) else values
    row = np.array(values, np.uint8)[None, :, None]
    assert resize(row, 1, n_out, bits)[0, :, 0].tolist() == expected
    assert resize(row.transpose(1, 0, 2), n_out, 1, bits)[:, 0, 0].tolist() == expected


@COMMON
@given(st.lists(st.integers(-40_000, 70_000), min_size=1), st.data())
def test_window_is_the_documented_formula(values: list[int], data):
    low = data.draw(st.integers(-50_000, 50_000))
    high = data.draw(st.integers(low + 1, low + 70_000))
    given = window_to_uint8(np.array(values, np.int32), low, high).tolist()
    span = high - low
    exact = [min(255, max(0, ((v - low) * 510 + span) // (2 * span))) for v in values]
    assert given == exact
