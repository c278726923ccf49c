from __future__ import annotations

import io
import logging
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from support.dcmtk import rewritten  # noqa: E402
from support.pictures import gradient, make_dicom  # noqa: E402
from umd_edge import DicomInputError, ImageInputError, MissingDependencyError  # noqa: E402
from umd_edge._image import load_image  # noqa: E402

GREY = gradient()[..., 2]
WIDE = GREY.astype(np.uint16) * 20


def test_object_without_pixels_is_told_with_the_tag():
    with pytest.raises(DicomInputError, match=r"PixelData \(7FE0,0010\)"):
        load_image(make_dicom(GREY, PixelData=None))


def test_structured_report_is_refused():
    report = make_dicom(
        GREY,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33",
        Modality="SR",
        **dict.fromkeys(("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored")),
        HighBit=None,
        PhotometricInterpretation=None,
    )
    with pytest.raises(DicomInputError, match="structured report"):
        load_image(report)


def test_structured_report_with_pixels_is_refused_too():
    with pytest.raises(DicomInputError, match=r"SOPClassUID \(0008,0016\).*structured report"):
        load_image(make_dicom(GREY, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33", Modality="SR"))


@pytest.mark.parametrize(
    ("uid", "told"),
    [
        ("1.2.840.10008.5.1.4.1.1.66.4", "segmentation"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "dose"),
    ],
)
def test_objects_that_are_no_pictures_are_refused(uid: str, told: str):
    with pytest.raises(DicomInputError, match=told):
        load_image(make_dicom(GREY, SOPClassUID=uid))


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000.*64 megapixels"),
        ({"Rows": 0}, "0 pixels large"),
        ({"Rows": None}, "Rows"),
        ({"BitsStored": 12, "HighBit": 10}, "HighBit"),
        ({"BitsStored": 12, "HighBit": 16}, "HighBit"),
        ({"BitsStored": 0}, "BitsStored"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel"),
        ({"PhotometricInterpretation": "HSV"}, "PhotometricInterpretation"),
        ({"PhotometricInterpretation": "ARGB"}, "PhotometricInterpretation"),
        ({"Rows": 41}, "cannot be decoded"),
        ({"BitsAllocated": 24}, "cannot be decoded"),
        ({"WindowCenter": 100, "WindowWidth": 0}, "WindowWidth"),
        ({"WindowCenter": 100, "WindowWidth": -5}, "WindowWidth"),
        ({"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": "CUBIC"}, "VOILUTFunction"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "RescaleSlope"),
        ({"PresentationLUTSequence": [pydicom.Dataset()]}, "cannot be decoded"),
        ({"PresentationLUTShape": "LIN OD"}, "PresentationLUTShape"),
        ({"NumberOfFrames": 1000}, "1000 frames"),
        ({"NumberOfFrames": -3}, "name one"),
    ],
)
def test_header_that_does_not_fit_is_told_with_its_tag(tags: dict, told: str):
    with pytest.raises(ImageInputError, match=told):
        load_image(make_dicom(WIDE, **{"BitsStored": 16, **tags}))


def test_frames_that_are_not_in_the_pixels_are_refused():
    with pytest.raises(DicomInputError, match="cannot be decoded"):
        load_image(make_dicom(GREY, NumberOfFrames=1000), frame=900)


def test_a_part_is_not_taken_for_the_whole_picture():
    with pytest.raises(DicomInputError, match="more pixels than Rows"):
        load_image(make_dicom(GREY, Rows=GREY.shape[0] // 2))
    padded = make_dicom(GREY, PixelData=GREY.tobytes() + bytes(64))
    assert load_image(padded).pixels.shape[:2] == GREY.shape


def test_grey_values_that_are_all_equal_are_refused():
    with pytest.raises(DicomInputError, match="equal"):
        load_image(make_dicom(np.full((8, 8), 5, np.uint16)))
    with pytest.raises(DicomInputError, match="equal"):
        load_image(make_dicom(np.full((8, 8), 5, np.uint16), PixelPaddingValue=5))


def test_not_a_number_in_the_header_is_refused():
    data = make_dicom(WIDE, WindowCenter="12.5", WindowWidth="20.5")
    with pytest.raises(DicomInputError, match=r"finite|cannot be decoded"):
        load_image(data.replace(b"20.5", b"nan "))


def _deflated(pixels: np.ndarray) -> bytes:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    return make_dicom(pixels, TransferSyntaxUID=DeflatedExplicitVRLittleEndian)


def test_deflated_file_is_unpacked_up_to_a_limit(monkeypatch: pytest.MonkeyPatch):
    from umd_edge import _dicom_file

    data = _deflated(np.zeros((2000, 2000), np.uint8))
    assert len(data) < 10_000
    monkeypatch.setattr(_dicom_file, "MAX_INFLATED_BYTES", 1_000_000)
    with pytest.raises(DicomInputError, match=r"more than 1000000 bytes once unpacked"):
        load_image(data)


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_deflated_file_that_is_cut_off_is_refused(kept: float):
    data = _deflated(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    with pytest.raises(DicomInputError):
        load_image(data[: int(kept * len(data))])


def test_deflated_file_without_its_meta_length_is_refused():
    data = _deflated(GREY)
    with pytest.raises(DicomInputError, match="meta information is damaged"):
        load_image(data[:132] + b"\x02\x00\x01\x00" + data[136:])


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.100", "1.2.3.4.5"])
def test_transfer_syntax_that_is_not_known_is_a_named_error(uid: str):
    data = make_dicom(GREY)
    old = b"1.2.840.10008.1.2.1\0"
    assert data.count(old) == 1
    start = data.index(old)
    new = uid.encode() + b"\0" * (len(uid) % 2)
    length = len(new).to_bytes(2, "little")
    data = data[: start - 2] + length + new + data[start + len(old) :]
    group = data.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    size = int.from_bytes(data[group : group + 4], "little") + len(new) - len(old)
    data = data[:group] + size.to_bytes(4, "little") + data[group + 4 :]
    with pytest.raises((DicomInputError, MissingDependencyError), match=r"TransferSyntax|transfer"):
        load_image(data)


def test_compressed_pixels_of_another_size_are_refused_before_decoding():
    from PIL import Image
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    out = io.BytesIO()
    Image.fromarray(GREY).save(out, "JPEG")
    bomb = bytearray(out.getvalue())
    start = bomb.index(b"\xff\xc0")
    bomb[start + 5 : start + 9] = (60_000).to_bytes(2, "big") * 2
    dataset = pydicom.dcmread(io.BytesIO(make_dicom(GREY)))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([bytes(bomb)])
    dataset["PixelData"].is_undefined_length = True
    out = io.BytesIO()
    dataset.save_as(out)
    start_time = time.perf_counter()
    with pytest.raises(DicomInputError, match="60000 x 60000"):
        load_image(out.getvalue())
    assert time.perf_counter() - start_time < 2


def _compressed(syntax: str, folder: Path) -> bytes:
    """A noisy picture in a syntax, written by DCMTK, or by OpenJPEG for JPEG 2000."""
    noise = np.random.default_rng(0).integers(0, 60, (64, 72)) + np.arange(72) * 2
    data = make_dicom(noise.astype(np.uint8))
    if syntax in DCMTK_WRITES:
        return rewritten(data, folder, *DCMTK_WRITES[syntax]).read_bytes()
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.compress(pydicom.uid.JPEG2000Lossless, encoding_plugin="pylibjpeg")
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


DCMTK_WRITES = {
    "rle": ("dcmcrle",),
    "jpeg-baseline": ("dcmcjpeg", "+eb"),
    "jpeg-lossless": ("dcmcjpeg", "+e1"),
    "jpeg-ls": ("dcmcjpls", "+el"),
}


@pytest.mark.parametrize("syntax", [*DCMTK_WRITES, "jpeg-2000"])
def test_compressed_pixels_that_are_cut_off_are_refused(syntax: str, tmp_path: Path):
    from pydicom.encaps import encapsulate, get_frame

    data = _compressed(syntax, tmp_path)
    assert load_image(data).pixels.std() > 10
    for share in (0.4, 0.8, 0.99):
        with pytest.raises(DicomInputError, match=r"cut off, within PixelData"):
            load_image(data[: int(share * len(data))])
    dataset = pydicom.dcmread(io.BytesIO(data))
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    for share in (0.1, 0.5, 0.95):
        dataset.PixelData = encapsulate([frame[: int(share * len(frame))]])
        out = io.BytesIO()
        dataset.save_as(out)
        with pytest.raises(DicomInputError, match=r"cut off|cannot be decoded"):
            load_image(out.getvalue())


@pytest.mark.parametrize("frame", [None, 9_999])
def test_ten_thousand_frames_that_are_not_there_are_refused_at_once(frame: int | None):
    start = time.perf_counter()
    with pytest.raises(DicomInputError, match=r"10000 frames; name one|cannot be decoded"):
        load_image(make_dicom(GREY, NumberOfFrames=10_000), frame=frame)
    assert time.perf_counter() - start < 2


def test_frame_out_of_ten_thousand_is_read(tmp_path: Path):
    frames = np.zeros((10_000, 8, 8), np.uint8)
    frames[6999] = np.arange(64).reshape(8, 8)
    loaded = load_image(make_dicom(frames), frame=7000)
    assert np.array_equal(loaded.pixels[..., 0], frames[6999])
    assert loaded.dicom is not None
    assert (loaded.dicom.frame, loaded.dicom.frames) == (7000, 10_000)


def test_text_in_the_place_of_a_uid_is_not_kept():
    # Text where a UID should be could be anything, a name among them.
    facts = load_image(make_dicom(GREY, StudyInstanceUID="JANE DOE")).dicom
    assert facts is not None
    assert facts.study_instance_uid is None
    assert "JANE" not in str(facts.to_dict())


@pytest.fixture(scope="module")
def whole() -> bytes:
    return make_dicom(WIDE, WindowCenter=1000, WindowWidth=500)


def test_every_truncation_is_an_input_error(whole: bytes):
    for length in [*range(1, 700, 7), *range(700, len(whole) - 1, 301)]:
        with pytest.raises(ImageInputError):
            load_image(whole[:length])


def test_flipped_bytes_never_raise_another_error_and_never_tell_the_patient(whole: bytes, caplog):
    rng = np.random.default_rng(1)
    caplog.set_level(logging.DEBUG)
    for _ in range(200):
        damaged = bytearray(whole)
        for position in rng.integers(0, 700, 3):
            damaged[position] = rng.integers(0, 256)
        try:
            load_image(bytes(damaged))
        except (ImageInputError, MissingDependencyError) as error:
            told = "".join(traceback.format_exception(error))
            assert "Secret" not in told
            assert "SECRET-ID" not in told
    assert "Secret" not in caplog.text


def test_value_of_a_broken_tag_is_in_no_message_warning_or_log(recwarn, caplog):
    data = make_dicom(WIDE, WindowCenter="1000", WindowWidth="5000", BodyPartExamined="CHEST")
    damaged = data.replace(b"5000", b"JANE").replace(b"CHEST", b"D\xffE12")
    with pytest.raises(DicomInputError) as caught:
        load_image(damaged)
    told = "".join(traceback.format_exception(caught.value))
    assert "JANE" not in told + caplog.text
    assert not recwarn.list


def test_deeply_nested_sequences_are_survived():
    from pydicom.dataset import Dataset

    inner = Dataset()
    for _ in range(60):
        outer = Dataset()
        outer.ReferencedSeriesSequence = [inner]
        inner = outer
    data = make_dicom(GREY, ReferencedSeriesSequence=[inner])
    assert np.array_equal(load_image(data).pixels[..., 0], GREY)


def test_magic_without_anything_behind_it_is_refused():
    with pytest.raises(DicomInputError):
        load_image(b"\0" * 128 + b"DICM")
    with pytest.raises(DicomInputError):
        load_image(b"\0" * 128 + b"DICM" + b"\xff" * 500)


@pytest.mark.parametrize("name", ["test-SR.dcm", "reportsi.dcm", "rtplan.dcm", "waveform_ecg.dcm"])
def test_carried_objects_without_pixels_are_refused(name: str):
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    if not path.is_file():
        pytest.skip(f"this pydicom does not carry {name}")
    with pytest.raises(DicomInputError, match=r"SOPClassUID \(0008,0016\).*not a picture"):
        load_image(path)


# What made a decoder end the whole process, found by changing headers and streams at random.
FATAL: dict[str, tuple[str, dict[str, Any], tuple[int, int] | None]] = {
    # name: syntax, tags that lie, (place in the stream, byte)
    "jpeg lossless, fewer bits stored than coded": ("jpeg-lossless", {"BitsStored": 7}, None),
    "jpeg lossless, one bit": ("jpeg-lossless", {"BitsStored": 1}, None),
    "jpeg lossless, 32 bits": ("jpeg-lossless", {"BitsAllocated": 32}, None),
    "jpeg lossless, 64 bits": ("jpeg-lossless", {"BitsAllocated": 64}, None),
    "jpeg lossless, JFIF of another version": ("jpeg-lossless", {}, (11, 0x9F)),
    "jpeg lossless, no Huffman table": ("jpeg-lossless", {}, (33, 0x53)),
    "jpeg lossless, a depth of 46": ("jpeg-lossless", {}, (24, 46)),
    "jpeg lossless, no samples": ("jpeg-lossless", {"SamplesPerPixel": 0}, None),
    "jpeg baseline, no Huffman table": ("jpeg-baseline", {}, (89, 0x80)),
    "jpeg 2000, no samples": ("jpeg-2000", {"SamplesPerPixel": 0}, None),
    "jpeg 2000, colour that is not there": (
        "jpeg-2000",
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_RCT"},
        None,
    ),
    "jpeg-ls, colour that is not there": (
        "jpeg-ls",
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
        None,
    ),
}
_RUNNER = """
import pathlib, sys
from umd_edge import ImageInputError
from umd_edge._image import load_image
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.dcm")):
    try:
        load_image(path)
        print(path.stem, "read", flush=True)
    except ImageInputError as error:
        print(path.stem, "refused", flush=True)
"""


def _lying(data: bytes, tags: dict[str, Any], change: tuple[int, int] | None) -> bytes:
    from pydicom.encaps import encapsulate, get_frame

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(data))
        for tag, value in tags.items():
            setattr(dataset, tag, value)
        if "BitsStored" in tags:
            dataset.HighBit = tags["BitsStored"] - 1
        if change is not None:
            frame = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
            frame[change[0]] = change[1]
            dataset.PixelData = encapsulate([bytes(frame)])
        out = io.BytesIO()
        dataset.save_as(out)
    return out.getvalue()


def test_headers_that_lie_about_compressed_pixels_do_not_end_the_process(tmp_path: Path):
    plain = {syntax: _compressed(syntax, tmp_path) for syntax, _, _ in FATAL.values()}
    folder = tmp_path / "lying"
    folder.mkdir()
    for number, (syntax, tags, change) in enumerate(FATAL.values()):
        (folder / f"{number:02}.dcm").write_bytes(_lying(plain[syntax], tags, change))
    command = [sys.executable, "-c", _RUNNER, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    told = dict(line.split() for line in done.stdout.splitlines())
    names = list(FATAL)
    assert done.returncode == 0, f"the process ended after {names[len(told) - 1]!r}"
    # A header that is only superfluous may be read; all others are refused by name.
    harmless = {"jpeg lossless, JFIF of another version", "jpeg lossless, one bit"}
    harmless.add("jpeg lossless, fewer bits stored than coded")
    read = {names[int(stem)] for stem, what in told.items() if what == "read"}
    assert read <= harmless
    assert len(told) == len(FATAL)


@pytest.mark.parametrize(
    ("place", "byte"), [(24, 46), (29, 2), (33, 0x53), (38, 0x55), (39, 255), (66, 9), (67, 0x99)]
)
def test_damaged_header_of_a_lossless_jpeg_is_told(tmp_path: Path, place: int, byte: int):
    data = _lying(_compressed("jpeg-lossless", tmp_path), {}, (place, byte))
    with pytest.raises(DicomInputError, match=r"compressed pixels"):
        load_image(data)
