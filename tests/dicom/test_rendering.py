"""Pixels of files that were made here, or written by DCMTK, against DCMTK's own rendering.

Every case is one variant of photometric interpretation, depth, sign, window and transfer syntax.
The reference is `dcmj2pnm` (`dcml2pnm` for JPEG-LS) of DCMTK; the tolerance is one grey level, for
DCMTK rounds down where we round to the nearest. Lossless syntaxes and the lossy ones alike are
within it, as both decoders are of the same standard.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from pydicom.dataset import Dataset  # noqa: E402

from support.dcmtk import rendered, rewritten  # noqa: E402
from support.pictures import gradient, make_dicom  # noqa: E402
from umd_edge._image import load_image  # noqa: E402

RGB = gradient(48, 60)
GREY = RGB[..., 2]
TWELVE = GREY.astype(np.uint16) * 16 + 5
SIXTEEN = GREY.astype(np.uint16) * 257
SIGNED = GREY.astype(np.int16) * 100 - 9000
SIGNED_TWELVE = GREY.astype(np.int16) * 16 - 2048
# Bits above the stored ones, as old writers put overlays there.
JUNK = ((np.arange(GREY.size).reshape(GREY.shape) % 16) << 12).astype(np.uint16)

MINMAX, WINDOW, TABLE = ("+Wm",), ("+Wi", "1"), ("+Wl", "1")
TWELVE_OF_16 = {"BitsStored": 12}
SIGNED_12_OF_16 = {"BitsStored": 12, "PixelRepresentation": 1}


@dataclass(frozen=True)
class Case:
    """One file and how DCMTK is asked to render it."""

    pixels: np.ndarray
    render: tuple[str, ...] = ()
    tags: dict[str, Any] = field(default_factory=dict)
    write: tuple[str, ...] = ()
    """Program and options that rewrite the file; none where it is taken as it is."""
    frame: int | None = None


def window(centre: float | list[float], width: float | list[float], **tags: Any) -> dict[str, Any]:
    return {"WindowCenter": centre, "WindowWidth": width, **tags}


def table(first: int, entries: Any, bits: int, vr: str = "US", packed: bool = False) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries), first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries).astype("u1" if packed else "<u2").tobytes())
    return item


def palette(
    count: int = 256, first: int = 0, bits: int = 16, scale: int = 257, cell: str = "<u2"
) -> dict[str, Any]:
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for step, colour in enumerate(("Red", "Green", "Blue"), start=1):
        entries = np.arange(count) * step % 256 * scale
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [count, first, bits]
        tags[f"{colour}PaletteColorLookupTableData"] = entries.astype(cell).tobytes()
    return tags


def ybr(pixels: np.ndarray) -> np.ndarray:
    from pydicom.pixels import convert_color_space

    return convert_color_space(pixels, "RGB", "YBR_FULL")


def planes(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(pixels.shape)


def halved(pixels: np.ndarray) -> bytes:
    """YBR_FULL_422: two brightnesses, then the colour of the first pixel for both."""
    y = pixels[..., 0]
    parts = [y[:, 0::2], y[:, 1::2], pixels[:, 0::2, 1], pixels[:, 0::2, 2]]
    return np.stack(parts, axis=-1).tobytes()


DEPTHS: dict[str, tuple[np.ndarray, dict[str, Any], dict[str, Any]]] = {
    "u8": (GREY, {}, window(100, 90)),
    "s8": (GREY.view(np.int8), {}, window(10, 100)),
    "u12of16": (TWELVE, TWELVE_OF_16, window(2048, 3000)),
    "u12of16-junk": (TWELVE | JUNK, TWELVE_OF_16, window(2048, 3000)),
    "u12of16-high15": (TWELVE << 4, {"BitsStored": 12, "HighBit": 15}, window(2048, 3000)),
    "u10of16": (TWELVE >> 2, {"BitsStored": 10}, window(500, 700)),
    "u16": (SIXTEEN, {}, window(30_000, 40_000)),
    "s16": (SIGNED, {}, window(2000, 9000)),
    "s12of16": (SIGNED_TWELVE, SIGNED_12_OF_16, window(-100, 2500)),
    "s12of16-junk": (
        (SIGNED_TWELVE.view(np.uint16) & 0x0FFF) | JUNK,
        SIGNED_12_OF_16,
        window(-100, 2500),
    ),
    "u32": (GREY.astype(np.uint32) * 16_000_000, {}, window(2e9, 3e9)),
    "s32": ((GREY.astype(np.int32) - 100) * 1_000_000, {}, window(0, 1e8)),
}
SYNTAXES: dict[str, tuple[str, ...]] = {
    "implicit": ("dcmconv", "+ti"),
    "big-endian": ("dcmconv", "+tb"),
    "deflated": ("dcmconv", "+td"),
    "rle": ("dcmcrle",),
    "jpeg-lossless": ("dcmcjpeg", "+el"),
    "jpeg-lossless-sv1": ("dcmcjpeg", "+e1"),
    "jpeg-ls": ("dcmcjpls", "+el"),
}
LOSSY = {
    "jpeg-baseline": ("dcmcjpeg", "+eb"),
    "jpeg-extended": ("dcmcjpeg", "+ee"),
    "jpeg-ls-near": ("dcmcjpls", "+en", "+md", "2"),
}


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for depth, (pixels, tags, linear) in DEPTHS.items():
        for number in (1, 2):
            shown = {**tags, "PhotometricInterpretation": f"MONOCHROME{number}"}
            name = f"mono{number}-{depth}"
            cases[f"{name}-linear"] = Case(pixels, WINDOW, {**shown, **linear})
            if depth != "u8":
                cases[f"{name}-no-window"] = Case(pixels, MINMAX, shown)
        sigmoid = {**tags, **linear, "VOILUTFunction": "SIGMOID"}
        cases[f"mono2-{depth}-sigmoid"] = Case(pixels, WINDOW, sigmoid)
    for syntax, write in SYNTAXES.items():
        for depth in ("u8", "u12of16", "s16", "s12of16", "u16"):
            pixels, tags, linear = DEPTHS[depth]
            cases[f"mono2-{depth}-linear-{syntax}"] = Case(
                pixels, WINDOW, {**tags, **linear}, write
            )
        cases[f"mono1-u8-{syntax}"] = Case(
            GREY, (), {"PhotometricInterpretation": "MONOCHROME1"}, write
        )
        cases[f"rgb-u8-{syntax}"] = Case(RGB, (), {}, write)
        frames = np.stack([GREY, 255 - GREY, GREY // 2])
        cases[f"mono2-u8-frame-2-{syntax}"] = Case(frames, (), {}, write, 2)
    for syntax, write in LOSSY.items():
        cases[f"mono2-u8-{syntax}"] = Case(GREY, (), {}, write)
        cases[f"rgb-u8-{syntax}"] = Case(RGB, (), {}, write)
        frames = np.stack([GREY, 255 - GREY, GREY // 2])
        cases[f"mono2-u8-frame-3-{syntax}"] = Case(frames, (), {}, write, 3)
    # What differs between the cells that a codec keeps and the bits that are the image's.
    for syntax in ("rle", "jpeg-lossless", "jpeg-lossless-sv1", "jpeg-ls"):
        for depth in ("u12of16-junk", "s12of16-junk", "u12of16-high15"):
            pixels, tags, linear = DEPTHS[depth]
            cases[f"mono2-{depth}-linear-{syntax}"] = Case(
                pixels, WINDOW, {**tags, **linear}, SYNTAXES[syntax]
            )
    for bits in (6, 7):
        few = {"BitsStored": bits}
        cases[f"mono2-u{bits}of8-jpeg-ls"] = Case(
            GREY >> (8 - bits), MINMAX, few, SYNTAXES["jpeg-ls"]
        )
    twelve = {**TWELVE_OF_16, **window(2048, 3000)}
    cases["mono2-u12of16-linear-jpeg-extended"] = Case(
        TWELVE, WINDOW, twelve, LOSSY["jpeg-extended"]
    )
    cases["mono2-u12of16-linear-jpeg-ls-near"] = Case(TWELVE, WINDOW, twelve, LOSSY["jpeg-ls-near"])
    cases["rgb-u8-jpeg-baseline-444"] = Case(RGB, (), {}, ("dcmcjpeg", "+eb", "+s4"))
    cases["rgb-u8-jpeg-baseline-422"] = Case(RGB, (), {}, ("dcmcjpeg", "+eb", "+s2"))
    cases["rgb-u8-jpeg-baseline-not-converted"] = Case(RGB, (), {}, ("dcmcjpeg", "+eb", "+cr"))
    cases["rgb-u8-jpeg-ls-by-line"] = Case(RGB, (), {}, ("dcmcjpls", "+el", "+il"))
    cases["rgb-u8-jpeg-ls-by-sample"] = Case(RGB, (), {}, ("dcmcjpls", "+el", "+is"))
    cases["rgb-u8-jpeg-ls-by-plane"] = Case(RGB, (), {}, ("dcmcjpls", "+el", "+in"))
    return cases | _grey_cases() | _colour_cases()


def _grey_cases() -> dict[str, Case]:
    square = (np.linspace(0, 1, 64) ** 2 * 4095).astype(int)
    falling = np.linspace(65_535, 0, 900).astype(int)
    ramp = {"ModalityLUTSequence": [table(0, np.arange(256) * 4, 16)], **window(400, 500)}
    far = np.arange(20_000) % 3000
    signed_first = {"ModalityLUTSequence": [table(-9000, far, 16, "SS")], **window(1000, 1500)}
    as_unsigned = {"ModalityLUTSequence": [table(65_536 - 9000, far, 16)], **window(1000, 1500)}
    inverse, identity = {"PresentationLUTShape": "INVERSE"}, {"PresentationLUTShape": "IDENTITY"}
    mono1 = {"PhotometricInterpretation": "MONOCHROME1"}
    bits = np.packbits((GREY > 128).ravel(), bitorder="little").tobytes()
    one = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "PixelData": bits}
    overlay = {"PixelPaddingValue": -9000}
    return {
        "mono2-u8-as-it-is": Case(GREY),
        "mono1-u8-inverted-once": Case(GREY, (), mono1),
        "mono1-u8-inverse-inverted-once": Case(GREY, (), {**mono1, **inverse}),
        "mono1-u8-identity-not-inverted": Case(GREY, (), {**mono1, **identity}),
        "mono2-u8-inverse-inverted-once": Case(GREY, (), inverse),
        "mono2-u8-identity-not-inverted": Case(GREY, (), identity),
        "mono1-s16-linear-inverse": Case(SIGNED, WINDOW, {**window(0, 9000), **mono1, **inverse}),
        "mono2-u8-1bit-no-window": Case(GREY, MINMAX, one),
        "mono2-u8-6of8-no-window": Case(GREY >> 2, MINMAX, {"BitsStored": 6}),
        "mono2-s16-first-of-several": Case(SIGNED, WINDOW, window([2000, 0], [9000, 5])),
        "mono2-s16-first-of-two-of-one-width": Case(SIGNED, WINDOW, window([0, 1], [500, 500])),
        "mono2-s16-width-1": Case(SIGNED, WINDOW, window(200, 1)),
        "mono2-s16-width-2": Case(SIGNED, WINDOW, window(200, 2)),
        "mono2-s16-padding-linear": Case(SIGNED, WINDOW, {**window(0, 9000), **overlay}),
        "mono2-u12of16-rescale-ct": Case(
            TWELVE,
            WINDOW,
            {**TWELVE_OF_16, "RescaleSlope": 1, "RescaleIntercept": -1024} | window(40, 400),
        ),
        "mono2-s16-rescale-2.5": Case(
            SIGNED, WINDOW, {"RescaleSlope": 2.5, "RescaleIntercept": -1000.5} | window(300, 9000)
        ),
        "mono2-s16-rescale-falling": Case(
            SIGNED, WINDOW, {"RescaleSlope": -1, "RescaleIntercept": 100} | window(30, 9000)
        ),
        "mono2-u8-rescale-no-window": Case(
            GREY, MINMAX, {"RescaleSlope": 2, "RescaleIntercept": -10}
        ),
        "mono1-u12of16-rescale-linear": Case(
            TWELVE,
            WINDOW,
            {**TWELVE_OF_16, **mono1, "RescaleSlope": 2, "RescaleIntercept": -7}
            | window(4000, 5000),
        ),
        "mono2-u8-modality-table": Case(GREY, WINDOW, ramp),
        "mono2-u8-modality-table-over-rescale": Case(
            GREY, WINDOW, {**ramp, "RescaleSlope": 3, "RescaleIntercept": 5}
        ),
        "mono2-u8-modality-table-no-window": Case(
            GREY, MINMAX, {"ModalityLUTSequence": [table(0, np.arange(256) * 4, 10)]}
        ),
        "mono2-s16-modality-table-from-negative": Case(SIGNED, WINDOW, signed_first),
        "mono2-s16-modality-table-negative-as-us": Case(SIGNED, WINDOW, as_unsigned),
        "mono2-u8-modality-table-big-endian": Case(GREY, WINDOW, ramp, ("dcmconv", "+tb")),
        "mono2-u8-voi-table-12bit": Case(GREY, TABLE, {"VOILUTSequence": [table(100, square, 12)]}),
        "mono2-u8-voi-table-8bit": Case(
            GREY, TABLE, {"VOILUTSequence": [table(0, np.arange(256)[::-1], 8)]}
        ),
        "mono2-u8-voi-table-8bit-packed": Case(
            GREY, TABLE, {"VOILUTSequence": [table(0, np.arange(256)[::-1], 8, packed=True)]}
        ),
        "mono2-s16-voi-table-falling": Case(
            SIGNED, TABLE, {"VOILUTSequence": [table(-300, falling, 16, "SS")]}
        ),
        "mono2-s16-voi-table-negative-as-us": Case(
            SIGNED, TABLE, {"VOILUTSequence": [table(65_536 - 300, falling, 16)]}
        ),
        "mono1-u8-voi-table": Case(
            GREY, TABLE, {**mono1, "VOILUTSequence": [table(100, square, 12)]}
        ),
        "mono2-u8-voi-table-big-endian": Case(
            GREY, TABLE, {"VOILUTSequence": [table(100, square, 12)]}, ("dcmconv", "+tb")
        ),
        "mono2-u12of16-voi-table-after-rescale": Case(
            TWELVE,
            TABLE,
            {**TWELVE_OF_16, "RescaleSlope": 1, "RescaleIntercept": -1024}
            | {"VOILUTSequence": [table(-1024, np.arange(4096)[::-1], 12, "SS")]},
        ),
    }


def _colour_cases() -> dict[str, Case]:
    full = {"PhotometricInterpretation": "YBR_FULL"}
    half = {"PhotometricInterpretation": "YBR_FULL_422", "PixelData": halved(ybr(RGB))}
    return {
        "rgb-u8": Case(RGB),
        "rgb-u8-planar": Case(planes(RGB), (), {"PlanarConfiguration": 1}),
        "rgb-u16": Case(RGB.astype(np.uint16) * 257),
        "rgb-u12of16": Case(RGB.astype(np.uint16) * 16, (), TWELVE_OF_16),
        "rgb-u8-odd-size": Case(RGB[:7, :9].copy()),
        "ybr-full-u8": Case(ybr(RGB), (), full),
        "ybr-full-u8-planar": Case(planes(ybr(RGB)), (), {**full, "PlanarConfiguration": 1}),
        "ybr-full-u8-any-colour": Case(
            np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), (), full
        ),
        "ybr-full-422-u8": Case(RGB, (), half),
        "ybr-full-u8-rle": Case(ybr(RGB), (), full, ("dcmcrle",)),
        "palette-u8": Case(GREY, (), palette()),
        "palette-u8-8bit-entries": Case(GREY, (), palette(bits=8, scale=1, cell="u1")),
        "palette-u8-entries-in-high-byte": Case(GREY, (), palette(scale=256)),
        "palette-u8-from-40": Case(GREY, (), palette(100, 40)),
        "palette-u16-700-entries": Case(GREY.astype(np.uint16) * 3, (), palette(700)),
        "palette-u8-rle": Case(GREY, (), palette(), ("dcmcrle",)),
        "palette-u8-big-endian": Case(GREY, (), palette(), ("dcmconv", "+tb")),
        "palette-made-by-dcmquant": Case(RGB, (), {}, ("dcmquant",)),
        "palette-made-by-dcmquant-16-colours": Case(RGB, (), {}, ("dcmquant", "+pc", "16")),
        "palette-made-by-dcmquant-big-endian": Case(RGB, (), {}, ("dcmquant", "+tb")),
        "palette-made-by-dcmquant-words": Case(RGB, (), {}, ("dcmquant", "+pw")),
    }


CASES = _cases()


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_dcmtk_within_one_grey_level(name: str, tmp_path):
    case = CASES[name]
    data = make_dicom(case.pixels, **case.tags)
    path = tmp_path / "made.dcm"
    path.write_bytes(data)
    if case.write:
        path = rewritten(data, tmp_path, *case.write)
    expected = rendered(path, *case.render, frame=case.frame)
    pixels = load_image(path, frame=case.frame).pixels
    assert pixels.shape == expected.shape
    assert pixels.std() > 1  # no black picture is compared with a black one
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_there_are_enough_variants():
    assert len(CASES) >= 40


def test_another_picture_would_be_noticed(tmp_path):
    # Negative control: the reference is not whatever we decode.
    (tmp_path / "made.dcm").write_bytes(make_dicom(GREY))
    pixels = load_image(make_dicom(255 - GREY)).pixels
    assert np.abs(pixels.astype(int) - rendered(tmp_path / "made.dcm")).max() > 100
