from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from support.command import COMMON_KEYS, png, run, run_json
from umd_edge import Predictor


def test_classify_line_has_the_documented_shape(tiny_bundle, tmp_path):
    image = png(tmp_path / "a.png")
    (line,) = run_json("classify", image, "--task", "chest-xray", "--bundle", tiny_bundle)
    assert set(line) >= COMMON_KEYS | {"task", "status", "findings"}
    assert (line["image"], line["index"], line["task"]) == (str(image), 0, "chest-xray")
    assert set(line["bundle"]) == {"name", "version", "sha256"}
    labels = [finding["label"] for finding in line["findings"]]
    assert labels == ["No Finding", "Pneumonia", "Effusion"]
    assert set(line["findings"][0]) == {"label", "probability", "positive"}
    assert {"decode", "preprocess", "vision", "text", "fusion", "total"} <= set(line["timing_ms"])


def test_classify_says_what_the_library_says(tiny_bundle, tmp_path):
    image = png(tmp_path / "a.png")
    values = {"itch": True, "age": 61}
    (line,) = run_json(
        *("classify", image, "--task", "skin-lesion", "--bundle", tiny_bundle),
        *("--structured", json.dumps(values)),
    )
    result = Predictor.load(tiny_bundle).classify(image, "skin-lesion", structured=values)
    assert line["findings"] == [finding.to_dict() for finding in result.findings]
    # Negative control: without the values the probabilities are others
    (other,) = run_json("classify", image, "--task", "skin-lesion", "--bundle", tiny_bundle)
    assert other["findings"] != line["findings"]


def test_structured_values_may_come_from_a_file(tiny_bundle, tmp_path):
    image, values = png(tmp_path / "a.png"), tmp_path / "values.json"
    values.write_text('{"age": 61}', encoding="utf-8")
    command = ("classify", image, "--task", "skin-lesion", "--bundle", tiny_bundle)
    (from_file,) = run_json(*command, "--structured", values)
    (from_text,) = run_json(*command, "--structured", '{"age": 61}')
    assert from_file["findings"] == from_text["findings"]


def test_ask_line_has_the_documented_shape(tiny_bundle, tmp_path):
    image = png(tmp_path / "a.png")
    questions = ("which organ is shown?", "what modality?")
    (line,) = run_json("ask", image, *questions, "--bundle", tiny_bundle)
    assert set(line) >= COMMON_KEYS | {"answers"}
    assert not {"task", "findings"} & set(line)
    assert [answer["question"] for answer in line["answers"]] == list(questions)
    keys = {"question", "answer", "probability", "alternatives", "status"}
    assert set(line["answers"][0]) >= keys
    assert set(line["answers"][0]["alternatives"][0]) == {"answer", "probability"}
    assert line["timing_ms"]["decode"] > 0
    assert line["timing_ms"]["vision"] > 0


def test_a_bad_file_does_not_stop_the_others(tiny_bundle, tmp_path):
    good, bad = png(tmp_path / "good.png"), tmp_path / "bad.png"
    bad.write_text("not an image", encoding="utf-8")
    command = ("classify", bad, good, "--task", "chest-xray", "--bundle", tiny_bundle, "--json")
    done = run(*command)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 4
    assert [line["index"] for line in lines] == [0, 1]
    assert lines[0]["error"]["type"] == "ImageInputError"
    assert lines[0]["image"] == str(bad)
    assert set(lines[0]) == {"image", "index", "error"}
    assert lines[1]["status"] == "ok"


def test_text_for_people_names_labels_and_answers(tiny_bundle, tmp_path):
    image = png(tmp_path / "a.png")
    classified = run("classify", image, "--task", "breast-ultrasound", "--bundle", tiny_bundle)
    assert classified.code == 0
    assert "malignant" in classified.out
    asked = run("ask", image, "which organ?", "--bundle", tiny_bundle)
    assert asked.code == 0
    assert "which organ?" in asked.out
    assert "%" in asked.out


def test_json_output_is_nothing_but_json_lines(tiny_bundle, tmp_path):
    image = png(tmp_path / "a.png")
    done = run("ask", image, "which organ?", "--bundle", tiny_bundle, "--json")
    assert len(done.out.splitlines()) == 1
    json.loads(done.out)


def test_dicom_outside_the_intended_use_is_not_classified(tiny_bundle, tmp_path):
    dicom = pytest.importorskip("pydicom.data")
    image = dicom.get_testdata_file("CT_small.dcm", download=False)
    (line,) = run_json("classify", image, "--task", "chest-xray", "--bundle", tiny_bundle)
    assert line["status"] == "outside_intended_use"
    assert line["findings"] == []
    assert "Modality" in line["reason"]


def test_frame_is_handed_on(tiny_bundle, tmp_path):
    dicom = pytest.importorskip("pydicom.data")
    image = dicom.get_testdata_file("examples_ybr_color.dcm", download=False)
    command = ("ask", image, "which organ?", "--bundle", tiny_bundle)
    refused = run(*command)
    assert refused.code == 4
    assert "--frame" in refused.err
    assert run(*command, "--frame", "3").code == 0


def test_variant_is_taken_and_named(tiny_bundle, tmp_path):
    image = png(tmp_path / "a.png")
    command = ("ask", image, "which organ?", "--bundle", tiny_bundle)
    (line,) = run_json(*command, "--variant", "fp32")
    assert line["variant"] == "fp32"


def test_a_16_bit_image_is_read(tiny_bundle, tmp_path):
    image = tmp_path / "deep.png"
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(image)
    assert run("ask", image, "which organ?", "--bundle", tiny_bundle).code == 0


def test_a_missing_optional_package_does_not_stop_the_other_images(
    tiny_bundle, tmp_path, monkeypatch
):
    dicom = pytest.importorskip("pydicom.data").get_testdata_file("CT_small.dcm", download=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    image = png(tmp_path / "a.png")
    command = ("classify", dicom, image, "--task", "chest-xray", "--bundle", tiny_bundle, "--json")
    done = run(*command)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 5
    assert lines[0]["error"]["type"] == "MissingDependencyError"
    assert lines[1]["status"] == "ok"
