"""Results as FHIR R4 resources in plain JSON: nothing has to be installed for it.

A Bundle of type `collection` holds a DiagnosticReport, an Observation for each finding or answer,
the Device that spoke (the model) and, for a DICOM image, its ImagingStudy by UID. A result whose
status is not `ok` gives one Observation without a value that says why. Identifiers follow from the
image, the model and the finding, so that a repeat gives the same resources: see `docs/reports.md`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._coded import (
    ABSENT,
    ANSWER,
    PRESENT,
    PROBABILITY,
    QUESTION,
    STATUS,
    Concept,
    answer_concept,
    finding_concept,
)
from ._evidence import Evidence, ImageFile, read_image_bytes
from ._files import write_whole
from ._image import looks_like_dicom
from ._reported import (
    MANUFACTURER,
    NOT_A_DEVICE,
    Reported,
    as_sources,
    checked_results,
    decision_note,
    device_uid,
    read_sources,
    refuse_source,
    set_note,
)
from ._results import BundleInfo, Classification, Finding
from .errors import UsageError

__all__ = ["fhir_report", "write_fhir"]

Resource = dict[str, Any]

_NAMESPACE = uuid.UUID("bcf6201f-3e26-4d51-9c18-5d58409a3a7e")
_DICOM_UID = "urn:dicom:uid"
_URI = "urn:ietf:rfc:3986"
_HL7 = "http://terminology.hl7.org/CodeSystem"
# On the same server, in the same document, or an address of any kind; never free text.
_REFERENCE = re.compile(r"[A-Za-z]+/[A-Za-z0-9.-]{1,64}(/_history/\S+)?|#\S+|[A-Za-z][\w+.-]*:\S+")
_ABSENT_REASONS = {"outside_intended_use": "not-performed"}


def fhir_report(
    results: Reported | Sequence[Reported],
    source: ImageFile | Sequence[ImageFile] | None = None,
    *,
    frame: int | None = None,
    subject: str | None = None,
) -> Resource:
    """A FHIR R4 Bundle of what came out for an image.

    Args:
        results: Classifications, answers, or both, all of one bundle and about the same image.
        source: The image as a path or bytes: of a DICOM object the study, series and object are
            named and its PatientID becomes the subject's identifier; any other one counts in the
            identifiers of the resources alone. Several where the results are about several images
            together. Without one the identifiers are random.
        frame: The frame that was looked at, from 1; None means what the results say.
        subject: Reference to the patient on your server, such as `Patient/123`.

    Returns:
        The JSON object.

    Raises:
        UsageError: No result, results of different bundles, or a subject that is no
            reference.
        DicomInputError: A DICOM source lacks the identifiers of its study, or is not the one that
            the results are about.

    Source: HL7 FHIR R4 (4.0.1): Bundle, DiagnosticReport, Observation, Device, ImagingStudy.
    """
    listed = checked_results(results)
    if subject is not None and not _REFERENCE.fullmatch(subject):
        raise UsageError(
            "the subject is no FHIR reference; give one such as Patient/123 or an address, which a "
            "name is not, or leave it"
        )
    images = [read_image_bytes(item) for item in as_sources(source)]
    evidence = read_sources(listed, [data for data in images if looks_like_dicom(data)], frame)
    return _Writer(listed, evidence, _image_key(images, evidence), subject).bundle()


def write_fhir(
    results: Reported | Sequence[Reported],
    source: ImageFile | Sequence[ImageFile] | None,
    path: str | os.PathLike[str],
    *,
    frame: int | None = None,
    subject: str | None = None,
) -> Path:
    """Write `fhir_report` to a file, whole or not at all.

    Args:
        results: As in `fhir_report`.
        source: As in `fhir_report`.
        path: The file to write; an older one is replaced, a source never.
        frame: As in `fhir_report`.
        subject: As in `fhir_report`.

    Returns:
        The path.

    Raises:
        UsageError: The path is that of a source, or as in `fhir_report`.
        OSError: The file cannot be written.
    """
    refuse_source(path, as_sources(source))
    report = fhir_report(results, source, frame=frame, subject=subject)
    text = json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1)
    write_whole(path, (text + "\n").encode("utf-8"))
    return Path(path)


def _image_key(images: Sequence[bytes], evidence: Sequence[Evidence]) -> str:
    """What the identifiers are derived from: the same image gives the same ones."""
    if not images:
        return uuid.uuid4().hex
    if len(evidence) == len(images):
        return ",".join(
            f"{item.sop_uid}#{'+'.join(map(str, item.frames)) or 0}" for item in evidence
        )
    return ",".join(hashlib.sha256(data).hexdigest() for data in images)


def _coding(concept: Concept) -> Resource:
    return {"system": concept.system, "code": concept.value, "display": concept.meaning}


def _codeable(concept: Concept, text: str = "") -> Resource:
    words = " ".join(text.split())
    return {"coding": [_coding(concept)]} | ({"text": words} if words else {})


def _hl7(system: str, code: str) -> Resource:
    return {"coding": [{"system": f"{_HL7}/{system}", "code": code}]}


def _day(value: str) -> str:
    """`YYYY-MM-DD` of a DICOM date, which is a day or empty."""
    return f"{value[:4]}-{value[4:6]}-{value[6:]}" if value else ""


class _Writer:
    """Makes the resources of one report, with the references between them."""

    def __init__(
        self,
        results: Sequence[Reported],
        evidence: Sequence[Evidence],
        image_key: str,
        subject: str | None,
    ) -> None:
        self._results = results
        self._evidence = evidence
        self._key = f"{results[0].bundle.sha256}|{results[0].variant}|{image_key}"
        self._subject = self._subject_of(subject)
        self._device = _device(results[0].bundle)
        self._studies = self._imaging_studies()

    def bundle(self) -> Resource:
        made = [item for result in self._results for item in self._observations(result)]
        observations = list({item["id"]: item for item in made}.values())  # a question asked twice
        report = self._report(observations)
        resources = [report, *observations, self._device, *self._studies]
        return {
            "resourceType": "Bundle",
            "id": self._id("bundle"),
            "type": "collection",
            "entry": [
                {"fullUrl": f"urn:uuid:{item['id']}", "resource": item} for item in resources
            ],
        }

    def _id(self, *parts: str) -> str:
        tasks = "|".join(_task(result) for result in self._results)
        return str(uuid.uuid5(_NAMESPACE, "|".join((self._key, tasks, *parts))))

    def _subject_of(self, given: str | None) -> Resource:
        if given is not None:
            return {"reference": given.strip()}
        known = next((item for item in self._evidence if item.patient_id), None)
        if known is None:
            return {}
        identifier: Resource = {"value": known.patient_id}
        if known.issuer_of_patient_id:
            identifier["assigner"] = {"display": known.issuer_of_patient_id}
        return {"type": "Patient", "identifier": identifier}

    def _imaging_studies(self) -> list[Resource]:
        studies: dict[str, Resource] = {}
        for item in self._evidence:
            study = studies.setdefault(item.study_uid, self._imaging_study(item))
            instance = {
                "uid": item.sop_uid,
                "sopClass": {
                    "system": "urn:ietf:rfc:3986",
                    "code": f"urn:oid:{item.sop_class_uid}",
                },
            }
            for series in study["series"]:
                if series["uid"] == item.series_uid:
                    series["instance"].append(instance)
                    break
            else:
                modality = {"system": "http://dicom.nema.org/resources/ontology/DCM"}
                study["series"].append(
                    {
                        "uid": item.series_uid,
                        "modality": modality | {"code": item.modality or "OT"},
                        "instance": [instance],
                    }
                )
        return list(studies.values())

    def _imaging_study(self, item: Evidence) -> Resource:
        identifiers: list[Resource] = [{"system": _DICOM_UID, "value": f"urn:oid:{item.study_uid}"}]
        if item.accession_number:
            identifiers.append({"type": _hl7("v2-0203", "ACSN"), "value": item.accession_number})
        unknown = {
            "extension": [
                {
                    "url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
                    "valueCode": "unknown",
                }
            ]
        }
        study: Resource = {
            "resourceType": "ImagingStudy",
            "id": str(uuid.uuid5(_NAMESPACE, f"study|{item.study_uid}")),
            "identifier": identifiers,
            "status": "available",
            "subject": self._subject or unknown,
            "series": [],
        }
        if _day(item.study_date):
            study["started"] = _day(item.study_date)
        return study

    def _report(self, observations: Sequence[Resource]) -> Resource:
        return {
            "resourceType": "DiagnosticReport",
            "id": self._id("report"),
            "status": "preliminary",
            "category": [_hl7("v2-0074", "RAD")],
            "code": _codeable(Concept("18748-4", "LN", "Diagnostic imaging study")),
            **self._context(),
            "result": [{"reference": f"urn:uuid:{item['id']}"} for item in observations],
            **({"imagingStudy": self._study_references()} if self._studies else {}),
            "conclusion": " ".join([*map(_sentence, self._results), NOT_A_DEVICE]),
        }

    def _context(self) -> Resource:
        """Subject and date, where they are known."""
        context: Resource = {"subject": self._subject} if self._subject else {}
        day = _day(self._evidence[0].study_date) if self._evidence else ""
        return context | ({"effectiveDateTime": day} if day else {})

    def _study_references(self) -> list[Resource]:
        return [
            {
                "reference": f"urn:uuid:{study['id']}",
                "type": "ImagingStudy",
                "identifier": study["identifier"][0],
            }
            for study in self._studies
        ]

    def _observations(self, result: Reported) -> list[Resource]:
        if result.status != "ok":
            return [self._without_value(result)]
        if isinstance(result, Classification):
            return [self._finding(result, finding) for finding in result.findings]
        value = {
            "code": _codeable(QUESTION, result.question),
            "valueCodeableConcept": _codeable(answer_concept(result.answer), result.answer),
            "component": [_probability(result.probability)],
        }
        return [self._observation(result, value, ANSWER.value)]

    def _finding(self, result: Classification, finding: Finding) -> Resource:
        value = {
            "code": _codeable(finding_concept(result.task, finding.label), finding.label),
            "valueCodeableConcept": _codeable(PRESENT if finding.positive else ABSENT),
            "interpretation": [
                _hl7("v3-ObservationInterpretation", "POS" if finding.positive else "NEG")
            ],
            "component": [_probability(finding.probability)],
        }
        return self._observation(result, value, finding.label, decision_note(finding))

    def _without_value(self, result: Reported) -> Resource:
        reason = _hl7("data-absent-reason", _ABSENT_REASONS.get(result.status, "unknown"))
        reason["text"] = f"{result.status}: {result.reason}" if result.reason else result.status
        value = {"code": _codeable(STATUS, _task(result)), "dataAbsentReason": reason}
        return self._observation(result, value, STATUS.value)

    def _observation(
        self, result: Reported, value: Resource, name: str, remark: str = ""
    ) -> Resource:
        frames = [item.frame_note for item in self._evidence]
        notes = [text for text in (remark, *frames, NOT_A_DEVICE) if text]
        return {
            "resourceType": "Observation",
            "id": self._id(_task(result), name),
            "status": "preliminary",
            "category": [_hl7("observation-category", "imaging")],
            **self._context(),
            **value,
            "method": {"text": f"variant {result.variant} on {result.provider}"},
            "device": {"reference": f"urn:uuid:{self._device['id']}"},
            **({"derivedFrom": self._study_references()} if self._studies else {}),
            "note": [{"text": text} for text in notes],
        }


def _task(result: Reported) -> str:
    """What was asked of the model: the task's name, or the question."""
    return result.task if isinstance(result, Classification) else result.question


def _probability(value: float) -> Resource:
    quantity = {"value": round(float(value), 10), "unit": "1"}
    quantity |= {"system": "http://unitsofmeasure.org", "code": "1"}
    return {"code": _codeable(PROBABILITY), "valueQuantity": quantity}


def _sentence(result: Reported) -> str:
    """One sentence for people."""
    if result.status != "ok":
        reason = f": {result.reason}" if result.reason else ""
        return f"{_task(result)}: no result ({result.status}{reason})."
    if not isinstance(result, Classification):
        answer = f"{_task(result)} {result.answer} ({result.probability:.2f})."
        return f"{answer} {set_note(result)}".strip()
    found = [f"{item.label} ({item.probability:.2f})" for item in result.findings if item.positive]
    positive = f"{result.task}: {', '.join(found) or 'nothing above its operating point'}."
    return f"{positive} {set_note(result)}".strip()


def _device(bundle: BundleInfo) -> Resource:
    from . import __version__

    uid = device_uid(bundle)
    return {
        "resourceType": "Device",
        "id": str(uuid.uuid5(_NAMESPACE, f"device|{bundle.sha256}|{__version__}")),
        "identifier": [{"system": _DICOM_UID, "value": f"urn:oid:{uid}"}],
        "status": "active",
        "manufacturer": MANUFACTURER,
        "serialNumber": bundle.sha256,
        "deviceName": [{"name": bundle.name, "type": "model-name"}],
        "version": [
            {"type": {"text": "model"}, "value": bundle.version},
            {"type": {"text": "umd-edge"}, "value": __version__},
        ],
        "note": [{"text": NOT_A_DEVICE}],
    }
