"""One answer for a clip: the mean over its sampled frames."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="the extra `video` is not installed")

from support.clips import make_clip, moving_bar
from support.command import png, run, run_json
from support.pictures import make_dicom
from umd_edge import (
    AuditLog,
    ClipFrames,
    DeadlineExceededError,
    ImageInputError,
    Predictor,
    limited,
)
from umd_edge._video import load_clip

FRAMES = moving_bar(40)


@pytest.fixture(scope="module")
def clip() -> bytes:
    return make_clip(FRAMES)


@pytest.fixture(scope="module")
def predictor(request) -> Predictor:
    return Predictor.load(request.getfixturevalue("tiny_bundle"))


def test_answer_about_a_clip_is_the_mean_over_its_frames(predictor: Predictor, clip: bytes):
    result = predictor.classify(clip, "breast-ultrasound")
    assert (result.frames, result.status) == (ClipFrames((3, 8, 13, 18, 23, 28, 33, 38), 40), "ok")
    assert result.images is not None
    assert (result.images.given, result.images.used) == (8, 8)
    alone = [
        predictor.classify(clip, "breast-ultrasound", frame=number)
        for number in result.frames.numbers
    ]
    expected = np.mean([[item.probability for item in one.findings] for one in alone], axis=0)
    found = [item.probability for item in result.findings]
    assert np.allclose(found, expected, rtol=0, atol=1e-12)
    # Negative control: frames differ, so the mean is none of them.
    assert len({one.findings[0].probability for one in alone}) > 1
    assert found[0] not in {one.findings[0].probability for one in alone}


def test_same_frames_give_the_same_bits_wherever_they_come_from(predictor: Predictor):
    data = make_clip(FRAMES, "avi", "ffv1")
    clip = load_clip(data, 8)
    frames = np.stack([image.pixels[..., 0] for image in load_clip(data, 40).images])
    dicom = make_dicom(frames, Modality="US")
    encoded = predictor.encode_clip(data, 8)
    study = predictor.encode_study([image.pixels[..., 0] for image in clip.images])
    as_dicom = predictor.encode_clip(dicom, 8)
    results = [one.classify("breast-ultrasound").findings for one in (encoded, study, as_dicom)]
    assert results[0] == results[1] == results[2]
    assert encoded.classify("breast-ultrasound").findings == results[0]


def test_number_of_frames_changes_the_answer_and_is_told(predictor: Predictor, clip: bytes):
    few, many = predictor.encode_clip(clip, 2), predictor.encode_clip(clip, 40)
    assert (len(few.images), len(many.images)) == (2, 40)
    assert few.frames == ClipFrames((11, 31), 40)
    one, other = few.ask("which organ?"), many.ask("which organ?")
    assert one.probability != other.probability
    assert (one.frames, other.frames) == (few.frames, many.frames)


def test_dicom_clip_says_which_object_it_is_and_no_single_frame(predictor: Predictor):
    pytest.importorskip("pydicom")
    data = make_dicom(FRAMES, Modality="US", StudyInstanceUID="1.2.9")
    result = predictor.encode_clip(data, 4).classify("breast-ultrasound")
    assert result.dicom is not None
    assert (result.dicom.study_instance_uid, result.dicom.frame) == ("1.2.9", None)
    with pytest.raises(ImageInputError, match=r"40 frames; name one.*--frames"):
        predictor.classify(data, "breast-ultrasound")


def test_clip_outside_the_intended_use_gives_a_status(predictor: Predictor):
    pytest.importorskip("pydicom")
    data = make_dicom(FRAMES, Modality="US", BurnedInAnnotation="YES")
    result = predictor.encode_clip(data, 4).classify("breast-ultrasound")
    assert (result.status, result.findings) == ("outside_intended_use", ())
    assert "BurnedInAnnotation (0028,0301)" in result.reason


def test_command_gives_one_line_for_a_clip(tiny_bundle, tmp_path: Path, clip: bytes):
    (tmp_path / "clip.mp4").write_bytes(clip)
    command = ("--task", "breast-ultrasound", "--bundle", tiny_bundle)
    (line,) = run_json("classify", tmp_path / "clip.mp4", *command)
    assert line["frames"] == {"numbers": [3, 8, 13, 18, 23, 28, 33, 38], "total": 40}
    assert line["images"] == {"given": 8, "used": 8, "left_out": []}
    (line,) = run_json("classify", tmp_path / "clip.mp4", *command, "--frames", 3)
    assert line["frames"]["numbers"] == [7, 21, 34]
    (line,) = run_json("classify", tmp_path / "clip.mp4", *command, "--frame", 7)
    assert "frames" not in line
    shown = run("classify", tmp_path / "clip.mp4", *command).out
    assert "frames 3, 8, 13, 18, 23, 28, 33, 38 of 40" in shown


def test_command_asks_about_a_clip(tiny_bundle, tmp_path: Path, clip: bytes):
    (tmp_path / "clip.mp4").write_bytes(clip)
    (line,) = run_json("ask", tmp_path / "clip.mp4", "which organ?", "--bundle", tiny_bundle)
    assert line["frames"]["total"] == 40
    assert line["answers"][0]["images"]["used"] == 8


def test_command_takes_dicom_as_a_clip_where_it_is_told_to(tiny_bundle, tmp_path: Path):
    pytest.importorskip("pydicom")
    make_dicom(FRAMES, tmp_path / "a.dcm", Modality="US")
    png(tmp_path / "b.png")
    command = ("--task", "breast-ultrasound", "--bundle", tiny_bundle)
    done = run("classify", tmp_path / "a.dcm", *command)
    assert (done.code, done.out) == (4, "")
    assert "--frames" in done.err
    clip, picture = run_json("classify", tmp_path, *command, "--frames", 5)
    assert clip["frames"]["numbers"] == [5, 13, 21, 29, 37]
    assert clip["dicom"]["frame"] is None
    assert "frames" not in picture


@pytest.mark.parametrize("other", [("--frame", 2), ("--combine",), ("--out", "x.csv")])
def test_frames_beside_what_contradicts_them_are_refused(tiny_bundle, tmp_path: Path, other):
    image = png(tmp_path / "a.png")
    command = ("classify", image, "--task", "chest-xray", "--bundle", tiny_bundle, "--frames", 4)
    done = run(*command, *other)
    assert done.code == 2
    assert f"--frames and {other[0]} are both given" in done.err


def test_folder_with_a_clip_gives_one_row_for_it(tiny_bundle, tmp_path: Path, clip: bytes):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "clip").write_bytes(clip)
    png(tmp_path / "images" / "b.png")
    out = tmp_path / "rows.jsonl"
    command = ("classify", tmp_path / "images", "--task", "breast-ultrasound", "--out", out)
    assert run(*command, "--bundle", tiny_bundle).code == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    findings = {Path(row["image"]).name: row["findings"] for row in rows if "image" in row}
    expected = Predictor.load(tiny_bundle).classify(clip, "breast-ultrasound")
    assert findings["clip"] == [item.to_dict() for item in expected.findings]
    assert len(findings) == 2


def test_out_of_time_stops_a_clip(predictor: Predictor, clip: bytes):
    with pytest.raises(DeadlineExceededError), limited(timeout_s=1e-6):
        predictor.classify(clip, "breast-ultrasound")


def test_audit_log_has_one_entry_for_a_clip(tiny_bundle, tmp_path: Path, clip: bytes):
    log = AuditLog(tmp_path / "audit.jsonl")
    audited = Predictor.load(tiny_bundle, audit=log)
    audited.classify(clip, "breast-ultrasound")
    with pytest.raises(ImageInputError):
        audited.classify(clip[: len(clip) // 2], "breast-ultrasound")
    lines = (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    digest = hashlib.sha256(clip).hexdigest()
    assert sum(digest in json.dumps(record) for record in records) == 1
