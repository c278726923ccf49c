"""`--out-sr` and `--out-fhir` of `classify` and `ask`: files, exit codes, and what lies there."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
pytest.importorskip("highdicom", reason="the extra `sr` is not installed")
models = pytest.importorskip("fhir.resources.R4B.bundle", reason="fhir.resources is not installed")

import highdicom.sr  # noqa: E402

from support.command import png, run, run_json  # noqa: E402
from support.reported import STUDY, dciodvfy_errors, film  # noqa: E402


def findings(path) -> dict[str, float]:
    groups = highdicom.sr.srread(path).content.get_image_measurement_groups()
    return {
        str(group.finding_type.meaning): float(group.get_measurements()[0].value)
        for group in groups
        if group.finding_type is not None
    }


def test_classify_writes_what_it_prints(tiny_bundle, tmp_path):
    film(tmp_path / "film.dcm")
    (line,) = run_json(
        *("classify", tmp_path / "film.dcm", "--task", "chest-xray", "--bundle", tiny_bundle),
        *("--out-sr", tmp_path / "r.dcm", "--out-fhir", tmp_path / "r.json"),
    )
    assert line["reports"] == {"sr": str(tmp_path / "r.dcm"), "fhir": str(tmp_path / "r.json")}
    assert dciodvfy_errors(tmp_path / "r.dcm") == []
    printed = [round(item["probability"], 9) for item in line["findings"]]
    assert [round(value, 9) for value in findings(tmp_path / "r.dcm").values()] == printed
    report = models.Bundle.model_validate_json((tmp_path / "r.json").read_bytes())
    observed = [e.resource for e in report.entry if type(e.resource).__name__ == "Observation"]
    assert [round(float(o.component[0].valueQuantity.value), 9) for o in observed] == printed


def test_ask_writes_every_question_into_one_report(tiny_bundle, tmp_path):
    film(tmp_path / "film.dcm")
    (line,) = run_json(
        *("ask", tmp_path / "film.dcm", "what plane ?", "is there an effusion ?"),
        *("--bundle", tiny_bundle, "--out-sr", tmp_path / "r.dcm"),
    )
    assert set(line["reports"]) == {"sr"}
    document = highdicom.sr.srread(tmp_path / "r.dcm")
    assert len(document.content.get_image_measurement_groups()) == 2
    assert str(document.StudyInstanceUID) == STUDY


def test_several_images_go_to_a_folder_that_is_made(tiny_bundle, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        film(tmp_path / name / "film.dcm", SOPInstanceUID=f"1.2.3.{ord(name)}")
    lines = run_json(
        *("classify", tmp_path / "a" / "film.dcm", tmp_path / "b" / "film.dcm"),
        *("--task", "chest-xray", "--bundle", tiny_bundle, "--out-sr", f"{tmp_path}/out/"),
    )
    written = [line["reports"]["sr"] for line in lines]
    assert written == [f"{tmp_path}/out/film.sr.dcm", f"{tmp_path}/out/film-2.sr.dcm"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["film-2.sr.dcm", "film.sr.dcm"]


def test_an_archive_gets_its_reports_and_a_resumed_run_replaces_none(tiny_bundle, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        film(tmp_path / "in" / name / "film.dcm", SOPInstanceUID=f"1.2.3.{ord(name)}")
    png(tmp_path / "in" / "picture.png")
    command = (
        *("classify", tmp_path / "in", "--task", "chest-xray", "--bundle", tiny_bundle),
        *("--out", tmp_path / "rows.jsonl", "--out-sr", f"{tmp_path}/sr/"),
    )
    done = run(*command)
    assert done.code == 4  # the picture can have no report; its row stands
    assert "no DICOM file" in done.err
    rows = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum('"findings"' in row or "chest-xray" in row for row in rows) >= 3
    first = {p.name: p.read_bytes() for p in (tmp_path / "sr").iterdir()}
    assert set(first) == {"film.sr.dcm", "film-2.sr.dcm"}
    # What a resumed run does is named by all images, not by those that are left.
    (tmp_path / "rows.jsonl").write_text(
        "".join(row + "\n" for row in rows if "/b/film" not in row), encoding="utf-8"
    )
    (tmp_path / "sr" / "film-2.sr.dcm").unlink()
    run(*command)
    again = {p.name: p.read_bytes() for p in (tmp_path / "sr").iterdir()}
    assert set(again) == set(first)
    assert again["film.sr.dcm"] == first["film.sr.dcm"]


def test_a_combined_result_refers_to_all_its_images(tiny_bundle, tmp_path):
    paths = [tmp_path / f"{name}.dcm" for name in "ab"]
    for index, path in enumerate(paths):
        film(path, SOPInstanceUID=f"1.2.3.{index}")
    out = tmp_path / "r.dcm"
    done = run(
        *("classify", *paths, "--combine", "--task", "chest-xray", "--bundle", tiny_bundle),
        *("--out-sr", out),
    )
    assert done.code == 0, done.err
    assert dciodvfy_errors(out) == []
    group = highdicom.sr.srread(out).content.get_image_measurement_groups()[0]
    named = [str(item.referenced_sop_instance_uid) for item in group.source_images]
    assert named == ["1.2.3.0", "1.2.3.1"]


def test_an_image_outside_the_intended_use_gets_a_report_without_findings(tiny_bundle, tmp_path):
    film(tmp_path / "film.dcm", Modality="MR")
    (line,) = run_json(
        *("classify", tmp_path / "film.dcm", "--task", "chest-xray", "--bundle", tiny_bundle),
        *("--out-sr", tmp_path / "r.dcm"),
    )
    assert line["status"] == "outside_intended_use"
    assert findings(tmp_path / "r.dcm") == {}


def test_a_picture_can_have_no_structured_report_but_fhir(tiny_bundle, tmp_path):
    image = png(tmp_path / "a.png")
    command = ("classify", image, "--task", "chest-xray", "--bundle", tiny_bundle)
    done = run(*command, "--out-sr", tmp_path / "r.dcm")
    assert done.code == 4
    assert "no DICOM file" in done.err
    assert not (tmp_path / "r.dcm").exists()
    (line,) = run_json(*command, "--out-fhir", tmp_path / "r.json", "--fhir-subject", "Patient/9")
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert report["entry"][0]["resource"]["subject"] == {"reference": "Patient/9"}
    assert line["reports"] == {"fhir": str(tmp_path / "r.json")}


def test_people_are_told_where_the_reports_lie(tiny_bundle, tmp_path):
    film(tmp_path / "film.dcm")
    done = run(
        *("ask", tmp_path / "film.dcm", "what plane ?", "--bundle", tiny_bundle),
        *("--out-sr", tmp_path / "r.dcm", "--out-fhir", f"{tmp_path}/"),
    )
    assert done.code == 0
    assert f"report in {tmp_path / 'r.dcm'}" in done.out
    assert f"report in {tmp_path / 'film.fhir.json'}" in done.out


def test_without_the_options_nothing_is_written_and_no_key_is_there(tiny_bundle, tmp_path):
    film(tmp_path / "film.dcm")
    (line,) = run_json(
        "classify", tmp_path / "film.dcm", "--task", "chest-xray", "--bundle", tiny_bundle
    )
    assert "reports" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["film.dcm"]


def test_the_source_is_not_replaced(tiny_bundle, tmp_path):
    before = film(tmp_path / "film.dcm")
    done = run(
        *("classify", tmp_path / "film.dcm", "--task", "chest-xray", "--bundle", tiny_bundle),
        *("--out-sr", tmp_path / "film.dcm"),
    )
    assert done.code == 2
    assert "replace its own source" in done.err
    assert (tmp_path / "film.dcm").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--out-sr", "{folder}/missing/r.dcm"), "missing or cannot be written"),
        (("--out-fhir", "{folder}/film.dcm/r.json"), "missing or cannot be written"),
        (("--fhir-subject", "Patient/1"), "give --out-fhir"),
        (("--out-fhir", "{folder}/r.json", "--fhir-subject", ""), "no FHIR reference"),
    ],
)
def test_what_cannot_be_written_is_a_usage_error(tiny_bundle, tmp_path, options, said):
    film(tmp_path / "film.dcm")
    done = run(
        *("classify", tmp_path / "film.dcm", "--task", "chest-xray", "--bundle", tiny_bundle),
        *(option.format(folder=tmp_path) for option in options),
    )
    assert done.code == 2
    assert said in done.err


def test_one_file_for_several_images_is_a_usage_error(tiny_bundle, tmp_path):
    film(tmp_path / "film.dcm")
    done = run(
        *("classify", tmp_path / "film.dcm", tmp_path / "film.dcm", "--task", "chest-xray"),
        *("--bundle", tiny_bundle, "--out-sr", tmp_path / "r.dcm"),
    )
    assert done.code == 2
    assert "2 images were given" in done.err


def test_without_highdicom_the_exit_code_is_5(tiny_bundle, tmp_path, monkeypatch):
    film(tmp_path / "film.dcm")
    monkeypatch.setitem(sys.modules, "highdicom.sr", None)
    done = run(
        *("classify", tmp_path / "film.dcm", "--task", "chest-xray", "--bundle", tiny_bundle),
        *("--out-sr", tmp_path / "r.dcm"),
    )
    assert done.code == 5
    assert "umd-edge[sr]" in done.err
