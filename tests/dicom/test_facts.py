from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from pydicom.dataset import Dataset  # noqa: E402

from support.bundles import repack  # noqa: E402
from support.command import run, run_json  # noqa: E402
from support.pictures import gradient, make_dicom  # noqa: E402
from umd_edge import ManifestError, Predictor  # noqa: E402
from umd_edge._image import DicomFacts, load_image  # noqa: E402

GREY = gradient()[..., 2]
UIDS = {
    "StudyInstanceUID": "1.2.840.1",
    "SeriesInstanceUID": "1.2.840.1.2",
    "SOPInstanceUID": "1.2.840.1.2.3",
}


def facts(**tags: Any) -> DicomFacts:
    found = load_image(make_dicom(GREY, **tags)).dicom
    assert found is not None
    return found


def coded(value: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", "Secret^Name"
    return [item]


def test_both_spacings_are_kept_apart():
    found = facts(PixelSpacing=[0.5, 0.25], ImagerPixelSpacing=[0.6, 0.3])
    assert found.pixel_spacing_mm == (0.5, 0.25)
    assert found.imager_pixel_spacing_mm == (0.6, 0.3)


@pytest.mark.parametrize("value", [None, [0.5], [0, 0.5], [-1, 1], [1, 2, 3]])
def test_spacing_that_is_none_is_none(value: Any):
    assert facts(PixelSpacing=value).pixel_spacing_mm is None


def test_line_of_a_result_says_which_instance_and_frame_it_is(tiny_bundle, tmp_path):
    path = tmp_path / "a.dcm"
    frames = np.stack([GREY, 255 - GREY])
    make_dicom(frames, path, PixelSpacing=[0.5, 0.25], BodyPartExamined="CHEST", **UIDS)
    command = ("classify", path, "--task", "chest-xray", "--bundle", tiny_bundle, "--frame", 2)
    (line,) = run_json(*command)
    assert line["status"] == "ok"
    assert line["dicom"] == {
        "study_instance_uid": "1.2.840.1",
        "series_instance_uid": "1.2.840.1.2",
        "sop_instance_uid": "1.2.840.1.2.3",
        "frame": 2,
        "pixel_spacing_mm": [0.5, 0.25],
        "imager_pixel_spacing_mm": None,
    }
    assert "instance 1.2.840.1.2.3, frame 2" in run(*command).out
    assert "Secret" not in json.dumps(line)


def test_answers_say_it_too_and_pictures_without_a_header_do_not(tiny_bundle, tmp_path):
    path = tmp_path / "a.dcm"
    make_dicom(GREY, path, **UIDS)
    predictor = Predictor.load(tiny_bundle)
    answer = predictor.ask(path, "which organ?")
    assert answer.dicom is not None
    assert answer.dicom.sop_instance_uid == "1.2.840.1.2.3"
    assert "1.2.840" not in repr(answer)
    assert predictor.ask(GREY, "which organ?").dicom is None
    (line,) = run_json("ask", path, "which organ?", "--bundle", tiny_bundle)
    assert line["dicom"]["study_instance_uid"] == "1.2.840.1"


GIVEN = {"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "PA"}
OUTSIDE = {
    "modality": ({"Modality": "CT"}, r"Modality \(0008,0060\)"),
    "body part": ({"BodyPartExamined": "FOOT"}, r"BodyPartExamined \(0018,0015\)"),
    "body part as a code": (
        {"BodyPartExamined": None, "AnatomicRegionSequence": coded("56459004")},
        r"BodyPartExamined \(0018,0015\)",
    ),
    "unknown body part as a code": (
        {"BodyPartExamined": None, "AnatomicRegionSequence": coded("99999")},
        r"BodyPartExamined \(0018,0015\)",
    ),
    "view": ({"ViewPosition": "LL"}, r"ViewPosition \(0018,5101\)"),
    "view as a code": (
        {"ViewPosition": None, "ViewCodeSequence": coded("399173006")},
        r"ViewPosition \(0018,5101\)",
    ),
    "burned-in annotation": (
        {"BurnedInAnnotation": "YES"},
        r"BurnedInAnnotation \(0028,0301\)",
    ),
}
INSIDE: dict[str, dict[str, Any]] = {
    "all tags fit": {},
    "no view": {"ViewPosition": None},
    "no body part": {"BodyPartExamined": None},
    "small letters": {"BodyPartExamined": "chest"},
    "body part as a code": {"BodyPartExamined": None, "AnatomicRegionSequence": coded("816094009")},
    "body part as an old code": {
        "BodyPartExamined": None,
        "AnatomicRegionSequence": coded("T-D3000"),
    },
    "view as a code": {"ViewPosition": None, "ViewCodeSequence": coded("272479007")},
    "nothing burned in": {"BurnedInAnnotation": "NO"},
}


@pytest.fixture(scope="module")
def gated(tmp_path_factory) -> Predictor:
    """A bundle whose chest task wants frontal views."""
    return Predictor.load(_bundle(tmp_path_factory.mktemp("gated"), view=["PA", "AP"]))


def _bundle(folder: Path, **applies_to: Any) -> Path:
    def edit(manifest: dict[str, Any]) -> None:
        (task,) = (task for task in manifest["tasks"] if task["name"] == "chest-xray")
        task["applies_to"] = {"dicom_modality": ["CR", "DX"], "body_part": ["CHEST"], **applies_to}

    return repack(folder / "gated.umd", edit=edit)


@pytest.mark.parametrize("name", OUTSIDE)
def test_header_outside_the_intended_use_gives_a_status_and_no_finding(gated, name: str):
    tags, told = OUTSIDE[name]
    result = gated.classify(make_dicom(GREY, **{**GIVEN, **tags}), "chest-xray")
    assert (result.status, result.findings) == ("outside_intended_use", ())
    assert re.match(told, result.reason)
    assert "Secret" not in result.reason


@pytest.mark.parametrize("name", INSIDE)
def test_header_inside_the_intended_use_gives_findings(gated, name: str):
    result = gated.classify(make_dicom(GREY, **{**GIVEN, **INSIDE[name]}), "chest-xray")
    assert (result.status, len(result.findings)) == ("ok", 3)


def test_bundle_can_allow_burned_in_text(tmp_path):
    allowing = Predictor.load(_bundle(tmp_path, burned_in_annotation=["YES", "NO"]))
    image = make_dicom(GREY, **GIVEN, BurnedInAnnotation="YES")
    assert allowing.classify(image, "chest-xray").status == "ok"


def test_questions_are_gated_as_well(tiny_bundle):
    answer = Predictor.load(tiny_bundle).ask(
        make_dicom(GREY, BurnedInAnnotation="YES"), "which organ?"
    )
    assert (answer.status, answer.answer) == ("outside_intended_use", "")


def test_key_that_no_header_has_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="applies_to may hold dicom_modality, body_part, view"):
        Predictor.load(_bundle(tmp_path, laterality=["L"]))


def test_picture_says_the_same_inside_dicom_and_outside(tiny_bundle):
    predictor = Predictor.load(tiny_bundle)
    expected = predictor.classify(GREY, "chest-xray").findings
    assert predictor.classify(make_dicom(GREY), "chest-xray").findings == expected
    inverted = make_dicom(255 - GREY, PhotometricInterpretation="MONOCHROME1")
    assert predictor.classify(inverted, "chest-xray").findings == expected
    assert predictor.classify(make_dicom(255 - GREY), "chest-xray").findings != expected
