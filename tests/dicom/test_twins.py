"""What DCMTK cannot render: JPEG 2000 and HTJ2K against the uncompressed twin, and formulas.

Lossless syntaxes equal the twin; for lossy ones the tolerance stands beside the case. LINEAR_EXACT,
per-frame functional groups, presentation tables and padding are compared with the formula of PS3.3.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
pytest.importorskip("openjpeg", reason="the extra `dicom` is not installed")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402

from support.dcmtk import program  # noqa: E402
from support.pictures import gradient, make_dicom  # noqa: E402
from umd_edge import DicomInputError  # noqa: E402
from umd_edge._image import load_image  # noqa: E402

RGB = gradient(64, 72)
GREY = RGB[..., 2]
TWELVE = GREY.astype(np.uint16) * 16 + 5
SIGNED = GREY.astype(np.int16) * 100 - 9000
SMOOTH = (128 + 100 * np.sin(np.arange(72) / 9)[None] * np.cos(np.arange(64) / 7)[:, None]).astype(
    np.uint8
)
TWELVE_OF_16 = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 3000}
WINDOWED = {"WindowCenter": 2000, "WindowWidth": 9000}


def decoded(data: bytes, frame: int | None = None) -> np.ndarray:
    return load_image(data, frame=frame).pixels.astype(int)


def compressed(pixels: np.ndarray, tags: dict[str, Any], lossy: bool) -> bytes:
    """JPEG 2000 by OpenJPEG, which is not the decoder that we ask first."""
    import io

    dataset = pydicom.dcmread(io.BytesIO(make_dicom(pixels, **tags)))
    if lossy:
        dataset.compress(pydicom.uid.JPEG2000, j2k_cr=[4], encoding_plugin="pylibjpeg")
    else:
        dataset.compress(pydicom.uid.JPEG2000Lossless, encoding_plugin="pylibjpeg")
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


JPEG_2000: dict[str, tuple[np.ndarray, dict[str, Any], bool, int]] = {
    # name: pixels, tags, lossy, tolerance in grey levels
    "mono2-u8-j2k-lossless": (GREY, {}, False, 0),
    "mono1-u8-j2k-lossless": (GREY, {"PhotometricInterpretation": "MONOCHROME1"}, False, 0),
    "mono2-u12of16-j2k-lossless": (TWELVE, TWELVE_OF_16, False, 0),
    "mono2-u16-j2k-lossless": (GREY.astype(np.uint16) * 257, {}, False, 0),
    "mono2-s16-j2k-lossless": (SIGNED, WINDOWED, False, 0),
    "mono2-s12of16-j2k-lossless": (
        GREY.astype(np.int16) * 16 - 2048,
        {"BitsStored": 12, "WindowCenter": -100, "WindowWidth": 2500},
        False,
        0,
    ),
    "rgb-u8-j2k-lossless": (RGB, {}, False, 0),
    "mono2-u8-j2k-lossy": (SMOOTH, {}, True, 4),
    "mono2-u12of16-j2k-lossy": (SMOOTH.astype(np.uint16) * 16, TWELVE_OF_16, True, 4),
}


@pytest.mark.parametrize("name", JPEG_2000)
def test_jpeg_2000_is_its_uncompressed_twin(name: str):
    pixels, tags, lossy, tolerance = JPEG_2000[name]
    twin = decoded(make_dicom(pixels, **tags))
    packed = decoded(compressed(pixels, tags, lossy))
    assert twin.std() > 1
    assert np.abs(packed - twin).max() <= tolerance
    assert np.array_equal(packed, twin) is not lossy


def high_throughput(pixels: np.ndarray, folder: Path, *options: str) -> bytes:
    """The HTJ2K codestream that OpenJPH makes of unsigned pixels."""
    source, target = folder / "source.ppm", folder / "packed.j2c"
    colour = pixels.ndim == 3
    top = 4095 if pixels.dtype == np.uint16 else 255
    kind = "P6" if colour else "P5"
    source = source if colour else source.with_suffix(".pgm")
    head = f"{kind} {pixels.shape[1]} {pixels.shape[0]} {top}\n".encode()
    source.write_bytes(head + pixels.astype(pixels.dtype.newbyteorder(">")).tobytes())
    tool = program("ojph_compress", "openjph-tools")
    command = [tool, "-i", str(source), "-o", str(target), *options]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return target.read_bytes()


LOSSLESS, RPCL = pydicom.uid.HTJ2KLossless, pydicom.uid.HTJ2KLosslessRPCL
HTJ2K: dict[str, tuple[np.ndarray, dict[str, Any], Any, tuple[str, ...], int]] = {
    # name: pixels, tags, transfer syntax, options of ojph_compress, tolerance in grey levels
    "mono2-u8-htj2k-lossless": (GREY, {}, LOSSLESS, ("-reversible", "true"), 0),
    "mono1-u8-htj2k-lossless": (
        GREY,
        {"PhotometricInterpretation": "MONOCHROME1"},
        LOSSLESS,
        ("-reversible", "true"),
        0,
    ),
    "mono2-u12of16-htj2k-lossless": (
        TWELVE,
        TWELVE_OF_16,
        LOSSLESS,
        ("-reversible", "true"),
        0,
    ),
    "rgb-u8-htj2k-lossless": (
        RGB,
        {"PhotometricInterpretation": "YBR_RCT"},
        LOSSLESS,
        ("-reversible", "true"),
        0,
    ),
    "mono2-u8-htj2k-lossless-rpcl": (
        GREY,
        {},
        RPCL,
        ("-reversible", "true", "-prog_order", "RPCL"),
        0,
    ),
    "mono2-u8-htj2k-lossy": (GREY, {}, pydicom.uid.HTJ2K, ("-qstep", "0.002"), 3),
    "mono2-u12of16-htj2k-lossy": (TWELVE, TWELVE_OF_16, pydicom.uid.HTJ2K, ("-qstep", "0.001"), 3),
}


@pytest.mark.parametrize("name", HTJ2K)
def test_htj2k_is_its_uncompressed_twin(name: str, tmp_path: Path):
    pixels, tags, syntax, options, tolerance = HTJ2K[name]
    codestream = high_throughput(pixels, tmp_path, *options)
    twin = {key: value for key, value in tags.items() if value != "YBR_RCT"}
    expected = decoded(make_dicom(pixels, **twin))
    data = encapsulate([codestream])
    packed = decoded(make_dicom(pixels, TransferSyntaxUID=syntax, PixelData=data, **tags))
    assert expected.std() > 1
    assert np.abs(packed - expected).max() <= tolerance


def _rounded(brightness: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(brightness, 0, 1) * 255 + 0.5).astype(int)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("centre", "width"), [(2000, 9000), (0, 0.5), (-3000.5, 100.25)])
def test_linear_exact_is_the_formula_of_the_standard(photometric: str, centre: float, width: float):
    tags = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": "LINEAR_EXACT"}
    data = make_dicom(SIGNED, PhotometricInterpretation=photometric, **tags)
    expected = _rounded((SIGNED - centre) / width + 0.5)  # PS3.3 C.11.2.1.3.2
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    assert np.array_equal(decoded(data)[..., 0], expected)


def test_fractions_after_rescale_are_kept():
    # DCMTK rounds rescaled values to whole numbers, so a window of width 1.9 is beyond it.
    tags = {"RescaleSlope": "0.0001", "RescaleIntercept": "0.25"}
    data = make_dicom(SIGNED, WindowCenter="0.3", WindowWidth="1.9", **tags)
    x = SIGNED * 0.0001 + 0.25
    expected = _rounded((x - (0.3 - 0.5)) / (1.9 - 1) + 0.5)  # PS3.3 C.11.2.1.2.1
    assert np.array_equal(decoded(data)[..., 0], expected)


def _enhanced(per_frame: list[dict[str, Any]], shared: dict[str, Any]) -> dict[str, Any]:
    def item(groups: dict[str, dict[str, Any]]) -> Dataset:
        outer = Dataset()
        for sequence, tags in groups.items():
            inner = Dataset()
            for tag, value in tags.items():
                setattr(inner, tag, value)
            setattr(outer, sequence, [inner])
        return outer

    return {
        "PerFrameFunctionalGroupsSequence": [item(groups) for groups in per_frame],
        "SharedFunctionalGroupsSequence": [item(shared)],
    }


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [("1.2.840.10008.5.1.4.1.1.2.1", "CT"), ("1.2.840.10008.5.1.4.1.1.4.1", "MR")],
)
def test_each_frame_of_an_enhanced_object_has_its_own_groups(sop_class: str, modality: str):
    slopes, centres = (1.0, 2.5, -1.0), (100, 2000, -500)
    groups = [
        {
            "PixelValueTransformationSequence": {"RescaleSlope": k, "RescaleIntercept": 10 * k},
            "FrameVOILUTSequence": {"WindowCenter": c, "WindowWidth": 7000},
            "PixelMeasuresSequence": {"PixelSpacing": [0.5 + n, 0.25 + n]},
        }
        for n, (k, c) in enumerate(zip(slopes, centres, strict=True))
    ]
    shared = {
        "FrameAnatomySequence": {"FrameLaterality": "U"},
        # The shared group must lose against that of the frame.
        "FrameVOILUTSequence": {"WindowCenter": 9, "WindowWidth": 9},
    }
    data = make_dicom(
        np.stack([SIGNED] * 3),
        SOPClassUID=sop_class,
        Modality=modality,
        **_enhanced(groups, shared),
    )
    for n, (slope, centre) in enumerate(zip(slopes, centres, strict=True)):
        loaded = load_image(data, frame=n + 1)
        x = SIGNED * slope + 10 * slope
        expected = _rounded((x - (centre - 0.5)) / 6999 + 0.5)  # PS3.3 C.11.2.1.2.1
        assert np.array_equal(loaded.pixels[..., 0], expected)
        assert loaded.dicom is not None
        assert loaded.dicom.frame == n + 1
        assert loaded.dicom.pixel_spacing_mm == (0.5 + n, 0.25 + n)


def test_groups_that_all_frames_share_are_used():
    shared = {
        "PixelValueTransformationSequence": {"RescaleSlope": 2, "RescaleIntercept": -5},
        "FrameVOILUTSequence": {
            "WindowCenter": 100,
            "WindowWidth": 8000,
            "VOILUTFunction": "LINEAR_EXACT",
        },
        "PixelMeasuresSequence": {"PixelSpacing": [0.7, 0.6]},
    }
    data = make_dicom(np.stack([SIGNED, SIGNED // 2]), **_enhanced([{}, {}], shared))
    expected = _rounded((SIGNED // 2 * 2 - 5 - 100) / 8000 + 0.5)
    assert np.array_equal(decoded(data, 2)[..., 0], expected)
    facts = load_image(data, frame=2).dicom
    assert facts is not None
    assert facts.pixel_spacing_mm == (0.7, 0.6)


def _presentation(entries: np.ndarray, bits: int) -> dict[str, Any]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [entries.size, 0, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return {"PresentationLUTSequence": [item]}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_presentation_table_comes_last_and_replaces_the_inversion(photometric: str):
    entries = (np.linspace(0, 1, 4096) ** 2 * 65_535).astype(int)
    data = make_dicom(
        SIGNED, PhotometricInterpretation=photometric, **WINDOWED, **_presentation(entries, 16)
    )
    brightness = np.clip((SIGNED - 1999.5) / 8999 + 0.5, 0, 1)
    # PS3.3 C.11.4.1: the range of the window is that of the table's input; its output is P-Values.
    expected = _rounded(entries[np.minimum((brightness * 4096).astype(int), 4095)] / 65_535)
    assert np.abs(decoded(data)[..., 0] - expected).max() <= 1


def test_presentation_table_that_changes_nothing_changes_nothing():
    same = _presentation(np.arange(4096), 12)
    plain = decoded(make_dicom(TWELVE, **TWELVE_OF_16))
    assert np.abs(decoded(make_dicom(TWELVE, **TWELVE_OF_16, **same)) - plain).max() <= 1
    assert np.array_equal(
        decoded(make_dicom(GREY, **_presentation(np.arange(256) * 257, 16)))[..., 0], GREY
    )


@pytest.mark.parametrize(("value", "limit"), [(-9500, None), (-9900, -9500)])
def test_padding_takes_no_part_in_smallest_and_largest(value: int, limit: int | None):
    padded = SIGNED.copy()
    padded[:4] = -9500
    tags = {"PixelPaddingValue": value, "PixelPaddingRangeLimit": limit}
    inside = SIGNED[4:].astype(int)
    low, high = inside.min(), inside.max()
    shown = decoded(make_dicom(padded, **tags))[..., 0]
    assert np.abs(shown[4:] - _rounded((inside - low) / (high - low))).max() == 0
    assert (shown[:4] == 0).all()
    assert not np.array_equal(decoded(make_dicom(padded))[4:, :, 0], shown[4:])


def test_negative_padding_that_was_written_as_unsigned_is_understood(tmp_path: Path):
    padded = SIGNED.copy()
    padded[:4] = -9500
    make_dicom(padded, tmp_path / "a.dcm")
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.add_new((0x0028, 0x0120), "US", 65_536 - 9500)
    dataset.save_as(tmp_path / "a.dcm")
    expected = decoded(make_dicom(padded, PixelPaddingValue=-9500))
    assert np.array_equal(load_image(tmp_path / "a.dcm").pixels, expected)
    assert not np.array_equal(decoded(make_dicom(padded)), expected)


def test_palette_in_segments_is_its_plain_twin():
    # PS3.3 C.7.9.2: one discrete entry, then a line of 255 steps up to the end.
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    plain = dict(tags)
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTable"
        tags[f"{name}Descriptor"] = plain[f"{name}Descriptor"] = [256, 0, 16]
        segments = np.array([0, 1, 0, 1, 255, 65_535], "<u2")
        tags[f"Segmented{name}Data"] = segments.tobytes()
        plain[f"{name}Data"] = (np.arange(256) * 257).astype("<u2").tobytes()
    assert np.array_equal(decoded(make_dicom(GREY, **tags)), decoded(make_dicom(GREY, **plain)))


def test_palette_that_would_be_black_is_refused():
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = np.arange(256).astype("<u2").tobytes()
    with pytest.raises(DicomInputError, match="low 8 alone"):
        load_image(make_dicom(GREY, **tags))


def test_palette_without_its_data_is_refused():
    tags = {
        "PhotometricInterpretation": "PALETTE COLOR",
        "RedPaletteColorLookupTableDescriptor": [256, 0, 16],
    }
    with pytest.raises(DicomInputError, match="RedPaletteColorLookupTableData"):
        load_image(make_dicom(GREY, **tags))


def test_overlay_in_a_group_of_its_own_is_left_out(tmp_path: Path):
    dataset = pydicom.dcmread(make_dicom_path(tmp_path))
    bits = np.packbits(np.ones(GREY.size, np.uint8), bitorder="little")
    dataset.add_new((0x6000, 0x0010), "US", GREY.shape[0])
    dataset.add_new((0x6000, 0x0011), "US", GREY.shape[1])
    dataset.add_new((0x6000, 0x0040), "CS", "G")
    dataset.add_new((0x6000, 0x0100), "US", 1)
    dataset.add_new((0x6000, 0x0102), "US", 0)
    dataset.add_new((0x6000, 0x3000), "OW", bits.tobytes())
    dataset.save_as(tmp_path / "overlaid.dcm")
    assert np.array_equal(load_image(tmp_path / "overlaid.dcm").pixels[..., 0], GREY)


def make_dicom_path(folder: Path) -> Path:
    make_dicom(GREY, folder / "plain.dcm")
    return folder / "plain.dcm"


def test_twin_of_another_picture_would_be_noticed():
    # Negative control of all comparisons with a twin.
    other = decoded(compressed(255 - GREY, {}, False))
    assert np.abs(other - decoded(make_dicom(GREY))).max() > 100
