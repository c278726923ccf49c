"""Frames of clips: generated ones, where every frame is known, and real ones.

Lossy codecs are compared with the frames that were encoded within a stated tolerance; FFV1, which
loses nothing, exactly.
"""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("av", reason="the extra `video` is not installed")

from support.clips import make_clip, moving_bar
from support.pictures import encode, gradient, make_dicom
from umd_edge import ImageInputError, MissingDependencyError
from umd_edge import _video as video
from umd_edge._image import load_image
from umd_edge._video import load_clip, load_clip_frames, sampled_frames

FRAMES = moving_bar(40)
# container, codec, options, tolerance of the mean over a frame in grey levels
KINDS = {
    "mp4-mpeg4": ("mp4", "mpeg4", {}, 2.0),
    "mp4-h264": ("mp4", "libx264", {"crf": "8"}, 2.0),
    "mp4-h265": ("mp4", "libx265", {"crf": "8", "x265-params": "log-level=none"}, 2.0),
    "avi-mpeg4": ("avi", "mpeg4", {}, 2.0),
    "avi-mjpeg": ("avi", "mjpeg", {}, 3.0),
    "mpeg-mpeg1": ("mpeg", "mpeg1video", {}, 2.0),
    "mpeg-mpeg2": ("mpeg", "mpeg2video", {}, 2.0),
    "mpegts-mpeg2": ("mpegts", "mpeg2video", {}, 2.0),
    "bare-mpeg2": ("mpeg2video", "mpeg2video", {}, 2.0),
}


def clip_of(name: str, frames: np.ndarray = FRAMES) -> bytes:
    import av

    container, codec, options, _ = KINDS[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    pixel_format = "yuvj420p" if codec == "mjpeg" else ""
    return make_clip(frames, container, codec, pixel_format=pixel_format, **options)


@pytest.fixture(scope="module")
def clip() -> bytes:
    return clip_of("mp4-mpeg4")


@given(total=st.integers(1, 6000), count=st.integers(1, 64))
def test_sampled_frames_are_the_middles_of_equal_parts(total: int, count: int):
    numbers = sampled_frames(total, count)
    assert len(numbers) == min(total, count)
    assert len(set(numbers)) == len(numbers)
    assert numbers == tuple(sorted(numbers))
    if total > count:
        middles = [(part + 0.5) * total / count for part in range(count)]
        assert all(0 <= m - (n - 1) < 1 for m, n in zip(middles, numbers, strict=True))
    else:
        assert numbers == tuple(range(1, total + 1))


def test_no_frames_at_all_are_refused():
    with pytest.raises(ImageInputError, match="at least 1"):
        sampled_frames(10, 0)


@pytest.mark.parametrize("name", KINDS)
def test_frames_of_a_clip_are_those_that_were_encoded(name: str):
    taken = load_clip(clip_of(name), 8)
    assert (taken.total, taken.numbers) == (40, (3, 8, 13, 18, 23, 28, 33, 38))
    for number, image in zip(taken.numbers, taken.images, strict=True):
        shown = image.pixels.astype(float).mean(axis=2)
        assert np.abs(shown - FRAMES[number - 1]).mean() <= KINDS[name][3]
        # Negative control: the next frame is another one.
        assert np.abs(shown - FRAMES[number]).mean() > 4


def test_lossless_grey_clip_is_exact():
    data = make_clip(FRAMES, "avi", "ffv1")
    taken = load_clip(data, 5)
    for number, image in zip(taken.numbers, taken.images, strict=True):
        assert image.pixels.shape == (48, 64, 1)
        assert np.abs(image.pixels[..., 0].astype(int) - FRAMES[number - 1]).max() <= 1


def test_short_clip_gives_all_its_frames():
    taken = load_clip(clip_of("mp4-mpeg4", moving_bar(3)), 8)
    assert (taken.total, taken.numbers) == (3, (1, 2, 3))


def test_frames_do_not_depend_on_how_many_are_taken(clip: bytes):
    few, many = load_clip(clip, 4), load_clip(clip, 40)
    for number, image in zip(few.numbers, few.images, strict=True):
        assert np.array_equal(image.pixels, many.images[number - 1].pixels)
        assert np.array_equal(load_image(clip, frame=number).pixels, image.pixels)


def test_clip_without_a_frame_named_is_no_image(clip: bytes):
    with pytest.raises(ImageInputError, match=r"a clip of 40 frames; name one of 1\.\.40.*--frame"):
        load_image(clip)
    with pytest.raises(ImageInputError, match=r"frame 41 of .* given; 1\.\.40"):
        load_image(clip, frame=41)


def test_multi_frame_dicom_is_a_clip():
    pytest.importorskip("pydicom")
    taken = load_clip(make_dicom(FRAMES), 8)
    assert (taken.total, taken.numbers) == (40, (3, 8, 13, 18, 23, 28, 33, 38))
    for number, image in zip(taken.numbers, taken.images, strict=True):
        assert np.array_equal(image.pixels[..., 0], FRAMES[number - 1])
        assert image.dicom is not None
        assert image.dicom.frame == number


def _in_dicom(stream: bytes, syntax: str) -> bytes:
    from pydicom.encaps import encapsulate

    return make_dicom(
        FRAMES[0],
        TransferSyntaxUID=syntax,
        PixelData=encapsulate([stream + b"\0" * (len(stream) % 2)]),
        NumberOfFrames=40,
        SamplesPerPixel=3,
        PhotometricInterpretation="YBR_PARTIAL_420",
        PlanarConfiguration=0,
    )


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("bare-mpeg2", "1.2.840.10008.1.2.4.100"),
        ("mpegts-mpeg2", "1.2.840.10008.1.2.4.100"),
        ("mp4-h264", "1.2.840.10008.1.2.4.102"),
        ("mp4-h265", "1.2.840.10008.1.2.4.107"),
    ],
)
def test_mpeg_inside_dicom_is_a_clip(name: str, syntax: str):
    pytest.importorskip("pydicom")
    stream = clip_of(name)
    expected, taken = load_clip(stream, 4), load_clip(_in_dicom(stream, syntax), 4)
    assert taken.numbers == expected.numbers
    for one, other in zip(taken.images, expected.images, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
    assert taken.images[1].dicom is not None
    assert taken.images[1].dicom.frame == taken.numbers[1]


def test_mpeg_inside_dicom_of_another_size_is_refused():
    pytest.importorskip("pydicom")
    other = clip_of("bare-mpeg2", moving_bar(40, 64, 80))
    with pytest.raises(ImageInputError, match="not of Rows x Columns"):
        load_clip(_in_dicom(other, "1.2.840.10008.1.2.4.100"), 4)


# Clip -> the frame (from 0) that the data set took a picture of, with another program.
REAL = {
    "pocus-58ef2d40ea4d.avi": 83,
    "pocus-68edd98c0fc0.mp4": 134,
    "pocus-faeb7ab6c6a8.mpeg": 25,
}


@pytest.mark.parametrize("name", REAL)
def test_frame_of_a_real_clip_is_the_data_sets_picture(name: str, shared_data: Path):
    path = shared_data / "native" / name
    with Image.open(shared_data / "pocus" / "images" / f"{path.stem}.jpg") as picture:
        expected = np.asarray(picture.convert("L")).astype(float)
    numbers = range(REAL[name] - 3, REAL[name] + 6)
    difference = []
    for image in load_clip_frames(path.read_bytes(), name, numbers):
        grey = Image.fromarray(image.pixels).convert("L")
        small = np.asarray(grey.resize(expected.shape[::-1], Image.Resampling.BOX)).astype(float)
        difference.append(np.abs(small - expected).mean())
    assert int(np.argmin(difference)) == 4  # number - 1 == REAL[name]
    assert min(difference) < 4


def test_every_real_clip_is_read(shared_data: Path):
    paths = sorted((shared_data / "native").glob("pocus-*"))
    assert len(paths) >= 8
    for path in paths:
        taken = load_clip(path, 3)
        assert len(taken.images) == 3
        assert all(image.pixels.std() > 1 for image in taken.images)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6])
def test_clip_that_is_cut_off_is_refused_or_shorter(name: str, share: float):
    data = clip_of(name)
    if name.startswith(("mp4", "avi")):
        with pytest.raises(ImageInputError, match=r"cannot be decoded|cut off|no video"):
            load_clip(data[: int(share * len(data))])
        return
    # MPEG says nowhere how long it is, so a part of it can be a shorter clip.
    try:
        assert 0 < load_clip(data[: int(share * len(data))]).total < 40
    except ImageInputError as error:
        assert str(error).startswith("the clip ")


def test_damaged_clips_never_raise_another_error():
    rng = np.random.default_rng(3)
    refused = 0
    for name in ("mp4-mpeg4", "avi-mpeg4", "mpeg-mpeg2", "mpegts-mpeg2"):
        data = clip_of(name, moving_bar(12))
        for _ in range(25):
            damaged = bytearray(data)
            for position in rng.integers(16, len(data), 8):
                damaged[position] = rng.integers(0, 256)
            try:
                load_clip(bytes(damaged), 3)
            except ImageInputError:
                refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        ("MAX_FRAMES", 39, "more than 39 frames"),
        ("MAX_CLIP_PIXELS", 39 * 48 * 64, "gigapixels"),
        ("MAX_FRAME_PIXELS", 3000, "64 x 48 pixels"),
    ],
)
def test_clip_above_a_limit_is_refused(clip: bytes, monkeypatch, limit: str, value: int, told: str):
    monkeypatch.setattr(video, limit, value)
    with pytest.raises(ImageInputError, match=told):
        load_clip(clip)


def test_dicom_of_ten_thousand_frames_is_no_clip():
    pytest.importorskip("pydicom")
    with pytest.raises(ImageInputError, match="more than 5000 frames"):
        load_clip(make_dicom(gradient()[..., 0], NumberOfFrames=10_000))


def test_playlist_that_names_other_files_is_not_followed(tmp_path: Path, clip: bytes):
    (tmp_path / "secret.mp4").write_bytes(clip)
    for text in (f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp4'\n", "#EXTM3U\nsecret.mp4\n"):
        with pytest.raises(ImageInputError, match="no clip by its content"):
            load_clip(text.encode())
        with pytest.raises(ImageInputError):
            load_clip(b"\0\0\0\x18ftypisom" + text.encode())


@pytest.mark.parametrize("data", [encode(Image.new("L", (8, 8))), b"", b"no clip at all" * 50])
def test_what_is_no_clip_is_refused(data: bytes):
    with pytest.raises(ImageInputError, match="no clip by its content"):
        load_clip(data)


def test_array_is_no_clip():
    with pytest.raises(ImageInputError, match="a path or the bytes"):
        load_clip(FRAMES[0])


def test_without_pyav_the_extra_is_named(monkeypatch, clip: bytes):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "umd-edge\[video\]"'):
        load_clip(clip)


def _rotated(data: bytes) -> bytes:
    """The same MP4 with the display matrix of a quarter turn to the right."""
    one = (1 << 16).to_bytes(4, "big")
    last = (1 << 30).to_bytes(4, "big")
    plain = one + b"\0" * 12 + one + b"\0" * 12 + last
    minus = (2**32 - (1 << 16)).to_bytes(4, "big")
    turned = b"\0" * 4 + one + b"\0" * 4 + minus + b"\0" * 16 + b"\0" * 4 + last
    start = data.index(b"tkhd")
    place = data.index(plain, start)
    assert len(turned) == len(plain) + 4
    turned = b"\0" * 4 + one + b"\0" * 4 + minus + b"\0" * 16 + last
    return data[:place] + turned + data[place + len(plain) :]


def test_clip_is_turned_as_its_container_asks(clip: bytes):
    plain, turned = load_clip(clip, 2), load_clip(_rotated(clip), 2)
    for one, other in zip(plain.images, turned.images, strict=True):
        # A quarter turn to the right: what was on the left comes to the top.
        assert np.array_equal(other.pixels, np.rot90(one.pixels, -1))


def test_memory_does_not_grow_with_the_length():
    peaks = []
    for count in (40, 400):
        data = clip_of("mp4-mpeg4", moving_bar(count))
        tracemalloc.start()
        load_clip(data, 4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 1_000_000
