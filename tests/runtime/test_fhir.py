"""FHIR R4 resources against the models of `fhir.resources`, whose R4B has the same ones."""

from __future__ import annotations

import json
import os

import pytest

models = pytest.importorskip("fhir.resources.R4B.bundle", reason="fhir.resources is not installed")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from support.reported import (  # noqa: E402
    BUNDLE,
    COMMON,
    OBJECT,
    SERIES,
    STUDY,
    US_CLIP,
    answer,
    classification,
    film,
)
from umd_edge import (  # noqa: E402
    Answer,
    BundleInfo,
    DicomInputError,
    Finding,
    ImageInputError,
    UsageError,
    fhir_report,
    write_fhir,
)

PICTURE = b"\x89PNG\r\n\x1a\n any other bytes"


def checked(report):
    """What the model library reads, which refuses unknown keys and missing ones."""
    return models.Bundle.model_validate_json(json.dumps(report))


def kinds(bundle) -> list[str]:
    return [type(entry.resource).__name__ for entry in bundle.entry]


def resources(bundle, kind: str):
    return [e.resource for e in bundle.entry if type(e.resource).__name__ == kind]


def references(value) -> list[str]:
    """Every `reference` in a JSON object, however deep."""
    if isinstance(value, list):
        return [found for item in value for found in references(item)]
    if not isinstance(value, dict):
        return []
    own = [value["reference"]] if isinstance(value.get("reference"), str) else []
    return own + [found for item in value.values() for found in references(item)]


@pytest.mark.parametrize("source", [film(), PICTURE, None], ids=["dicom", "picture", "none"])
@pytest.mark.parametrize(
    "results",
    [
        classification(),
        answer(),
        [classification(), answer(), answer(question="a  b\n c?", answer="xr")],
        classification("abstain", reason="the highest probability is below 0.5"),
        classification("out_of_distribution"),
        classification("outside_intended_use", findings=()),
    ],
    ids=["classification", "answer", "several", "abstain", "ood", "outside"],
)
def test_the_model_library_reads_the_report(results, source):
    report = fhir_report(results, source)
    bundle = checked(report)
    assert kinds(bundle)[0] == "DiagnosticReport"
    assert (bundle.type, bundle.entry[0].resource.status) == ("collection", "preliminary")
    assert ("ImagingStudy" in kinds(bundle)) is (source is not None and source != PICTURE)
    urls = [entry.fullUrl for entry in bundle.entry]
    assert len(set(urls)) == len(urls)
    assert {item for item in references(report) if item.startswith("urn:uuid:")} <= set(urls)


def test_the_model_library_refuses_a_report_without_a_status():
    report = fhir_report(classification())
    del report["entry"][0]["resource"]["status"]
    with pytest.raises(ValueError, match="status"):
        checked(report)


def test_each_finding_is_an_observation_with_presence_and_probability():
    bundle = checked(fhir_report(classification(), film()))
    found = {
        item.code.coding[0].code: (
            item.valueCodeableConcept.coding[0].code,
            float(item.component[0].valueQuantity.value),
            item.component[0].valueQuantity.system,
            item.status,
        )
        for item in resources(bundle, "Observation")
    }
    (private,) = set(found) - {"233604007"}
    unit = "http://unitsofmeasure.org"
    assert found == {
        "233604007": ("52101004", 0.8125, unit, "preliminary"),
        private: ("272519000", 0.25, unit, "preliminary"),
    }
    (report,) = resources(bundle, "DiagnosticReport")
    assert len(report.result) == 2
    assert "Pneumonia (0.81)" in report.conclusion
    assert "Not a medical device" in report.conclusion


def test_an_answer_is_an_observation_of_its_question():
    (found,) = resources(checked(fhir_report(answer(), film())), "Observation")
    assert found.code.text == "Is there an effusion?"
    assert found.valueCodeableConcept.text == "yes"
    assert found.valueCodeableConcept.coding[0].code == "373066001"


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("abstain", "unknown"),
        ("out_of_distribution", "unknown"),
        ("outside_intended_use", "not-performed"),
    ],
)
def test_without_a_usable_result_no_value_is_reported_and_the_reason_is(state, code):
    bundle = checked(fhir_report(classification(state, reason="because"), film()))
    (only,) = resources(bundle, "Observation")
    assert only.valueCodeableConcept is None
    assert only.component is None
    assert only.dataAbsentReason.coding[0].code == code
    assert only.dataAbsentReason.text == f"{state}: because"
    assert state in resources(bundle, "DiagnosticReport")[0].conclusion
    assert "Pneumonia" not in json.dumps(fhir_report(classification(state), film()))


def test_the_study_is_named_by_its_uid_and_the_model_by_its_hash():
    bundle = checked(fhir_report(classification(), film()))
    (study,) = resources(bundle, "ImagingStudy")
    assert study.identifier[0].value == f"urn:oid:{STUDY}"
    assert (study.series[0].uid, study.series[0].instance[0].uid) == (SERIES, OBJECT)
    (device,) = resources(bundle, "Device")
    assert device.serialNumber == BUNDLE.sha256
    assert device.identifier[0].value == f"urn:oid:2.25.{int('86' * 16, 16)}"
    for observation in resources(bundle, "Observation"):
        assert observation.derivedFrom[0].identifier.value == f"urn:oid:{STUDY}"
        assert observation.device.reference == f"urn:uuid:{device.id}"


def test_of_the_person_there_is_the_patient_id_alone():
    text = json.dumps(fhir_report(classification(), film()))
    assert "PID-7" in text
    for secret in ("Secret", "1961", "CLINIC-NAME"):
        assert secret not in text
    assert "PID-7" not in json.dumps(fhir_report(classification(), film(), subject="Patient/1"))


def test_a_subject_of_the_users_own_server_takes_the_place_of_the_patient_id():
    bundle = checked(fhir_report(classification(), PICTURE, subject="Patient/123"))
    assert resources(bundle, "DiagnosticReport")[0].subject.reference == "Patient/123"
    for name in (" ", "Erika Mustermann", "Mustermann", "Patient/Erika Mustermann"):
        with pytest.raises(UsageError, match="no FHIR reference") as caught:
            fhir_report(classification(), subject=name)
        assert "Mustermann" not in str(caught.value)
    for reference in (
        "urn:uuid:53fefa32-fcbb-4ff8-8a92-55ee120877b7",
        "https://a.example/Patient/1",
    ):
        fhir_report(classification(), subject=reference)


def test_a_repeat_gives_the_same_bytes_and_another_image_none_of_the_ids(tmp_path):
    first = write_fhir(classification(), film(), tmp_path / "a.json").read_bytes()
    again = write_fhir(classification(), film(), tmp_path / "b.json").read_bytes()
    assert first == again

    def ids(source, result=None):
        report = fhir_report(result or classification(), source)
        kept = ("DiagnosticReport", "Observation")
        found = [e["resource"] for e in report["entry"]]
        return {item["id"] for item in found if item["resourceType"] in kept}

    same = ids(film())
    assert same == ids(film(PatientID="other"))
    assert not same & ids(film(SOPInstanceUID=f"{OBJECT}.5"))
    assert not same & ids(PICTURE)
    assert not same & ids(film(), classification(variant="fp32"))
    other = BundleInfo(BUNDLE.name, BUNDLE.version, "7" * 64)
    assert not same & ids(film(), classification(bundle=other))
    assert not ids(None) & ids(None)  # nothing to derive them from


def test_frames_of_one_object_have_ids_and_words_of_their_own():
    clip = film(frames=3, SOPClassUID=US_CLIP)
    second, third = (fhir_report(classification(), clip, frame=k) for k in (2, 3))
    assert second["entry"][1]["resource"]["id"] != third["entry"][1]["resource"]["id"]
    notes = [note["text"] for note in second["entry"][1]["resource"]["note"]]
    assert "Frame 2 of the object." in notes


def test_a_question_asked_twice_is_reported_once():
    bundle = checked(fhir_report([answer(), answer()], film()))
    assert kinds(bundle).count("Observation") == 1


def test_an_impossible_date_is_left_out():
    bundle = checked(fhir_report(classification(), film(StudyDate="20261399")))
    assert resources(bundle, "DiagnosticReport")[0].effectiveDateTime is None
    dated = checked(fhir_report(classification(), film()))
    assert str(resources(dated, "DiagnosticReport")[0].effectiveDateTime) == "2026-01-31"


_WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda text: text.strip()
)


@settings(max_examples=40, deadline=None)
@given(_WORDS, _WORDS, st.floats(0, 1))
def test_any_label_question_and_probability_makes_valid_resources(label, question, probability):
    result = classification(findings=(Finding(label, probability, True),))
    asked = Answer(
        **COMMON,
        status="ok",
        question=question,
        answer=label,
        probability=probability,
        alternatives=(),
    )
    found = resources(checked(fhir_report([result, asked], PICTURE)), "Observation")
    quantity = found[0].component[0].valueQuantity
    assert float(quantity.value) == pytest.approx(probability, abs=1e-10)


def test_a_dicom_object_without_its_identifiers_is_refused():
    with pytest.raises(DicomInputError, match="StudyInstanceUID"):
        fhir_report(classification(), film(StudyInstanceUID=None))


def test_a_missing_image_and_no_result_are_refused(tmp_path):
    with pytest.raises(ImageInputError, match="no file"):
        fhir_report(classification(), tmp_path / "missing.png")
    with pytest.raises(UsageError, match="at least one result"):
        fhir_report([], PICTURE)


def test_the_source_is_never_replaced(tmp_path):
    source = tmp_path / "film.dcm"
    before = film(source)
    os.symlink(source, tmp_path / "link.json")
    with pytest.raises(UsageError, match="replace its own source"):
        write_fhir(classification(), source, tmp_path / "link.json")
    assert source.read_bytes() == before
