"""Callers of an older header: their smaller structs are read and filled, and not a byte more."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.c_library import (
    ClassifyOptions,
    CPredictor,
    Description,
    Item,
    OpenOptions,
    Pixels,
    ResultInfo,
    library,
    onnxruntime_library,
    pixels_of,
)

IMAGE = np.random.default_rng(4).integers(0, 256, (30, 40), dtype=np.uint8)
GUARD = 0xA5


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> CPredictor:
    return CPredictor(tiny_bundle)


def _older(kind: type[ctypes.Structure], first_unknown: str) -> tuple[Any, int]:
    """A struct that ends before a field; what lies behind it is not the library's."""
    size = getattr(kind, first_unknown).offset
    value = kind()
    ctypes.memset(ctypes.addressof(value) + size, GUARD, ctypes.sizeof(value) - size)
    value.struct_size = size
    return value, size


def _is_untouched(value: Any, size: int) -> bool:
    return set(bytes(value)[size:]) == {GUARD} and value.struct_size == size


@pytest.mark.parametrize("field", ["onnxruntime", "sha256", "public_keys", "provider"])
def test_options_of_every_age_open_a_bundle(
    field: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UMD_ONNXRUNTIME", str(onnxruntime_library()))
    given, size = _older(OpenOptions, field)
    if field != "onnxruntime":
        given.onnxruntime = str(onnxruntime_library()).encode()
    handle = ctypes.c_void_p()
    path = str(tiny_bundle).encode()
    assert library().umd_open(path, ctypes.byref(given), ctypes.byref(handle)) == 0
    assert _is_untouched(given, size)
    library().umd_close(handle)


@pytest.mark.parametrize("field", ["manifest", "signature", "provider"])
def test_descriptions_of_every_age_are_filled(field: str, opened: CPredictor) -> None:
    facts, size = _older(Description, field)
    assert library().umd_describe(opened.handle, ctypes.byref(facts)) == 0
    assert facts.name == opened.describe().name
    assert facts.max_length == opened.describe().max_length
    assert _is_untouched(facts, size)


@pytest.mark.parametrize("field", ["dicom_modality", "view", "burned_in_annotation"])
def test_pixels_of_every_age_are_encoded(field: str, opened: CPredictor) -> None:
    pixels, size = _older(Pixels, field)
    now = pixels_of(IMAGE)
    ctypes.memmove(ctypes.addressof(pixels) + 4, ctypes.addressof(now) + 4, size - 4)
    given = opened.encode_pixels(pixels)
    assert (given.embedding() == opened.encode(IMAGE).embedding()).all()
    assert _is_untouched(pixels, size)


def test_results_of_every_age_are_read(opened: CPredictor) -> None:
    image, result = opened.encode(IMAGE), ctypes.c_void_p()
    options, size = _older(ClassifyOptions, "sensitivity")
    status = library().umd_classify(
        image.handle, b"chest-xray", ctypes.byref(options), None, ctypes.byref(result)
    )
    assert status == 0
    assert _is_untouched(options, size)
    info, size = _older(ResultInfo, "ood_score")
    assert library().umd_get_result(result, ctypes.byref(info)) == 0
    assert (info.count > 0, _is_untouched(info, size)) == (True, True)
    item, size = _older(Item, "point")
    assert library().umd_get_item(result, ctypes.c_uint32(1), ctypes.byref(item)) == 0
    wanted = image.classify("chest-xray").items[1]
    assert (item.name.decode(), item.probability, item.logit) == (wanted[0], wanted[1], wanted[3])
    assert _is_untouched(item, size)
    library().umd_result_free(result)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_structs_that_were_never_filled_are_refused(size: int, opened: CPredictor) -> None:
    facts = Description()
    facts.struct_size = size
    assert library().umd_describe(opened.handle, ctypes.byref(facts)) == 20
    assert b"umd_description_init" in library().umd_last_error()
