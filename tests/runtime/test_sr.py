"""Structured Reports against two validators that know nothing of us, and against highdicom."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from dataclasses import replace

import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
sr = pytest.importorskip("highdicom.sr", reason="the extra `sr` is not installed")

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
    dciodvfy_errors,
    film,
    tool,
)
from umd_edge import (  # noqa: E402
    BundleInfo,
    Classification,
    DicomFacts,
    DicomInputError,
    Finding,
    MissingDependencyError,
    UsageError,
    sr_report,
    write_sr,
)
from umd_edge._coded import finding_concept  # noqa: E402
from umd_edge._results import ClipFrames, LeftOut, StudyImages  # noqa: E402


def dump(path) -> str:
    command = [
        tool("dsrdump", "dcmtk"),
        "--print-long-values",
        "--print-all-codes",
        "--print-instance-uid",
        str(path),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def groups(document):
    """Measurement groups as a reader sees them who has the file alone."""
    out = io.BytesIO()
    document.save_as(out, enforce_file_format=True)
    out.seek(0)
    return sr.srread(out).content.get_image_measurement_groups()


def texts(group, meaning: str) -> list[str]:
    items = [item for item in group[0].ContentSequence if item.ValueType == "TEXT"]
    return [
        str(item.TextValue)
        for item in items
        if item.ConceptNameCodeSequence[0].CodeMeaning == meaning
    ]


def status(group) -> str:
    (evaluation,) = [
        item
        for item in group.get_qualitative_evaluations()
        if item.name.meaning == "Status of the result"
    ]
    return str(evaluation.value.meaning)


@pytest.mark.parametrize(
    "results",
    [
        classification(),
        answer(),
        [classification(), answer(answer="no"), answer(answer="xr - plain film " * 9)],
        classification("abstain", reason="the highest probability is below 0.5"),
        classification("out_of_distribution"),
        classification("outside_intended_use", findings=()),
        classification(findings=(Finding("Größe µ \\ x", 1e-9, False),)),
    ],
    ids=["classification", "answer", "several", "abstain", "ood", "outside", "odd label"],
)
def test_two_validators_accept_the_report(results, tmp_path):
    path = write_sr(results, film(), tmp_path / "r.dcm")
    assert dciodvfy_errors(path) == []
    assert "Comprehensive SR Document" in dump(path)


def test_dciodvfy_finds_fault_with_a_report_that_lacks_its_study(tmp_path):
    document = sr_report(classification(), film())
    del document.StudyInstanceUID
    document.save_as(tmp_path / "r.dcm", enforce_file_format=True)
    assert dciodvfy_errors(tmp_path / "r.dcm")


def test_dsrdump_reads_finding_presence_probability_and_evidence(tmp_path):
    said = dump(write_sr(classification(), film(), tmp_path / "r.dcm"))
    for wanted in (
        "Verification Flag   : UNVERIFIED",
        "Completion Flag     : COMPLETE",
        '(121071,DCM,"Finding")=(233604007,SCT,"Pneumonia")',
        '(122157,DCM,"Probability")="0.8125" (1,UCUM,"no units")',
        '(121052,DCM,"Presence of property")=(52101004,SCT,"Present")',
        '(111001,DCM,"Algorithm Name")="umd-edge-default"',
        '(111003,DCM,"Algorithm Version")="0.1.0"',
        f'(111002,DCM,"Algorithm Parameters")="bundle sha256={BUNDLE.sha256}"',
        OBJECT,
    ):
        assert wanted in said


def test_a_reader_gets_the_findings_back(tmp_path):
    path = write_sr(classification(), film(), tmp_path / "r.dcm")
    document = sr.srread(path)
    assert document.content[0].ContentTemplateSequence[0].TemplateIdentifier == "1500"
    found = {
        group.finding_type.meaning: (
            group.get_measurements()[0].value,
            group.get_qualitative_evaluations()[0].value.meaning,
        )
        for group in groups(document)
        if group.finding_type is not None
    }
    assert found == {
        "Pneumonia": (0.8125, "Present"),
        "Pleural Thickening": (0.25, "Absent"),
    }
    assert status(groups(document)[0]) == "ok"
    images = groups(document)[1].source_images
    assert [str(item.referenced_sop_instance_uid) for item in images] == [OBJECT]


@pytest.mark.parametrize("state", ["abstain", "out_of_distribution", "outside_intended_use"])
def test_without_a_usable_result_there_is_no_finding_and_the_report_says_why(state):
    document = sr_report(classification(state, reason="ViewPosition (0018,5101)"), film())
    (only,) = groups(document)
    assert only.finding_type is None
    assert only.get_measurements() == []
    assert status(only) == state
    assert "ViewPosition (0018,5101)" in texts(only, "Comment")
    assert (document.CompletionFlag, document.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    assert state in document.CompletionFlagDescription


def test_an_answer_stands_with_its_question_unless_the_model_abstains():
    (group,) = groups(sr_report(answer(), film()))
    assert texts(group, "Question") == ["Is there an effusion?"]
    assert texts(group, "Answer") == ["yes"]
    codes = [
        (e.value.value, e.value.scheme_designator) for e in group.get_qualitative_evaluations()
    ]
    assert ("373066001", "SCT") in codes
    (silent,) = groups(sr_report(answer("abstain"), film()))
    assert texts(silent, "Answer") == []
    assert silent.get_measurements() == []


def test_the_report_joins_the_study_in_a_series_of_its_own():
    first, second = (sr_report(classification(), film()) for _ in range(2))
    assert first.StudyInstanceUID == STUDY
    assert (first.AccessionNumber, str(first.StudyID)) == ("ACC-1", "S1")
    assert str(first.StudyDate).strip('"') == "20260131"
    assert len({SERIES, first.SeriesInstanceUID, second.SeriesInstanceUID}) == 3
    assert first.SOPInstanceUID != second.SOPInstanceUID
    evidence = first.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.SeriesInstanceUID == SERIES
    assert evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == OBJECT


def test_of_the_person_there_is_the_patient_id_alone(tmp_path):
    data = write_sr(classification(), film(), tmp_path / "r.dcm").read_bytes()
    document = pydicom.dcmread(io.BytesIO(data))
    assert (document.PatientID, document.IssuerOfPatientID) == ("PID-7", "CLINIC")
    assert not document.PatientName
    assert not document.PatientBirthDate
    assert not document.PatientSex
    assert not document.ReferringPhysicianName
    assert b"Secret" not in data
    assert b"19610203" not in data


def test_the_device_uid_is_that_of_the_build():
    def device(bundle):
        document = sr_report(classification(bundle=bundle), film())
        (ours, *_) = [
            item
            for item in document.ContributingEquipmentSequence
            if item.Manufacturer == "umd-edge"
        ]
        return ours.DeviceUID

    other = BundleInfo(BUNDLE.name, BUNDLE.version, hashlib.sha256(b"other").hexdigest())
    assert device(BUNDLE) == device(BUNDLE) == f"2.25.{int('86' * 16, 16)}"
    assert device(other) != device(BUNDLE)


def test_a_frame_is_named_where_the_class_of_the_object_has_frames(tmp_path):
    clip = film(frames=3, SOPClassUID=US_CLIP, Modality="US")
    path = write_sr(classification(), clip, tmp_path / "r.dcm", frame=2)
    assert dciodvfy_errors(path) == []
    (image,) = groups(sr.srread(path))[1].source_images
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == 2
    # Negative control: without a frame the whole object is meant.
    (whole,) = groups(sr_report(classification(), clip))[1].source_images
    assert "ReferencedFrameNumber" not in whole.ReferencedSOPSequence[0]


def test_frames_of_a_class_that_has_none_are_told_in_words(tmp_path):
    path = write_sr(classification(), film(frames=3), tmp_path / "r.dcm", frame=2)
    assert dciodvfy_errors(path) == []
    assert "Frame 2 of the object." in texts(groups(sr.srread(path))[0], "Comment")


def test_the_frame_and_the_object_follow_from_the_result():
    facts = DicomFacts(
        modality="US",
        body_part_examined=None,
        photometric="MONOCHROME2",
        rows=40,
        columns=52,
        frames=3,
        frame=3,
        sop_instance_uid=OBJECT,
    )
    clip = film(frames=3, SOPClassUID=US_CLIP)
    (image,) = groups(sr_report(classification(dicom=facts), clip))[1].source_images
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == 3
    with pytest.raises(DicomInputError, match="another DICOM object") as caught:
        sr_report(classification(dicom=replace(facts, sop_instance_uid="1.2.3.4")), clip)
    assert OBJECT not in str(caught.value)


def test_the_frames_of_a_clip_that_were_used_are_all_named():
    clip = film(frames=5, SOPClassUID=US_CLIP)
    used = StudyImages(given=3, used=2, left_out=(LeftOut(1, "out_of_distribution", "dark"),))
    result = classification(frames=ClipFrames(numbers=(1, 3, 5), total=5), images=used)
    (image,) = groups(sr_report(result, clip))[1].source_images
    assert list(image.ReferencedSOPSequence[0].ReferencedFrameNumber) == [1, 5]
    assert "Frames 1, 5 of the object." in texts(groups(sr_report(result, clip))[0], "Comment")


def test_an_object_that_is_no_image_is_refused():
    with pytest.raises(DicomInputError, match="so no image"):
        sr_report(classification(), film(Rows=None))


def test_several_images_of_one_study_are_all_evidence():
    second = film(SOPInstanceUID=f"{OBJECT}.2", SeriesInstanceUID=f"{SERIES}.2")
    document = sr_report(classification(), [film(), second])
    assert len(groups(document)[1].source_images) == 2
    series = document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert {item.SeriesInstanceUID for item in series} == {SERIES, f"{SERIES}.2"}
    with pytest.raises(DicomInputError, match="different studies"):
        sr_report(classification(), [film(), film(StudyInstanceUID="1.2.9")])


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1))
def test_every_probability_comes_back(probability):
    result = classification(findings=(Finding("Edema", probability, False),))
    found = groups(sr_report(result, film()))[1].get_measurements()[0]
    assert found.value == pytest.approx(probability, abs=1e-10)
    assert len(str(found[0].MeasuredValueSequence[0].NumericValue)) <= 16


@given(st.text(min_size=1, max_size=200))
def test_every_label_has_one_code_that_dicom_can_hold(label):
    concept = finding_concept("a-task", label)
    assert concept == finding_concept("another-task", label)
    assert concept.scheme == "99UMDEDGE"
    assert 1 <= len(concept.value) <= 16
    assert 1 <= len(concept.meaning) <= 64
    assert "\\" not in concept.meaning
    assert concept.value != finding_concept("a-task", label + "x").value


def test_the_labels_of_the_packaged_bundle_have_public_codes_but_one():
    from umd_edge import Predictor

    tasks = [task for task in Predictor.default().tasks if task.kind == "classification"]
    private = [
        label
        for task in tasks
        for label in task.outputs
        if finding_concept(task.name, label).scheme == "99UMDEDGE"
    ]
    assert private == ["Pleural Thickening"]


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
)
def test_an_object_without_an_identifier_is_refused_by_the_name_of_the_tag(keyword):
    with pytest.raises(DicomInputError, match=keyword) as caught:
        sr_report(classification(), film(**{keyword: None}))
    assert "Secret" not in str(caught.value)
    assert "PID-7" not in str(caught.value)


@pytest.mark.parametrize("value", ["not a uid", "1..2", "1." * 40 + "1"])
def test_a_broken_identifier_is_refused_without_being_shown(value):
    with pytest.raises(DicomInputError, match="StudyInstanceUID") as caught:
        sr_report(classification(), film(StudyInstanceUID=value))
    assert value not in str(caught.value)


@pytest.mark.parametrize(
    "tags",
    [
        {"StudyDate": "31.1.2026", "StudyTime": "noon"},
        {"StudyDate": "20261399", "StudyTime": "256161"},
        {"AccessionNumber": "longer than sixteen characters", "StudyID": "as long as that one"},
    ],
)
def test_what_breaks_the_standard_is_left_empty(tags, tmp_path):
    path = write_sr(classification(), film(**tags), tmp_path / "r.dcm")
    assert dciodvfy_errors(path) == []
    assert not any(pydicom.dcmread(path).get(keyword) for keyword in tags)


@pytest.mark.parametrize("value", ["SECRET" * 20, "SECRET\\ID"])
def test_a_patient_id_that_cannot_be_kept_is_refused_without_being_shown(value):
    with pytest.raises(DicomInputError, match=r"PatientID \(0010,0020\)") as caught:
        sr_report(classification(), film(PatientID=value))
    assert "SECRET" not in str(caught.value)


def test_a_deflated_image_is_referred_to_as_any_other(tmp_path):
    source = film(TransferSyntaxUID=pydicom.uid.DeflatedExplicitVRLittleEndian)
    assert b"ACC-1" not in source
    path = write_sr(classification(), source, tmp_path / "r.dcm")
    assert dciodvfy_errors(path) == []
    assert pydicom.dcmread(path).StudyInstanceUID == STUDY


def test_an_image_without_a_patient_id_has_a_report_all_the_same(tmp_path):
    path = write_sr(classification(), film(PatientID=None), tmp_path / "r.dcm")
    assert dciodvfy_errors(path) == []
    assert not pydicom.dcmread(path).PatientID


def test_names_in_other_scripts_keep_their_patient_id(tmp_path):
    source = film(SpecificCharacterSet="ISO_IR 100", PatientID="Größe-7")
    path = write_sr(classification(), source, tmp_path / "r.dcm")
    assert dciodvfy_errors(path) == []
    read = pydicom.dcmread(path)
    assert (read.PatientID, read.SpecificCharacterSet) == ("Größe-7", "ISO_IR 192")
    assert "SpecificCharacterSet" not in sr_report(classification(), film())


def test_what_is_no_dicom_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DicomInputError, match="no DICOM file"):
        sr_report(classification(), tmp_path / "a.png")
    with pytest.raises(DicomInputError, match="needs the DICOM image"):
        sr_report(classification(), [])
    with pytest.raises(DicomInputError, match=r"1\.\.1 is allowed"):
        sr_report(classification(), film(), frame=2)


def test_no_result_and_results_of_two_bundles_are_refused():
    with pytest.raises(UsageError, match="at least one result"):
        sr_report([], film())
    other = BundleInfo("other", "1.0.0", "0" * 64)
    with pytest.raises(UsageError, match="different bundles"):
        sr_report([classification(), classification(bundle=other)], film())


def test_the_source_is_never_replaced(tmp_path):
    source = tmp_path / "film.dcm"
    before = film(source)
    link = tmp_path / "link.dcm"
    os.link(source, link)
    for path in (source, link, tmp_path / "." / "film.dcm"):
        with pytest.raises(UsageError, match="replace its own source"):
            write_sr(classification(), source, path)
    assert source.read_bytes() == before


def test_a_report_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    target = tmp_path / "r.dcm"
    target.write_bytes(b"older")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_sr(classification(), film(), target)
    assert [item.name for item in tmp_path.iterdir()] == ["r.dcm"]
    assert target.read_bytes() == b"older"


def test_without_highdicom_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    monkeypatch.setitem(sys.modules, "highdicom.sr", None)
    with pytest.raises(MissingDependencyError, match=r"umd-edge\[sr\]"):
        sr_report(classification(), film())


def test_a_repr_shows_no_identifier():
    from umd_edge._evidence import read_evidence

    shown = repr(read_evidence(film(), "the image"))
    assert not any(secret in shown for secret in ("PID-7", "CLINIC", STUDY, OBJECT, "ACC-1"))


def test_every_finding_of_a_large_task_stands_in_the_report():
    findings = tuple(Finding(f"label {k}", k / 100, k % 2 == 0) for k in range(30))
    result = Classification(**COMMON, status="ok", task="many", findings=findings)
    found = groups(sr_report(result, film()))
    assert [group.finding_type.meaning for group in found[1:]] == [f.label for f in findings]
