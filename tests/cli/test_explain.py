from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from support.command import COMMON_KEYS, png, run, run_json
from support.explainable import explainable_bundle, proof
from support.pictures import gradient, make_dicom
from umd_edge import Predictor

TASK = "skin-lesion"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    proofs = {TASK: proof(attention=True, ablation=False)}
    return explainable_bundle(
        tmp_path_factory.mktemp("explainable") / "tiny.umd",
        lambda manifest: manifest["extensions"].update(explanations=proofs),
    )


@pytest.fixture
def image(tmp_path):
    return png(tmp_path / "a.png")


def test_line_has_the_documented_shape(bundle, image):
    (line,) = run_json("explain", image, "--task", TASK, "--bundle", bundle)
    keys = {"task", "status", "reason", "target", "probability", "method", "proven", "unit"}
    assert set(line) >= COMMON_KEYS | keys | {"image_size", "map", "peak"}
    assert (line["method"], line["proven"]) == ("attention", True)
    assert line["image_size"] == {"width": 48, "height": 48}
    assert np.shape(line["map"]) == (2, 2)
    assert line["timing_ms"]["decode"] > 0 and line["timing_ms"]["total"] > 0


@pytest.mark.parametrize("method", ["attention", "ablation"])
def test_numbers_are_those_of_the_library(bundle, image, method: str):
    values = {"itch": True, "age": 61}
    (line,) = run_json(
        *("explain", image, "--task", TASK, "--bundle", bundle, "--method", method),
        *("--structured", json.dumps(values)),
    )
    encoded = Predictor.load(bundle).encode(image)
    found = encoded.explain(task=TASK, method=method, structured=values)
    assert line["map"] == found.map.tolist()
    assert line["target"] == encoded.classify(TASK, structured=values).top.label


def test_question_is_in_the_line(bundle, image):
    question = "what modality?"
    (line,) = run_json("explain", image, "--question", question, "--bundle", bundle, "--unproven")
    (asked,) = run_json("ask", image, question, "--bundle", bundle)
    assert line["question"] == question and line["task"] == "vqa" and line["proven"] is False
    assert line["target"] == asked["answers"][0]["answer"]


def test_people_see_the_grid_and_where_it_is_strongest(bundle, image):
    done = run("explain", image, "--task", TASK, "--bundle", bundle)
    assert done.code == 0
    assert "proven for this task" in done.out and "UNPROVEN" not in done.out
    assert "strongest at" in done.out
    assert sum(line.endswith("|") for line in done.out.splitlines()) == 2


def test_picture_has_the_image_at_its_own_resolution(bundle, tmp_path):
    pixels = np.zeros((300, 500), np.uint8)
    pixels[:150] = 180
    Image.fromarray(pixels).save(tmp_path / "film.png")
    out = tmp_path / "map.png"
    done = run("explain", tmp_path / "film.png", "--task", TASK, "--bundle", bundle, "--out", out)
    assert (done.code, str(out) in done.err) == (0, True)
    with Image.open(out) as picture:
        assert picture.width == 500 and picture.height > 300
    assert [item.name for item in tmp_path.glob("*map*")] == ["map.png"]  # no temporary file


def test_unproven_map_is_refused_with_code_2(bundle, image, tmp_path):
    out = tmp_path / "map.png"
    call = ("explain", image, "--task", "chest-xray", "--bundle", bundle, "--out", out)
    done = run(*call)
    assert done.code == 2 and "centre prior" in done.err and not out.exists()
    assert done.out == ""
    shown = run(*call, "--unproven")
    assert shown.code == 0 and "UNPROVEN" in shown.out and out.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "say what to explain"),
        (("--task", "nothing"), 2, "nothing"),
        (("--task", TASK, "--method", "gradient"), 2, "gradient"),
        (("--task", TASK, "--label", "ACNE"), 2, "ACNE"),
        (("--question", " ", "--unproven"), 4, "question is empty"),
        (("--task", TASK, "--structured", "{"), 4, "--structured"),
        (("--task", TASK, "--out", "map.jpg"), 2, "ends in .png"),
        (("--task", TASK, "--out", "/nowhere/at/all/map.png"), 2, "no file can be written there"),
        (("--task", TASK, "--frame", "2"), 4, "frame"),
        (("--task", TASK, "--provider", "tensorrt"), None, "error"),
    ],
)
def test_wrong_calls_have_their_code_and_reason(bundle, image, arguments, code, words: str):
    done = run("explain", image, "--bundle", bundle, *arguments)
    assert done.code == (code if code is not None else done.code) != 0
    assert words in done.err and "Traceback" not in done.err and "internal" not in done.err


def test_bundle_without_the_tensors_says_what_to_do(tiny_bundle, image):
    done = run("explain", image, "--task", TASK, "--bundle", tiny_bundle, "--method", "attention")
    assert done.code == 2 and "export the bundle again" in done.err


def test_missing_image_is_code_4(bundle, tmp_path):
    done = run("explain", tmp_path / "no.png", "--task", TASK, "--bundle", bundle)
    assert done.code == 4 and "no file" in done.err


def test_frame_of_a_clip_is_the_one_that_is_drawn(bundle, tmp_path):
    frames = np.stack([gradient()[..., 0], gradient()[::-1, :, 1]])
    path = tmp_path / "clip.dcm"
    path.write_bytes(make_dicom(frames))
    out = tmp_path / "map.png"
    call = ("explain", path, "--task", TASK, "--bundle", bundle, "--out", out)
    maps = []
    for frame in (1, 2):
        (line,) = run_json(*call, "--frame", frame)
        maps.append(line["map"])
        assert line["dicom"]
        with Image.open(out) as picture:
            left = (picture.width - 52) // 2
            shown = np.asarray(picture.crop((left, 0, left + 52, 40))).astype(int)
        near = np.abs(shown.mean(axis=2) - frames[frame - 1]).mean()
        far = np.abs(shown.mean(axis=2) - frames[2 - frame]).mean()
        assert near < 0.7 * far
    assert maps[0] != maps[1]
    assert run(*call).code == 4  # no frame named


def test_image_outside_intended_use_is_shown_without_a_map(bundle, tmp_path):
    path, out = tmp_path / "a.dcm", tmp_path / "map.png"
    path.write_bytes(make_dicom(gradient()[..., 0], Modality="MR"))
    (line,) = run_json(
        *("explain", path, "--task", "breast-ultrasound", "--method", "attention"),
        *("--bundle", bundle, "--out", out),
    )
    assert (line["status"], line["map"], line["peak"]) == ("outside_intended_use", None, None)
    assert out.exists()


def test_audit_log_has_the_decision_that_was_explained(bundle, image, tmp_path):
    log = tmp_path / "audit.jsonl"
    call = ("explain", image, "--task", TASK, "--bundle", bundle, "--audit", log)
    assert run(*call).code == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(record.get("task") == TASK for record in records)


def test_picture_that_cannot_be_written_leaves_nothing_behind(bundle, image, tmp_path):
    (tmp_path / "taken.png").mkdir()
    done = run(
        "explain", image, "--task", TASK, "--bundle", bundle, "--out", tmp_path / "taken.png"
    )
    assert done.code == 2 and "taken.png" in done.err and "Traceback" not in done.err
    assert {item.name for item in tmp_path.iterdir()} == {"a.png", "taken.png"}
