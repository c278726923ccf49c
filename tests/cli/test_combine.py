from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.command import run, run_json
from support.ood_bundle import noise, smooth, with_ood
from support.pictures import make_dicom
from umd_edge import Predictor


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return with_ood(tmp_path_factory.mktemp("combine") / "ood.umd")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two within the distribution, then one that is not."""
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path, pixels in zip(paths, (smooth(1), smooth(2), noise(1)), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def test_classify_combine_prints_one_line_for_all_images(bundle: Path, pictures):
    (line,) = run_json(
        "classify", *pictures, "--task", "chest-xray", "--combine", "--bundle", bundle
    )
    assert (line["image"], line["index"]) == (None, 0)
    assert line["study"] == [str(path) for path in pictures]
    assert (line["images"]["given"], line["images"]["used"]) == (3, 2)
    (left,) = line["images"]["left_out"]
    assert (left["index"], left["status"]) == (2, "out_of_distribution")
    study = Predictor.load(bundle).encode_study(pictures).classify("chest-xray")
    assert line["findings"] == [finding.to_dict() for finding in study.findings]
    assert line["timing_ms"]["vision"] > 0


@pytest.mark.parametrize("form", ["again", "copy", "other bytes"])
def test_an_image_that_is_given_twice_counts_once(form: str, bundle: Path, pictures, tmp_path):
    first, second, _ = pictures
    copy = first if form == "again" else tmp_path / "copy.png"
    if form == "copy":
        copy.write_bytes(first.read_bytes())
    elif form == "other bytes":
        Image.open(first).save(copy, compress_level=0)
        assert copy.read_bytes() != first.read_bytes()
    options = ("--task", "chest-xray", "--combine", "--bundle", bundle)
    (once,) = run_json("classify", first, second, *options)
    (line,) = run_json("classify", first, second, copy, *options)
    assert line["findings"] == once["findings"]
    assert (line["images"]["given"], line["images"]["used"]) == (3, 2)
    reason = "the same picture as number 1 of those given"
    assert line["images"]["left_out"] == [{"index": 2, "status": "duplicate", "reason": reason}]


def test_dicom_objects_are_the_same_image_where_they_say_so(bundle: Path, tmp_path):
    pytest.importorskip("pydicom")
    pixels = np.ascontiguousarray(smooth(1)[..., 0])
    places = []
    for name, uid in (("a", "1.2.3"), ("b", "1.2.4"), ("c", "1.2.3")):
        places.append(tmp_path / f"{name}.dcm")
        places[-1].write_bytes(make_dicom(pixels, SOPInstanceUID=uid))
    result = Predictor.load(bundle).encode_study(places).classify("chest-xray")
    assert result.images is not None
    assert (result.images.given, result.images.used) == (3, 2)
    assert [(item.index, item.status) for item in result.images.left_out] == [(2, "duplicate")]


def test_frames_of_a_clip_that_are_alike_all_count(bundle: Path):
    pytest.importorskip("pydicom")
    still = np.repeat(np.asarray(smooth(1))[None, ..., 0], 3, axis=0)
    result = Predictor.load(bundle).encode_clip(make_dicom(still), 3).classify("chest-xray")
    assert result.images is not None
    assert result.images.used == 3


def test_without_combine_there_is_a_line_for_each_image(bundle: Path, pictures):
    lines = run_json("classify", *pictures, "--task", "chest-xray", "--bundle", bundle)
    assert [line["image"] for line in lines] == [str(path) for path in pictures]
    assert all("images" not in line for line in lines)


def test_ask_with_further_images_answers_about_all(bundle: Path, pictures):
    first, second, third = pictures
    questions = ("which organ ?", "is this normal ?")
    (line,) = run_json(
        *("ask", first, "--with", second, "--with", third, *questions, "--bundle", bundle)
    )
    study = Predictor.load(bundle).encode_study(pictures)
    for item, question in zip(line["answers"], questions, strict=True):
        answer = study.ask(question)
        assert (item["question"], item["answer"]) == (question, answer.answer)
        assert item["probability"] == answer.probability
        assert item["images"] == answer.images.to_dict()


def test_an_image_that_cannot_be_read_is_reported_and_left_out(bundle: Path, pictures, tmp_path):
    missing = tmp_path / "missing.png"
    done = run(
        *("classify", missing, pictures[0], "--task", "chest-xray", "--combine"),
        *("--bundle", bundle),
    )
    assert done.code == 4
    assert "missing.png" in done.err
    assert "from 1 of 2 images" in done.out
    assert f"without {missing}: error: ImageInputError" in done.out


def test_no_image_that_can_be_read_is_an_input_error(bundle: Path, tmp_path):
    done = run(
        *("classify", tmp_path / "a.png", tmp_path / "b.png", "--task", "chest-xray"),
        *("--combine", "--json", "--bundle", bundle),
    )
    assert done.code == 4
    assert '"error": {"type": "ImageInputError"' in done.out
    assert "no image of the study can be used" in done.out


def test_people_see_how_many_images_there_were(bundle: Path, pictures):
    done = run("classify", *pictures, "--task", "skin-lesion", "--combine", "--bundle", bundle)
    assert done.code == 0
    assert "3 images: skin-lesion: ok" in done.out
    assert "from 2 of 3 images" in done.out
    assert f"without {pictures[2]}: out_of_distribution: " in done.out
    asked = run("ask", pictures[0], "--with", pictures[1], "which organ ?", "--bundle", bundle)
    assert "from 2 of 2 images" in asked.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--combine", "--out", "rows.csv", "--task", "chest-xray"), "give one of the two"),
        (("--combine", "--task", "nothing"), "task 'nothing' given"),
        (("--combine", "--task", "chest-xray", "--coverage", "2"), "coverage"),
    ],
)
def test_wrong_use_is_told_before_any_image_is_read(bundle: Path, tmp_path, arguments, message):
    done = run("classify", tmp_path / "missing.png", *arguments, "--bundle", bundle)
    assert done.code == 2
    assert message in done.err
    assert "missing.png" not in done.err
